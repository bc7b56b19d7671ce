"""Forward passes of a model whose weights stay on disk: a layer is read once for all passes, and then let go of.

The passes run side by side as coroutines. Each runs up to its next layer and waits there; the layer is read, every pass
goes through it, and its weights leave memory. The model's own code runs unchanged, so that the results are those of a
model in memory.
"""

import atexit
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import ModelHook, remove_hook_from_submodules
from greenlet import getcurrent, greenlet

from osrm_cli.errors import OsrmError
from osrm_cli.models.classifier import LoadedModel

logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # that weights are on disk is what was asked for

# Padded tokens of the passes that run side by side: their hidden states are held at once, 1 GiB at width 4096.
_GROUP_TOKENS = 1 << 16


def offload_settings() -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that leave a model's weights on disk.

    Weights that transformers stores in another form than the checkpoint, such as a mixture's experts, go into a
    temporary folder, which is removed at the end of the program.
    """
    folder = tempfile.mkdtemp(prefix="osrm-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": {"": "disk"}, "offload_folder": folder}


class OffloadedModel:
    """A model that reads its weights layer by layer.

    Args:
        loaded: A model loaded with ``offload_settings``; its layers' ``forward`` are replaced.
        device: Where to compute.
        folder: The base model's folder, for errors.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, folder: Path) -> None:
        self._model, self._heads, self._device, self._folder = loaded.model, loaded.heads, device, folder
        self._weights = _take_offloaded_weights(loaded.model)
        loaded.model.requires_grad_(False)
        for module in loaded.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        self._layers = dict(_find_offloaded_layers(loaded.model))
        for name, layer in self._layers.items():
            layer.forward = _offloaded_layer_forward(name, layer.forward)

    def run(self, passes: Sequence[Callable[[], object]]) -> None:
        """Run forward passes side by side.

        Args:
            passes: Each runs the model; in every layer they follow one another in this order.

        Raises:
            OsrmError: If the checkpoint lacks a weight.
        """
        coroutines = [greenlet(each) for each in passes]
        waiting: dict[Any, str] = {}  # by pass, the layer it has come to

        def resume(each: Any) -> None:
            layer = each.switch()
            if each.dead:
                waiting.pop(each, None)
            else:
                waiting[each] = layer

        # The passes enter and leave modes of their own: all have to end before this one does.
        with torch.inference_mode():
            try:
                for each in coroutines:
                    resume(each)
                while waiting:
                    layer = next(iter(waiting.values()))
                    with self._in_memory(layer):
                        for each in [each for each, name in waiting.items() if name == layer]:
                            resume(each)
            finally:
                for each in [each for each in waiting if not each.dead]:
                    each.throw()  # ends it where it stands, so that it removes its hooks

    @contextmanager
    def _in_memory(self, name: str) -> Iterator[None]:
        """A layer's weights, read from the disk."""
        layer = self._layers[name]
        empty = dict(layer.named_parameters(remove_duplicate=False))
        weights = {key: self._read_weights(f"{name}.{key}", old) for key, old in empty.items()}
        layer.load_state_dict(weights, strict=False, assign=True)
        del weights
        try:
            yield
        finally:
            layer.load_state_dict(empty, strict=False, assign=True)

    def _read_weights(self, name: str, empty: torch.Tensor) -> torch.Tensor:
        tensor = self._weights.get(name)
        if tensor is not None and tensor.shape == empty.shape:
            return tensor.to(self._device)
        if not any(name.startswith(f"{head}.") for head in self._heads) or self._is_inside(name):
            raise OsrmError(f"{self._folder}: {name} is missing or of another shape", "collect without --offload")
        return torch.zeros_like(empty, device=self._device)  # a new head, behind all target layers

    def _is_inside(self, name: str) -> bool:
        return name.startswith(f"{self._model.base_model_prefix}.")


def group_offloaded_batches(batches: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[Sequence[int]]]:
    """Batches in groups of at most ``_GROUP_TOKENS`` tokens, each of which reads the weights once.

    Args:
        batches: The batches.
        tokens: Padded tokens of each.
    """
    groups: list[list[Sequence[int]]] = []
    room = 0
    for batch, count in zip(batches, tokens, strict=True):
        if count > room:
            groups.append([])
            room = _GROUP_TOKENS
        groups[-1].append(batch)
        room -= count
    return groups


def _take_offloaded_weights(model: Any) -> Mapping[str, torch.Tensor]:
    """The weights on disk by their names in the model, from accelerate's hooks, which read them once for each batch."""
    hooked = [module for module in model.modules() if hasattr(module, "_hf_hook")]
    maps = (getattr(module._hf_hook, "weights_map", None) for module in hooked)
    weights: Mapping[str, torch.Tensor] = next(each.dataset for each in maps if each is not None)
    for module in hooked:
        module._hf_hook = ModelHook()  # accelerate's own would look for a new head on the disk when it is removed
    remove_hook_from_submodules(model)
    return weights


def _find_offloaded_layers(model: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """What is read as one: the model's blocks, and elsewhere each module that has weights of its own."""
    blocks = set(model._no_split_modules or ())
    seen: set[torch.nn.Module] = set()

    def visit(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        if type(module).__name__ in blocks or any(True for _ in module.parameters(recurse=False)):
            yield name, module
            return
        for child_name, child in module.named_children():
            yield from visit(f"{name}.{child_name}" if name else child_name, child)

    return visit("", model)


def _offloaded_layer_forward(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's ``forward`` that waits until the layer has been read."""

    def wait(*args: Any, **kwargs: Any) -> Any:
        getcurrent().parent.switch(name)
        return forward(*args, **kwargs)

    return wait
