"""Device and precision of computations."""

import importlib.util
from typing import Any

import torch

from osrm_cli.errors import OsrmError


def pick_device(name: str) -> torch.device:
    """Resolve ``auto`` and check that the device is available.

    Raises:
        OsrmError: If it is not.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise OsrmError(f"device '{name}' is not available on this machine", "use --device auto")
    return torch.device(name)


def device_with_float64(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64, in which merging methods compute."""
    return torch.device("cpu") if device.type == "mps" else device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve ``auto``: bfloat16 on a GPU that computes in it, float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name that records and options use, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def quantization_settings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that hold linear layers in NF4, as QLoRA does (arXiv:2305.14314).

    The output layer and the checkpoint stay as they are.

    Args:
        device: Device of the model.
        dtype: In which the layers compute.

    Raises:
        OsrmError: If bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OsrmError("a base model in 4 bits needs bitsandbytes", "pip install 'osrm-cli[quantized]'")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}
