"""The diagonal Fisher information of each task's adapted weights, for Fisher merging (arXiv:2111.09832).

The empirical one: gradients of the log-likelihood of the true labels, not of labels drawn from the model. A number is
taken for the mean of a Gaussian of unit variance: its negative log-likelihood is half the squared error. The label of a
task that is answered with text is the given completion: the sum over its tokens, the end token among them. Such numbers
have no common scale, nor have well and badly trained tasks: so each task's information is divided by its norm over all
layers, as the code published with the paper does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from osrm_cli.merging.from_data.task_models import TaskModel
from osrm_cli.merging.layer_data import Fields, LayerData
from osrm_cli.merging.methods.layer_updates import LayerResult
from osrm_cli.models.output_hooks import Calls, low_rank_output_hook, recording_output_hook, with_output_hooks
from osrm_cli.models.text.generation import completion_logits, token_losses
from osrm_cli.progress import Progress
from osrm_cli.tasks.task import Label, Task


class FisherInformation(LayerData):
    """Fisher information in files, of which a merge reads one layer at a time.

    Args:
        models: The tasks' classifiers, in the order of the adapters' names.
        shapes: ``(d_out, d_in)`` of every layer to measure, whether a task's adapter changes it or not.
        folder: An existing folder for the files; they can go when the merge is done.
        progress: Draws a bar.
    """

    def __init__(
        self,
        models: Sequence[TaskModel],
        shapes: Mapping[str, tuple[int, int]],
        folder: Path,
        progress: Progress,
    ) -> None:
        self._paths = [folder / f"{model.name}.safetensors" for model in models]
        norms = {}
        with progress("fisher", sum(len(model.encodings) for model in models), "examples") as advance:
            for model, path in zip(models, self._paths, strict=True):
                norms[model.name] = self._save_information(path, fisher_diagonal(model, shapes, advance))
        self.record = {"examples": {model.name: model.sample.record for model in models}, "fisher_norms": norms}

    def _save_information(self, path: Path, diagonal: Mapping[str, Tensor]) -> float:
        """Write one task's information in units of its norm over all layers; returns the norm."""
        squares = (float(torch.linalg.vector_norm(F, dtype=torch.float64)) ** 2 for F in diagonal.values())
        norm = math.sqrt(sum(squares))
        save_file({name: (F / (norm or 1.0)).cpu().contiguous() for name, F in diagonal.items()}, path)
        return norm

    def for_layer(self, layer: str, merged: Mapping[str, LayerResult]) -> Fields:
        """``E[(dL/dW)^2]`` of each task in units of its norm over all layers, ``(d_out, d_in)``."""
        return {"fisher": tuple(_read_fisher_diagonal(path, layer) for path in self._paths)}


def _read_fisher_diagonal(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def fisher_diagonal(
    model: TaskModel, shapes: Mapping[str, tuple[int, int]], advance: Callable[[int], None]
) -> dict[str, Tensor]:
    """``(1/n) sum_i (d log p(y_i | x_i) / dW)^2`` at ``W + dW_t`` by layer, ``(d_out, d_in)``, float32.

    One example at a time. Its gradient is ``sum_p g_p x_p^T`` over positions, and over calls where a model uses a layer
    again, from the layer's inputs ``x`` and the gradient ``g`` of its outputs: the whole weight's, not its factors'.
    """
    shell = model.with_head_loaded()
    count = len(model.encodings)
    sums = {name: torch.zeros(shape, device=model.device) for name, shape in shapes.items()}
    calls: dict[str, Calls] = {name: [] for name in shapes}
    watching = {
        name: recording_output_hook(low_rank_output_hook(model.delta(name)), seen) for name, seen in calls.items()
    }
    with with_output_hooks(shell, watching), torch.enable_grad():
        for index in range(count):
            _negative_log_likelihood(model, shell, index).backward()  # type: ignore[no-untyped-call]
            for name, seen in calls.items():
                reached = [(x, gradient[0]) for x, gradient in seen if gradient]
                if reached:
                    inputs, gradients = (
                        torch.cat([_fisher_rows(x) for x in part]) for part in zip(*reached, strict=True)
                    )
                    sums[name] += (gradients.T @ inputs).square()
                seen.clear()
            advance(1)
    return {name: total / count for name, total in sums.items()}


def _negative_log_likelihood(model: TaskModel, shell: torch.nn.Module, index: int) -> Tensor:
    """``-log p(label)`` of an example, in nats."""
    batch = model.batch([index])
    if model.is_text:
        return token_losses(*completion_logits(shell, batch)).sum()
    return example_loss(model.sample.data.task, shell(**batch).logits[0], model.labels[index])


def example_loss(task: Task, logits: Tensor, label: Label) -> Tensor:
    """``-log p(label)``, in nats."""
    if task.regression:
        return (logits.squeeze() - label).square() / 2
    return functional.cross_entropy(logits, torch.tensor(label, device=logits.device))


def _fisher_rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
