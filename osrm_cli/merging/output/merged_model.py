"""``merged/`` as a model: the base model's files with the update added, tensor by tensor."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.layers import find_expert_parameter
from osrm_cli.adapters.trained_rows import TrainedRows
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.row_stream import Update
from osrm_cli.merging.merged_layer import MergedLayer
from osrm_cli.merging.methods.layer_updates import MaskedDelta
from osrm_cli.merging.output.unfinished_model import UnfinishedMerge
from osrm_cli.merging.output.weight_parts import WeightPart, find_expert_weight_parts
from osrm_cli.merging.plan import MergedModules, MergePlan
from osrm_cli.models.checkpoint import Change, Checkpoint, CheckpointRows
from osrm_cli.storage import atomic
from osrm_cli.storage.input_files import read_json

# Model types whose layers with these names are Conv1D: their weights are stored as ``(d_in, d_out)``.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")


@dataclass(frozen=True)
class MergeTarget:
    """The weights of a base model that a merge changes.

    Attributes:
        checkpoint: The base model's files.
        dtype: Type of the floating-point tensors that are written; ``None`` keeps each tensor's own.
        weights: By tensor, the layers whose updates are added to it, from its first row to the last.
        modules: New values of tensors, by their name in the base model.
        rows: Rows that take the place of a tensor's own, by its name in the base model.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype | None
    weights: Mapping[str, Sequence[WeightPart]]
    modules: Mapping[str, torch.Tensor]
    rows: Mapping[str, TrainedRows]

    @classmethod
    def find(cls, plan: MergePlan, base_dir: Path, saved: MergedModules) -> "MergeTarget":
        """Find each layer's weight, and each tensor of a module that was trained as a whole.

        Args:
            plan: What is merged.
            base_dir: The base model.
            saved: What replaces values of the base model.

        Raises:
            OsrmError: If the base model's files are damaged, quantized, or do not fit the adapters.
        """
        rows, checkpoint = {f"{module}.weight": own for module, own in saved.rows.items()}, Checkpoint.open(base_dir)
        tied = checkpoint.architecture.tied if rows else {}
        # Rows of the embedding are those of an output layer that is tied to it; those of the output layer are its own.
        outputs = [name for name in rows if checkpoint.architecture.name_in_model(name) in tied]
        checkpoint = _untie_merged_embeddings(checkpoint, [*_merged_weight_names(plan), *saved.values, *outputs])
        config = _read_merge_base_config(base_dir)
        modules = {_find_tensor_to_merge(checkpoint, name): tensor for name, tensor in saved.values.items()}
        checkpoint = _resize_merged_vocabulary(checkpoint, modules, config)
        is_flagged = any(adapter.config.fan_in_fan_out for adapter in plan.adapters)
        has_conv1d = config.get("model_type") in _CONV1D_MODELS
        stacks = _find_merged_stacks(plan)
        experts = Counter(stacks.values())
        owners: dict[tuple[str, int], WeightPart] = {}
        for name, layer in plan.shapes.items():
            # PEFT writes one flag for all layers, that of the last one: where the architecture is known, it decides.
            is_conv1d = name.rpartition(".")[2] in _CONV1D_LAYERS if has_conv1d else is_flagged
            try:
                if layer.is_tensor:
                    parts = [WeightPart.whole(name, _find_tensor_to_merge(checkpoint, name), checkpoint)]
                elif stack := stacks.get(name):
                    parts = find_expert_weight_parts(
                        checkpoint, stack, int(name.rpartition(".")[2]), experts[stack], layer
                    )
                else:
                    found = checkpoint.find_weight(name, layer.weight_shape, is_conv1d or layer.embedding)
                    parts = [WeightPart.whole(name, found[0], checkpoint, found[1])]
            except OsrmError as error:
                raise _explain_unmergeable_layer(error, base_dir, name, config) from None
            for part in parts:
                other = owners.setdefault((part.tensor, part.first), part)
                if other.layer != name:
                    raise OsrmError(
                        f"layers {other.layer} and {name} are both {part.tensor} of {base_dir}",
                        "use adapters that were trained on one class of model",
                    )
        weights: dict[str, list[WeightPart]] = defaultdict(list)
        for (tensor, _), part in sorted(owners.items()):
            weights[tensor].append(part)
        placed = _place_merged_rows(checkpoint, rows, modules, tied)
        return cls(checkpoint, plan.dtype if plan.recipe.dtype else None, weights, modules, placed)

    def order(self, unfinished: UnfinishedMerge | None = None) -> list[str]:
        """The layers in the order in which ``write`` takes them; those of finished files are left out."""
        return list(dict.fromkeys(part.layer for part in self._parts(unfinished)))

    def check_space(self, out: Path, unfinished: UnfinishedMerge | None = None) -> None:
        """Check that the disk has room for the files that are still to be written.

        Raises:
            OsrmError: If it has not.
        """
        atomic.check_disk_space(out, self.checkpoint.count_bytes(self.dtype, _finished_merge_files(unfinished)))

    def write(
        self, stage: Path, layers: Iterator[MergedLayer], unfinished: UnfinishedMerge | None = None
    ) -> dict[str, float]:
        """Copy the model with every layer's result added to its weight.

        Args:
            stage: An existing, empty folder that is being staged.
            layers: Results in the order of ``order``.
            unfinished: Keeps finished files, and holds those of an earlier run.

        Returns:
            By layer, the share of the energy that is left after recompression.
        """
        kept = unfinished.read_kept_energy() if unfinished else {}
        uses = Counter(part.layer for part in self._parts(unfinished))
        updates: dict[str, Update] = {}  # of layers whose weight lies in several tensors, until the last of these

        def take(name: str) -> Update:
            if name not in updates:
                layer = next(layers)
                kept[layer.name] = layer.kept
                if isinstance(layer.result, MaskedDelta):
                    raise TypeError(f"{layer.name}: an update per task cannot be added to one model")
                updates[layer.name] = layer.result
            uses[name] -= 1
            return updates[name] if uses[name] else updates.pop(name)

        def change(name: str, old: CheckpointRows) -> Iterable[torch.Tensor]:
            rows = self._before_updates(name, old)
            if name not in self.weights:
                return rows.pieces()
            parts, dtype = self.weights[name], self.dtype or old.dtype
            return itertools.chain.from_iterable(part.add(take(part.layer), rows.read, dtype) for part in parts)

        changed = sorted({*self.weights, *self.modules, *self.rows})
        changes: dict[str, Change] = {name: partial(change, name) for name in changed}
        if unfinished:
            self.checkpoint.write(
                stage, changes, self.dtype, unfinished.folder, finish=lambda: unfinished.add_kept_energy(kept)
            )
        else:
            self.checkpoint.write(stage, changes, self.dtype)
        next(layers, None)  # lets the last layer count in the progress
        return kept

    def _parts(self, unfinished: UnfinishedMerge | None) -> Iterator[WeightPart]:
        """The parts in the order in which they are written; those of finished files are left out."""
        done, tensors = _finished_merge_files(unfinished), self.checkpoint.tensors
        for name in self.checkpoint.tensor_order(self.dtype):
            if tensors[name].path.name not in done:
                yield from self.weights.get(name, ())

    def _before_updates(self, name: str, old: CheckpointRows) -> CheckpointRows:
        """A tensor that changes, with what is carried over as it is."""
        shape = self.weights[name][0].shape if name in self.weights else old.shape
        if name in self.modules:
            rows = CheckpointRows.of(self.modules[name])
        else:
            rows = old if shape == old.shape else CheckpointRows.stored(self.checkpoint.tensors[name], shape)
        return replace(rows, read=self.rows[name].placed_in(rows.read, rows.shape[0])) if name in self.rows else rows


