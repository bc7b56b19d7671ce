"""Kinds of adapters that can be written as plain LoRA: LoHa, LoKr, DoRA, and LoRA with rows of an embedding beside it.

Each function takes one layer's tensors by the last part of their name and returns the layer's update, in float64 and
with every scale folded in, and the size of a convolution's kernel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.products import entrywise_product, factor_with_identity, kronecker_product

Tensors = Mapping[str, torch.Tensor]
Update = tuple[LowRank, tuple[int, ...]]


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter.

    Attributes:
        name: As people call it.
        parts: The last parts of the names of a layer's tensors, one of which begins each of them.
        update: The update of a layer from its tensors and its scaling ``alpha / r``, as far as these tell it.
        needs_base: Whether the update depends on the base model's weights.
    """

    name: str
    parts: tuple[str, ...]
    update: Callable[[Tensors, float], Update]
    needs_base: bool = False


def loha_update(tensors: Tensors, scaling: float) -> Update:
    """``s (w1_a w1_b) * (w2_a w2_b)``, entry by entry (FedPara, arXiv:2108.06098).

    Raises:
        ValueError: If a tensor is missing or of another shape.
    """
    (first, kernel), (second, _) = (
        _multiply_lycoris_parts(tensors, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)
    )
    return entrywise_product(first, second).scaled(scaling), kernel


def lokr_update(tensors: Tensors, scaling: float) -> Update:
    """``s w1 (x) w2``, each whole or as two factors (LyCORIS, arXiv:2309.14859).

    Raises:
        ValueError: If a tensor is missing or of another shape.
    """
    (first, _), (second, kernel) = (_lokr_matrix(tensors, f"lokr_w{i}") for i in (1, 2))
    return kronecker_product(first, second).scaled(scaling), kernel


def dora_update(tensors: Tensors, scaling: float) -> Update:
    """``m / ||W + s B A|| * (W + s B A) - W``, the norm that of each row (DoRA, arXiv:2402.09353).

    Args:
        tensors: ``lora_A``, ``lora_B``, ``lora_magnitude_vector``, and the base model's ``weight``.
        scaling: ``s``.

    Raises:
        ValueError: If a tensor is missing.
    """
    parts = ("weight", "lora_B", "lora_A", "lora_magnitude_vector")
    if missing := [name for name in parts if name not in tensors]:
        raise ValueError(f"{missing[0]} is missing")
    W, B, A, m = (tensors[name].double().flatten(1) if name != parts[3] else tensors[name].double() for name in parts)
    adapted = W + scaling * (B @ A)
    return factor_with_identity(m.reshape(-1, 1) / adapted.norm(dim=1, keepdim=True) * adapted - W), tensors[
        "lora_A"
    ].shape[2:]


def lora_update(tensors: Tensors, scaling: float) -> Update:
    """``s B A``: of an adapter that is plain LoRA, but for what it holds beside its factors.

    Args:
        tensors: ``lora_A`` and ``lora_B``.
        scaling: ``s``.

    Raises:
        ValueError: If a tensor is missing.
    """
    if missing := [name for name in ("lora_B", "lora_A") if name not in tensors]:
        raise ValueError(f"{missing[0]} is missing")
    B, A = (tensors[name].double().flatten(1) for name in ("lora_B", "lora_A"))
    return LowRank(scaling * B, A), tensors["lora_A"].shape[2:]


KINDS = {
    "LOHA": AdapterKind("LoHa", ("hada_",), loha_update),
    "LOKR": AdapterKind("LoKr", ("lokr_",), lokr_update),
    "DORA": AdapterKind("DoRA", ("lora_",), dora_update, needs_base=True),
    "TOKENS": AdapterKind("LoRA with trained tokens", ("lora_",), lora_update, needs_base=True),
}


def _lokr_matrix(tensors: Tensors, name: str) -> Update:
    if name in tensors:
        whole = tensors[name].double()
        return factor_with_identity(whole.flatten(1)), tuple(whole.shape[2:])
    return _multiply_lycoris_parts(tensors, f"{name}_a", f"{name}_b", name.replace("_w", "_t"))


def _multiply_lycoris_parts(tensors: Tensors, name_a: str, name_b: str, name_t: str) -> Update:
    """``a b``, or of a convolution in Tucker's form ``sum_ij t_ij (x) a_i b_j`` as ``(c_out, c_in k k)``."""
    for name in (name_a, name_b):
        if name not in tensors:
            raise ValueError(f"{name} is missing")
    a, b = tensors[name_a].double(), tensors[name_b].double()
    if name_t not in tensors:
        return LowRank(a, b), ()
    t = tensors[name_t].double()
    if t.ndim != 4 or (t.shape[3] == 1 and t.shape[2] > 1):
        raise ValueError(f"{name_t} has shape {tuple(t.shape)}, expected (r, r, k, k)")
    return LowRank(a.T, torch.einsum("ijkl,jc->ickl", t, b).flatten(1)), tuple(t.shape[2:])
