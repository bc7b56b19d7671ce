"""Provenance of an artifact: enough to reproduce it, and nothing that differs between two equal runs.

No timestamps and no details of the machine: the same inputs give the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from osrm_cli import __version__
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import check_regular, read_json

Record = dict[str, Any]

RECORD_NAME = "osrm.json"  # the record's file inside a folder
CARD_NAME = "README.md"  # the model card


@dataclass(frozen=True)
class BaseModelId:
    """The base model that an artifact belongs to.

    Attributes:
        name: Path, hub id or built-in name, as the user gave it.
        revision: Commit of the hub, or ``None`` for a local folder.
        sha256: Digest of the weights; decides whether two artifacts belong together.
    """

    name: str
    revision: str | None
    sha256: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "BaseModelId | None":
        """The base model that a record names, or ``None`` if it names none."""
        base = record.get("base")
        return cls(**base) if base else None


def make_record(
    command: str,
    settings: Mapping[str, Any],
    inputs: Iterable[Path] = (),
    base: BaseModelId | None = None,
    **extra: Any,
) -> Record:
    """The record of an artifact: tool, version, command, settings, base model, inputs with their digests."""
    return {
        "tool": "osrm-cli",
        "version": __version__,
        "command": command,
        "settings": dict(settings),
        "base": asdict(base) if base else None,
        "inputs": [{"path": path.as_posix(), "sha256": sha256(path)} for path in inputs],
        **extra,
    }


def to_json(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys, so that equal values give equal bytes.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a character of a foreign file stays escaped


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as ``osrm.json`` into a folder that is being staged."""
    (folder / RECORD_NAME).write_text(to_json(record), encoding="utf-8")


def read_record(folder: Path) -> Record:
    """Return a folder's record; an empty one for a folder that another tool wrote.

    Raises:
        OsrmError: If the record is there and cannot be read, or holds a value that cannot be used.
    """
    path = folder / RECORD_NAME
    return parse_record(path) if path.exists() else {}


def parse_record(path: Path) -> Record:
    """The record in a JSON file that a command wrote.

    Raises:
        OsrmError: If it cannot be read, or holds a value that cannot be used.
    """
    from osrm_cli.storage.record_schema import find_record_error  # pydantic: a TAB need not wait for it

    remedy = "recreate it with the command that wrote it"
    value = read_json(path, remedy, finite=True)
    if not isinstance(value, dict):
        raise OsrmError(f"{path} contains {type(value).__name__}, expected a JSON object", remedy)
    if wrong := find_record_error(value):
        raise OsrmError(f"{path} cannot be read: {wrong}", remedy)
    return value


def write_digests(folder: Path) -> None:
    """Add to the record of a folder that is being staged the digest of every other file, as ``files``.

    The model card is left out: it is for people, who may go on writing it.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        digests = dict(zip(names, pool.map(sha256, paths), strict=True))
    files = {name: digest for name, digest in digests.items() if name not in (RECORD_NAME, CARD_NAME)}
    write_record(folder, {**read_record(folder), "files": files})


def sha256(path: Path) -> str:
    """Digest of a file, or of a folder's files taken in the order of their names (hidden ones left out).

    Raises:
        OsrmError: If it is missing, a pipe, a socket or a device.
    """
    if path.is_dir():
        digest = hashlib.sha256()
        for member in sorted(path.rglob("*")):
            name = member.relative_to(path)
            if member.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()}\0{sha256(member)}\n".encode())
        return digest.hexdigest()
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit_of(folder: Path) -> str | None:
    """The hub commit of a snapshot folder, or ``None`` for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def file_digest(path: Path) -> str:
    """Like :func:`sha256` of a file, computed once in a process as long as its size and time stay."""
    status = path.stat()
    return _digest_of_state(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of_state(path: Path, _size: int, _mtime_ns: int) -> str:
    return sha256(path)


def check_same_base_model(base_models: Mapping[Path, BaseModelId]) -> None:
    """Check that all artifacts belong to one base model, and name the one that does not.

    The odd one out is the one whose weights differ from those that most artifacts share.

    Raises:
        OsrmError: If two artifacts come from different weights.
    """
    digests = [base.sha256 for base in base_models.values()]
    if len(set(digests)) < 2:
        return
    usual_digest = max(digests, key=digests.count)
    odd_path, odd_base = next((path, base) for path, base in base_models.items() if base.sha256 != usual_digest)
    usual_path, usual_base = next((path, base) for path, base in base_models.items() if base.sha256 == usual_digest)
    raise OsrmError(
        f"{odd_path} comes from base model {_describe(odd_base)}, but {usual_path} from {_describe(usual_base)}",
        "use artifacts of one base model only; adapters of several: osrm merge --method distill --base MODEL",
    )


def _describe(base: BaseModelId) -> str:
    revision = f" at {base.revision[:12]}" if base.revision else ""
    return f"{base.name}{revision} (weights {base.sha256[:12]})"
