"""``osrm demo``: the whole pipeline on generated tasks, for plain LoRA and for OSRM."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from osrm_cli.cli import options
from osrm_cli.cli.console import Console, table
from osrm_cli.errors import OsrmError

# The two initializations to compare: folder name and objective.
_VARIANTS = {"lora": "kaiming", "osrm": "gevd"}


@dataclass(frozen=True)
class _Setting:
    """One of the demo's settings.

    Attributes:
        data: The generated tasks.
        model: The base model.
        scale: Scale of the merged update.
        collect: Options of ``osrm collect``.
        train: Options of ``osrm train``.
        evaluate: Options of ``osrm eval``.
    """

    data: str
    model: str
    scale: float
    collect: str
    train: str
    evaluate: str = ""


_CLASSES = _Setting("mini", "minilm", 0.3, "", "--epochs 3 --lr 2e-3")
_TEXT = _Setting(
    "mini-text",
    "smollm2",
    0.5,
    "--samples 32 ",
    "--limit 128 --epochs 1 --lr 3e-3 --batch-size 8 --dev-limit 8",
    " --limit 16",
)


def demo(
    text: Annotated[
        bool, typer.Option("--text", help="Four tasks that are answered with text, on SmolLM2-135M.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", envvar="OSRM_MODEL", help="Base model. Default: minilm; smollm2 for text.", show_default=False
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--lambda", help="Scale of the merged update. Default: 0.3; 0.5 for text.", show_default=False),
    ] = None,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to work in; it is kept.")] = Path(
        "osrm-demo"
    ),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare plain LoRA with OSRM on small generated tasks.

    Example: osrm demo
    """
    import shutil

    from osrm_cli.storage.atomic import refuse_existing

    console = Console(json, quiet)
    refuse_existing(out, overwrite)
    if overwrite and out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    setting = _TEXT if text else _CLASSES
    setting = replace(setting, model=model or setting.model, scale=setting.scale if scale is None else scale)
    for commands in _demo_stages(setting, seed):
        _run_demo_commands(commands, out, console)
    records = {arm: _read_demo_scores(out / "merged" / arm) for arm in _VARIANTS}
    _draw_demo_chart(records, out / "demo.png")
    console.note(f"All files are in {out}/; the plot is {out}/demo.png.")
    console.result({"folder": str(out), "arms": records}, _make_demo_table(records))


def _demo_stages(setting: _Setting, seed: int) -> list[list[str]]:
    """The pipeline as a user would type it in the demo's folder; commands of one stage are independent."""
    seed_option = f"--seed {seed}"
    base, scale = shlex.quote(setting.model), setting.scale
    return [
        [f"osrm collect --data {setting.data} --model {base} {setting.collect}{seed_option}"],
        [
            f"osrm init --each --objective {objective} --out starts/{arm} {seed_option}"
            for arm, objective in _VARIANTS.items()
        ],
        [f"osrm train starts/{arm}/* {setting.train} --out adapters/{arm} {seed_option}" for arm in _VARIANTS],
        [f"osrm merge adapters/{arm}/* --method task-arith --lambda {scale:g} --out merged/{arm}" for arm in _VARIANTS],
        [f"osrm eval merged/{arm}{setting.evaluate}" for arm in _VARIANTS],
    ]


def _run_demo_commands(commands: Sequence[str], folder: Path, console: Console) -> None:
    """Run commands in parallel, each in its own process, as a shell in ``folder`` would.

    Only the first shows its progress: two bars on one line would overwrite each other. The cores are divided among the
    processes, since oversubscribed threads are slower than one.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("OSRM_") or name == "OSRM_CACHE"
    }
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(commands)))
    running = []
    for index, command in enumerate(commands):
        console.note(f"$ {command}")
        arguments = [path for word in shlex.split(command)[1:] for path in _expand_command_word(word, folder)]
        quiet = ["--quiet"] if index or console.quiet else []
        running.append(
            subprocess.Popen(  # noqa: S603 - this program with its own arguments
                [sys.executable, "-m", "osrm_cli", *arguments, *quiet],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for command, process in zip(commands, running, strict=True):
            output, _ = process.communicate()
            console.note(output.rstrip())
            if process.returncode:
                message = f"'{command}' ended with exit code {process.returncode}"
                raise OsrmError(message, f"its output is above; its files are in {folder}")
    finally:
        for process in running:
            process.terminate()


def _expand_command_word(word: str, folder: Path) -> Sequence[str]:
    if not word.endswith("/*"):
        return [word]
    return sorted(str(path.relative_to(folder)) for path in (folder / word[:-2]).glob("[!.]*"))


def _read_demo_scores(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return record


def _make_demo_table(records: dict[str, Any]) -> Any:
    columns = [f"{name} {kind}" for name in ("LoRA", "OSRM") for kind in ("single", "merged")]
    rows = table("task", *columns, title="Generated tasks, headline score (dev)")
    for task in next(iter(records.values()))["tasks"]:
        cells = (row["tasks"][task] for row in records.values())
        rows.add_row(task, *(f"{value:.1f}" for row in cells for value in (row["single"], row["headline"])))
    averages = (row["average"] for row in records.values())
    rows.add_section()
    rows.add_row("average", *(f"{value:.1f}" for row in averages for value in (row["single"], row["headline"])))
    return rows


def _draw_demo_chart(records: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    tasks = list(records["lora"]["tasks"])
    series = {
        "single LoRA": ("lora", "single", "lightgray"),
        "merged LoRA": ("lora", "headline", "tab:blue"),
        "merged OSRM": ("osrm", "headline", "tab:orange"),
    }
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for index, (label, (arm, key, color)) in enumerate(series.items()):
        values = [records[arm]["tasks"][task][key] for task in tasks] + [records[arm]["average"][key]]
        axes.bar([x + 0.27 * (index - 1) for x in range(len(values))], values, width=0.25, label=label, color=color)
    axes.set_xticks(range(len(tasks) + 1), [*tasks, "average"], rotation=30, ha="right")
    axes.set(ylabel="score, %", title="One merged model for all generated tasks")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
