"""Initialize a new head by regression on the untrained model's representations."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from osrm_cli.models.linear_head import compute_representations, find_head_layer, fit_linear_head
from osrm_cli.tasks.draws import draw_stratified
from osrm_cli.tasks.label_sets import find_label_without_contrast, label_set
from osrm_cli.tasks.task import Task
from osrm_cli.training.fast_dropout import use_fast_dropout

_MAX_EXAMPLES = 1000  # examples that a head is fitted to before training


def fit_new_head(
    model: torch.nn.Module,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Mapping[str, Any]],
    device: torch.device,
    bf16: bool,
    seed: int,
) -> str | None:
    """Fit the head's last layer to the untrained model's representations, so that the update learns only the rest.

    A random head makes the update learn offsets and scales that a head can provide without interference;
    compare linear probing before fine-tuning, arXiv:2202.10054.

    Args:
        model: A PEFT classifier, changed in place.
        tokenizer: Supplies the padding ids.
        task: The task to learn.
        examples: Encodings with their labels under ``label``; of more than ``_MAX_EXAMPLES``, a stratified draw.
        device: Device of the computation.
        bf16: Whether to compute in bfloat16, as in training.
        seed: Seed of the draw.

    Returns:
        The reason that the head was left random; ``None`` if it was fitted.
    """
    indices = draw_stratified([example["label"] for example in examples], _MAX_EXAMPLES, seed)
    examples = [examples[index] for index in indices]
    labels = [example["label"] for example in examples]
    if task.is_multi_label:
        labels = [label_set(index for index, holds in enumerate(flags) if holds) for flags in labels]
    if (missing := find_label_without_contrast(task, labels)) is not None:
        lack = f"class '{missing}' {_describe_untrainable_class(task)} training example"
        return f"{lack}: the head is initialized randomly instead of fitted"
    inputs = [{name: values for name, values in example.items() if name != "label"} for example in examples]
    model.train().to(device)  # with dropout as in training, so that the head is fitted to its noise
    _, layer = find_head_layer(model)
    with use_fast_dropout(device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        representations = compute_representations(model, inputs, tokenizer, device, 64, lambda _: None)
    fit_linear_head(layer, task, representations.double(), labels)
    return None


def _describe_untrainable_class(task: Task) -> str:
    return "holds for every or for no" if task.is_multi_label else "has no"
