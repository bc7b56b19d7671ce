"""What ``osrm report`` reads: files of scores, diagnoses and tables of them, named below the folder that they share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import ScoreFile, parse_score_file, read_scored_record

NAMES = ("scores.json", "sweep.json", "diagnosis.json")
TABLE_SUFFIX = ".parquet"

Diagnosis = Mapping[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """Everything that was given.

    Attributes:
        files: Scores, in the order of their names.
        diagnoses: By name: what ``osrm diagnose`` wrote.
        arms: Names of arms, in the order in which the user gave them.
    """

    files: tuple[ScoreFile, ...]
    diagnoses: Mapping[str, Diagnosis] = field(default_factory=dict)
    arms: tuple[str, ...] = ()


def read_report_inputs(
    paths: Sequence[Path], arms: Sequence[tuple[str, str]] = (), only: Sequence[str] = ()
) -> ReportInputs:
    """Read files, the results in folders, and tables.

    Args:
        paths: Files and folders; a table's files count as lying beside it.
        arms: Pairs of an arm's name and the file, folder or pattern of files that belong to it.
        only: Patterns of the names to keep; of all if there are none.

    Raises:
        OsrmError: If one is missing, damaged or something else, or a pattern fits nothing.
    """
    found = {place: item for path in paths for place, item in _read_report_input(path)}
    owner: dict[Path, str] = {}
    for name, pattern in arms:
        given = {place: item for path in _find_report_inputs(pattern) for place, item in _read_report_input(path)}
        found.update((place, item) for place, item in given.items() if place not in found)
        for place in given or _select_report_inputs(found, [pattern]):
            if owner.setdefault(place, name) != name:
                raise OsrmError(f"{place.name} in {place.parent} belongs to two arms: '{owner[place]}' and '{name}'")
    kept = _select_report_inputs(found, only) if only else sorted(found)
    root = _shared_input_folder(kept)
    files, diagnoses = [], {}
    for place in kept:
        item, name = found[place], place.relative_to(root).as_posix()
        if isinstance(item, ScoreFile):
            files.append(replace(item, name=name, arm=owner.get(place, item.arm)))
        else:
            diagnoses[name] = item
    if not files:
        raise OsrmError("no scores were given, only diagnoses", "add scores.json of 'osrm eval'")
    names = [name for name, _ in arms] + [file.arm for file in files if file.arm]
    return ReportInputs(tuple(files), diagnoses, tuple(dict.fromkeys(names)))


def _read_report_input(path: Path) -> Iterator[tuple[Path, ScoreFile | Diagnosis]]:
    """Everything that a file or folder holds, with its whole path."""
    if path.suffix == TABLE_SUFFIX:
        from osrm_cli.reporting.results_table import read_results_table

        files, diagnoses = read_results_table(path)
        folder = path.resolve().parent
        yield from ((folder / file.name, file) for file in files)
        yield from ((folder / name, found) for name, found in diagnoses.items())
        return
    for file in _list_report_files(path):
        record, content = read_scored_record(file, ("eval", "sweep", "diagnose"))
        if record["command"] == "diagnose":
            yield file.resolve(), {**record, "sha256": sha256(content).hexdigest()}
        else:
            yield file.resolve(), parse_score_file(file.as_posix(), record, content)


def _list_report_files(given: Path) -> Iterator[Path]:
    if not given.is_dir():
        yield given
        return
    inside = [path for name in NAMES for path in given.rglob(name)]
    inside = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(given).parts)]
    if not inside:
        raise OsrmError(f"{given} holds no {', '.join(NAMES[:2])} or {NAMES[2]}", "make one: osrm eval merged")
    yield from inside


def _find_report_inputs(pattern: str) -> list[Path]:
    """The files and folders on disk that a pattern fits."""
    path = Path(pattern)
    above = Path(path.anchor)
    return [path] if path.exists() else sorted(above.glob(str(path.relative_to(above))))


def _select_report_inputs(places: Iterable[Path], patterns: Sequence[str]) -> list[Path]:
    """Those whose name below the folder that all share fits a pattern, or lies in a folder that fits."""
    ordered = sorted(places)
    root, kept = _shared_input_folder(ordered), set()
    for pattern in patterns:
        wanted = pattern.rstrip("/")
        names = {place: place.relative_to(root).as_posix() for place in ordered}
        fitting = {place for place, name in names.items() if fnmatch(name, wanted) or fnmatch(name, f"{wanted}/*")}
        if not fitting:
            hint = f"they are called: {', '.join(list(names.values())[:3])}{', ...' * (len(names) > 3)}"
            raise OsrmError(f"no file of scores fits '{pattern}'", hint if names else "give files of scores")
        kept |= fitting
    return sorted(kept)


def _shared_input_folder(places: Sequence[Path]) -> Path:
    """The folder below which all paths lie."""
    levels = zip(*(place.parent.parts for place in places), strict=False)
    return Path(*(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)))
