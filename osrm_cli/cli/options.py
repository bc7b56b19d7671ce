"""Options that several commands share."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

import typer


class Row(Protocol):
    """A row of one of the program's tables."""

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def summary(self) -> str:
        """One line of description."""


def shell_completer(rows: Sequence[Row]) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion from a table: every name that begins as typed, with its summary."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(row.name, row.summary) for row in rows if row.name.startswith(incomplete)]

    return complete


def task_source(data: str | None, split_dev: float | None) -> str | None:
    """The values of ``--data`` and ``--split-dev`` as one source of tasks; ``None`` for the recorded one.

    Raises:
        OsrmError: If the share is none or all, or the source names another.
    """
    if split_dev is None:
        return data
    from osrm_cli.tasks.loading import task_source_with_dev_share

    return task_source_with_dev_share(data, split_dev)


class Device(StrEnum):
    """Device of the computation; ``auto`` prefers CUDA, then Apple's MPS, then the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class DType(StrEnum):
    """Floating-point type of the model's weights; ``auto`` is bfloat16 on a GPU that has it, else float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Pooling(StrEnum):
    """Positions of a batch that count as text: tokens only, or padding too."""

    MASKED = "masked"
    PADDED = "padded"


class Tokens(StrEnum):
    """Tokens of a text task that count: all, or those of the prompt or of the completion alone."""

    ALL = "all"
    PROMPT = "prompt"
    COMPLETION = "completion"


class Freeze(StrEnum):
    """The factor that is not trained."""

    A = "A"
    B = "B"


class HeadInit(StrEnum):
    """Initialization of a new head: random, or fitted to the untrained model's representations."""

    FITTED = "fitted"
    FRESH = "fresh"


class PenaltyUnit(StrEnum):
    """Reference energy of the interference: the base model's, or the update's own."""

    BASE = "base"
    OWN = "own"


class Quantize(StrEnum):
    """Precision in which a base model's layers are held."""

    FOUR_BITS = "4bit"


class OutputFormat(StrEnum):
    """Form of a merge: an adapter, or a whole model."""

    ADAPTER = "adapter"
    MODEL = "model"


class Aggregate(StrEnum):
    """Combination of the entries whose sign is the elected one."""

    MEAN = "mean"
    SUM = "sum"


class Start(StrEnum):
    """The method whose result distillation begins with."""

    TASK_ARITH = "task-arith"
    TSV = "tsv"
    TIES = "ties"
    SEQUENTIAL = "sequential"


class Completions(StrEnum):
    """Completions of text tasks that a merge reads."""

    OWN = "own"
    GIVEN = "given"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="OSRM_MODEL",
        help="Base model: a folder, a hub id, 'minilm' (all-MiniLM-L6-v2) or 'smollm2' (SmolLM2-135M-Instruct).",
    ),
]
# Artifacts record their base model: the option is needed only if it has moved.
RecordedModel = Annotated[
    str | None,
    typer.Option(
        "--model", envvar="OSRM_MODEL", help="Base model, if it is not where it was recorded.", show_default=False
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", envvar="OSRM_REVISION", help="Commit, tag or branch of a hub model.", show_default=False
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        envvar="OSRM_DATA",
        help="'hub' (GLUE through datasets), 'mini' or 'mini-text' (generated), or a folder of tasks.",
    ),
]
RecordedData = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar="OSRM_DATA",
        help="'hub', 'mini', 'mini-text' or a folder of tasks; by default the recorded data.",
        show_default=False,
    ),
]
SplitDev = Annotated[
    float | None,
    typer.Option(
        "--split-dev", help="Share of train that is dev, for data without a dev split; later commands follow it."
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length", min=2, help="Maximum tokens per example. Default: the task's, else 128, 512 for text."
    ),
]
SkipLong = Annotated[
    bool,
    typer.Option("--skip-long", help="Leave out text rows whose completion exceeds --max-length: no error."),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=65_536, help="Maximum examples per batch (fewer for long texts).")
]
TargetModules = Annotated[
    list[str] | None,
    typer.Option("--target-modules", help="Layers to adapt; repeat for more, or 'all-linear'. Default: PEFT's choice."),
]
Seed = Annotated[
    int, typer.Option("--seed", envvar="OSRM_SEED", min=0, max=2**32 - 1, help="Seed of every random choice.")
]
DeviceOption = Annotated[Device, typer.Option("--device", envvar="OSRM_DEVICE", help="Device to compute on.")]
DTypeOption = Annotated[DType, typer.Option("--dtype", envvar="OSRM_DTYPE", help="Precision of the model.")]
FeaturesFolder = Annotated[Path, typer.Option("--features", help="Folder of features files.")]
TaskOf = Annotated[
    list[str] | None,
    typer.Option(
        "--task", metavar="TASK=ADAPTER", help="Task of an adapter that is not named after it; repeat for more."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print what would be done; write nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress.")]


def given_on_command_line(context: typer.Context, parameter: str) -> bool:
    """Whether an option was given on the command line, not in the environment or osrm.toml."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
