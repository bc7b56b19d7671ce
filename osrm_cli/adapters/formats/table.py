"""The formats that `osrm convert` knows. Importing this module does not import torch."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osrm_cli.errors import OsrmError

if TYPE_CHECKING:
    from osrm_cli.adapters.formats.contents import FormatModule


@dataclass(frozen=True)
class AdapterFormat:
    """A row of the table.

    Attributes:
        name: The name on the command line.
        summary: One line of description.
        is_folder: Whether an adapter is a folder; otherwise it is one safetensors file.
        module: The module of this room that reads and writes it.
    """

    name: str
    summary: str
    is_folder: bool
    module: str

    def load(self) -> "FormatModule":
        """Import the module."""
        module: FormatModule = importlib.import_module(f"osrm_cli.adapters.formats.{self.module}")
        return module


# PEFT last: what no other row recognises is read as PEFT's, whose reader says what is missing.
FORMATS = (
    AdapterFormat("diffusers", "dotted names: unet.<layer>.lora_A.weight", False, "diffusers"),
    AdapterFormat("kohya", "kohya's scripts, ComfyUI: lora_unet_<layer>.lora_down.weight", False, "kohya"),
    AdapterFormat("mlx", "adapters.safetensors and the adapter_config.json of MLX LM", True, "mlx"),
    AdapterFormat("peft", "adapter_config.json and adapter_model.safetensors", True, "peft"),
)


def find_adapter_format(name: str) -> AdapterFormat:
    """The row of that name.

    Raises:
        OsrmError: If there is none.
    """
    for row in FORMATS:
        if row.name == name:
            return row
    raise OsrmError(f"unknown format '{name}', expected one of: {', '.join(row.name for row in FORMATS)}")


def recognize_adapter_format(path: Path) -> AdapterFormat:
    """The format of an adapter on the disk, from its files and the names of its tensors.

    Raises:
        OsrmError: If it is a file of none of the formats, or damaged.
    """
    return next(row for row in FORMATS if row.load().matches(path))
