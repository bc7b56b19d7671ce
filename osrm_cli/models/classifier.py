"""Load base models as classifiers, or without their weights, and their tokenizers; attach tasks' heads to them."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import CLASSIFIER_TASK_TYPES
from osrm_cli.adapters.layers import PREFIX
from osrm_cli.errors import OsrmError, library_errors
from osrm_cli.models.architecture import read_model_config
from osrm_cli.models.peft_model import check_adapter_task_type, make_peft_model, with_adapted_backbone

hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(folder: Path) -> Any:
    """Load a base model's tokenizer, padding on the right, with a pad token (the end token where it has none).

    Raises:
        OsrmError: If there is none, or it would need code from the checkpoint.
    """
    with library_errors(
        f"{folder}: its tokenizer cannot be loaded", "save it again: tokenizer.save_pretrained(folder)"
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", trust_remote_code=False)
        _check_tokenizer_template(tokenizer)
        for texts in (("a",), ("a", "b")):  # what is wrong with its templates shows in use alone
            tokenizer(*texts)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # transformers' substitute where the files are missing
        raise OsrmError(f"{folder} has no tokenizer", "save it there: tokenizer.save_pretrained(folder)")
    names = tokenizer.model_input_names
    if names[:1] != ["input_ids"] or not all(isinstance(name, str) for name in names):
        raise OsrmError(
            f"{folder}: model_input_names of its tokenizer are not names that begin with input_ids",
            "save it there again",
        )
    if "attention_mask" not in names:  # it would be left ragged when a batch is padded
        tokenizer.model_input_names = [*names, "attention_mask"]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_tokenizer_template(tokenizer: Any) -> None:
    """Check that the tokens of a tokenizer's template are defined: where one is not, the library panics in use.

    Raises:
        ValueError: If one is not.
    """
    processor = getattr(getattr(tokenizer, "backend_tokenizer", None), "post_processor", None)
    state = json.loads(processor.__getstate__()) if processor else {}
    for step in state.get("processors", [state]):
        for piece in (*step.get("single", ()), *step.get("pair", ())):
            name = piece["SpecialToken"]["id"] if "SpecialToken" in piece else None
            if name is not None and name not in step["special_tokens"]:
                raise ValueError(f"its template names {name}, which is not among the template's special tokens")


@dataclass(frozen=True)
class LoadedModel:
    """A base model loaded for one kind of task.

    Attributes:
        model: The whole model.
        heads: Modules that the base model's checkpoint does not determine, so that every adapter must include its own:
            those outside the backbone, and those in it whose weights the checkpoint lacks.
    """

    model: PreTrainedModel
    heads: list[str]


def load_classifier(
    folder: Path,
    num_labels: int,
    tokenizer: Any,
    dtype: torch.dtype,
    seed: int,
    dropout: float | None = None,
    device: torch.device | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> LoadedModel:
    """Load a base model as a sequence classifier whose new weights are drawn from ``seed``.

    Args:
        folder: The model's folder.
        num_labels: Outputs of the head; 1 for a score.
        tokenizer: Its padding token becomes the model's.
        dtype: Of the weights.
        seed: Of the new weights.
        dropout: Replaces every dropout rate of the model's own settings; ``None`` keeps them.
        device: Device of the weights; ``None`` for main memory.
        settings: Further arguments of ``from_pretrained``.

    Raises:
        OsrmError: If transformers cannot load it as a sequence classifier, or the weights are not the model's.
    """
    torch.manual_seed(seed)
    with library_errors(f"{folder}: the model cannot be loaded as a sequence classifier"):
        config = read_model_config(folder, num_labels=num_labels)
        config.pad_token_id = tokenizer.pad_token_id
        config.problem_type = None  # the task decides, not the one that the checkpoint was trained for
        if dropout is not None:
            config.update(model_dropout_settings(config, dropout))
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for another number of classes is replaced by random weights
            **settings,
        )
    outside = set(head_modules(model))
    missing = {key for key in loading["missing_keys"] if key.partition(".")[0] not in outside}
    mismatched = {key for key, *_ in loading["mismatched_keys"] if key.partition(".")[0] not in outside}
    backbone_tensors = sum(name.partition(".")[0] not in outside for name, _ in model.named_parameters())
    if mismatched or len(missing) > backbone_tensors / 2:
        raise OsrmError(
            f"{folder}: its weights are not those of a {type(model).__name__}: {len(missing) + len(mismatched)} of "
            f"{backbone_tensors} tensors are missing or of another shape, such as {min(mismatched or missing)}",
            "save the model again with save_pretrained",
        )
    if device is not None:
        move_model(model, device)
    return LoadedModel(model, sorted(outside | {key.rpartition(".")[0] for key in missing}))


def with_empty_head(model: PreTrainedModel, num_labels: int) -> PreTrainedModel:
    """A classifier of ``num_labels`` classes that shares the backbone of ``model``.

    Its head is uninitialized: an adapter's is to be loaded into it.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": num_labels})
    with torch.device("meta"):
        classifier: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, dtype=model.dtype, trust_remote_code=False
        )
    setattr(classifier, model.base_model_prefix, getattr(model, model.base_model_prefix))
    for name, child in classifier.named_children():
        if name != model.base_model_prefix:
            child.to_empty(device=model.device)
    classifier.train(False)
    return classifier


