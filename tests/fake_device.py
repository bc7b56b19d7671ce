"""A pretended accelerator: tensors that say they lie on another device, and refuse to meet those of the CPU.

Values are computed on the CPU, so that rules which look at values run too, and results can be compared byte by byte.
What PyTorch allows is allowed: a CPU tensor without dimensions may take part in anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")  # a device that every build of PyTorch knows; nothing is ever computed on it


class There(Tensor):
    """A tensor on the pretended device, with its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While this is active, the pretended device exists."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU, after checking that all tensors lie on one device; the result lies there too."""
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = any(isinstance(value, There) for value in given)
    wanted = kwargs.get("device")
    name = str(func)
    if there and name != "aten.copy_.default":
        strangers = [tuple(value.shape) for value in given if not isinstance(value, There) and value.dim()]
        if strangers:
            raise RuntimeError(f"{name}: tensors on two devices, on the CPU those of shape {strangers}")
    generator = kwargs.get("generator")
    if generator is not None and (there or wanted == DEVICE):
        raise RuntimeError(f"{name}: a generator of the CPU draws on another device")
    if wanted is not None:
        there, kwargs = torch.device(wanted) == DEVICE, {**kwargs, "device": "cpu"}
    plain = tree_map_only(There, lambda value: value.values, (list(args), kwargs))
    result = func(*plain[0], **plain[1])
    operator = name.rpartition(".")[0]
    if operator.endswith("_") and not operator.endswith("__"):  # in place; __rshift__ is not
        return args[0]
    return tree_map_only(Tensor, There, result) if there else result
