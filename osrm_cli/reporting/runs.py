"""All results in one table: what was scored by which arm, with every seed's scores."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import ScoreFile
from osrm_cli.evaluation.scores import ScoredMerge, TaskScores, average
from osrm_cli.merging.methods import METHODS
from osrm_cli.reporting import arms as arms_of
from osrm_cli.reporting.arms import Arm

_ORDER = {row.name: place for place, row in enumerate(METHODS)}
_SAME = 1e-6  # two files that tell the same score twice
_ROUNDED = 2.0  # below float32 an answer or two may flip with the batches that a sweep makes


@dataclass(frozen=True)
class Kind:
    """What was scored.

    Attributes:
        method: The merging method; empty for single adapters.
        options: Its options, in words; empty where they are the same in all files, or were chosen by a sweep.
        calibrated: Whether the heads are calibrated.
        chosen: Whether its options were chosen on validation.
    """

    method: str
    options: str = ""
    calibrated: bool = False
    chosen: bool = False

    @property
    def label(self) -> str:
        """Its name in the report."""
        more = [self.options, "calibrated" if self.calibrated else ""]
        return ", ".join([self.method or "single", *filter(None, more)])


@dataclass(frozen=True)
class Run:
    """One repetition's scores.

    Attributes:
        seed: The adapters' seed.
        tasks: Score of each task.
        options: Of the merge, seed apart.
        validation: Average that the options were chosen by, if they were.
        file: Which file tells it.
    """

    seed: str
    tasks: TaskScores
    options: Mapping[str, Any]
    validation: float | None
    file: str

    @property
    def average(self) -> float:
        """Over the tasks."""
        return average(self.tasks)


@dataclass(frozen=True)
class Study:
    """Everything the report tells.

    Attributes:
        files: The files, in the order of their names.
        arms: In the report's order.
        arm_of: Index of a file's arm, by its name.
        tasks: The tasks of the tables: those of the files that score and merge the most.
        merged: The tasks that these files merge.
        kinds: Rows of the tables: singles first, then methods in the order of ``osrm merge --list``.
        cells: By kind and arm: each seed's run.
        labels: By task: the truth, where a file gives it.
    """

    files: tuple[ScoreFile, ...]
    arms: tuple[Arm, ...]
    arm_of: Mapping[str, int]
    tasks: tuple[str, ...]
    merged: tuple[str, ...]
    kinds: tuple[Kind, ...]
    cells: Mapping[tuple[Kind, int], Mapping[str, Run]]
    labels: Mapping[str, tuple[float, ...]]

    @property
    def merging(self) -> tuple[Kind, ...]:
        """The kinds that merge."""
        return tuple(kind for kind in self.kinds if kind.method)

    def of(self, kind: Kind, arm: int) -> Mapping[str, Run]:
        """Each seed's run; empty where there is none."""
        return self.cells.get((kind, arm), {})

    def all_tasks(self, file: ScoreFile) -> bool:
        """Whether a file merges what the tables are about."""
        return file.scope == (self.tasks, self.merged)


def study(files: Sequence[ScoreFile]) -> Study:
    """Sort files into arms, kinds and seeds.

    Raises:
        OsrmError: If two files tell the same thing differently.
    """
    arms, arm_of = arms_of.group(files)
    scopes = Counter(file.scope for file in files)
    main = min(scopes, key=lambda scope: (*(-len(names) for names in scope), -scopes[scope], scope))
    same = _SAME if all(file.dtype == "float32" for file in files) else _ROUNDED
    cells: dict[tuple[Kind, int], dict[str, Run]] = {}
    for file in files:
        if file.scope == main:
            for kind, seed, run in runs(file, files):
                _add(cells.setdefault((kind, arm_of[file.name]), {}), seed, run, kind, same)
    kinds = sorted({kind for kind, _ in cells}, key=_order)
    labels = {
        task: score.labels
        for file in files
        for scores in (file.single, *(merge.test for merge in file.merges))
        for task, score in scores.items()
        if score.labels
    }
    return Study(tuple(files), arms, arm_of, *main, tuple(kinds), cells, labels)


def merge_seed(seed: str, merge: ScoredMerge) -> str:
    """The repetition that a merge is: its adapters' seed, and its own where its method draws."""
    own = merge.options.get("seed")
    return seed if own is None or str(own) == seed else f"{seed}, merge {own}"


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without the seed and without what was not given."""
    return {name: value for name, value in sorted(options.items()) if name != "seed" and value is not None}


def runs(file: ScoreFile, files: Sequence[ScoreFile]) -> Iterator[tuple[Kind, str, Run]]:
    """What a file tells: kind, repetition and scores; of a sweep only what it chose."""
    seed = arms_of.seeds(file)
    if set(file.single) == set(file.scope[0]):
        yield Kind(""), seed, Run(seed, file.single, {}, None, file.name)
    for merge in file.merges:
        if not merge.validation:
            kind = Kind(merge.method, told(merge, files), merge.calibrated)
        elif merge.chosen:
            fixed = any(not m.validation and m.method == merge.method for other in files for m in other.merges)
            kind = Kind(merge.method, "chosen on validation" if fixed else "", merge.calibrated, True)
        else:
            continue
        chosen_by = average(merge.validation) if merge.validation else None
        yield kind, merge_seed(seed, merge), Run(seed, merge.test, plain(merge.options), chosen_by, file.name)


def told(merge: ScoredMerge, files: Sequence[ScoreFile]) -> str:
    """The options that are not the same in all scores files of this method."""
    peers = [m for file in files for m in file.merges if m.method == merge.method and not m.validation]
    return words(
        {
            name: value
            for name, value in plain(merge.options).items()
            if any(peer.options.get(name) != value for peer in peers)
        }
    )


def words(options: Mapping[str, Any]) -> str:
    """Options for people: ``lambda 0.3, density 0.2``."""
    first = sorted(options, key=lambda name: (name != "lambda", name))
    return ", ".join(f"{name} {arms_of.text(options[name])}" for name in first)


def _add(cell: dict[str, Run], seed: str, run: Run, kind: Kind, same: float) -> None:
    known = cell.setdefault(seed, run)
    if known is run:
        return
    for task in run.tasks:
        one, other = known.tasks[task], run.tasks[task]
        if abs(one.headline - other.headline) > same:
            raise OsrmError(
                f"{known.file} and {run.file} differ on '{task}' ({kind.label}): "
                f"{one.headline:.2f} and {other.headline:.2f}, with the same settings and seed",
                "leave one out, or train from starts of osrm init: their settings tell adapters apart",
            )
        if not one.predictions and other.predictions:
            cell[seed] = run


def _order(kind: Kind) -> tuple[Any, ...]:
    place = _ORDER.get(kind.method, len(_ORDER)) if kind.method else -1
    numbers = [float(word) if word.replace(".", "", 1).isdigit() else 0.0 for word in kind.options.split(" ")]
    return place, kind.method, kind.calibrated, kind.chosen, numbers, kind.options
