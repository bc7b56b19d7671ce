"""What a task's text looks like to a base model's target layers: what ``osrm collect`` keeps of it."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli import seeding as random
from osrm_cli.features import shards
from osrm_cli.features.features_file import GRADIENT
from osrm_cli.features.shards import Share
from osrm_cli.features.statistics import private_mean as privacy
from osrm_cli.features.statistics import table as statistics
from osrm_cli.features.statistics.table import Statistic
from osrm_cli.models import batching as batches
from osrm_cli.models import classifier as base_model
from osrm_cli.models import distributed as processes
from osrm_cli.models import target_modules as targets
from osrm_cli.models.layer_inputs import Inputs, find_inputs, watch
from osrm_cli.models.target_modules import widths
from osrm_cli.tasks.task import TaskSplit


class Totals:
    """Statistics of every target layer's inputs, growing batch by batch.

    Args:
        model: The classifier, in evaluation mode.
        targets: Target layers by name.
        kinds: For each statistic, the function that makes an accumulator for inputs of width ``d_in``.
        padded: Count padding as text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        targets: Mapping[str, torch.nn.Module],
        kinds: Sequence[Callable[[int], Any]],
        padded: bool = False,
    ) -> None:
        self.model, self.targets, self.kinds, self.padded = model, targets, kinds, padded
        self.inputs: Inputs | None = None
        self.sums: dict[str, list[Any]] = {}

    def add(self, batch: Mapping[str, torch.Tensor], rows: list[int]) -> None:
        """Run one batch; ``rows`` are its examples' numbers in the sample."""
        inputs = self.look(batch)

        def record(name: str, inputs: torch.Tensor, mask: torch.Tensor) -> None:
            for total in self.sums[name]:
                total.add(inputs, mask, rows)

        watch(self.model, self.targets, inputs, batch, record, self.padded)

    def look(self, batch: Mapping[str, torch.Tensor]) -> Inputs:
        """See which inputs there are, if that is not known yet; nothing is counted."""
        if self.inputs is None:
            self.inputs = find_inputs(self.model, self.targets, {name: x[:1] for name, x in batch.items()})
            for name in self.inputs.distinct:
                self.sums[name] = [kind(widths(self.targets[name])[0]) for kind in self.kinds]
        return self.inputs

    @property
    def layers(self) -> dict[str, dict[str, Any]]:
        """Each target layer's width and the layer that holds its statistics, for the file's header."""
        sources = self.inputs.sources if self.inputs else {}
        found = {name: widths(self.targets[name]) for name in self.targets if name in sources}
        return {n: {"source": sources[n], "d_in": d_in, "d_out": d_out} for n, (d_in, d_out) in found.items()}

    @property
    def tokens(self) -> int:
        """Positions counted; the most of any layer."""
        return max((int(total.tokens) for totals in self.sums.values() for total in totals), default=0)

    @property
    def examples(self) -> int:
        """Examples read."""
        return max((int(total.examples) for totals in self.sums.values() for total in totals), default=0)


@dataclass
class Found:
    """What was read of one task.

    Attributes:
        data: Its examples.
        total: Statistics of the layers' inputs, under several processes whole in the first one alone.
        gradients: Of the task's loss, by layer.
    """

    data: TaskSplit
    total: Totals
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """What is kept of a task's text.

    Attributes:
        rows: Statistics, as asked for.
        share: The share of the batches to read, for a shard.
        noise: ``(sigma, clip)`` of a private mean.
        batch_size: Examples in a batch.
    """

    rows: Sequence[Statistic]
    share: Share | None
    noise: tuple[float, float] | None
    batch_size: int

    @property
    def gradient(self) -> bool:
        """Whether a gradient is among them."""
        return GRADIENT in self.names

    @property
    def names(self) -> list[str]:
        """Names of the statistics."""
        return [row.name for row in self.rows]

    @property
    def watched(self) -> list[Statistic]:
        """What is accumulated of the layers' inputs."""
        return [statistics.find("samples")] if self.noise else [row for row in self.rows if row.accumulator]

    def path(self, whole: Path) -> Path:
        """Where it is written."""
        return self.share.path(whole) if self.share else whole

    def batches(self, encodings: Sequence[batches.Encoding]) -> list[list[int]]:
        """Which examples this process runs through the model, batch by batch.

        Shares are made of batches, not of examples: each batch is computed as in the whole, so that shares differ from
        it in nothing but the order of a sum in float64. Several processes share out a share again.
        """
        plan = batches.bucket([len(encoding["input_ids"]) for encoding in encodings], self.batch_size)
        share = self.share or Share(1, 1)
        return plan[share.index - 1 :: share.count][processes.rank() :: processes.count()] if self.watched else []

    def digest(self, data: TaskSplit) -> str | None:
        """Digest of the examples; a private mean has none: it would tell who guesses them that the guess is right."""
        return None if self.noise else data.sha256

    def settings(self) -> dict[str, Any]:
        """Settings that only some files have."""
        return dict(zip(("private", "clip"), self.noise, strict=True)) if self.noise else {}

    def contents(self, found: Found) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """A file's tensors, and what its header says of them."""
        total, names = found.total, [row.name for row in self.watched]
        examples = total.examples if names else len(found.data.examples)
        facts: dict[str, Any] = {"task": found.data.task.to_dict(), "statistics": self.names, "layers": total.layers}
        facts |= {"tokens": total.tokens, "examples": examples}
        if self.share:
            parts = {"count": self.share.count, "batch_size": self.batch_size}
            return shards.states(total.sums, names), {**facts, "shards": parts}
        if self.noise:
            # Each example counts once, whatever its length: the number of tokens is nobody's business either.
            return self._private(total), {**facts, "tokens": examples, "private": self._budget(len(total.sums))}
        contents = shards.finished(total.sums, names)
        contents |= {f"{layer}.{GRADIENT}": gradient for layer, gradient in found.gradients.items()}
        return contents, facts | shards.bounds(total.sums, names)

    def _private(self, total: Totals) -> dict[str, torch.Tensor]:
        sigma, clip = self.noise or (0.0, 0.0)
        made = {}
        for layer, (samples,) in total.sums.items():
            noise = random.generator(secrets.randbits(128), layer)  # noise that a seed repeats would hide nothing
            made[f"{layer}.mean"] = privacy.private_mean(samples.finish(), clip, sigma, noise).float()
        return made

    def _budget(self, mechanisms: int) -> dict[str, float]:
        sigma, clip = self.noise or (0.0, 0.0)
        spent = {"epsilon": privacy.epsilon(sigma, mechanisms), "delta": privacy.DELTA}
        return {**spent, "sigma": sigma, "clip": clip, "mechanisms": mechanisms}


