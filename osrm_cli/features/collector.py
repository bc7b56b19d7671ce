"""A base model under observation: statistics of its target layers' inputs, and gradients of a task's loss."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from osrm_cli.features.statistics.table import Statistic
from osrm_cli.models import target_modules
from osrm_cli.models.classifier import load_classifier, load_tokenizer, move_model
from osrm_cli.models.distributed import reduce_to_first_process
from osrm_cli.models.layer_inputs import ALL_TOKENS, SharedLayerInputs, find_shared_layer_inputs, record_layer_inputs
from osrm_cli.models.offload import OffloadedModel, group_offloaded_batches, offload_settings
from osrm_cli.models.target_modules import layer_widths
from osrm_cli.models.text import language_model
from osrm_cli.models.text.completions import CompletionTokenizer
from osrm_cli.models.text.language_model import load_language_model
from osrm_cli.models.token_batches import Encoding, check_model_vocabulary, collate_batch, tokenize_for_classifier
from osrm_cli.progress import Advance
from osrm_cli.tasks.task import TaskSplit


class InputStatistics:
    """Statistics of every target layer's inputs, growing batch by batch.

    Args:
        model: The model, in evaluation mode.
        targets: Target layers by name.
        kinds: For each statistic, the function that makes an accumulator for inputs of width ``d_in``.
        padded: Count padding as text.
        tokens: Which tokens of a text task count, see ``record_layer_inputs``.
        inputs: Which inputs to record, if that is known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        targets: Mapping[str, torch.nn.Module],
        kinds: Sequence[Callable[[int], Any]],
        padded: bool = False,
        tokens: str = ALL_TOKENS,
        inputs: SharedLayerInputs | None = None,
    ) -> None:
        self.model, self.targets, self.kinds, self.padded, self.tokens_counted = model, targets, kinds, padded, tokens
        self.inputs: SharedLayerInputs | None = None
        self.sums: dict[str, list[Any]] = {}
        if inputs:
            self._prepare_sums(inputs)

    def add(self, batch: Mapping[str, torch.Tensor], rows: list[int]) -> None:
        """Run one batch; ``rows`` are its examples' numbers in the sample."""
        inputs = self.probe(batch)

        def record(name: str, inputs: torch.Tensor, mask: torch.Tensor) -> None:
            for total in self.sums[name]:
                total.add(inputs, mask, rows)

        record_layer_inputs(self.model, self.targets, inputs, batch, record, self.padded, self.tokens_counted)

    def probe(self, batch: Mapping[str, torch.Tensor]) -> SharedLayerInputs:
        """Find out which inputs there are, if that is not known yet; nothing is counted."""
        if self.inputs is None:
            one = {name: rows[:1] for name, rows in batch.items()}
            return self._prepare_sums(find_shared_layer_inputs(self.model, self.targets, one))
        return self.inputs

    def _prepare_sums(self, inputs: SharedLayerInputs) -> SharedLayerInputs:
        self.inputs = inputs
        for name in inputs.distinct:
            self.sums[name] = [kind(layer_widths(self.targets[name])[0]) for kind in self.kinds]
        return inputs

    @property
    def tokens(self) -> int:
        """Positions counted, in the layer that has most."""
        return max((int(total.tokens) for totals in self.sums.values() for total in totals), default=0)

    @property
    def examples(self) -> int:
        """Examples read."""
        return max((int(total.examples) for totals in self.sums.values() for total in totals), default=0)


