"""The layers of a LoRA adapter, from the names and shapes of its tensors.

PEFT stores the factors of all experts of one parameter (``target_parameters``) in two matrices: ``lora_A``
``(E r, d_in)``, one expert's rows after the other's, and ``lora_B`` ``(d_out, r E)``, column ``i E + e`` the ``i``-th
of expert ``e``. Here each expert is a layer of its own, named after the parameter and its number:
``model.layers.0.mlp.experts.down_proj.3``. Where two parameters of one module are adapted, PEFT nests them: the one
that the module defines last has the module's own name in the file, the one before it ``base_layer`` after that.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.config import TEXT_TASK_TYPES, AdapterConfig
from osrm_cli.adapters.patterns import pattern_matches
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import TensorLocation
from osrm_cli.storage.safetensors_writer import DTYPES

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Names of the two factors of a layer: linear layers and embeddings.
FACTORS = {
    False: (".lora_A.weight", ".lora_B.weight"),
    True: (".lora_embedding_A", ".lora_embedding_B"),
}

# Kinds of models whose head is the base model's own, and parts of base models that any adapter may train as a whole.
_WITHOUT_HEAD = (*TEXT_TASK_TYPES, "FEATURE_EXTRACTION")
_BASE_MODULES = ("embed_tokens", "word_embeddings", "tok_embeddings", "wte", "lm_head", "embed_out", "embed_in")
_STORED_EMBEDDING = rf"(.+\.)?({'|'.join(_BASE_MODULES)})\.(weight|bias)"
# The order in which the modules of experts in transformers define their parameters, and how PEFT nests them.
_EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
_INNER = ".base_layer"
# What the rows of an embedding that were trained (``trainable_token_indices``) are called, after their module.
ROWS = ".token_adapter.trainable_tokens_delta"
_COPY = re.compile(r"\.modules_to_save\.(?:[^.]+\.)?(?=[^.]+$)")
_TYPES = {name: dtype for dtype, name in DTYPES.items() if dtype.is_floating_point}


@dataclass(frozen=True)
class AdapterLayer:
    """One adapted layer, as the files describe it.

    Attributes:
        d_out: Width of the outputs.
        d_in: Width of the inputs; of an embedding, the size of the vocabulary.
        rank: Rank of the factors.
        scaling: ``s`` in ``s B A``.
        embedding: Whether the layer is an embedding, whose weight is the transpose of ``B A``.
        is_tensor: Whether it is not a layer's weight but another tensor of a full model, with that tensor's name.
        kernel: Size of a convolution's kernel, such as ``(3, 3)``: ``d_in`` is then the number of input channels times
            its product. Empty for other layers.
    """

    d_out: int
    d_in: int
    rank: int
    scaling: float
    embedding: bool
    is_tensor: bool = False
    kernel: tuple[int, ...] = ()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the base model's weight; ``(d_out, d_in)`` but for convolutions."""
        return (self.d_out, self.d_in // math.prod(self.kernel), *self.kernel)


def layer_name_sort_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``layer.2`` before ``layer.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def peft_tensor_name(stored: str) -> str:
    """The name that PEFT gives a tensor, without what compiling, data-parallel training or other wrappers add.

    Args:
        stored: The name in the file, such as ``module.base_model.model._orig_mod.query.lora_A.default.weight``.
    """
    name = stored.replace("_orig_mod.", "").removeprefix("module.")
    name = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)
    name = re.sub(r"\.(lora_embedding_[AB])\.[^.]+$", r".\1", name)
    name = _COPY.sub(".", name)
    while name.startswith(2 * PREFIX):
        name = name.removeprefix(PREFIX)
    return name if name.startswith(PREFIX) or ".lora_" not in name else PREFIX + name


def tensor_kind(name: str) -> str:
    """``factor``, ``copy`` (PEFT's copy of a frozen module that is adapted or replaced), or ``other``."""
    if re.search(r"\.lora_(embedding_)?[AB](\.|$)", name):
        return "factor"
    return "copy" if ".base_layer." in name or ".original_module." in name else "other"


def is_base_module(config: AdapterConfig, tensor: str) -> bool:
    """Whether a tensor of ``modules_to_save`` belongs to a module of the base model, trained as a whole.

    Others are the head of the adapter's task, which the base model does not have.

    Args:
        config: The adapter's settings.
        tensor: The tensor's name in the base model.
    """
    return config.task_type in _WITHOUT_HEAD or any(part in _BASE_MODULES for part in tensor.split("."))


def with_adapter_embeddings(config: AdapterConfig, stored: Iterable[str]) -> AdapterConfig:
    """Settings whose ``modules_to_save`` name the embeddings and the output layer that PEFT stores beside the factors.

    It does so unasked where the vocabulary was resized (``save_embedding_layers="auto"``): they hold the new rows.

    Args:
        config: The adapter's settings.
        stored: Its tensors by their names in the files.
    """
    names = {peft_tensor_name(own).removeprefix(PREFIX) for own in stored}
    modules = {name.rpartition(".")[0] for name in names if re.fullmatch(_STORED_EMBEDDING, name)}
    found = {module.rpartition(".")[2] for module in modules} - set(config.modules_to_save)
    return replace(config, modules_to_save=(*config.modules_to_save, *sorted(found)))