@contextmanager
def with_adapter_on_backbone(model: PreTrainedModel, adapter: Adapter, num_labels: int) -> Iterator[torch.nn.Module]:
    """Attach an adapter to a base model; in float32, its update is added to the weights.

    Raises:
        OsrmError: If it has no head, or one for another number of classes.
    """
    classifier = with_empty_head(model, num_labels)
    _check_classifier_head(classifier, {name.removeprefix(PREFIX) for name in adapter.tensors}, adapter.folder)
    check_adapter_task_type(adapter, CLASSIFIER_TASK_TYPES)
    with library_errors(f"{adapter.folder} does not fit the model with {num_labels} outputs"):
        peft_model = make_peft_model(classifier, adapter)
    with with_adapted_backbone(model, peft_model, adapter) as updated:
        yield updated


def classifier_with_head(
    model: PreTrainedModel, head: Mapping[str, torch.Tensor], num_labels: int, folder: Path
) -> PreTrainedModel:
    """A classifier with this head that shares the backbone of ``model``.

    Args:
        model: The base model, or a merged one.
        head: The head's tensors by their name in the base model.
        num_labels: Outputs of the head.
        folder: The head's file or folder, for errors.

    Raises:
        OsrmError: If it is missing or does not fit.
    """
    classifier = with_empty_head(model, num_labels)
    _check_classifier_head(classifier, head.keys(), folder)
    with library_errors(f"{folder} does not fit the model with {num_labels} outputs"):
        unexpected = classifier.load_state_dict(dict(head), strict=False).unexpected_keys
    if unexpected:
        raise OsrmError(f"{folder} contains {unexpected[0]}, which the model does not have")
    return classifier


def _check_classifier_head(classifier: PreTrainedModel, names: Collection[str], folder: Path) -> None:
    """Check that every tensor outside the backbone is supplied: those of an empty head are uninitialized."""
    needed = (
        name for name, _ in classifier.named_parameters() if name.partition(".")[0] != classifier.base_model_prefix
    )
    if missing := [name for name in needed if name not in names]:
        raise OsrmError(
            f"{folder} has no classification head: {missing[0]} is missing",
            "give an adapter written by 'osrm train', or a folder merged from such adapters",
        )


def move_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model itself, moved; the method ``to`` of transformers' models is not typed."""
    module: torch.nn.Module = model
    module.to(device)
    return model


def load_without_weights(folder: Path, kinds: tuple[Any, Any] = (AutoModel, AutoModel)) -> PreTrainedModel:
    """A base model whose weights take no memory, to look at its layers.

    Args:
        folder: The base model.
        kinds: The class of transformers that builds it, and that for an encoder-decoder.

    Raises:
        OsrmError: If transformers cannot build it.
    """
    with library_errors(f"{folder}: the model cannot be built"):
        config = read_model_config(folder)
        with torch.device("meta"):
            model: PreTrainedModel = kinds[bool(config.is_encoder_decoder)].from_config(config, trust_remote_code=False)
    return model


def head_modules(model: PreTrainedModel) -> list[str]:
    """The modules with weights that a classifier has outside of its backbone."""
    return [name for name, part in model.named_children() if name != model.base_model_prefix and _has_weights(part)]


def model_dropout_settings(config: PretrainedConfig, rate: float) -> dict[str, float]:
    """Every dropout rate among a model's settings (``attention_dropout``, ``resid_pdrop``, ...), set to ``rate``."""
    rates = ((name, value) for name, value in config.to_dict().items() if "drop" in name)
    return {name: rate for name, value in rates if isinstance(value, float | int) and not isinstance(value, bool)}


def _has_weights(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters())
