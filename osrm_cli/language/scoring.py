"""Score adapters on tasks: one backbone in memory, one head and one update at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from osrm_cli.language import batches

Encoding = dict[str, Any]


def with_head(model: PreTrainedModel, num_labels: int) -> PreTrainedModel:
    """A classifier of ``num_labels`` classes around the backbone of ``model``, which the two then share.

    Its head holds no numbers yet: it is for an adapter that carries one.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": num_labels})
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    setattr(shell, model.base_model_prefix, getattr(model, model.base_model_prefix))
    for name, child in list(shell.named_children()):
        if name != model.base_model_prefix:
            setattr(shell, name, child.to_empty(device=model.device))
    return shell.eval()


def with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put an adapter on a classifier; ``unload`` takes it off again."""
    adapted: PeftModel = PeftModel.from_pretrained(model, folder, torch_device=str(model.device))
    return adapted.eval()


def logits(
    model: torch.nn.Module,
    encodings: Sequence[Encoding],
    tokenizer: Any,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """``(n, num_labels)``, float32, in the order of ``encodings``."""
    found: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for plan in batches.bucket([len(encoding["input_ids"]) for encoding in encodings], batch_size):
            batch = batches.collate([encodings[i] for i in plan], tokenizer, device)
            found.update(zip(plan, model(**batch).logits.float().cpu(), strict=True))
            advance(len(plan))
    return torch.stack([found[i] for i in range(len(encodings))])
