"""PEFT's ``adapter_config.json``: settings that determine the update ``s B A``, and settings that are not supported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osrm_cli.adapters.patterns import check_pattern
from osrm_cli.errors import OsrmError

CONFIG_NAME = "adapter_config.json"

# Settings that change what the layer computes, so that its update is no longer ``s B A``, or not that of one matrix.
_UNSUPPORTED_SETTINGS = {
    "use_dora": "DoRA rescales the whole weight, its update is not B @ A alone",
    "lora_bias": "lora_bias adds a bias beside B @ A",
    "kasa_config": "KaSA removes part of the base weights",
    "layer_replication": "layer_replication changes the number of layers",
    "alora_invocation_tokens": "an activated LoRA counts only after its invocation tokens",
    "arrow_config": "Arrow routes between adapters per token",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "block-diagonal factors are not stored as plain ones",
    "monteclora_config": "MonteCLoRA samples its weights",
    "ensure_weight_tying": "tied adapters of embedding and output layer are not supported",
}

# How adapters of kinds whose update can be written as plain LoRA become that.
_CONVERT = "osrm convert makes plain LoRA of such a folder"

# Initializations that change the base weights; loading such an adapter onto the plain base model is wrong.
_ALTERING_INITIALIZATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")

_ACCEPTED_SETTINGS = {
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules"),
    *(
        "merge_weights",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
    ),
    *("lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save"),
    *("peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "alpha_pattern", "revision"),
    *("runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora", "velora_config"),
    "trainable_token_indices",
}


TEXT_TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")  # kinds of models that write the answer
CLASSIFIER_TASK_TYPES = ("SEQ_CLS", "FEATURE_EXTRACTION")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a plain LoRA adapter.

    Attributes:
        base_model: Path or hub id of the base model, as PEFT records it.
        revision: Commit of the base model on the hub.
        task_type: PEFT's, such as ``SEQ_CLS``; decides which of PEFT's model classes is used.
        modules_to_save: Names of modules stored whole, such as the classification head.
        fan_in_fan_out: Whether the adapted layers store their weight as ``(d_in, d_out)``, like GPT-2's Conv1D.
        target_modules: Names of the adapted layers, or a regular expression; empty where the layers in the file alone
            determine them, because another setting narrows the names down.
        target_parameters: Ends of the names of adapted parameters that stack the weights of all experts.
        token_indices: Numbers of the rows that were trained (``trainable_token_indices``): of the embedding, or of
            several modules, by the ends of their names.
        r: Rank of layers that ``rank_pattern`` does not name.
        lora_alpha: Numerator of the scaling; ``None`` only before writing: the rank, so that the scaling is 1.
        lora_dropout: For further training.
        use_rslora: Scaling ``lora_alpha / sqrt(r)`` instead of ``lora_alpha / r``.
        rank_pattern: Ranks by regular expression over layer names.
        alpha_pattern: The same for ``lora_alpha``.
    """

    base_model: str | None
    revision: str | None = None
    task_type: str | None = None
    modules_to_save: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    target_modules: tuple[str, ...] | str = ()
    target_parameters: tuple[str, ...] = ()
    token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    r: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)