def _finished_merge_files(unfinished: UnfinishedMerge | None) -> set[str]:
    """Names of the files that an earlier run has finished."""
    return {path.name for path in unfinished.folder.glob("*.safetensors")} if unfinished else set()


def _merged_weight_names(plan: MergePlan) -> list[str]:
    """The weights of layers; of full models, all uses of a tied tensor change alike."""
    return [f"{name}.weight" for name, layer in plan.shapes.items() if not layer.is_tensor]


def _find_merged_stacks(plan: MergePlan) -> dict[str, str]:
    """The parameter that a layer is one expert of, by the layer."""
    parents = {
        name: find_expert_parameter(adapter.config, name) for adapter in plan.adapters for name in adapter.layers
    }
    return {name: parent for name, parent in parents.items() if parent}


def _untie_merged_embeddings(checkpoint: Checkpoint, changed: Collection[str]) -> Checkpoint:
    """The checkpoint, with tensors of their own for an output layer and embeddings that are one, if one changes.

    Args:
        checkpoint: The base model's files.
        changed: The model's names of the tensors that the merge changes.

    Raises:
        OsrmError: If the architecture needs them to be one.
    """
    outside = [name for name in changed if not re.search(r"\.\d+\.", name)]
    if not outside:  # nothing but layers of the model's blocks, which are never tied
        return checkpoint
    architecture = checkpoint.architecture
    names = {architecture.name_in_model(name) for name in outside}
    touched = [(name, original) for name, original in architecture.tied.items() if {name, original} & names]
    if not touched:
        return checkpoint
    if not architecture.can_untie:
        raise OsrmError(
            f"{checkpoint.folder}: {touched[0][0]} and {touched[0][1]} are one tensor in its architecture, and the "
            "adapters change one of its uses",
            "leave out --as model",
        )
    copies = {}
    for name, original in architecture.tied.items():  # one setting unties all
        stored, stored_original = checkpoint.find_names(name), checkpoint.find_names(original)
        if stored_original and not stored:
            copies[name] = stored_original[0]
        elif stored and not stored_original:
            copies[original] = stored[0]
    return checkpoint.untied(copies)


