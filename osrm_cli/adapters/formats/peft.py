"""PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`."""

from pathlib import Path
from typing import Any

from osrm_cli.adapters.config import CONFIG_NAME, parse_adapter_config
from osrm_cli.adapters.formats.contents import AdapterContents, AdapterOutput
from osrm_cli.adapters.layers import WEIGHTS_NAME
from osrm_cli.adapters.writer import write_adapter_stream
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import TensorLocation, list_indexed_safetensors, list_safetensors_headers, read_json


def matches(path: Path) -> bool:
    """Whether it can be read as a folder of PEFT's; a lone file cannot.

    Raises:
        OsrmError: If it is a file.
    """
    if path.is_file():
        raise OsrmError(
            f"{path} is not a LoRA file of diffusers or kohya: none of its tensors is named as theirs",
            "give the folder that holds its adapter_config.json, if it is one of PEFT's",
        )
    return True


def read(path: Path) -> AdapterContents:
    """Read the settings and the headers.

    Raises:
        OsrmError: If it is missing, damaged, or anything but plain LoRA in safetensors.
    """
    config = parse_adapter_config(path / CONFIG_NAME, read_adapter_config_values(path))
    return AdapterContents(config, list_adapter_tensors(path))


def read_adapter_config_values(folder: Path) -> Any:
    """Contents of ``adapter_config.json``.

    Raises:
        OsrmError: If it is missing, or not JSON.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        hint = "give a folder written by PEFT or by 'osrm train'"
        if next(folder.glob(f"*/{CONFIG_NAME}"), None):
            hint = f"it contains adapters: give {folder}/*"
        elif (folder / "config.json").is_file():
            hint = "if it is a full model, osrm merge and osrm extract take it with --base"
        raise OsrmError(f"{folder} is not an adapter: {CONFIG_NAME} is missing", hint)
    return read_json(path, "save the adapter again", finite=True)


def list_adapter_tensors(folder: Path) -> dict[str, TensorLocation]:
    """Read the headers of an adapter's weights, one file or several with an index.

    Raises:
        OsrmError: If a file is missing or damaged, or there is nothing but a pickle.
    """
    index, path, pickle = (folder / name for name in (f"{WEIGHTS_NAME}.index.json", WEIGHTS_NAME, "adapter_model.bin"))
    if pickle.exists() and not index.is_file() and not path.exists():
        raise OsrmError(
            f"{pickle} is a pickle, which can run code when it is opened; expected {WEIGHTS_NAME}",
            "load it with PEFT where you trust it, and save it with save_pretrained",
        )
    return list_indexed_safetensors(index) if index.is_file() else list_safetensors_headers([path])


def write(path: Path, output: AdapterOutput) -> None:
    """Write the factors as they are, the settings that PEFT needs, and the modules that were trained as a whole.

    Raises:
        OsrmError: If an entry is NaN, infinite, or too large for the type.
    """
    adapter = output.adapter
    with write_adapter_stream(
        path,
        adapter.layers,
        adapter.config,
        adapter.tensors_beside_factors(),
        output.dtype,
        adapter.layers,
        output.metadata,
    ) as writer:
        for layer in adapter.layers:
            writer.add(layer, adapter.lora_factors(layer, adapter.dtype))
