"""The folder of an unfinished run: its checkpoints and its record."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict

from osrm_cli.adapters.layers import WEIGHTS_NAME
from osrm_cli.errors import OsrmError
from osrm_cli.storage import atomic, provenance, records
from osrm_cli.storage.input_files import check_input_folder, list_safetensors_headers, read_json

RESUME_HINT = "start over with --overwrite"


def prepare_checkpoint_folder(folder: Path, record: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder for checkpoints, or check that an existing one belongs to the same run.

    Raises:
        OsrmError: If there is an unfinished run that is not to be resumed, or has different settings.
    """
    if folder.exists() and not (resume or overwrite):
        raise OsrmError(
            f"{folder} contains an unfinished run", "continue it with --resume, or start over with --overwrite"
        )
    if folder.exists() and resume:
        recorded = records.read_record(folder)
        if recorded != record:
            name = next(key for key in sorted(record) if recorded.get(key) != record[key])
            raise OsrmError(
                f"{folder} contains an unfinished run with different {name}",
                "give the same options, or start over with --overwrite",
            )
        return
    with atomic.write_folder(folder, overwrite=True) as stage:
        provenance.write_record(stage, record)


def newest_training_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of an unfinished run; an incomplete one lacks the file that is written last."""
    steps = {path: path.name.partition("-")[2] for path in folder.glob("checkpoint-*")}
    checkpoints = sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: -int(steps[path]))
    return next((path for path in checkpoints if _is_trainer_state_complete(path / "trainer_state.json")), None)


def _is_trainer_state_complete(path: Path) -> bool:
    try:
        state = read_json(path, RESUME_HINT)
    except OsrmError:
        return False
    return isinstance(state, dict) and _is_training_log(state.get("log_history"))


def _is_training_log(rows: Any) -> bool:
    """Whether rows are what a run logs: numbers by name."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values()) for row in rows
    )


def check_training_checkpoint(checkpoint: Path, model: PeftModel) -> None:
    """Check that a checkpoint holds regular files, and every weight that is trained.

    Raises:
        OsrmError: If a file is damaged, or a weight is missing or has another shape.
    """
    check_input_folder(checkpoint)
    stored = {name: each.shape for name, each in list_safetensors_headers([checkpoint / WEIGHTS_NAME]).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    if stored != expected:
        odd = min(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
        raise OsrmError(
            f"{checkpoint / WEIGHTS_NAME}: {odd} has shape {stored.get(odd)}, expected {expected.get(odd)}", RESUME_HINT
        )