def parse_adapter_config(path: Path, values: Any) -> AdapterConfig:
    """Check the contents of an ``adapter_config.json``.

    Args:
        path: The file, for errors.
        values: Its JSON value.

    Raises:
        OsrmError: If they are damaged, or describe anything but plain LoRA.
    """
    if not isinstance(values, dict):
        raise OsrmError(f"{path} contains {type(values).__name__}, expected a JSON object")
    _check_adapter_kind(path, values)
    try:
        return AdapterConfig(
            base_model=_text_setting(values, "base_model_name_or_path") or None,
            revision=_text_setting(values, "revision"),
            task_type=_text_setting(values, "task_type"),
            modules_to_save=_list_setting(values, "modules_to_save"),
            fan_in_fan_out=_flag_setting(values, "fan_in_fan_out"),
            target_modules=_target_modules(values),
            target_parameters=_list_setting(values, "target_parameters"),
            token_indices=_adapter_token_indices(values.get("trainable_token_indices") or []),
            r=_positive_int(values.get("r", 8)),
            lora_alpha=_finite_adapter_setting(values.get("lora_alpha", 8)),
            lora_dropout=_finite_adapter_setting(values.get("lora_dropout", 0.0)),
            use_rslora=_flag_setting(values, "use_rslora"),
            rank_pattern=_pattern_setting(values, "rank_pattern", _positive_int),
            alpha_pattern=_pattern_setting(values, "alpha_pattern", _finite_adapter_setting),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise OsrmError(f"{path}: {error}", "save the adapter again, or correct the file") from None


def _check_adapter_kind(path: Path, values: Mapping[str, Any]) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        is_convertible = kind in ("LOHA", "LOKR")
        remedy = _CONVERT if is_convertible else "only LoRA adapters can be read"
        raise OsrmError(f"{path}: PEFT type {kind}, expected LORA", remedy)
    for key, reason in _UNSUPPORTED_SETTINGS.items():
        if values.get(key):
            remedy = "only plain LoRA adapters can be read; peft.convert_to_lora makes one that comes close"
            remedy = _CONVERT if key == "use_dora" else remedy
            raise OsrmError(f"{path}: {key} is set: {reason}", remedy)
    if values.get("bias", "none") != "none":
        raise OsrmError(
            f"{path}: bias is '{values['bias']}', expected 'none': trained biases are not a low-rank update",
            "only plain LoRA adapters can be read",
        )
    initialization = str(values.get("init_lora_weights", True)).lower()
    if initialization.startswith(_ALTERING_INITIALIZATIONS):
        raise OsrmError(
            f"{path}: init_lora_weights is '{initialization}': this initialization changes the base weights",
            "convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    unknown = sorted(
        key
        for key, value in values.items()
        if value and key not in _ACCEPTED_SETTINGS and key not in _UNSUPPORTED_SETTINGS
    )
    if unknown:
        raise OsrmError(
            f"{path}: unknown setting '{unknown[0]}': the adapter may not be plain LoRA",
            "remove the setting if it changes nothing in the forward pass",
        )


def _target_modules(values: Mapping[str, Any]) -> tuple[str, ...] | str:
    targets, excluded = values.get("target_modules") or (), values.get("exclude_modules")
    if isinstance(excluded, str):
        check_pattern(excluded, is_whole=True)
    if targets == "all-linear" or values.get("layers_to_transform") is not None or excluded:
        return ()
    return (
        check_pattern(targets, is_whole=True) if isinstance(targets, str) else _list_setting(values, "target_modules")
    )


def _text_setting(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise ValueError(f"{name} is {value!r:.60}, expected a text")
    return value


def _flag_setting(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.60}, expected true or false")
    return bool(value)


def _list_setting(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = values.get(name) or []
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError(f"{name} is {value!r:.60}, expected a list of names")
    return tuple(sorted(value))


def _adapter_token_indices(value: Any) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    lists = value.values() if isinstance(value, dict) else [value]
    for own in lists:
        is_list = isinstance(own, list) and all(type(index) is int and index >= 0 for index in own)
        if not is_list or len(set(own)) < len(own):
            raise ValueError(f"trainable_token_indices is {value!r:.60}, expected different numbers of tokens")
    return {key: tuple(own) for key, own in value.items()} if isinstance(value, dict) else tuple(value)


def _pattern_setting(values: Mapping[str, Any], name: str, convert: Any) -> dict[str, Any]:
    patterns = values.get(name) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{name} is {type(patterns).__name__}, expected an object of layer patterns")
    return {check_pattern(key): convert(value) for key, value in patterns.items()}


def _positive_int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"rank {value!r}, expected a positive integer")
    return value


def _finite_adapter_setting(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r}, expected a finite number")
    return value
