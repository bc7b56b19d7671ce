"""One table of runs: every merge that was scored, with its arm, its repetition and what it is compared with."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import ScoreFile
from osrm_cli.evaluation.scores import ScoredMerge, TaskScores, average
from osrm_cli.merging.methods import METHODS
from osrm_cli.reporting.arms import ArmTable, format_arm_value

_ORDER = {row.name: place for place, row in enumerate(METHODS)}
_SAME = 1e-6  # two files that give the same score twice
_ROUNDED = 2.0  # below float32 an answer or two may flip with the batches that a sweep makes


@dataclass(frozen=True)
class ScoreKind:
    """What was scored.

    Attributes:
        method: The merging method; empty for single adapters.
        options: Its options, in words; empty where they are the same in all files, or were chosen by a sweep.
        calibrated: Whether the heads are calibrated.
        chosen: Whether its options were chosen on validation.
        label: Its name in the report.
    """

    method: str
    options: str
    calibrated: bool
    chosen: bool
    label: str


@dataclass(frozen=True)
class Run:
    """One scored merge, or one scoring of single adapters.

    Attributes:
        kind: What was scored; none for the points of a sweep that were not chosen.
        arm: Index of the arm.
        seed: Of the adapters.
        repetition: That seed, and the merge's own where its method draws.
        tasks: Score of each task.
        average: Of the tasks' primary scores.
        scale: The merge's lambda, if it has one.
        options: Of the merge, seed apart, in words.
        validation: Average that the options were chosen by, if they were.
        file: Which file holds it.
        merged_tasks: Number of tasks that were merged.
        in_tables: Whether it is of the tasks that the tables are about.
        single: Scores of the single adapters beside it.
        curve: The curve over lambda that it is a point of, by name; none where there is no lambda.
    """

    kind: ScoreKind | None
    arm: int
    seed: str
    repetition: str
    tasks: TaskScores
    average: float
    scale: float | None
    options: str
    validation: float | None
    file: str
    merged_tasks: int
    in_tables: bool
    single: TaskScores
    curve: str | None


@dataclass(frozen=True)
class RunTable:
    """Everything that a report is about.

    Attributes:
        files: The files, in the order of their names.
        main_files: Those that score and merge the most tasks: the tables are about these.
        tasks: The tasks of the tables.
        arms: The arms of the files.
        runs: Every run, file after file.
        kinds: Rows of the tables: singles first, then methods in the order of ``osrm merge --list``.
        cells: By kind and arm: each repetition's run.
        labels: By task: the truth, where a file has it.
    """

    files: tuple[ScoreFile, ...]
    main_files: tuple[ScoreFile, ...]
    tasks: tuple[str, ...]
    arms: ArmTable
    runs: tuple[Run, ...]
    kinds: tuple[ScoreKind, ...]
    cells: Mapping[tuple[ScoreKind, int], Mapping[str, Run]]
    labels: Mapping[str, tuple[float, ...]]


def tabulate_runs(files: Sequence[ScoreFile], arms: ArmTable) -> RunTable:
    """Put the scores of all files into one table.

    Raises:
        OsrmError: If two files hold different scores of the same thing.
    """
    scope_of = {file.name: _task_scope(file) for file in files}
    scopes = Counter(scope_of.values())
    main = min(scopes, key=lambda scope: (*(-len(names) for names in scope), -scopes[scope], scope))
    fixed: dict[str, list[ScoredMerge]] = {}  # by method: merges whose options were not chosen by a sweep
    for file in files:
        for merge in file.merges:
            if not merge.validation:
                fixed.setdefault(merge.method, []).append(merge)
    runs = [run for file in files for run in _iter_file_runs(file, arms, scope_of[file.name] == main, fixed)]
    same = _SAME if all(file.dtype == "float32" for file in files) else _ROUNDED
    cells: dict[tuple[ScoreKind, int], dict[str, Run]] = {}
    for run in runs:
        if run.kind and run.in_tables:
            _add_run_to_table(cells.setdefault((run.kind, run.arm), {}), run, run.kind, same)
    labels = {task: score.labels for run in runs for task, score in run.tasks.items() if score.labels}
    main_files = tuple(file for file in files if scope_of[file.name] == main)
    kinds = sorted({kind for kind, _ in cells}, key=_score_kind_order)
    return RunTable(tuple(files), main_files, main[0], arms, tuple(runs), tuple(kinds), cells, labels)


def _task_scope(file: ScoreFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks that were scored, and those that were merged: more, where only some were scored."""
    scored = set(file.single).union(*(merge.test for merge in file.merges))
    return tuple(sorted(scored)), tuple(sorted(file.adapters))