class FeatureCollector:
    """A base model, and the target layers whose inputs are recorded.

    Attributes:
        layers: Target layers by name.
        target_modules: The same, as PEFT's configuration names them.
        warnings: What the user should know about the examples tokenized so far.
    """

    def __init__(
        self,
        base_dir: Path,
        device: torch.device,
        dtype: torch.dtype,
        modules: Sequence[str] | None,
        seed: int,
        is_text: bool = False,
        skip_long: bool = False,
        offload: bool = False,
    ) -> None:
        """Load the model.

        Args:
            base_dir: Its folder.
            device: Where to compute.
            dtype: Precision of its weights.
            modules: ``target_modules``; ``None`` for PEFT's defaults.
            seed: Of weights that the checkpoint lacks.
            is_text: Load it as a model that writes text.
            skip_long: Leave out examples whose completion is too long.
            offload: Leave the weights on disk and read them layer by layer.
        """
        self.skip_long = skip_long
        self.warnings: list[str] = []
        self.base_dir, self.device, self.dtype, self.seed, self.is_text = base_dir, device, dtype, seed, is_text
        self.tokenizer = load_tokenizer(base_dir)
        settings = offload_settings() if offload else {}
        if is_text:
            loaded = load_language_model(base_dir, self.tokenizer, dtype, settings=settings)
            loaded.model.train(False)
        else:
            loaded = load_classifier(base_dir, 1, self.tokenizer, dtype, seed, settings=settings)
        loaded.model.config.use_cache = False  # nobody reads the keys and values that a writer would keep
        chosen = list(modules or []) or target_modules.default_target_modules(loaded.model)
        self.layers = target_modules.find_target_layers(loaded, chosen)
        self.target_modules = target_modules.as_target_modules(loaded, chosen, self.layers)
        self.offloaded = OffloadedModel(loaded, device, base_dir) if offload else None
        self.model = loaded.model if offload else move_model(loaded.model, device)
        self._inputs: SharedLayerInputs | None = None

    def tokenize(self, data: TaskSplit, max_length: int) -> list[Encoding]:
        """The examples as tokens."""
        if not self.is_text:
            encodings = tokenize_for_classifier(self.tokenizer, data.examples, max_length)
        else:
            encoder_decoder = self.model.config.is_encoder_decoder
            completions = CompletionTokenizer(
                self.tokenizer, encoder_decoder, max_length, self.skip_long, self.warnings
            )
            encodings = completions.encode(data.text_examples)[1]
        check_model_vocabulary(self.tokenizer, encodings, self.model, self.base_dir)
        return encodings

    def probe(self, encodings: Sequence[Encoding], pad_to: int | None) -> SharedLayerInputs:
        """Find out which inputs there are, from one example, unless that is known.

        Args:
            encodings: All examples.
            pad_to: Pad to this length.
        """
        if self._inputs is None:
            longest = max(encodings, key=lambda encoding: len(encoding["input_ids"]))
            batch = collate_batch([longest], self.tokenizer, self.device, pad_to=pad_to)
            found: list[SharedLayerInputs] = []
            self._run_passes([lambda: found.append(find_shared_layer_inputs(self.model, self.layers, batch))])
            (self._inputs,) = found
        return self._inputs

    def accumulate(
        self,
        encodings: Sequence[Encoding],
        kinds: Sequence[Statistic],
        batches: Sequence[Sequence[int]],
        inputs: SharedLayerInputs,
        pad_to: int | None,
        advance: Advance,
        tokens: str = ALL_TOKENS,
    ) -> InputStatistics:
        """Statistics of layers' inputs, over some examples of one task.

        Args:
            encodings: All examples.
            kinds: Statistics to accumulate.
            batches: Which examples to run, batch by batch; perhaps none.
            inputs: Which inputs to record.
            pad_to: Pad each example to this length and count padding as text.
            advance: Called with the number of examples done.
            tokens: Which tokens of a text task count, see ``record_layer_inputs``.
        """
        accumulators = [kind.load() for kind in kinds]
        total = InputStatistics(self.model, self.layers, accumulators, pad_to is not None, tokens, inputs)
        lengths = [max(pad_to or 0, len(encoding["input_ids"])) for encoding in encodings]

        def read(rows: Sequence[int]) -> None:
            chosen = [encodings[row] for row in rows]
            total.add(collate_batch(chosen, self.tokenizer, self.device, pad_to=pad_to), list(rows))
            advance(len(rows))

        for group in group_offloaded_batches(
            batches, [len(rows) * max(lengths[row] for row in rows) for rows in batches]
        ):
            self._run_passes([partial(read, rows) for rows in group])
        reduce_to_first_process(total.sums)
        return total

    def _run_passes(self, passes: Sequence[Callable[[], object]]) -> None:
        """Run the model: one pass after the other, or side by side where the weights are on disk."""
        if self.offloaded:
            self.offloaded.run(passes)
            return
        for each in passes:
            each()

    def gradients(
        self, data: TaskSplit, encodings: Sequence[Encoding], batch_size: int, advance: Advance
    ) -> dict[str, torch.Tensor]:
        """Gradient of the task's loss, by target layer; of a classifier, one of its own with a fitted head."""
        from osrm_cli.features.loss_gradients import compute_completion_gradients, compute_loss_gradients

        if self.is_text:
            return compute_completion_gradients(self.model, self.layers, encodings, self.tokenizer, batch_size, advance)
        fresh = load_classifier(self.base_dir, data.task.num_labels, self.tokenizer, self.dtype, self.seed).model
        model = move_model(fresh, self.device)
        layers = {name: model.get_submodule(name) for name in self.layers}
        return compute_loss_gradients(model, layers, data, encodings, self.tokenizer, batch_size, advance)

    def record(self) -> dict[str, Any]:
        """What an initialization has to know of the target layers."""
        conv1d = any(target_modules.is_conv1d(layer) for layer in self.layers.values())
        kind = {"task_type": language_model.task_type(self.model)} if self.is_text else {}
        return {"target_modules": self.target_modules, "fan_in_fan_out": conv1d, **kind}


def describe_feature_layers(
    layers: Mapping[str, torch.nn.Module], inputs: SharedLayerInputs
) -> dict[str, dict[str, Any]]:
    """Each target layer's widths and the layer that holds its statistics, for a file's header."""
    widths = {name: layer_widths(layer) for name, layer in layers.items()}
    return {n: {"source": inputs.sources[n], "d_in": d_in, "d_out": d_out} for n, (d_in, d_out) in widths.items()}
