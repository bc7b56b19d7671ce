"""Adapters on the Hugging Face hub: only an adapter's own files are fetched."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from osrm_cli.errors import OsrmError

_FILES = ["adapter_config.json", "adapter_model*.safetensors*", "osrm.json", "training.json"]


def locate(source: str) -> Path:
    """Return the local folder of an adapter: ``source`` itself, or its snapshot if it is a hub id.

    Args:
        source: A folder, or ``owner/name``, or ``owner/name@revision``.

    Raises:
        OsrmError: If it is neither, or the hub cannot give it.
    """
    folder = Path(source).expanduser()
    if folder.exists():
        return folder
    name, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise OsrmError(f"{source} is missing", "give adapter folders, or hub ids such as owner/name")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
    except (HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise OsrmError(
            f"{source} is neither a folder nor to be had from the hub ({type(error).__name__})",
            "check the path; for a hub id, go online once to fill the cache (HF_HOME)",
        ) from None


def short_name(source: str) -> str:
    """What to call an adapter that does not say its task: its folder's name, or the hub id without the owner."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.exists() else source.partition("@")[0].rpartition("/")[2]


def commit(folder: Path) -> str | None:
    """The hub commit of a snapshot folder, or ``None`` for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None
