"""One base model in memory, to which tasks' heads and updates are attached one after the other.

The model is loaded once (``Backbone.load``). An adapter (``with_adapter_on_backbone``) or a head alone
(``classifier_with_head``, ``Backbone.add_head``) turns it into a task's classifier; an update is added to its weights
(``with_backbone_deltas``), or to its layers' outputs by ``output_hooks``. At the end, all changes except heads are
reverted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import AdapterLayer
from osrm_cli.adapters.trained_rows import TrainedRows
from osrm_cli.errors import OsrmError, library_errors
from osrm_cli.models.classifier import (
    classifier_with_head,
    load_classifier,
    load_tokenizer,
    load_without_weights,
    with_adapter_on_backbone,
)
from osrm_cli.models.linear_head import compute_representations
from osrm_cli.models.peft_model import restoring_model_weights
from osrm_cli.models.target_modules import is_conv1d, layer_widths
from osrm_cli.models.token_batches import (
    Encoding,
    check_model_vocabulary,
    collate_batch,
    compute_logits,
    tokenize_for_classifier,
)
from osrm_cli.tasks.task import Example


@dataclass(frozen=True)
class TaskHead:
    """A task's head on the backbone that all tasks share.

    Attributes:
        classifier: The backbone with a head of the task's width, frozen.
        tensors: The head's weights by their name in the base model, among them those of the backbone that the base
            model's checkpoint does not determine.
    """

    classifier: PreTrainedModel
    tensors: Mapping[str, torch.Tensor]

    def load(self) -> PreTrainedModel:
        """Load this head into the classifier; its tensors in the backbone remain until the next call."""
        self.classifier.load_state_dict(dict(self.tensors), strict=False)
        return self.classifier


class BackboneTaskSource(Protocol):
    """A task's model on disk.

    Attributes:
        adapter: The adapter, if it is one; otherwise there are a head and possibly dense updates.
    """

    @property
    def adapter(self) -> Adapter | None: ...  # noqa: D102
    @property
    def head_path(self) -> Path:
        """The head's file."""

    @property
    def delta_layers(self) -> Sequence[str]:
        """Layers that have a dense update."""

    def read_delta(self, layer: str) -> torch.Tensor:
        """A layer's dense update, ``(d_out, d_in)``."""

    def read_head(self) -> Mapping[str, torch.Tensor]:
        """The head's tensors by their name in the base model."""


@dataclass(frozen=True)
class BackboneModel:
    """A base model in memory, frozen and without dropout.

    Attributes:
        folder: The base model's folder.
        model: The model.
        tokenizer: Pads on the right.
        device: Device of the model.
    """

    folder: Path
    model: Any
    tokenizer: Any
    device: torch.device

    def collate(self, encodings: Sequence[Encoding]) -> dict[str, torch.Tensor]:
        """A batch of examples, padded, see ``collate_batch``."""
        return collate_batch(encodings, self.tokenizer, self.device)

    def check_max_length(self, length: int) -> None:
        """Check that the model has a position for each of ``length`` tokens, as adapters were trained with.

        Raises:
            OsrmError: If it has fewer.
        """
        check_model_positions(self.model, self.folder, length, "give the right base model with --model")

    def replace_values(self, values: Mapping[str, torch.Tensor], rows: Mapping[str, TrainedRows]) -> None:
        """Put what adapters hold as a whole in the place of the model's own values.

        Args:
            values: Tensors by their name in the model; one that is tied to another is so no longer.
            rows: By the name of the module; tied modules have them too, but for those of the output layer.

        Raises:
            OsrmError: If the model has no such tensor.
        """
        embedding: Any = self.model.get_input_embeddings()
        for name in [*values, *(f"{module}.weight" for module in rows)]:
            module, _, last = name.rpartition(".")
            with library_errors(f"{self.folder} has no tensor {name}, which an adapter stores as a whole"):
                layer = self.model.get_submodule(module)
                old = layer.get_parameter(last)
            is_own = name in values or (layer is not embedding and old is embedding.weight)
            new = torch.nn.Parameter(values.get(name, old.detach()).to(old, copy=True), False) if is_own else old
            setattr(layer, last, new)
            if own := rows.get(module):
                with library_errors(f"the trained rows of {module} do not fit {self.folder}"), torch.no_grad():
                    new[list(own.indices)] = own.values.to(new)

    def check_layers(self, layers: Mapping[str, AdapterLayer]) -> None:
        """Check that the model has the layers that adapters change, with equal widths.

        Raises:
            OsrmError: If one is missing or has another width.
        """
        modules = dict(self.model.named_modules())
        for name, layer in layers.items():
            widths = layer_widths(modules[name]) if name in modules else None
            if widths != (layer.d_in, layer.d_out):
                raise OsrmError(
                    f"the adapters change {name}, (d_in, d_out) = {(layer.d_in, layer.d_out)}; "
                    f"{self.model.name_or_path} has {widths or 'no such layer'}",
                    "give the right base model with --model",
                )