def find_lora_layers(
    folder: Path, config: AdapterConfig, stored: Mapping[str, TensorLocation]
) -> tuple[dict[str, AdapterLayer], dict[str, TensorLocation]]:
    """The layers that an adapter's factors make up, and all its tensors by the names that PEFT gives them.

    Args:
        folder: The adapter, for errors.
        config: Its settings.
        stored: Its tensors by their names in the files, see ``peft_tensor_name``; those of experts stacked.

    Returns:
        The layers, ``layer.2`` before ``layer.10``, and the tensors, each expert's apart.

    Raises:
        OsrmError: If a factor has no partner, its shape disagrees with the settings, or there are further tensors.
    """
    tensors = _split_expert_factors(folder, config, name_adapter_tensors(folder, stored))
    layers = _pair_lora_layers(folder, config, tensors)
    check_only_adapter_tensors(folder, config, tensors)
    return layers, tensors


def name_adapter_tensors(folder: Path, stored: Mapping[str, TensorLocation]) -> dict[str, TensorLocation]:
    """The tensors of an adapter's files by the name that PEFT gives them, see ``peft_tensor_name``.

    Raises:
        OsrmError: If two are of one name.
    """
    tensors: dict[str, TensorLocation] = {}
    for own, location in stored.items():
        name = peft_tensor_name(own)
        if _COPY.search(own):  # of a resized embedding, PEFT stores what was trained a second time
            tensors.setdefault(name, location)
            continue
        if name in tensors and not _COPY.search(tensors[name].name):
            raise OsrmError(
                f"{folder}: {tensors[name].name} and {own} are two tensors of one layer", "save the adapter again"
            )
        tensors[name] = location
    return tensors


def _pair_lora_layers(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, TensorLocation]
) -> dict[str, AdapterLayer]:
    layers = {}
    for name in sorted(tensors, key=layer_name_sort_key):
        for embedding, (suffix_a, suffix_b) in FACTORS.items():
            if name.startswith(PREFIX) and name.endswith(suffix_a):
                layer = name.removeprefix(PREFIX).removesuffix(suffix_a)
                layers[layer] = _pair_factors(
                    folder, config, tensors, layer, (name, PREFIX + layer + suffix_b), embedding
                )
    paired = {PREFIX + layer + suffix for layer in layers for pair in FACTORS.values() for suffix in pair}
    lone = sorted(name for name in tensors if tensor_kind(name) == "factor" and name not in paired)
    if lone or not layers:
        problem = f"{lone[0]} is not one of a lora_A and lora_B of one layer" if lone else "it holds no LoRA factors"
        raise OsrmError(f"{folder}: {problem}", "save the adapter again with PEFT")
    return layers


def _pair_factors(
    folder: Path,
    config: AdapterConfig,
    tensors: Mapping[str, TensorLocation],
    layer: str,
    pair: tuple[str, str],
    embedding: bool,
) -> AdapterLayer:
    if pair[1] not in tensors:
        raise OsrmError(f"{folder}: {pair[1]} is missing", "save the adapter again with PEFT")
    shape_a, shape_b = (tensors[name].shape for name in pair)
    rank = adapter_layer_rank(config, layer)
    kernel = shape_a[2:]
    is_pair = len(shape_a) >= 2 and shape_a[0] == rank and shape_b[1:] == (rank, *(1 for _ in kernel))
    if not is_pair or (embedding and kernel):
        raise OsrmError(
            f"{folder}: {layer} has lora_A {shape_a} and lora_B {shape_b}, expected ({rank}, d_in) and (d_out, {rank})",
            "linear layers, convolutions and embeddings can be read, with the ranks that the settings state",
        )
    d_in = shape_a[1] * math.prod(kernel)
    return AdapterLayer(shape_b[0], d_in, rank, adapter_layer_scaling(config, layer, rank), embedding, kernel=kernel)


def adapter_layer_rank(config: AdapterConfig, layer: str) -> int:
    """The rank that the settings state for a layer."""
    return config.rank_pattern.get(
        _first_matching_pattern(config.rank_pattern, _name_in_adapter_config(config, layer)), config.r
    )


def plain_alpha(config: AdapterConfig, layer: str, rank: int) -> float:
    """The numerator of a layer's scaling over its rank: ``lora_alpha``, under rsLoRA times ``sqrt(r)``."""
    alpha = config.alpha_pattern.get(
        _first_matching_pattern(config.alpha_pattern, _name_in_adapter_config(config, layer)), config.lora_alpha
    )
    if alpha is None:
        return rank
    return alpha * math.sqrt(rank) if config.use_rslora else alpha


def adapter_layer_scaling(config: AdapterConfig, layer: str, rank: int) -> float:
    """``s`` of a layer: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` under rsLoRA (arXiv:2312.03732)."""
    alpha = config.alpha_pattern.get(
        _first_matching_pattern(config.alpha_pattern, _name_in_adapter_config(config, layer)), config.lora_alpha
    )
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _name_in_adapter_config(config: AdapterConfig, layer: str) -> str:
    """The name by which the settings call a layer: that of the parameter that it is one expert of."""
    return find_expert_parameter(config, layer) or layer


