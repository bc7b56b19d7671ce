"""Compare artifacts, and the inputs that they were made from, with the digests that their records hold."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.formats import diffusers
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.models.base_model import identify_base_model
from osrm_cli.progress import Progress, no_progress
from osrm_cli.storage import hub, input_files, records, safetensors_writer
from osrm_cli.storage.input_files import read_json
from osrm_cli.storage.record_schema import find_record_error
from osrm_cli.storage.records import RECORD_NAME, BaseModelId, Record
from osrm_cli.verification.recorded_data import recorded_data

SAME, DIFFERS, MISSING = "same", "differs", "missing"

_RECORD_KEYS = ("command", "settings", "base", "inputs")
_FOREIGN = ("adapter_", "model", "tokenizer", "config")  # files of other programs, whose digests records hold
_REMEDY = "recreate it with the command that wrote it"


@dataclass(frozen=True)
class Check:
    """One recorded digest.

    Attributes:
        artifact: The artifact whose record holds it.
        kind: ``record``, ``file``, ``tensors``, ``input``, ``base model`` or ``data``.
        name: What it is the digest of.
        result: ``same``, ``differs``, or ``missing`` where there is nothing to compare it with.
        reason: Why it is missing or cannot be read.
    """

    artifact: str
    kind: str
    name: str
    result: str
    reason: str | None = None


@dataclass(frozen=True)
class Verification:
    """Result of ``verify_artifacts``.

    Attributes:
        checks: Every recorded digest that was compared, artifact by artifact.
    """

    checks: Sequence[Check]

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by result."""
        return {SAME: 0, DIFFERS: 0, MISSING: 0} | Counter(check.result for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The checks that found no equal digest."""
        return [check for check in self.checks if check.result != SAME]


def verify_artifacts(paths: Sequence[Path | str], *, progress: Progress = no_progress) -> Verification:
    """Check every recorded digest of artifacts and of their inputs, down to base models and data.

    Args:
        paths: Folders that commands wrote, folders of them such as ``adapters``, or single files.
        progress: Draws a bar.

    Raises:
        OsrmError: If a path is missing or holds no record of this program.

    Example:
        >>> from osrm_cli import verify_artifacts
        >>> verify_artifacts(["merged"]).counts["differs"]
        0
    """
    verifier = _Verifier()
    for path in map(Path, paths):
        if not path.exists():
            raise OsrmError(f"{path} is missing", "give folders or files that osrm wrote")
        artifacts = list(_iter_artifacts_to_verify(path))
        if not artifacts:
            raise OsrmError(f"{path} holds no record of osrm", "give folders or files that osrm wrote")
        with progress(f"verify {path}", len(artifacts), "artifacts") as advance:
            for artifact in artifacts:
                verifier.verify(artifact)
                advance(1)
    return Verification(verifier.checks)


def _iter_artifacts_to_verify(path: Path) -> Iterator[Path]:
    """Records in a path: a file that carries one, or such files in a folder, or else those in its folders."""
    if not path.is_dir():
        if path.suffix in (".json", ".safetensors") and _is_file_to_verify(path):
            yield path
        return
    files = [path / RECORD_NAME] if (path / RECORD_NAME).exists() else []
    files += [file for file in sorted(path.glob("[!.]*.json")) if file.name != RECORD_NAME and _is_file_to_verify(file)]
    files += [file for file in sorted(path.glob("[!.]*.safetensors")) if _is_file_to_verify(file)]
    yield from files
    if not files:
        for folder in sorted(path.glob("[!.]*")):
            if folder.is_dir() and not folder.is_symlink():
                yield from _iter_artifacts_to_verify(folder)


def _is_file_to_verify(path: Path) -> bool:
    try:
        return "command" in _read_record_to_verify(path)
    except OsrmError:
        return not path.name.startswith(_FOREIGN)  # the error is reported where the record is read


def _read_record_to_verify(path: Path) -> Record:
    """The record that a file carries.

    Raises:
        OsrmError: If it cannot be read.
    """
    if path.name == RECORD_NAME:
        return records.parse_record(path)
    if path.suffix == ".safetensors":
        record = input_files.read_safetensors_record(path)
    else:
        value = read_json(path, _REMEDY)
        record = value if isinstance(value, dict) else {}
    # Beside these keys, such a file holds what its command has found.
    if wrong := find_record_error({key: record[key] for key in _RECORD_KEYS if key in record}):
        raise OsrmError(f"{path} cannot be read: {wrong}", _REMEDY)
    return record


class _Verifier:
    """Checks artifacts, each once.

    Attributes:
        checks: What was found so far.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self._seen: set[Path] = set()
        self._digests: dict[tuple[str, str | None], str | OsrmError] = {}

    def verify(self, path: Path) -> None:
        """Check one artifact's digests, and then the artifacts that it was made from.

        Args:
            path: The file that holds the record.
        """
        if path.resolve() in self._seen:
            return
        self._seen.add(path.resolve())
        is_folder = path.name == RECORD_NAME
        artifact = str(path.parent if is_folder else path)
        try:
            record = _read_record_to_verify(path)
        except OsrmError as error:
            self.checks.append(Check(artifact, "record", str(path), DIFFERS, str(error)))
            return
        if path.suffix == ".safetensors":
            self._check_tensors(path)
        for name, digest in (record.get("files") or {}).items():
            self._compare_file(artifact, "file", str(path.parent / name), digest, path.parent / name)
        if base := BaseModelId.from_record(record):
            self._check_base(artifact, base)
        try:
            for data in recorded_data(record, path.parent):
                self._compare_digest(artifact, "data", data.name, data.sha256, data.sha256_now)
        except OsrmError as error:
            self.checks.append(Check(artifact, "record", str(path), DIFFERS, str(error)))
        for row in _list_recorded_inputs(record):
            self._check_input(artifact, row)

    def _check_tensors(self, path: Path) -> None:
        try:
            is_same = safetensors_writer.check_safetensors_digest(path)
        except OsrmError as error:
            self.checks.append(Check(str(path), "tensors", str(path), DIFFERS, str(error)))
            return
        if is_same is not None:
            self.checks.append(Check(str(path), "tensors", str(path), SAME if is_same else DIFFERS))

    def _check_input(self, artifact: str, row: dict[str, Any]) -> None:
        source = row["path"]
        try:
            hub.check_recorded_input(row)
            path = hub.locate_adapter(source)
        except OsrmError as error:
            self.checks.append(Check(artifact, "input", source, MISSING, str(error)))
            return
        self._compare_file(artifact, "input", source, row["sha256"], path)
        for inner in _iter_artifacts_to_verify(path):
            self.verify(inner)

    def _compare_file(self, artifact: str, kind: str, name: str, recorded: str, path: Path) -> None:
        def digest() -> str:
            if not path.exists():
                raise OsrmError(f"{path} is missing")
            found = input_files.sha256(path)
            # Adapters are recorded by their settings and weights alone, see ``Adapter.sha256``.
            if found != recorded and any((path / name).is_file() for name in (CONFIG_NAME, diffusers.WEIGHTS_NAME)):
                return open_adapter(path).sha256()
            return found

        self._compare_digest(artifact, kind, name, recorded, digest)

    def _check_base(self, artifact: str, base: BaseModelId) -> None:
        key = (base.name, base.revision)
        if key not in self._digests:
            try:
                self._digests[key] = identify_base_model(*key).sha256
            except OsrmError as error:
                self._digests[key] = error

        def digest() -> str:
            found = self._digests[key]
            if isinstance(found, OsrmError):
                raise found
            return found

        self._compare_digest(artifact, "base model", base.name, base.sha256, digest)

    def _compare_digest(self, artifact: str, kind: str, name: str, recorded: str, digest: Callable[[], str]) -> None:
        try:
            result, reason = (SAME if digest() == recorded else DIFFERS), None
        except (OsrmError, OSError) as error:
            result, reason = MISSING, str(error)
        self.checks.append(Check(artifact, kind, name, result, reason))


def _list_recorded_inputs(record: Record) -> list[dict[str, Any]]:
    """Everything that a record names with path and digest, each once."""
    rows = [*record.get("inputs", []), *(record.get("features") or [])]
    adapters = record.get("adapters")
    if isinstance(adapters, dict):
        rows += [row for row in adapters.values() if isinstance(row, dict)]
    named = [row for row in rows if isinstance(row.get("path"), str) and isinstance(row.get("sha256"), str)]
    return list({(row["path"], row["sha256"]): row for row in named}.values())