@dataclass(frozen=True)
class Backbone(BackboneModel):
    """A model for classes, with a head of two outputs that is not used.

    Attributes:
        heads: Modules that an adapter of this model must include, see ``LoadedModel``.
    """

    heads: Sequence[str]

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Self:
        """Load a base model, or a merged one.

        Raises:
            OsrmError: If it cannot be loaded as a sequence classifier, or has no tokenizer.
        """
        tokenizer = load_tokenizer(folder)
        loaded = load_classifier(folder, 2, tokenizer, dtype, seed=0, device=device)
        loaded.model.requires_grad_(False).train(False)
        return cls(folder, loaded.model, tokenizer, device, loaded.heads)

    def tokenize(self, examples: Sequence[Example], max_length: int) -> list[Encoding]:
        """Token ids of each example, see ``tokenize_for_classifier``."""
        encodings = tokenize_for_classifier(self.tokenizer, examples, max_length)
        check_model_vocabulary(self.tokenizer, encodings, self.model, self.folder)
        return encodings

    def add_head(self, tensors: Mapping[str, torch.Tensor], num_labels: int, origin: Path) -> TaskHead:
        """Attach a head to the backbone, beside those of other tasks.

        Args:
            tensors: The head by the names in the base model.
            num_labels: Outputs of the head.
            origin: The head's file or folder, for errors.

        Raises:
            OsrmError: If the head is missing or does not fit.
        """
        return TaskHead(classifier_with_head(self.model, tensors, num_labels, origin).requires_grad_(False), tensors)

    @contextmanager
    def attach(self, source: BackboneTaskSource, num_labels: int) -> Iterator[torch.nn.Module]:
        """Attach a folder's classifier to this model; its update is removed at the end.

        Args:
            source: The classifier on disk. A head alone belongs to the merged model.
            num_labels: Number of outputs.

        Raises:
            OsrmError: If it has no head, or one that does not fit.
        """
        if source.adapter:
            with with_adapter_on_backbone(self.model, source.adapter, num_labels) as classifier:
                yield classifier
            return
        with with_backbone_deltas(self.model, source.read_delta, source.delta_layers):
            yield classifier_with_head(self.model, source.read_head(), num_labels, source.head_path)

    def logits(
        self, model: torch.nn.Module, encodings: Sequence[Encoding], batch_size: int, advance: Callable[[int], None]
    ) -> torch.Tensor:
        """``(n, num_labels)`` of a classifier on this backbone, see ``compute_logits``."""
        return compute_logits(model, encodings, self.tokenizer, self.device, batch_size, advance)

    def representations(
        self, model: torch.nn.Module, encodings: Sequence[Encoding], batch_size: int, advance: Callable[[int], None]
    ) -> torch.Tensor:
        """``(n, d)``, the inputs of the head's last layer, see ``compute_representations``."""
        return compute_representations(model, encodings, self.tokenizer, self.device, batch_size, advance)


def check_max_length(folder: Path, length: int) -> None:
    """Check that a base model has a position for each of ``length`` tokens, before it is loaded.

    Args:
        folder: The base model.
        length: Maximum tokens per example, as the user may choose it.

    Raises:
        OsrmError: If it has fewer.
    """
    check_model_positions(load_without_weights(folder), folder, length, "give --max-length {} or less")


def check_model_positions(model: PreTrainedModel, folder: Path, length: int, hint: str) -> None:
    """Check that a model has a position for each of ``length`` tokens.

    Args:
        model: The model; its weights are not looked at.
        folder: Its folder, for the error.
        length: Maximum tokens per example.
        hint: What to do; ``{}`` stands for the number of positions.

    Raises:
        OsrmError: If it has fewer.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, table in model.named_modules():
        # RoBERTa, MPNet and others count positions from the one after that of padding.
        if positions and name.endswith("position_embeddings") and isinstance(table, torch.nn.Embedding):
            positions = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    if positions and length > positions:
        raise OsrmError(
            f"{folder} has positions for {positions} tokens, fewer than the length of {length}", hint.format(positions)
        )


@contextmanager
def with_backbone_deltas(
    model: PreTrainedModel, read_delta: Callable[[str], torch.Tensor], layers: Sequence[str]
) -> Iterator[None]:
    """Add dense updates ``(d_out, d_in)`` to a model's weights, and restore the weights at the end."""
    modules = {name: model.get_submodule(name) for name in layers}
    with restoring_model_weights([layer.get_parameter("weight") for layer in modules.values()]):
        with torch.no_grad():
            for name, layer in modules.items():
                weight, delta = layer.get_parameter("weight"), read_delta(name)
                oriented = delta.T if is_conv1d(layer) or isinstance(layer, torch.nn.Embedding) else delta
                weight.copy_(weight.float() + oriented.to(weight.device))
        yield
