"""What the formats share whose adapters are one safetensors file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.formats.contents import AdapterOutput
from osrm_cli.adapters.layers import PREFIX, find_expert_parameter, tensor_kind
from osrm_cli.adapters.writer import cast_adapter_factor, shape_peft_factors
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.storage.input_files import open_safetensors
from osrm_cli.storage.safetensors_writer import SafetensorsStream


def has_lora_tensor(path: Path, is_name: Callable[[str], bool]) -> bool:
    """Whether a file has a tensor of such a name.

    Raises:
        OsrmError: If the file is damaged or not safetensors.
    """
    with open_safetensors(path) as file:
        return any(is_name(name) for name in file.keys())  # noqa: SIM118 - it is not a mapping


def check_adapter_fits_format(adapter: Adapter, name: str) -> None:
    """Check that an adapter is factors of layers alone.

    Args:
        adapter: The adapter.
        name: The format, for errors.

    Raises:
        OsrmError: If it holds modules that were trained as a whole, or adapts stacked experts.
    """
    expert = next((layer for layer in adapter.layers if find_expert_parameter(adapter.config, layer)), None)
    if expert:
        raise OsrmError(
            f"{adapter.source} adapts the expert {expert}, which the format {name} cannot name", "use --format peft"
        )
    whole = next((tensor for tensor in adapter.tensors if tensor_kind(tensor) == "other"), None)
    if whole:
        raise OsrmError(
            f"{adapter.source} holds {whole.removeprefix(PREFIX)} as a whole, which the format {name} cannot",
            "use --format peft",
        )


def check_only_linear_layers(adapter: Adapter, name: str) -> None:
    """Check that an adapter is factors of linear layers and convolutions alone.

    Args:
        adapter: The adapter.
        name: The format, for errors.

    Raises:
        OsrmError: If it holds an embedding's factors, or modules that were trained as a whole.
    """
    check_adapter_fits_format(adapter, name)
    embedding = next((layer for layer, shape in adapter.layers.items() if shape.embedding), None)
    if embedding:
        raise OsrmError(
            f"{adapter.source} adapts the embedding {embedding}, which the format {name} cannot hold",
            "use --format peft",
        )


def write_factors(
    stream: SafetensorsStream, output: AdapterOutput, names: Mapping[str, tuple[str, str]], folds_scaling: bool = False
) -> None:
    """Write every layer's two factors.

    Args:
        stream: The file.
        output: What is written.
        names: By layer: the names of A and of B.
        folds_scaling: Multiply B by the scaling, for formats in which it is 1.

    Raises:
        OsrmError: If the scaling cannot be folded in exactly, or an entry does not fit the type.
    """
    adapter = output.adapter
    for layer, (name_a, name_b) in names.items():
        shape, factors = adapter.layers[layer], adapter.lora_factors(layer, adapter.dtype)
        if folds_scaling:
            factors = LowRank(fold_adapter_scaling(factors.B, shape.scaling, layer, output), factors.A)
        for name, factor in zip((name_a, name_b), shape_peft_factors(factors, shape.kernel), strict=True):
            stream.add(name, cast_adapter_factor(factor, output.dtype, layer))


def fold_adapter_scaling(B: torch.Tensor, scaling: float, layer: str, output: AdapterOutput) -> torch.Tensor:
    """``scaling * B``: exact, or in types of 32 bits and more rounded once.

    Raises:
        OsrmError: If it would have to be rounded to a narrower type, and the user has not asked for that.
    """
    if scaling == 1:
        return B
    product = B.double() * scaling
    rounds = output.dtype.itemsize < 4 and not output.may_round
    if rounds and not torch.equal(product.to(output.dtype).double(), product):
        kind = str(output.dtype).removeprefix("torch.")
        raise OsrmError(
            f"{layer}: its scaling {scaling:.6g} cannot be folded into {kind} factors without rounding them",
            "use --dtype float32, or --format kohya, which stores the scaling beside them",
        )
    return product
