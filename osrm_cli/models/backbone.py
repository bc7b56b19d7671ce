"""Score adapters and merged models: one backbone in memory, one head and one update at a time."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from osrm_cli.adapters.layers import PREFIX, list_tensors
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.models.batching import collate_batch, group_by_length
from osrm_cli.models.target_modules import is_conv1d

Encoding = Mapping[str, Any]


def with_empty_head(model: PreTrainedModel, num_labels: int) -> PreTrainedModel:
    """A classifier of ``num_labels`` classes around the backbone of ``model``, which the two then share.

    Its head holds no numbers yet: it is for an adapter that carries one.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": num_labels})
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, dtype=model.dtype
        )
    setattr(shell, model.base_model_prefix, getattr(model, model.base_model_prefix))
    for name, child in shell.named_children():
        if name != model.base_model_prefix:
            child.to_empty(device=model.device)
    shell.train(False)
    return shell


@contextmanager
def with_peft_adapter(model: PreTrainedModel, folder: Path, num_labels: int) -> Iterator[torch.nn.Module]:
    """The classifier that a PEFT folder makes of a base model; in float32 with the update added to the weights.

    Raises:
        OsrmError: If the folder has no head, or one for another number of classes.
    """
    shell = with_empty_head(model, num_labels)
    names = {name.removeprefix(PREFIX) for name in list_tensors(folder)}
    _check_heads(shell, names, folder)
    try:
        whole = PeftModel.from_pretrained(shell, str(folder), torch_device=str(model.device))
    except RuntimeError as error:
        raise _shape_error(error, folder, num_labels) from error
    layers = [module for module in whole.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().get_parameter("weight") for layer in layers]
    try:
        with _restored_afterwards(weights if model.dtype == torch.float32 else []) as kept:
            if kept:  # below float32 the sum would lose what is small
                whole.merge_adapter()
            yield whole.eval()
    finally:
        whole.unload()


@contextmanager
def _restored_afterwards(weights: Iterable[torch.nn.Parameter]) -> Iterator[dict[torch.nn.Parameter, torch.Tensor]]:
    """Take back at the end what happens to weights; yields the copies."""
    kept = {weight: weight.detach().clone() for weight in weights}
    try:
        yield kept
    finally:
        with torch.no_grad():
            for weight, before in kept.items():
                weight.copy_(before)


@contextmanager
def with_head(
    model: PreTrainedModel, head: Mapping[str, torch.Tensor], num_labels: int, folder: Path
) -> Iterator[torch.nn.Module]:
    """The classifier that a head alone makes of a model.

    Raises:
        OsrmError: If the head does not fit.
    """
    shell = with_empty_head(model, num_labels)
    _check_heads(shell, head.keys(), folder)
    try:
        unexpected = shell.load_state_dict(dict(head), strict=False).unexpected_keys
    except RuntimeError as error:
        raise _shape_error(error, folder, num_labels) from error
    if unexpected:
        raise OsrmError(f"{folder} holds {unexpected[0]}, which the model does not have")
    yield shell


def _check_heads(shell: PreTrainedModel, names: Collection[str], folder: Path) -> None:
    """Check that every tensor outside the backbone is given: those of the shell hold no numbers."""
    needed = (name for name, _ in shell.named_parameters() if name.partition(".")[0] != shell.base_model_prefix)
    if missing := [name for name in needed if name not in names]:
        raise OsrmError(
            f"{folder} has no classification head: {missing[0]} is missing",
            "score what 'osrm train' wrote, or what was merged from it",
        )


def _shape_error(error: RuntimeError, folder: Path, num_labels: int) -> Exception:
    """The user's error where a shape is the trouble; else the error as it came."""
    line = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
    return OsrmError(f"{folder} does not fit the model with {num_labels} outputs: {line}") if line else error


@contextmanager
def with_deltas(
    model: PreTrainedModel, updates: Callable[[str], torch.Tensor], layers: Sequence[str]
) -> Iterator[None]:
    """Add dense updates ``(d_out, d_in)`` to a model's weights, and take the old weights back at the end."""
    changed = {name: model.get_submodule(name) for name in layers}
    with _restored_afterwards([layer.get_parameter("weight") for layer in changed.values()]):
        with torch.no_grad():
            for name, layer in changed.items():
                weight, delta = layer.get_parameter("weight"), updates(name)
                turned = delta.T if is_conv1d(layer) or isinstance(layer, torch.nn.Embedding) else delta
                weight.copy_(weight.float() + turned.to(weight.device))
        yield


def compute_logits(
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
        for plan in group_by_length([len(encoding["input_ids"]) for encoding in encodings], batch_size):
            batch = collate_batch([encodings[i] for i in plan], tokenizer, device)
            found.update(zip(plan, model(**batch).logits.float().cpu(), strict=True))
            advance(len(plan))
    return torch.stack([found[i] for i in range(len(encodings))])


# From a layer's inputs (..., d_in) and outputs (..., d_out) to its new outputs.
OutputHook = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
def with_output_hooks(model: torch.nn.Module, changes: Mapping[str, OutputHook]) -> Iterator[None]:
    """Change what layers put out, by forward hooks."""

    def hook(change: OutputHook) -> Callable[..., torch.Tensor]:
        return lambda _module, args, output: change(args[0], output)

    handles = [model.get_submodule(name).register_forward_hook(hook(change)) for name, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def low_rank_hook(update: LowRank | None) -> OutputHook:
    """Add an update, if there is one: ``y + B A x``."""
    return lambda x, y: y + (x @ update.A.T) @ update.B.T if update else y
