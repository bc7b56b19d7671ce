"""Adapters of parameters that stack the weights of all experts (PEFT's ``target_parameters``), expert by expert.

PEFT stores the factors of all experts of one parameter in two matrices: ``lora_A`` ``(E r, d_in)``, one expert's rows
after the other's, and ``lora_B`` ``(d_out, r E)``, column ``i E + e`` the ``i``-th of expert ``e``. Here each expert is
a layer of its own, named after the parameter and its number: ``model.layers.0.mlp.experts.down_proj.3``. Where two
parameters of one module are adapted, PEFT nests them: the one that the module defines last has the module's own name
in the file, the one before it ``base_layer`` after that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.patterns import pattern_matches
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.storage.safetensors_io import TensorLocation

# The order in which the modules of experts in transformers define their parameters.
_ORDER = ("gate_up_proj", "down_proj")
_INNER = ".base_layer"
_PREFIX, _SUFFIXES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")


def find_parent(config: AdapterConfig, layer: str) -> str | None:
    """The parameter that a layer is one expert of; ``None`` for others."""
    parameter, _, number = layer.rpartition(".")
    is_target = any(parameter == target or parameter.endswith(f".{target}") for target in config.target_parameters)
    return parameter if number.isdecimal() and is_target else None


def stored_module(config: AdapterConfig, parameter: str) -> str:
    """The name that a parameter's factors have in the file, before ``.lora_A``.

    Raises:
        ValueError: If the order of the module's parameters is not known.
    """
    module, _, name = parameter.rpartition(".")
    names = _parameters_of(config, module)
    return module + _INNER * (len(names) - 1 - names.index(name))


def split_experts(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, TensorLocation]
) -> dict[str, TensorLocation]:
    """The tensors of an adapter with those of stacked parameters split into their experts'.

    Args:
        folder: The adapter, for errors.
        config: Its settings.
        tensors: Its tensors, by PEFT's names.

    Raises:
        OsrmError: If the parts do not come out even, or the order of a module's parameters is not known.
    """
    split: dict[str, TensorLocation] = {}
    for name, location in tensors.items():
        suffix = next((each for each in _SUFFIXES if name.endswith(each)), None)
        try:
            parameter = _find_parameter(config, name.removeprefix(_PREFIX).removesuffix(suffix)) if suffix else None
        except ValueError as error:
            raise OsrmError(f"{folder}: {error}", "merge it into its model with PEFT: merge_and_unload") from None
        if suffix is None or parameter is None:
            split[name] = location
            continue
        axis = _SUFFIXES.index(suffix)
        rank = next((r for pattern, r in config.rank_pattern.items() if pattern_matches(pattern, parameter)), config.r)
        count, rest = divmod(location.shape[axis], rank)
        if rest or len(location.shape) != 2:
            raise OsrmError(f"{folder}: {name} has shape {location.shape}, expected a multiple of the rank {rank}")
        for number in range(count):
            own = slice(number * rank, (number + 1) * rank) if axis == 0 else slice(number, None, count)
            part, shape = (slice(None),) * axis + (own,), list(location.shape)
            shape[axis] = rank
            split[f"{_PREFIX}{parameter}.{number}{suffix}"] = replace(location, part=part, shape=tuple(shape))
    return split


def join_experts(experts: Sequence[LowRank]) -> LowRank:
    """The factors of all experts of a parameter as PEFT stores them, lower ranks filled up with zeros.

    Returns:
        ``lora_B`` and ``lora_A``, whose product means nothing.
    """
    rank = max(expert.rank for expert in experts)
    B, A = (torch.stack([_padded(factor, rank, axis) for factor in factors]) for axis, factors in _factors(experts))
    return LowRank(B.permute(1, 2, 0).flatten(1), A.flatten(0, 1))


def _factors(experts: Sequence[LowRank]) -> list[tuple[int, list[torch.Tensor]]]:
    """The experts' B, whose columns are the rank, and their A, whose rows are."""
    return [(1, [expert.B for expert in experts]), (0, [expert.A for expert in experts])]


def _padded(factor: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    shape = list(factor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([factor, factor.new_zeros(shape)], dim=axis)


def _find_parameter(config: AdapterConfig, module: str) -> str | None:
    """The parameter whose factors have this module's name in the file; ``None`` for those of a layer."""
    plain = module
    while plain.endswith(_INNER):
        plain = plain.removesuffix(_INNER)
    names = _parameters_of(config, plain)
    depth = (len(module) - len(plain)) // len(_INNER)
    return f"{plain}.{names[-1 - depth]}" if depth < len(names) else None


def _parameters_of(config: AdapterConfig, module: str) -> list[str]:
    """The parameters of a module that are adapted, in the order in which it defines them."""
    names = set()
    for target in config.target_parameters:
        parent, _, name = target.rpartition(".")
        if module == parent or module.endswith(f".{parent or 'experts'}"):
            names.add(name)
    if len(names) > 1 and not names <= set(_ORDER):
        raise ValueError(f"the order of {', '.join(sorted(names))} in {module} is not known")
    return [name for name in _ORDER if name in names] if len(names) > 1 else list(names)
