"""Forward passes that wait before each layer, for methods that merge layers in the order in which they run."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from greenlet import getcurrent, greenlet

from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.models.layer_inputs import InputCallback, SharedLayerInputs, find_shared_layer_inputs, record_layer_inputs
from osrm_cli.models.output_hooks import OutputHook, with_output_hooks

_HELD_NUMBERS = 1 << 26  # of one hidden state of every token: 256 MiB; a pass that waits in a block holds a few of them

Inputs = tuple[torch.Tensor, torch.Tensor]  # (batch, length, d_in), and the mask (batch, length) of tokens that count


class LayerwisePasses:
    """A task's examples on their way through a model that changes behind them, held before each layer in turn.

    Every batch is a coroutine that goes on where it stands, so that all layers together take one pass. Where too many
    tokens would wait, or a module runs more than once in a pass, the passes begin anew for each layer.

    Args:
        model: The task's.
        layers: The layers that may be asked for.
        changes: Changes of layers' outputs. They are looked up when a layer runs: further ones may be added in between.
        can_wait: Whether there is room for passes that wait, see ``can_hold_passes``.

    Attributes:
        inputs: Which of the layers share their inputs.

    Raises:
        OsrmError: If a layer takes no part in the task.
    """

    def __init__(
        self, model: TaskModel, layers: Sequence[str], changes: Mapping[str, OutputHook], can_wait: bool = True
    ) -> None:
        self._model, self._changes, self._shell = model, changes, model.with_head_loaded()
        self._targets = {name: self._shell.get_submodule(name) for name in layers}
        self.inputs = find_shared_layer_inputs(self._shell, self._targets, model.batch([0]))
        self._waiting = None
        if can_wait and set(self.inputs.calls.values()) == {1}:
            runs = [partial(self._run_batch, rows, self.inputs, _wait_before_layer) for rows in model.batches()]
            self._waiting = [greenlet(run) for run in runs]

    def run_to(self, layer: str) -> Iterator[Inputs]:
        """Each batch's inputs of a layer, one of ``inputs.distinct``, asked for in their order."""
        self._model.with_head_loaded()
        if self._waiting is None:
            yield from self._run_again(layer)
            return
        for coroutine in self._waiting:
            yield _resume_layerwise_pass(coroutine)
            if layer == self.inputs.distinct[-1]:
                _resume_layerwise_pass(coroutine)  # it ends here, and removes its hooks

    def _run_again(self, layer: str) -> Iterator[Inputs]:
        seen: list[Inputs] = []

        def record(_name: str, x: torch.Tensor, mask: torch.Tensor) -> None:
            seen.append((x, mask))

        for rows in self._model.batches():
            self._run_batch(rows, self.inputs.only([layer]), record)
            yield from seen
            seen.clear()

    def _run_batch(self, rows: Sequence[int], inputs: SharedLayerInputs, record: InputCallback) -> None:
        own = getcurrent()  # hooks of the other passes are called in this one, too

        def change(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self._changes[name](x, y) if name in self._changes and getcurrent() is own else y

        with with_output_hooks(self._shell, {name: partial(change, name) for name in self._targets}):
            record_layer_inputs(self._shell, self._targets, inputs, self._model.batch(rows), record)


def can_hold_passes(models: Sequence[TaskModel]) -> bool:
    """Whether passes over all examples of all tasks may wait side by side."""
    tokens = sum(len(encoding["input_ids"]) for model in models for encoding in model.encodings)
    return tokens * int(models[0].backbone.model.config.get_text_config().hidden_size) <= _HELD_NUMBERS


def _wait_before_layer(_name: str, x: torch.Tensor, mask: torch.Tensor) -> None:
    getcurrent().parent.switch((x, mask))


def _resume_layerwise_pass(coroutine: greenlet) -> Inputs:
    # A pass has entered this mode for itself and leaves it at its end; in between it must not last.
    with torch.inference_mode():
        inputs: Inputs = coroutine.switch()
    return inputs