class Source:
    """A base model whose target layers are watched.

    Args:
        folder: The model's.
        device: Where it is to lie.
        dtype: Of its weights.
        names: ``target_modules``; ``None`` for PEFT's defaults.
        seed: Of weights that the checkpoint lacks.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, names: list[str] | None, seed: int
    ) -> None:
        self.folder, self.device, self.dtype, self.seed = folder, device, dtype, seed
        self.tokenizer = base_model.load_tokenizer(folder)
        classifier = base_model.load_classifier(folder, 1, self.tokenizer, dtype, seed)
        wanted = names or targets.default_targets(classifier.model)
        self.layers = targets.find_targets(classifier, wanted)
        self.names = targets.spelled(classifier, wanted, self.layers)
        self.model = classifier.model
        whole: torch.nn.Module = self.model  # transformers' own method "to" is not typed
        whole.to(device)

    def tokenise(self, data: TaskSplit, max_length: int) -> list[batches.Encoding]:
        """The examples as tokens."""
        return batches.tokenise(self.tokenizer, data.examples, max_length)

    def read(
        self, encodings: Sequence[batches.Encoding], keep: Keep, pad_to: int | None, advance: Callable[[int], None]
    ) -> Totals:
        """Statistics of every target layer over a share of the examples of one task.

        Args:
            encodings: All examples.
            keep: What to keep, and of which share.
            pad_to: Pad each example to this length and count padding as text.
            advance: Called with the number of examples done.
        """
        total = Totals(self.model, self.layers, [row.load() for row in keep.watched], padded=pad_to is not None)

        def collate(rows: list[int]) -> dict[str, torch.Tensor]:
            return batches.collate([encodings[row] for row in rows], self.tokenizer, self.device, pad_to=pad_to)

        longest = max(range(len(encodings)), key=lambda row: len(encodings[row]["input_ids"]))
        total.look(collate([longest]))  # a share may be empty
        for rows in keep.batches(encodings):
            total.add(collate(rows), rows)
            advance(len(rows))
        processes.add_up(total.sums)
        return total

    def gradients(
        self, data: TaskSplit, encodings: Sequence[batches.Encoding], batch_size: int, advance: Callable[[int], None]
    ) -> dict[str, torch.Tensor]:
        """Gradient of the task's loss at a fitted head, by target layer, on a classifier of its own."""
        from osrm_cli.features import (
            loss_gradients as gradients,  # scikit-learn: a second that the other statistics need not wait
        )

        outputs = data.task.num_labels
        fresh = base_model.load_classifier(self.folder, outputs, self.tokenizer, self.dtype, self.seed).model
        whole: torch.nn.Module = fresh
        whole.to(self.device)
        layers = {name: fresh.get_submodule(name) for name in self.layers}
        return gradients.gradients(fresh, layers, data, encodings, self.tokenizer, batch_size, advance)

    def facts(self) -> dict[str, Any]:
        """What a start has to know of the target layers."""
        conv1d = any(targets.is_conv1d(layer) for layer in self.layers.values())
        return {"target_modules": self.names, "fan_in_fan_out": conv1d}
