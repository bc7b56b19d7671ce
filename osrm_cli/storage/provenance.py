"""Provenance of an artifact: enough to reproduce it, and nothing that differs between two equal runs.

No timestamps and no details of the machine: the same inputs give the same bytes.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path, PureWindowsPath
from typing import Any

from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import file_digests, sha256
from osrm_cli.storage.records import RECORD_NAME, BaseModelId, Record
from osrm_cli.version import __version__

CARD_NAME = "README.md"  # the model card


def make_artifact_record(
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
        OsrmError: If a value is NaN or infinite, which is what numbers become when weights or labels are too large.
    """
    if name := _find_infinite(value):
        raise OsrmError(
            f"{name} is not a finite number: a weight or a label is damaged or too large",
            "osrm verify names files that have changed",
        )
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a character of a foreign file stays escaped


def _find_infinite(value: Any, name: str = "") -> str | None:
    """The keys on the way to the first number that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (_find_infinite(each, f"{name}.{key}".lstrip(".")) for key, each in pairs)
    return next((path for path in found if path), None)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as ``osrm.json`` into a folder that is being staged."""
    (folder / RECORD_NAME).write_text(to_json(record), encoding="utf-8")


def write_digests(folder: Path) -> None:
    """Add to the record of a folder that is being staged the digest of every other file, as ``files``.

    The model card is left out: it is for people, who may go on writing it.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    digests = dict(zip(names, file_digests(paths), strict=True))
    files = {name: digest for name, digest in digests.items() if name not in (RECORD_NAME, CARD_NAME)}
    write_record(folder, {**json.loads((folder / RECORD_NAME).read_text(encoding="utf-8")), "files": files})


def check_base_provenance(base_models: Mapping[Path, BaseModelId]) -> None:
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
    odd, usual = _describe_base_provenance(odd_base), _describe_base_provenance(usual_base)
    raise OsrmError(
        f"{odd_path} comes from base model {odd}, but {usual_path} from {usual}",
        "use artifacts of one base model only; adapters of several: osrm merge --method distill --base MODEL",
    )


def _describe_base_provenance(base: BaseModelId) -> str:
    revision = f" at {base.revision[:12]}" if base.revision else ""
    return f"{base.name}{revision} (weights {base.sha256[:12]})"


def short_model_name(name: str) -> str:
    """The last part of a path or hub id (of a snapshot, that of its id), without what says that it is quantized."""
    path = PureWindowsPath(name)  # which takes both kinds of slashes
    last = path.parent.parent.name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", last)
