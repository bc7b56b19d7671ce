"""The classifiers that a folder holds, on a base model in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.evaluation.classifiers import Held
from osrm_cli.merging import task_masks as task_aware
from osrm_cli.merging.records import HEAD
from osrm_cli.models import backbone as scoring
from osrm_cli.storage import tensors


@contextmanager
def classifier(model: PreTrainedModel, held: Held, num_labels: int) -> Iterator[torch.nn.Module]:
    """The classifier of one task.

    Args:
        model: The base model; for the form ``model``, the merged model.
        held: The task's classifier on disk.
        num_labels: Number of its outputs.

    Raises:
        OsrmError: If it has no head, or one that does not fit.
    """
    if held.form == "adapter":
        with scoring.adapted(model, held.folder, num_labels) as whole:
            yield whole
        return
    layers = list(held.facts["rescalers"]) if held.form == "task-aware" else []
    updates = lambda layer: task_aware.read(held.root, held.task, layer)  # noqa: E731
    with (
        scoring.shifted(model, updates, layers),
        scoring.headed(model, head(held), num_labels, held.folder / HEAD) as whole,
    ):
        yield whole


def head(held: Held) -> dict[str, torch.Tensor]:
    """The tensors of a task's head, by their name in the base model.

    Raises:
        OsrmError: If the file that should hold them is missing or damaged.
    """
    if held.form == "adapter":
        return Adapter.open(held.folder).heads()
    with tensors.open_tensors(held.folder / HEAD) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
