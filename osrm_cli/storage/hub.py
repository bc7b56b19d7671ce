"""Models and adapters on the Hugging Face hub: only the required files are downloaded."""

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError

_ADAPTER_FILES = ["adapter_config.json", "adapter_model*.safetensors*", "osrm.json", "training.json"]
_TIMEOUT = 4.0  # seconds that the hub has to answer


def local_path(source: str) -> Path:
    """The path that a folder or hub id would have on this machine, ``~`` and ``~name`` written out.

    Raises:
        OsrmError: If there can be no such path.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except RuntimeError:
        raise OsrmError(f"{source} is in the home of a user who is not known here", "give the whole path") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise OsrmError(f"{source[:60]}... is longer than a path may be", "give a folder or a hub id") from None
    return path


def fetch_snapshot(kind: str, name: str, revision: str | None, config: str, files: Sequence[str]) -> Path:
    """Return the snapshot of a hub repository in the local cache, downloading those of ``files`` that it lacks.

    Args:
        kind: ``base model`` or ``adapter``, for errors.
        name: ``owner/name``.
        revision: Branch, tag or commit; without it, the main branch.
        config: The file that every such repository has.
        files: Patterns of the files to download.

    Raises:
        OsrmError: If the hub does not have it, or cannot be reached and it is not in the cache.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, snapshot_download  # takes 0.2 s
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    failures = (errors.HFValidationError, errors.HTTPError, OSError)  # type: ignore[attr-defined]  # of httpx or httpx2
    hub_error: Exception | None = None
    try:
        # One request only: without a network, a download by the hub's client makes six attempts in 23 s.
        get_hf_file_metadata(hf_hub_url(name, config, revision=revision), timeout=_TIMEOUT)
    except failures as error:
        hub_error = error
    try:
        if isinstance(hub_error, errors.HFValidationError | errors.RemoteEntryNotFoundError):
            raise hub_error
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(files), local_files_only=hub_error is not None
        )
    except failures as error:
        raise _explain_hub_error(hub_error or error, f"{kind} '{name}'", config, revision) from None
    return Path(folder)


def locate_adapter(source: str) -> Path:
    """Return the local folder or file of an adapter: ``source`` itself, or its snapshot if it is a hub id.

    Args:
        source: A folder or file, or ``owner/name``, or ``owner/name@revision``.

    Raises:
        OsrmError: If it is neither, or cannot be downloaded.
    """
    folder = local_path(source)
    if folder.exists():
        return folder
    name, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise OsrmError(f"{source} is missing", "give adapter folders, or hub ids such as owner/name")
    return fetch_snapshot("adapter", name, revision or None, "adapter_config.json", _ADAPTER_FILES)


def check_recorded_input(row: Mapping[str, Any]) -> None:
    """Check that an input that an artifact records is still there, unless it came from the hub.

    The hub is not asked for a folder that is gone: it may have another one of that name.

    Args:
        row: Its ``path``, and the ``commit`` that it had on the hub.

    Raises:
        OsrmError: If it is missing.
    """
    if not row.get("commit") and not local_path(row["path"]).exists():
        raise OsrmError(f"{row['path']} is missing")


def short_source_name(source: str) -> str:
    """Name of an adapter that does not record its task: its folder's or file's, or the hub id without the owner."""
    folder = local_path(source)
    if folder.is_file():
        return folder.stem
    return folder.resolve().name if folder.exists() else source.partition("@")[0].rpartition("/")[2]


def snapshot_commit(folder: Path) -> str | None:
    """The commit of a snapshot folder, or ``None`` for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def pin_revision(source: str, folder: Path) -> str:
    """``source`` with the commit that ``folder`` is the snapshot of, if it is a hub id."""
    commit = None if local_path(source).exists() else snapshot_commit(folder)
    return f"{source.partition('@')[0]}@{commit}" if commit else source


def _explain_hub_error(error: Exception, subject: str, config: str, revision: str | None) -> OsrmError:
    """The user's error for an error of the hub's client."""
    from huggingface_hub import errors

    login = "hf auth login, with an account that may read it"
    if isinstance(error, errors.GatedRepoError):
        return OsrmError(f"{subject} is gated on the hub", login)
    if isinstance(error, errors.RepositoryNotFoundError):
        return OsrmError(
            f"{subject} is neither a folder nor public on the hub", f"check the name; if it is private, {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return OsrmError(
            f"{subject} has no revision '{revision}' on the hub", "give a branch, a tag or a whole commit id"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return OsrmError(f"{subject} has no {config} on the hub", "check the name: the repository holds something else")
    reason = f"the hub cannot be reached ({type(error).__name__})"
    if isinstance(error, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE forbids requests to the hub"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"the hub answers {error.response.status_code}"
    return OsrmError(
        f"{subject} is neither a folder nor in the hub's cache, and {reason}",
        "check the path; for a hub id, go online once to fill the cache (HF_HOME)",
    )
