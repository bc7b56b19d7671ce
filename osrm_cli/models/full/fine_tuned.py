"""A fully fine-tuned model beside its base model: which tensors both have, and what each of them is.

The fine-tuned model is built without weights, so that its modules say what a tensor is; weights are read on request.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from osrm_cli.adapters.config import CONFIG_NAME, AdapterConfig
from osrm_cli.adapters.layers import layer_name_sort_key
from osrm_cli.errors import OsrmError, library_errors
from osrm_cli.models.architecture import read_model_config
from osrm_cli.models.base_model import find_base_model
from osrm_cli.models.checkpoint import Checkpoint
from osrm_cli.models.classifier import LoadedModel
from osrm_cli.models.target_modules import ALL_LINEAR, as_target_modules, find_target_layers, is_conv1d
from osrm_cli.storage import hub, input_files
from osrm_cli.storage.input_files import TensorLocation
from osrm_cli.storage.safetensors_writer import DTYPES

LINEAR, EMBEDDING, OUTPUT = "linear layers", "embeddings", "output layer"
NORM, BIAS, OTHER = "norms", "biases", "others"
KINDS = (LINEAR, EMBEDDING, OUTPUT, NORM, BIAS, OTHER)

# PEFT's names of tasks by the ends of transformers' class names; the first three have a head of their own.
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "Model": "FEATURE_EXTRACTION",
}
_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_FLOATING = {label for kind, label in DTYPES.items() if kind.is_floating_point}
_BLOCK_ENTRIES = 1 << 24  # entries of a difference that are formed at a time where it is not needed as a whole


@dataclass(frozen=True)
class FineTunedPair:
    """A tensor that the fine-tuned model and the base model both have.

    Attributes:
        kind: One of ``KINDS``.
        tuned: Its location in the fine-tuned model.
        base: Its location in the base model; the name may differ by a prefix.
        layer: Full name of the linear layer to adapt whose weight it is; ``None`` for other tensors.
        is_transposed: Whether the weight is stored as ``(d_in, d_out)``.
    """

    kind: str
    tuned: TensorLocation
    base: TensorLocation
    layer: str | None = None
    is_transposed: bool = False

    @property
    def added_rows(self) -> int:
        """Rows that the fine-tuned model has beyond those of the base model, as after new tokens; negative if less."""
        return self.tuned.shape[0] - self.base.shape[0] if self.tuned.shape != self.base.shape else 0

    def difference(self) -> Tensor:
        """``W - W0`` of the rows that both have, float32 or better; of a layer to adapt ``(d_out, d_in)``.

        Raises:
            OsrmError: If it contains NaN or infinity.
        """
        whole = torch.cat(list(self.blocks())) if self.tuned.shape else next(self.blocks())
        return whole.T if self.is_transposed else whole

    def blocks(self) -> Iterator[Tensor]:
        """The same as it is stored, in blocks of rows.

        Raises:
            OsrmError: If a block contains NaN or infinity.
        """
        with (
            input_files.open_safetensors(self.tuned.path) as tuned,
            input_files.open_safetensors(self.base.path) as base,
        ):
            if not self.tuned.shape:
                yield self._subtract(tuned.get_tensor(self.tuned.name), base.get_tensor(self.base.name))
                return
            rows = min(self.tuned.shape[0], self.base.shape[0])
            step = max(_BLOCK_ENTRIES // max(torch.Size(self.tuned.shape[1:]).numel(), 1), 1)
            ours, theirs = tuned.get_slice(self.tuned.name), base.get_slice(self.base.name)
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                yield self._subtract(ours[start:stop], theirs[start:stop])

    def energy(self) -> float:
        """``||W - W0||_F^2`` of the rows that both have."""
        return sum(float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2 for rows in self.blocks())

    def _subtract(self, tuned: Tensor, base: Tensor) -> Tensor:
        wide = torch.promote_types(torch.promote_types(tuned.dtype, base.dtype), torch.float32)
        difference = tuned.to(wide) - base.to(wide)
        if not input_files.all_finite(difference):
            at_fault = self.base if input_files.all_finite(tuned) else self.tuned
            raise OsrmError(f"{at_fault.path}: NaN or infinity in {at_fault.name}", "give models that are whole")
        return difference


@dataclass(frozen=True)
class FineTunedModel:
    """A fully fine-tuned model and the base model that it was made from.

    Attributes:
        source: The folder or hub id, as the user gave it.
        folder: The local folder.
        pairs: Tensors that both have, by the name in the fine-tuned model; without the head's, and without those that
            are tied to another.
        parameters: Names in the model of the tensors in its files.
        head: Location of each tensor of the head, by its name in the model: what the base model does not determine.
        model: The model without weights, and the modules of its head.
        labels: Names of the head's classes; empty where there are none beyond transformers' ``LABEL_0``.
        left_out: Tensors of the base model that the fine-tuned model does not have, such as another head.
    """

    source: str
    folder: Path
    pairs: Mapping[str, FineTunedPair]
    parameters: Mapping[str, str]
    head: Mapping[str, TensorLocation]
    model: LoadedModel
    labels: tuple[str, ...]
    left_out: tuple[str, ...]

    @classmethod
    def open(cls, source: str, base: Path, target_modules: Sequence[str] = ()) -> "FineTunedModel":
        """Read both models' settings and the headers of their weights, and pair their tensors.

        Args:
            source: The fine-tuned model: a folder, a hub id, or ``owner/name@revision``.
            base: The base model's folder.
            target_modules: Layers to adapt, as PEFT names them; every linear layer by default.

        Raises:
            OsrmError: If a model is missing, damaged or quantized, or they do not belong together.
        """
        folder = _find_fine_tuned_model(source)
        model = _build_fine_tuned_model(folder)
        tuned, origin = Checkpoint.open(folder).tensors, Checkpoint.open(base).tensors
        parameters = match_tensor_names(tuned, [name for name, _ in model.named_parameters(remove_duplicate=False)])
        partners = match_tensor_names(tuned, origin)
        tied = _tied_model_tensors(model, parameters)
        if len(partners) <= len(tuned) / 2:
            raise OsrmError(
                f"{source} and {base} are not one architecture: {len(tuned) - len(partners)} of {len(tuned)} tensors "
                f"have no partner, such as {min(tuned.keys() - partners.keys())}",
                "give the base model that it was fine-tuned from",
            )
        heads = _find_head_modules(model, {parameters[name] for name in parameters.keys() - partners.keys() - tied})
        in_head = {name for name, own in parameters.items() if any(own.startswith(f"{head}.") for head in heads)}
        loaded = LoadedModel(model, heads)
        layers = find_target_layers(loaded, target_modules or [ALL_LINEAR])
        modules, pairs = dict(model.named_modules()), {}
        for name in sorted(partners.keys() - tied - in_head, key=layer_name_sort_key):
            owner, _, attribute = parameters.get(name, name).rpartition(".")
            place = _TensorPlace(owner, attribute, modules.get(owner))
            if pair := _pair_fine_tuned_tensors(model, place, tuned[name], origin[partners[name]], layers):
                pairs[name] = pair
        found = {pair.layer for pair in pairs.values()}
        if missing := sorted(layers.keys() - found):
            raise OsrmError(
                f"{source} and {base} do not both have a weight of layer {missing[0]}",
                "name others with --target-modules",
            )
        return cls(
            source,
            folder,
            pairs,
            parameters,
            {parameters[name]: tuned[name] for name in sorted(in_head)},
            loaded,
            _model_class_names(model),
            tuple(sorted(origin.keys() - set(partners.values()))),
        )

    @property
    def layers(self) -> dict[str, FineTunedPair]:
        """The pairs that are weights of layers to adapt, by the layers' full names."""
        return {pair.layer: pair for pair in self.pairs.values() if pair.layer}

    def adapter_config(self, layers: Collection[str]) -> AdapterConfig:
        """PEFT's settings of an adapter, but for its base model and ranks.

        Args:
            layers: The layers that it adapts.
        """
        names = sorted({layer.rpartition(".")[2] for layer in layers})
        return AdapterConfig(
            base_model=None,
            task_type=_model_task_type(self.model.model),
            modules_to_save=tuple(self.model.heads),
            fan_in_fan_out=any(self.layers[layer].is_transposed for layer in layers),
            target_modules=tuple(as_target_modules(self.model, names, layers)),
        )

    def read_head(self) -> dict[str, Tensor]:
        """The head's tensors by their name in the model.

        Raises:
            OsrmError: If one contains NaN or infinity.
        """
        return {name: input_files.read_safetensors_tensor(location) for name, location in self.head.items()}


