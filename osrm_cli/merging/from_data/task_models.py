"""One backbone in memory and each task's own classifier on it; updates are added by hooks, never to the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters.task_data import TaskSample
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.backbone import with_head
from osrm_cli.models.batching import Encoding, collate_batch, group_by_length, tokenize_examples
from osrm_cli.models.classifier import check_max_length, load_classifier, load_tokenizer
from osrm_cli.models.target_modules import layer_widths

BATCH_SIZE = 16


@dataclass(frozen=True)
class TaskModel:
    """A task's classifier and the examples to run through it.

    Attributes:
        sample: The task's adapter and examples.
        shell: The backbone, which all tasks share, with a head for this task's classes; frozen, without dropout.
        head: The head's weights, and those of the backbone that the base model's checkpoint does not determine.
        encodings: The examples, tokenised.
        tokenizer: The base model's.
        device: Where the model lies.
    """

    sample: TaskSample
    shell: PreTrainedModel
    head: Mapping[str, torch.Tensor]
    encodings: Sequence[Encoding]
    tokenizer: Any
    device: torch.device

    @property
    def name(self) -> str:
        """The task's name."""
        return self.sample.adapter.name

    def with_head_loaded(self) -> PreTrainedModel:
        """The classifier with this task's head in it; the next call for another task may take it out again."""
        self.shell.load_state_dict(dict(self.head), strict=False)
        return self.shell

    def delta(self, layer: str) -> LowRank | None:
        """The adapter's update of a layer, float32, read when asked for; nothing if it does not change the layer."""
        adapter = self.sample.adapter
        return adapter.delta(layer, torch.float32, self.device) if layer in adapter.layers else None

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Examples, padded."""
        return collate_batch([self.encodings[index] for index in indices], self.tokenizer, self.device)

    def batches(self) -> list[list[int]]:
        """All examples in batches of like length."""
        return group_by_length([len(encoding["input_ids"]) for encoding in self.encodings], BATCH_SIZE)


def load_task_models(
    plan: MergePlan, samples: Sequence[TaskSample], folder: Path, device: torch.device
) -> list[TaskModel]:
    """Load the base model once, in float32, and put every task's head beside it.

    Raises:
        OsrmError: If an adapter or its head does not fit the base model, or its examples are too long for it.
    """
    check_max_length(folder, max(sample.max_length for sample in samples))
    tokenizer = load_tokenizer(folder)
    model = load_classifier(folder, 2, tokenizer, torch.float32, 0).model
    model.requires_grad_(False)
    whole: torch.nn.Module = model  # transformers' own method "to" is not typed
    whole.to(device)
    whole.train(False)
    check_target_layers(model, plan)
    return [_task_model(model, sample, tokenizer, device) for sample in samples]


def _task_model(model: PreTrainedModel, sample: TaskSample, tokenizer: Any, device: torch.device) -> TaskModel:
    adapter = sample.adapter
    head, shell = adapter.head_tensors(), model
    if head:
        with with_head(model, head, sample.data.task.num_labels, adapter.folder) as own:
            own.requires_grad_(False)
        shell = cast("PreTrainedModel", own)
    encodings = tokenize_examples(tokenizer, sample.data.examples, sample.max_length)
    return TaskModel(sample, shell, head, encodings, tokenizer, device)


def check_target_layers(model: PreTrainedModel, plan: MergePlan) -> None:
    """Check that a model has every layer that the adapters change, in their widths.

    Raises:
        OsrmError: If not.
    """
    modules = dict(model.named_modules())
    for name, layer in plan.shapes.items():
        found = layer_widths(modules[name]) if name in modules else None
        if found != (layer.d_in, layer.d_out):
            raise OsrmError(
                f"the adapters change {name}, (d_in, d_out) = {(layer.d_in, layer.d_out)}; "
                f"{model.name_or_path} has {found or 'no such layer'}",
                "give the right base model with --model",
            )
