"""Sources of a merge, told by their files: adapters, and full models, which need their base model."""

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CONFIG_NAME
from osrm_cli.adapters.open_adapter import open_adapter, split_adapter_source
from osrm_cli.storage import hub
from osrm_cli.storage.records import BaseModelId


def is_full_model(source: str) -> bool:
    """Whether a source of a merge is the folder of a full model, not an adapter.

    Args:
        source: A folder or hub id, perhaps as ``NAME=SOURCE``.
    """
    folder = hub.local_path(split_adapter_source(source)[1])
    try:
        return (folder / "config.json").is_file() and not (folder / CONFIG_NAME).is_file()
    except PermissionError:  # whoever reads it says so
        return False


def open_adapter_or_full_model(source: str, base: BaseModelId | None) -> Adapter:
    """An adapter, or a full model as an update of its base model.

    Args:
        source: A folder or hub id, perhaps as ``NAME=SOURCE``.
        base: The base model of full models; ``None`` takes adapters alone.

    Raises:
        OsrmError: If it cannot be read, or a full model does not belong to the base model.
    """
    if base is None or not is_full_model(source):
        return open_adapter(source)
    from osrm_cli.models.full.full_model import FullModel  # it imports transformers

    return FullModel.open_on(source, base)