def match_tensor_names(own: Collection[str], others: Collection[str]) -> dict[str, str]:
    """The other model's name of each tensor that it has too.

    A classifier's ``bert.encoder.x`` is ``encoder.x`` in the bare model, and the other way round: one prefix is taken
    away or put before, whichever lets most names agree.

    Args:
        own: Names of one model.
        others: Names of the other.

    Returns:
        The other's name by the own.
    """
    known = set(others)
    ways = [{name: name for name in own}]
    for prefix in sorted({f"{name.partition('.')[0]}." for name in own if "." in name}):
        ways.append({name: name.removeprefix(prefix) for name in own})
    for prefix in sorted({f"{name.partition('.')[0]}." for name in known if "." in name}):
        ways.append({name: prefix + name for name in own})
    best = max(ways, key=lambda renamed: sum(new in known for new in renamed.values()))
    return {name: new for name, new in best.items() if new in known}


def _find_fine_tuned_model(source: str) -> Path:
    """The local folder of a fine-tuned model."""
    path = hub.local_path(source)
    if (path / CONFIG_NAME).is_file():
        raise OsrmError(f"{source} is an adapter, expected a fully fine-tuned model", "it can be merged as it is")
    name, _, revision = (source, "", "") if path.exists() else source.partition("@")
    return find_base_model(name, revision or None, "fine-tuned model")