def _first_matching_pattern(pattern: Mapping[str, Any], layer: str) -> str:
    """The first key that matches, as PEFT picks it."""
    return next((key for key in pattern if pattern_matches(key, layer)), "")


def check_only_adapter_tensors(folder: Path, config: AdapterConfig, tensors: Mapping[str, TensorLocation]) -> None:
    """Check that every tensor that is not a factor belongs to ``modules_to_save`` or ``trainable_token_indices``.

    Raises:
        OsrmError: Naming the first tensor that does not.
    """
    for name in tensors:
        if config.token_indices and name.endswith(ROWS):
            continue
        parents = itertools.accumulate(name.split(".")[:-1], "{}.{}".format)
        in_saved_module = any(parent.endswith(module) for parent in parents for module in config.modules_to_save)
        if tensor_kind(name) == "other" and not in_saved_module:
            raise OsrmError(
                f"{folder}: {name} is neither a LoRA factor nor named in modules_to_save",
                "only plain LoRA adapters can be read, with modules that were saved whole",
            )


def widest_factor_dtype(folder: Path, tensors: Mapping[str, TensorLocation]) -> torch.dtype:
    """The widest type among the factors.

    Raises:
        OsrmError: If one is not a floating-point type that torch computes in.
    """
    types = sorted({tensor.dtype for name, tensor in tensors.items() if tensor_kind(name) == "factor"})
    for name in types:
        if name not in _TYPES:
            raise OsrmError(f"{folder}: factors of type {name}, expected {', '.join(_TYPES)}")
    return functools.reduce(torch.promote_types, (_TYPES[name] for name in types))


def find_expert_parameter(config: AdapterConfig, layer: str) -> str | None:
    """The parameter that a layer is one expert of; ``None`` for others."""
    parameter, _, number = layer.rpartition(".")
    is_target = any(parameter == target or parameter.endswith(f".{target}") for target in config.target_parameters)
    return parameter if number.isdecimal() and is_target else None


def stored_factors_name(config: AdapterConfig, parameter: str) -> str:
    """The name that a parameter's factors have in the file, before ``.lora_A``.

    Raises:
        ValueError: If the order of the module's parameters is not known.
    """
    module, _, name = parameter.rpartition(".")
    names = _list_adapted_parameters(config, module)
    return module + _INNER * (len(names) - 1 - names.index(name))


def _split_expert_factors(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, TensorLocation]
) -> dict[str, TensorLocation]:
    """The tensors with those of stacked parameters split into their experts'."""
    split: dict[str, TensorLocation] = {}
    for name, location in tensors.items():
        suffix = next((each for each in FACTORS[False] if name.endswith(each)), None)
        try:
            parameter = (
                _find_adapted_parameter(config, name.removeprefix(PREFIX).removesuffix(suffix)) if suffix else None
            )
        except ValueError as error:
            raise OsrmError(f"{folder}: {error}", "merge it into its model with PEFT: merge_and_unload") from None
        if suffix is None or parameter is None:
            split[name] = location
            continue
        axis = FACTORS[False].index(suffix)
        rank = next((r for pattern, r in config.rank_pattern.items() if pattern_matches(pattern, parameter)), config.r)
        count, rest = divmod(location.shape[axis], rank)
        if rest or len(location.shape) != 2:
            raise OsrmError(f"{folder}: {name} has shape {location.shape}, expected a multiple of the rank {rank}")
        for number in range(count):
            own = slice(number * rank, (number + 1) * rank) if axis == 0 else slice(number, None, count)
            part, shape = (slice(None),) * axis + (own,), list(location.shape)
            shape[axis] = rank
            split[f"{PREFIX}{parameter}.{number}{suffix}"] = replace(location, part=part, shape=tuple(shape))
    return split


def _find_adapted_parameter(config: AdapterConfig, module: str) -> str | None:
    """The parameter whose factors have this module's name in the file; ``None`` for those of a layer."""
    plain = module
    while plain.endswith(_INNER):
        plain = plain.removesuffix(_INNER)
    names = _list_adapted_parameters(config, plain)
    depth = (len(module) - len(plain)) // len(_INNER)
    return f"{plain}.{names[-1 - depth]}" if depth < len(names) else None


def _list_adapted_parameters(config: AdapterConfig, module: str) -> list[str]:
    """The parameters of a module that are adapted, in the order in which it defines them."""
    names = set()
    for target in config.target_parameters:
        parent, _, name = target.rpartition(".")
        if module == parent or module.endswith(f".{parent or 'experts'}"):
            names.add(name)
    if len(names) > 1 and not names <= set(_EXPERT_PARAMETERS):
        raise ValueError(f"the order of {', '.join(sorted(names))} in {module} is not known")
    return [name for name in _EXPERT_PARAMETERS if name in names] if len(names) > 1 else list(names)


def layer_matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor's shape as that of a matrix: a vector is one row, and further dimensions are joined."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])
