"""Each task's own classifier on one backbone; updates are added by hooks, never to the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters.task_data import TaskSample
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.plan import Heads, MergePlan
from osrm_cli.models.backbone import Backbone, TaskHead
from osrm_cli.models.batching import Encoding, group_by_length
from osrm_cli.tasks.task import Label

BATCH_SIZE = 16


@dataclass(frozen=True)
class TaskModel:
    """A task's classifier and the examples to run through it.

    Attributes:
        sample: The task's adapter and examples.
        backbone: The base model that all tasks share.
        head: The task's head on it.
        encodings: The examples, tokenized.
    """

    sample: TaskSample
    backbone: Backbone
    head: TaskHead
    encodings: Sequence[Encoding]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.sample.adapter.name

    @property
    def labels(self) -> list[Label]:
        """The examples' labels.

        Raises:
            OsrmError: If an example has none.
        """
        return self.sample.data.labels

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.backbone.device

    def with_head_loaded(self) -> PreTrainedModel:
        """The classifier with this task's head in it; the next call for another task may take it out again."""
        return self.head.load()

    def delta(self, layer: str) -> LowRank | None:
        """The adapter's update of a layer, float32, read when asked for; ``None`` if it does not change the layer."""
        adapter = self.sample.adapter
        return adapter.delta(layer, torch.float32, self.device) if layer in adapter.layers else None

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Examples, padded."""
        return self.backbone.collate([self.encodings[index] for index in indices])

    def batches(self) -> list[list[int]]:
        """All examples in batches of like length."""
        return group_by_length([len(encoding["input_ids"]) for encoding in self.encodings], BATCH_SIZE)


def load_task_models(
    plan: MergePlan, samples: Sequence[TaskSample], heads: Heads, folder: Path, device: torch.device
) -> list[TaskModel]:
    """Load the base model once, in float32, and put every task's head on it.

    Args:
        plan: Its layers are those of the model.
        samples: The tasks' examples.
        heads: Each task's head.
        folder: The base model's folder.
        device: Device of the model.

    Raises:
        OsrmError: If an adapter or its head does not fit the base model, or examples are longer than its positions.
    """
    backbone = Backbone.load(folder, device)
    backbone.check_layers(plan.shapes)
    backbone.check_max_length(max(sample.max_length for sample in samples))
    return [_load_task_model(backbone, sample, heads[sample.adapter.name]) for sample in samples]


def _load_task_model(backbone: Backbone, sample: TaskSample, tensors: Mapping[str, torch.Tensor]) -> TaskModel:
    # A statistic of layer inputs needs no head.
    head = TaskHead(backbone.model, {})
    if tensors:
        head = backbone.add_head(tensors, sample.data.task.num_labels, sample.adapter.folder)
    return TaskModel(sample, backbone, head, backbone.tokenize(sample.data.examples, sample.max_length))