def _make_score_kind(method: str, options: str = "", calibrated: bool = False, chosen: bool = False) -> ScoreKind:
    """A kind with its name."""
    more = [options, "calibrated" if calibrated else ""]
    return ScoreKind(method, options, calibrated, chosen, ", ".join([method or "single", *filter(None, more)]))


def _iter_file_runs(
    file: ScoreFile, arms: ArmTable, in_tables: bool, fixed: Mapping[str, Sequence[ScoredMerge]]
) -> Iterator[Run]:
    """What a file holds; of a sweep the points that it chose have a kind."""
    arm, seed = arms.arm_of[file.name], arms.seed_of[file.name]
    common = (file.name, len(file.adapters), in_tables, file.single)
    if all(set(merge.test) <= set(file.single) for merge in file.merges) and file.single:
        yield Run(
            _make_score_kind(""), arm, seed, seed, file.single, average(file.single), None, "", None, *common, None
        )
    chosen = {(merge.method, merge.calibrated): _other_options(merge) for merge in file.merges if merge.chosen}
    for merge in file.merges:
        peers, others = fixed.get(merge.method, ()), _other_options(merge)
        validation = average(merge.validation) if merge.validation else None
        kind = None
        if validation is None:
            kind = _make_score_kind(merge.method, _unusual_options(_plain_options(merge), peers), merge.calibrated)
        elif merge.chosen:
            kind = _make_score_kind(merge.method, "chosen on validation" if peers else "", merge.calibrated, True)
        curve, scale = None, merge.options.get("lambda")
        if scale is not None and chosen.get((merge.method, merge.calibrated), others) == others:
            options = _unusual_options(others, peers) if validation is None else ""
            curve = _make_score_kind(merge.method, options, merge.calibrated).label
        own = merge.options.get("seed")
        repetition = seed if own is None or str(own) == seed else f"{seed}, merge {own}"
        run = (
            arm,
            seed,
            repetition,
            merge.test,
            average(merge.test),
            scale,
            _format_reported_options(_plain_options(merge)),
            validation,
        )
        yield Run(kind, *run, *common, curve)


def _plain_options(merge: ScoredMerge) -> dict[str, Any]:
    """Options without the seed and without what was not given."""
    return {name: value for name, value in sorted(merge.options.items()) if name != "seed" and value is not None}


def _other_options(merge: ScoredMerge) -> dict[str, Any]:
    return {name: value for name, value in _plain_options(merge).items() if name != "lambda"}


def _unusual_options(options: Mapping[str, Any], peers: Sequence[ScoredMerge]) -> str:
    """The options that are not the same in all merges of a method, in words."""
    return _format_reported_options(
        {name: value for name, value in options.items() if any(peer.options.get(name) != value for peer in peers)}
    )


def _format_reported_options(options: Mapping[str, Any]) -> str:
    """Options for people: ``lambda 0.3, density 0.2``."""
    first = sorted(options, key=lambda name: (name != "lambda", name))
    return ", ".join(f"{name} {format_arm_value(options[name])}" for name in first)


def _add_run_to_table(cell: dict[str, Run], run: Run, kind: ScoreKind, same: float) -> None:
    known = cell.setdefault(run.repetition, run)
    if known is run:
        return
    for task in run.tasks:
        one, other = known.tasks[task], run.tasks[task]
        if abs(one.headline - other.headline) > same:
            raise OsrmError(
                f"{known.file} and {run.file} differ on '{task}' ({kind.label}): "
                f"{one.headline:.2f} and {other.headline:.2f}, with the same settings and seed",
                "leave one out, or name their arms with --arm NAME=PATH",
            )
        if not one.has_predictions and other.has_predictions:
            cell[run.repetition] = run


def _score_kind_order(kind: ScoreKind) -> tuple[Any, ...]:
    place = _ORDER.get(kind.method, len(_ORDER)) if kind.method else -1
    numbers = [float(word) if word.replace(".", "", 1).isdigit() else 0.0 for word in kind.options.split(" ")]
    return place, kind.method, kind.calibrated, kind.chosen, numbers, kind.options