def _build_fine_tuned_model(folder: Path) -> PreTrainedModel:
    """The model of the class that saved it, without weights; the bare model where its settings do not name one."""
    with library_errors(f"{folder}: the model cannot be built"), torch.device("meta"):
        config = read_model_config(folder)
        name = next(iter(config.architectures or ()), "")
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind(config)
        model: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        return model


def _tied_model_tensors(model: PreTrainedModel, parameters: Mapping[str, str]) -> set[str]:
    """Stored tensors that the model takes from another one, which is stored too."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    stored = set(parameters.values())
    return {name for name, own in parameters.items() if ties.get(own, own) != own and ties[own] in stored}


def _model_task_type(model: PreTrainedModel) -> str | None:
    """PEFT's name of what the model is for; ``None`` where it has none."""
    name = type(model).__name__
    if name.endswith("ForConditionalGeneration") and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return next((kind for ending, kind in _TASK_TYPES.items() if name.endswith(ending)), None)


def _find_head_modules(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """Modules that an adapter has to hold as a whole: the task's head, and those that the base model does not have.

    Args:
        model: The fine-tuned model.
        missing: Names in the model of its tensors that the base model does not have.
    """
    outside = set()
    if _model_task_type(model) in _WITH_HEAD:
        parts = dict(model.named_children())
        outside = {name for name, part in parts.items() if name != model.base_model_prefix and list(part.parameters())}
    modules = {name.rpartition(".")[0] for name in missing if name.partition(".")[0] not in outside}
    return sorted(outside | (modules - {""}))


@dataclass(frozen=True)
class _TensorPlace:
    """Where in the model a tensor belongs: the module may be missing for one that the model does not know."""

    owner: str
    attribute: str
    module: torch.nn.Module | None

    @property
    def is_parameter(self) -> bool:
        return isinstance(getattr(self.module, self.attribute, None), torch.nn.Parameter)


def _pair_fine_tuned_tensors(
    model: PreTrainedModel,
    place: _TensorPlace,
    tuned: TensorLocation,
    base: TensorLocation,
    layers: Mapping[str, torch.nn.Module],
) -> FineTunedPair | None:
    """A tensor of both models; ``None`` for one that is not real numbers in either, such as positions.

    Args:
        model: The fine-tuned model.
        place: The tensor's place in it.
        tuned: Its location in the fine-tuned model's files.
        base: And in the base model's.
        layers: Layers to adapt.
    """
    for location in (tuned, base):
        if location.dtype not in _FLOATING:
            if not place.is_parameter:
                return None
            raise OsrmError(
                f"{location.path}: {location.name} is quantized ({location.dtype})", "give models in floating point"
            )
    kind = _model_tensor_kind(model, place)
    has_rows = kind in (EMBEDDING, OUTPUT) and len(tuned.shape) == len(base.shape) == 2
    if tuned.shape != base.shape and not (has_rows and tuned.shape[1:] == base.shape[1:]):
        raise OsrmError(
            f"{tuned.name} is {tuned.shape} in {tuned.path}, but {base.shape} in {base.path}",
            "give the base model that it was fine-tuned from",
        )
    layer = place.owner if place.attribute == "weight" and place.owner in layers else None
    return FineTunedPair(kind, tuned, base, layer, layer is not None and is_conv1d(layers[layer]))


def _model_tensor_kind(model: PreTrainedModel, place: _TensorPlace) -> str:
    module = place.module
    if "norm" in type(module).__name__.lower():
        return NORM
    if place.attribute == "bias":
        return BIAS
    if module is not None and module is model.get_output_embeddings():  # type: ignore[no-untyped-call]
        return OUTPUT
    if isinstance(module, torch.nn.Embedding):
        return EMBEDDING
    return LINEAR if place.attribute == "weight" and isinstance(module, torch.nn.Linear | Conv1D) else OTHER


def _model_class_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the classes, if the model has any of its own."""
    names = getattr(model.config, "id2label", None) or {}
    if _model_task_type(model) not in _WITH_HEAD or all(
        re.fullmatch(r"LABEL_\d+", str(name)) for name in names.values()
    ):
        return ()
    return tuple(str(names[place]) for place in sorted(names))
