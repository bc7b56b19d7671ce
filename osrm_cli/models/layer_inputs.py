"""Inputs of target layers, recorded by forward pre-hooks, one per distinct input tensor."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent
from transformers import PreTrainedModel

from osrm_cli.errors import OsrmError
from osrm_cli.models.token_batches import IGNORED

ALL_TOKENS = "all"
# Called with a layer's name, its inputs (batch, length, d_in) and the mask (batch, length) of positions that count.
InputCallback = Callable[[str, torch.Tensor, torch.Tensor], None]


class _StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass after the last target layer."""


@dataclass(frozen=True)
class SharedLayerInputs:
    """The distinct tensors that the target layers receive.

    Attributes:
        sources: For each target layer, in the order in which they run, the first one that receives the same tensor
            (for query, key and value: query).
        calls: For each layer in ``sources.values()``, how often it is called in one forward pass: a model may reuse it.
        of_encoder: Layers of an encoder-decoder that read the prompt: the encoder's, and cross-attention's keys and
            values.
    """

    sources: Mapping[str, str]
    calls: Mapping[str, int]
    of_encoder: Collection[str] = ()

    @property
    def distinct(self) -> list[str]:
        """The layers whose inputs are recorded."""
        return list(dict.fromkeys(self.sources.values()))

    def only(self, layers: Collection[str]) -> "SharedLayerInputs":
        """Some of the distinct inputs, by the layers that are recorded."""
        calls = {name: self.calls[name] for name in layers}
        return SharedLayerInputs({name: name for name in layers}, calls, self.of_encoder)


def find_shared_layer_inputs(
    model: PreTrainedModel, targets: Mapping[str, torch.nn.Module], batch: Mapping[str, torch.Tensor]
) -> SharedLayerInputs:
    """Run ``batch`` once and find out which target layers receive the same tensor.

    Raises:
        OsrmError: If a target layer does not run at all.
    """
    first_layer: dict[int, str] = {}
    alive: list[torch.Tensor] = []  # references every input, so that no ``id`` is reused
    sources: dict[str, str] = {}
    calls: list[str] = []

    def make_hook(name: str) -> Callable[..., None]:
        def observe(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            alive.append(args[0])
            calls.append(name)
            sources.setdefault(name, first_layer.setdefault(id(args[0]), name))

        return observe

    encoder = model.get_encoder() if "labels" in batch and model.config.is_encoder_decoder else None
    encoded: list[torch.Tensor] = []
    of_encoder: set[str] = set()

    def keep_output(_module: torch.nn.Module, _args: Any, output: Any) -> None:
        encoded.append(output[0])

    def find_side(name: str) -> Callable[..., None]:
        def observe(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if not encoded or any(args[0] is output for output in encoded):
                of_encoder.add(name)

        return observe

    hooks = [(module, make_hook(name)) for name, module in targets.items()]
    with ExitStack() as stack:
        stack.enter_context(_with_layer_input_hooks(hooks))
        if encoder is not None:
            handle = encoder.register_forward_hook(keep_output)
            stack.callback(handle.remove)
            stack.enter_context(
                _with_layer_input_hooks([(module, find_side(name)) for name, module in targets.items()])
            )
        stack.enter_context(torch.inference_mode())
        model(**_model_inputs(model, batch))
    for name in targets:
        if name not in sources:
            raise OsrmError(f"target layer {name} takes no part in the task", "leave it out of --target-modules")
    return SharedLayerInputs(sources, {name: calls.count(name) for name in set(sources.values())}, of_encoder)


def _model_inputs(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch as the model takes it: an encoder-decoder makes its decoder's inputs of the labels."""
    if "labels" not in batch or model.config.is_encoder_decoder:
        return dict(batch)
    return {name: values for name, values in batch.items() if name != "labels"}


def record_layer_inputs(
    model: PreTrainedModel,
    targets: Mapping[str, torch.nn.Module],
    inputs: SharedLayerInputs,
    batch: Mapping[str, torch.Tensor],
    record: InputCallback,
    count_padding: bool = False,
    tokens: str = ALL_TOKENS,
) -> None:
    """Run one batch up to the last target layer and hand each distinct input to ``record``.

    Args:
        model: The model, in evaluation mode.
        targets: Target layers by name.
        inputs: As returned by ``find_shared_layer_inputs``.
        batch: Tokenized text, padded on the right, with its ``attention_mask``, and ``labels`` if it has completions.
        record: Receives each input once.
        count_padding: Count padding as text, as the code published with OSRM does.
        tokens: ``all``, or of a causal model those of the ``prompt`` or the ``completion`` alone.
    """
    masks = {True: batch["attention_mask"].bool()}  # by whether a layer reads the prompt of an encoder-decoder
    masks[False] = masks[True]
    if "labels" in batch:
        completion = batch["labels"] != IGNORED
        if model.config.is_encoder_decoder:
            masks[False] = completion
        elif tokens != ALL_TOKENS:
            masks[False] = masks[True] & (completion if tokens == "completion" else ~completion)
    if count_padding:
        masks = {side: torch.ones_like(mask) for side, mask in masks.items()}
    left = sum(inputs.calls.values())

    def make_hook(name: str) -> Callable[..., None]:
        def observe(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal left
            record(name, *_layer_inputs_per_token(name, args[0].detach(), masks[name in inputs.of_encoder]))
            left -= 1
            if not left:
                raise _StopForward

        return observe

    with (
        _with_layer_input_hooks((targets[name], make_hook(name)) for name in inputs.distinct),
        torch.inference_mode(),
        suppress(_StopForward),
    ):
        model(**_model_inputs(model, batch))


def _layer_inputs_per_token(name: str, inputs: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if inputs.dim() == 2 and len(inputs) == len(mask):  # after a pooler: one vector per example
        return inputs.unsqueeze(1), torch.ones_like(mask[:, :1])
    if inputs.shape[:-1] != mask.shape:
        raise OsrmError(
            f"layer {name} has inputs of shape {tuple(inputs.shape)}, expected a vector for each of "
            f"{tuple(mask.shape)} tokens",
            "leave it out of --target-modules",
        )
    return inputs, mask


@contextmanager
def watch_layer_inputs(
    model: torch.nn.Module, masks: Mapping[str, torch.Tensor], inputs: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Note the inputs of layers: at the positions of their masks, or whole where they have other positions.

    Args:
        model: The model.
        masks: Positions that count, ``(batch, length)``, by the layer's name.
        inputs: Receives the inputs of each of these layers, ``(tokens, d_in)``, when the model runs.
    """

    def make_hook(name: str) -> Callable[..., None]:
        def note(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x, mask = args[0], masks[name]
            inputs[name] = x[mask] if x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])

        return note

    with _with_layer_input_hooks((model.get_submodule(name), make_hook(name)) for name in masks):
        yield


@contextmanager
def _with_layer_input_hooks(hooks: Iterable[tuple[torch.nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(_layer_input_hook(hook)) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_input_hook(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that sees its own forward pass alone: an offloaded model runs several side by side."""
    owner = getcurrent()
    return lambda *arguments: hook(*arguments) if getcurrent() is owner else None
