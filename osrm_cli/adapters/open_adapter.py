"""Open adapters of any format, from the disk or the hub, perhaps under a name that the user gives them."""

from pathlib import Path

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.formats.table import recognize_adapter_format
from osrm_cli.adapters.layers import find_lora_layers, widest_factor_dtype, with_adapter_embeddings
from osrm_cli.adapters.trained_rows import find_trained_rows
from osrm_cli.storage import hub, records
from osrm_cli.storage.records import BaseModelId
from osrm_cli.tasks.task import check_task_name


def open_adapter(source: str | Path) -> Adapter:
    """Check an adapter and list its layers.

    Args:
        source: A folder or file of any format that is known, or a hub id such as ``owner/name`` or
            ``owner/name@revision``; perhaps as ``NAME=SOURCE``.

    Raises:
        OsrmError: If it is missing, damaged, or anything but plain LoRA in safetensors.
    """
    alias, source = split_adapter_source(str(source))
    folder = hub.locate_adapter(source)
    row = recognize_adapter_format(folder)
    contents = row.load().read(folder)
    config = with_adapter_embeddings(contents.config, contents.tensors)
    layers, tensors = find_lora_layers(folder, config, contents.tensors)
    find_trained_rows(folder, config, tensors)
    record = records.read_record(folder) if folder.is_dir() else {}
    return Adapter(
        alias or (record.get("task") or {}).get("name") or hub.short_source_name(source),
        source,
        folder,
        row.name,
        config,
        record,
        layers,
        tensors,
        dtype=widest_factor_dtype(folder, tensors),
        base=BaseModelId.from_record(record),
        data_source=(record.get("data") or {}).get("source"),
        max_length=(record.get("settings") or {}).get("max_length"),
        alias=alias,
    )


def split_adapter_source(source: str) -> tuple[str | None, str]:
    """The name and the folder or hub id of ``NAME=SOURCE``; a folder's own name may have a ``=``.

    Raises:
        OsrmError: If a folder cannot have the name.
    """
    name, equals, rest = source.partition("=")
    if not equals or hub.local_path(source).exists():
        return None, source
    check_task_name(name)
    return name, rest
