"""What transformers makes of a base model's files, without reading the weights: names, and which tensors are one."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osrm_cli.errors import OsrmError, library_errors

_COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size"),
)


def read_model_config(folder: Path, **settings: Any) -> Any:
    """What ``config.json`` of a model says, as transformers understands it.

    Args:
        folder: The model's folder.
        settings: Values in place of those of the file.

    Raises:
        OsrmError: If a size is less than 1: a model may be built of it that fails when it is run.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **settings)
    for name in _COUNTS:
        value = getattr(config.get_text_config(), name, None)
        if isinstance(value, int) and value < 1:
            raise OsrmError(f"{folder}/config.json: {name} is {value}, expected 1 or more", "save the model again")
    return config


@dataclass(frozen=True)
class Architecture:
    """The class of model that ``config.json`` names, built without weights.

    Attributes:
        renamings: Changes of a tensor's name from the files to the model, in their order: files may keep the names of
            an earlier version of the class.
        tied: Tensors of the model that are another one, by name: an output layer that is the embedding.
        can_untie: Whether ``tie_word_embeddings: false`` makes them tensors of their own and changes nothing else.
        vocabulary: Tensors with a row for each token: the embedding's and the output layer's.
        expert_sources: By the end of the name of a parameter that stacks experts, the ends of the names of the matrices
            whose rows make up one of them, with ``*`` for its number.
        turned_stacks: Parameters that stack experts as ``(E, d_in, d_out)``.
    """

    renamings: tuple[Callable[[str], str], ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    can_untie: bool = False
    vocabulary: frozenset[str] = frozenset()
    expert_sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    turned_stacks: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path) -> "Architecture":
        """Build the model that ``config.json`` describes; nothing is known of one whose class is not transformers'.

        Raises:
            OsrmError: If the settings are damaged.
        """
        # Merging as a model needs transformers only where names or tied tensors are in question.
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        with library_errors(f"{folder}: the model cannot be built", "give the right base model with --model"):
            config = read_model_config(folder)
            name = next(iter(config.architectures or ()), "")
            model_class = getattr(transformers, name, None) if isinstance(name, str) else None
            if model_class is None:
                return cls()
            model = _build_without_weights(model_class, config)
            mapping = get_model_conversion_mapping(model)
            steps = [step for step in mapping if isinstance(step, WeightRenaming)]
            sources = dict(
                filter(None, (_find_expert_sources(step) for step in mapping if isinstance(step, WeightConverter)))
            )
            tied = dict(model.all_tied_weights_keys)
            vocabulary = _model_vocabulary_parameters(model)
            for part in (config, config.get_text_config()):
                part.tie_word_embeddings = False
            # Encoder-decoders tie embeddings to each other as well, and scale what a tied output layer reads.
            can_untie = (
                not config.is_encoder_decoder and not _build_without_weights(model_class, config).all_tied_weights_keys
            )
        renamings, turned = tuple(_make_tensor_renaming(step) for step in steps), _find_turned_stacks(model)
        return cls(renamings, tied, can_untie, vocabulary, sources, turned)

    def name_in_model(self, name: str) -> str:
        """The model's name of a tensor.

        Args:
            name: Its name in the files, or in the model already.
        """
        for rename in self.renamings:
            name = rename(name)
        return name

    def expert_names(self, parameter: str, number: int) -> list[str]:
        """The model's names of the matrices of which transformers makes one expert; none where it does otherwise.

        Args:
            parameter: Full name of the parameter that stacks the experts.
            number: The expert's.
        """
        for end, sources in self.expert_sources.items():
            if f".{parameter}".endswith(f".{end}"):
                start = parameter[: len(parameter) - len(end)]
                return [start + source.replace("*", str(number)) for source in sources]
        return []


def _build_without_weights(model_class: Any, config: Any) -> Any:
    import torch

    with torch.device("meta"):
        return model_class(config)


def _model_vocabulary_parameters(model: Any) -> frozenset[str]:
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    return frozenset(
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if any(module is each for each in modules)
        for parameter, _ in module.named_parameters(recurse=False)
    )


def _find_expert_sources(step: Any) -> tuple[str, tuple[str, ...]] | None:
    """The end of a parameter's name, and those of the matrices that are stacked as they are, or below each other."""
    operations = [(type(each).__name__, getattr(each, "dim", None)) for each in step.operations]
    if operations not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        return None
    if len(step.target_patterns) != 1 or (len(step.source_patterns) > 1) != (len(operations) > 1):
        return None
    (target, *sources) = (each.removeprefix(".") for each in (*step.target_patterns, *step.source_patterns))
    return (target, tuple(sources)) if all(re.fullmatch(r"[\w.*]+", each) for each in (target, *sources)) else None


def _find_turned_stacks(model: Any) -> frozenset[str]:
    return frozenset(
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if getattr(module, "is_transposed", False)
        for parameter, value in module.named_parameters(recurse=False)
        if value.ndim == 3
    )


def _make_tensor_renaming(step: Any) -> Callable[[str], str]:
    return lambda name: str(step.rename_source_key(name)[0])
