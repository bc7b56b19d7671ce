"""Updates added to the outputs of a model's layers by forward hooks: its weights stay as they are."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from osrm_cli.linalg.low_rank import LowRank

# From a layer's inputs (..., d_in) and outputs (..., d_out) to its new outputs.
OutputHook = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# A layer's inputs of each call, and the gradient of its outputs once there is one.
Calls = list[tuple[torch.Tensor, list[torch.Tensor]]]


@contextmanager
def with_output_hooks(model: torch.nn.Module, hooks: Mapping[str, OutputHook]) -> Iterator[None]:
    """Change the outputs of layers by forward hooks."""

    def make_hook(output_hook: OutputHook) -> Callable[..., torch.Tensor]:
        return lambda _module, args, output: output_hook(args[0], output)

    handles = [
        model.get_submodule(name).register_forward_hook(make_hook(output_hook)) for name, output_hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def low_rank_output_hook(delta: LowRank | None) -> OutputHook:
    """Add an update, if there is one: ``y + B A x``."""
    return lambda x, y: y + (x @ delta.A.T) @ delta.B.T if delta else y


def recording_output_hook(change: OutputHook, calls: Calls) -> OutputHook:
    """A change, and a note of every call's inputs and of the gradient that its outputs will get."""

    def watch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The weights are frozen: without the zero, the first layers' outputs would have no gradient.
        y = change(x, y) + torch.zeros((), device=y.device, requires_grad=True)
        gradient: list[torch.Tensor] = []
        y.register_hook(gradient.append)  # type: ignore[no-untyped-call]
        calls.append((x.detach(), gradient))
        return y

    return watch


@contextmanager
def with_selected_positions(layer: torch.nn.Module, positions: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Let an output layer compute the logits of some positions alone; yields the list of its inputs there."""
    seen: list[torch.Tensor] = []

    def select(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        seen.append(args[0][positions])
        return (seen[-1],)

    handle = layer.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def with_last_layer_bypassed(head: torch.nn.Linear) -> Iterator[None]:
    """With its last layer bypassed, the model itself pools that layer's inputs in place of the logits."""
    handle = head.register_forward_hook(lambda _module, args, _output: args[0])
    try:
        yield
    finally:
        handle.remove()
