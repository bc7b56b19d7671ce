"""What ``osrm report`` reads: files of scores and diagnoses, named below the folder that they share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import ScoreFile, parse_score_file, read_record

NAMES = ("scores.json", "sweep.json", "diagnosis.json")


@dataclass(frozen=True)
class ReportInputs:
    """Everything that was given.

    Attributes:
        files: Scores, in the order of their names.
        diagnoses: By name: what ``osrm diagnose`` wrote.
    """

    files: tuple[ScoreFile, ...]
    diagnoses: Mapping[str, Mapping[str, Any]]


def read_inputs(paths: Sequence[Path]) -> ReportInputs:
    """Read files, and the results in folders.

    Raises:
        OsrmError: If one is missing, damaged or something else.
    """
    found = sorted({path.resolve(): path for given in paths for path in _files(given)}.items())
    root = _shared_folder([path for path, _ in found])
    files, diagnoses = [], {}
    for path, given in found:
        name, (record, content) = path.relative_to(root).as_posix(), read_record(given, ("eval", "sweep", "diagnose"))
        if record["command"] == "diagnose":
            diagnoses[name] = {**record, "sha256": sha256(content).hexdigest()}
        else:
            files.append(replace(parse_score_file(given.as_posix(), record, content), name=name))
    if not files:
        raise OsrmError("no scores were given, only diagnoses", "add scores.json of 'osrm eval'")
    return ReportInputs(tuple(files), diagnoses)


def _files(given: Path) -> Iterator[Path]:
    if not given.is_dir():
        yield given
        return
    inside = [path for name in NAMES for path in given.rglob(name)]
    inside = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(given).parts)]
    if not inside:
        raise OsrmError(f"{given} holds no {', '.join(NAMES[:2])} or {NAMES[2]}", "make one: osrm eval merged")
    yield from inside


def _shared_folder(paths: Sequence[Path]) -> Path:
    """The folder below which all paths lie."""
    levels = zip(*(path.parent.parts for path in paths), strict=False)
    return Path(*(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)))
