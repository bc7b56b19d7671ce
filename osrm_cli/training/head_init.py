"""A new head's first weights: a regression on what the untrained model puts out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from osrm_cli.models.fast_dropout import use_fast_dropout
from osrm_cli.models.heads import compute_representations, find_head_layer, fit_linear_head
from osrm_cli.tasks.draws import draw_stratified
from osrm_cli.tasks.task import Task

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
    """Fit the head's last layer to what the untrained model puts out, so that the update has only the rest to learn.

    A random head makes the update learn offsets and scales that a head can have for nothing, at the other tasks' cost;
    compare linear probing before fine-tuning, arXiv:2202.10054.

    Args:
        model: A PEFT classifier, changed in place.
        tokenizer: Knows how to pad.
        task: What is learned.
        examples: Encodings with their labels under ``label``; of more than a thousand, a draw with every class in it.
        device: Where to compute.
        bf16: Whether to compute in bfloat16, as training then does.
        seed: Of the draw.

    Returns:
        Why the head was left as it is, random; ``None`` if it was fitted.
    """
    drawn = draw_stratified([example["label"] for example in examples], _MAX_EXAMPLES, seed)
    examples = [examples[index] for index in drawn]
    labels = [example["label"] for example in examples]
    if not task.regression and (missing := sorted(set(range(task.num_labels)) - set(labels))):
        name = task.labels[missing[0]] if task.labels else missing[0]
        return f"class '{name}' has no training example, so that the head begins at random and not fitted"
    inputs = [{name: values for name, values in example.items() if name != "label"} for example in examples]
    model.train().to(device)  # with dropout as in training: else its noise passes through a head that ignores it
    _, layer = find_head_layer(model)
    with use_fast_dropout(device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = compute_representations(model, inputs, tokenizer, device, 64, lambda _: None)
    fit_linear_head(layer, task, found.double(), labels)
    return None
