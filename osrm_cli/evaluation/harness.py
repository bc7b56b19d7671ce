"""EleutherAI's lm-evaluation-harness on a merged folder or an adapter: its own tasks, prompts and metrics."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError, first_line


def check_harness() -> None:
    """Check that the harness is installed.

    Raises:
        OsrmError: If not.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise OsrmError("--harness needs lm-evaluation-harness", "pip install 'osrm-cli[harness]'") from None


def run_harness(
    tasks: Sequence[str],
    folder: Path,
    base_dir: Path,
    form: str,
    *,
    own_tasks: Path | None,
    device: str,
    dtype: str,
    batch_size: int,
    limit: int | None,
) -> dict[str, dict[str, float]]:
    """Let the harness score a folder.

    Args:
        tasks: Names of its tasks.
        folder: A merged folder, or an adapter.
        base_dir: The base model of an adapter.
        form: ``adapter``, or ``model`` where the folder is a whole model.
        own_tasks: Folder of further tasks in the harness's YAML.
        device: Device of the computation.
        dtype: Precision of the model.
        batch_size: Examples per batch.
        limit: Examples per task, the first ones; ``None`` for all.

    Returns:
        By task, its metrics as the harness names them, such as ``acc`` and ``acc_stderr``.

    Raises:
        OsrmError: If a task is unknown, or its data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments: dict[str, Any] = {"pretrained": str(base_dir if form == "adapter" else folder), "dtype": dtype}
    if form == "adapter":
        arguments["peft"] = str(folder)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(own_tasks) if own_tasks else None)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise OsrmError(
            f"lm-evaluation-harness has no task '{unknown[0]}'",
            "lm-eval ls tasks lists them; --harness-path gives a folder of your own",
        )
    try:
        results = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=list(tasks),
            task_manager=manager,
            batch_size=batch_size,
            device=device,
            limit=limit,
            verbosity="ERROR",
        )
    except (OSError, ConnectionError, FileNotFoundError) as error:
        raise OsrmError(
            f"lm-evaluation-harness cannot load its data: {first_line(error)}",
            "go online once, or set HF_HOME to a filled cache",
        ) from None
    return {task: _harness_metrics(row) for task, row in results["results"].items()}


def _harness_metrics(row: dict[str, Any]) -> dict[str, float]:
    """The metrics without the name of their filter, where there is one filter."""
    values = {name: value for name, value in row.items() if isinstance(value, int | float)}
    short = {name: name.removesuffix(",none") for name in values}
    return {short[name]: float(value) for name, value in sorted(values.items())}
