"""Read the records that commands write into folders: ``osrm.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import read_json

Record = dict[str, Any]

RECORD_NAME = "osrm.json"  # the record's file inside a folder


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
    def from_record(cls, record: Mapping[str, Any]) -> "BaseModelId | None":
        """The base model that a record names, or ``None`` if it names none."""
        base = record.get("base")
        return cls(**base) if base else None


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