def _explain_unmergeable_layer(error: OsrmError, base_dir: Path, layer: str, config: Mapping[str, Any]) -> OsrmError:
    """The reason that a layer's weight cannot be changed: of a quantized model it is not the wrong base."""
    quantization = config.get("quantization_config")
    if not quantization:
        return error
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return OsrmError(
        f"{base_dir} is quantized ({method or 'unknown method'}): it holds no plain weight of {layer} to add an update "
        "to",
        "give the model that it was made from, in floating point, with --model, or leave out --as model",
    )


def _find_tensor_to_merge(checkpoint: Checkpoint, name: str) -> str:
    """The base model's name of a tensor, which a model with a head may call otherwise than the bare one."""
    names = checkpoint.find_names(name)
    if not names:
        raise OsrmError(
            f"{checkpoint.folder} has no tensor {name}, which an adapter stores as a whole", "leave out --as model"
        )
    return names[0]


def _place_merged_rows(
    checkpoint: Checkpoint,
    rows: Mapping[str, TrainedRows],
    modules: Mapping[str, torch.Tensor],
    tied: Mapping[str, str],
) -> dict[str, TrainedRows]:
    """Trained rows by the base model's names of the tensors that they belong to.

    Args:
        checkpoint: The base model's files.
        rows: By the name of the tensor in the model that was adapted.
        modules: Tensors that were trained as a whole, by the base model's names.
        tied: Tensors that follow another one, unless they have rows or values of their own.

    Raises:
        OsrmError: If they do not fit.
    """
    placed = {_find_tensor_to_merge(checkpoint, name): own for name, own in rows.items()}
    for name, own in placed.items():
        count, *width = modules[name].shape if name in modules else checkpoint.tensors[name].shape
        if list(own.values.shape[1:]) != width or max(own.indices) >= count:
            raise OsrmError(
                f"{checkpoint.folder}: {name} is {(count, *width)}, an adapter has trained its row {max(own.indices)}, "
                f"{own.values.shape[1]} wide",
                "give the right base model with --model",
            )
    in_model = {checkpoint.architecture.name_in_model(name): own for name, own in placed.items()} if tied else {}
    for name, original in tied.items():
        for follower in checkpoint.find_names(name) if original in in_model else ():
            if follower not in modules:
                placed.setdefault(follower, in_model[original])
    return placed


def _resize_merged_vocabulary(
    checkpoint: Checkpoint, modules: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint with the vocabulary of modules that were trained with added tokens.

    Raises:
        OsrmError: If a module has another shape, and not all tensors with a row for each token have the same number.
    """
    others = {name: tensor for name, tensor in modules.items() if tensor.shape != checkpoint.tensors[name].shape}
    if not others:
        return checkpoint
    name, tensor = next(iter(others.items()))
    size, widths = len(tensor), {each: checkpoint.tensors[each].shape[1:] for each in others}
    vocabulary = {each for one in checkpoint.architecture.vocabulary for each in checkpoint.find_names(one)}
    is_whole = others.keys() == vocabulary and "vocab_size" in config
    if is_whole and all(each.shape == (size, *widths[key]) for key, each in others.items()):
        return checkpoint.with_vocabulary(size, others)
    raise OsrmError(
        f"{name} is {tuple(tensor.shape)} in the adapter, {checkpoint.tensors[name].shape} in {checkpoint.folder}: "
        "its vocabulary has grown, and not all of its embeddings are in the adapter",
        "leave out --as model",
    )


def _read_merge_base_config(base_dir: Path) -> dict[str, Any]:
    """The base model's ``config.json``."""
    config = read_json(base_dir / "config.json", "give the right base model with --model")
    return config if isinstance(config, dict) else {}
