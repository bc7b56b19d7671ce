"""Load base models that write: causal ones (Llama, GPT-2) and encoder-decoders (T5)."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from osrm_cli.errors import OsrmError, first_line
from osrm_cli.models.architecture import read_model_config
from osrm_cli.models.classifier import LoadedModel, model_dropout_settings, move_model

_HINT = "text tasks need a causal model (Llama, GPT-2) or an encoder-decoder (T5): give one with --model"
CAUSAL_LM, SEQ_2_SEQ_LM = "CAUSAL_LM", "SEQ_2_SEQ_LM"  # PEFT's names


def load_language_model(
    folder: Path,
    tokenizer: Any,
    dtype: torch.dtype,
    dropout: float | None = None,
    device: torch.device | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> LoadedModel:
    """Load a base model with its own output layer.

    Args:
        folder: The model's folder.
        tokenizer: Its padding token becomes the model's.
        dtype: Of the weights.
        dropout: Replaces every dropout rate of the model's own settings; ``None`` keeps them.
        device: Device of the weights; ``None`` for main memory.
        settings: Further arguments of ``from_pretrained``.

    Raises:
        OsrmError: If transformers knows no model of this kind that writes, or the weights are not the model's.
    """
    try:
        config = read_model_config(folder)
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder:
            raise OsrmError(f"{folder} cannot write text: a {config.model_type} is an encoder", _HINT)
        config.pad_token_id = tokenizer.pad_token_id
        if dropout is not None:
            config.update(model_dropout_settings(config, dropout))
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        loaded: Any = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except ImportError as error:  # of a library that the checkpoint's quantization needs
        raise OsrmError(
            f"{folder}: the model cannot be loaded: {first_line(error)}",
            "give it in floating point with --model, or for bitsandbytes pip install 'osrm-cli[quantized]'",
        ) from None
    except OsrmError:
        raise
    except Exception as error:  # transformers checks little of what it reads
        raise OsrmError(
            f"{folder}: the model cannot be loaded as one that writes text: {first_line(error)}",
            _HINT,
        ) from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise OsrmError(f"{folder} cannot write text: its weights lack {missing[0]}", _HINT)
    if device is not None:
        move_model(model, device)
    return LoadedModel(model, [])


def task_type(model: Any) -> str:
    """PEFT's name for the kind of a language model."""
    return SEQ_2_SEQ_LM if model.config.is_encoder_decoder else CAUSAL_LM
