"""Each task's own model on one backbone; updates are added by hooks, never to the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from osrm_cli.adapters.task_data import AdapterTaskSample
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.foreign import ForeignAdapter
from osrm_cli.models.backbone import Backbone, TaskHead, with_backbone_deltas
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.completions import check_chat_template, encode_generated_answer
from osrm_cli.models.token_batches import Encoding, check_model_vocabulary, group_by_length
from osrm_cli.progress import Progress
from osrm_cli.tasks.task import Label

BATCH_SIZE = 16
MAX_NEW_TOKENS = 64  # of an answer that a single adapter writes, unless the task says another number


@dataclass(frozen=True)
class TaskModel:
    """A task's classifier, or the language model that writes its answers, and the examples to run through it.

    Attributes:
        sample: The task's adapter and examples.
        backbone: The base model that all tasks of its kind share.
        head: The task's head on it; the model as it is where the task has none.
        encodings: The examples, tokenized; of a text task with their completions.
        warnings: What the user should know about them.
        teacher: Of a task whose adapter is foreign, its model on its own base model; ``None`` where that has written
            the completions, but has another vocabulary, so that its words alone count.
    """

    sample: AdapterTaskSample
    backbone: Backbone | TextBackbone
    head: TaskHead
    encodings: Sequence[Encoding]
    warnings: Sequence[str] = ()
    teacher: "TaskModel | None" = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.sample.adapter.name

    @property
    def is_foreign(self) -> bool:
        """Whether the task's adapter belongs to another base model, see ``foreign``."""
        return isinstance(self.sample.adapter, ForeignAdapter)

    @property
    def is_text(self) -> bool:
        """Whether the answer is text."""
        return self.sample.data.task.is_text

    @property
    def labels(self) -> list[Label]:
        """The examples' labels.

        Raises:
            OsrmError: If an example has none.
        """
        return self.sample.data.labels

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.backbone.device

    def with_head_loaded(self) -> PreTrainedModel:
        """The model with this task's head in it; the next call for another task may take it out again."""
        return self.head.load()

    @property
    def output_layer(self) -> torch.nn.Module:
        """The layer that computes a language model's logits."""
        layer: torch.nn.Module = self.with_head_loaded().get_output_embeddings()  # type: ignore[no-untyped-call]
        return layer

    def delta(self, layer: str) -> LowRank | None:
        """The adapter's update of a layer, float32, read when asked for; ``None`` if it does not change the layer."""
        adapter = self.sample.adapter
        return adapter.delta(layer, torch.float32, self.device) if layer in adapter.layers else None

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Examples, padded; of a text task with ``labels``."""
        return self.backbone.collate([self.encodings[index] for index in indices])

    def batches(self) -> list[list[int]]:
        """All examples in batches of like length."""
        return group_by_length([len(encoding["input_ids"]) for encoding in self.encodings], BATCH_SIZE)


def load_classifier_task_model(
    backbone: Backbone, sample: AdapterTaskSample, tensors: Mapping[str, torch.Tensor]
) -> TaskModel:
    """A task's classifier.

    Args:
        backbone: The adapter's base model.
        sample: The adapter and its texts.
        tensors: The task's head.

    Raises:
        OsrmError: If the head does not fit.
    """
    # A statistic of layer inputs needs no head.
    head = TaskHead(backbone.model, {})
    if tensors:
        head = backbone.add_head(tensors, sample.data.task.num_labels, sample.adapter.folder)
    return TaskModel(sample, backbone, head, backbone.tokenize(sample.data.examples, sample.max_length))


def load_writer_task_model(
    backbone: TextBackbone, sample: AdapterTaskSample, own: bool, progress: Progress
) -> TaskModel:
    """The language model that writes a task's answers.

    Args:
        backbone: The adapter's base model.
        sample: The adapter and its prompts.
        own: Whether the adapter writes the completions; otherwise they are the given ones.
        progress: Shows a bar while answers are written.

    Raises:
        OsrmError: If the tokenizer is not the adapter's, or an example cannot be used.
    """
    adapter = sample.adapter
    check_chat_template(adapter.record.get("template"), backbone.tokenizer, adapter.name)
    completions = backbone.completions(sample.max_length, skip_long=True)
    if own and sample.has_prompts:
        encodings = write_sample_answers(backbone, sample, progress)
    else:
        encodings = completions.encode(sample.data.text_examples)[1]
    check_model_vocabulary(backbone.tokenizer, encodings, backbone.model, backbone.folder)
    return TaskModel(sample, backbone, TaskHead(backbone.model, {}), encodings, completions.warnings)


def sample_answer_length(sample: AdapterTaskSample) -> int:
    """Tokens of the longest answer that a text task's adapter writes."""
    return min(sample.data.task.max_new_tokens or MAX_NEW_TOKENS, max(1, sample.max_length - 1))


def write_sample_answers(backbone: TextBackbone, sample: AdapterTaskSample, progress: Progress) -> list[Encoding]:
    """Let a task's single adapter answer the prompts, greedily; what it has written takes the completions' place.

    Args:
        backbone: The base model.
        sample: The adapter, at weight 1, and prompts.
        progress: Shows a bar.

    Returns:
        Prompt and answer of each example, as ``CompletionTokenizer.encode`` would have them.

    Raises:
        OsrmError: If a prompt is empty.
    """
    adapter, task, count = sample.adapter, sample.data.task, sample_answer_length(sample)
    examples = sample.data.text_examples
    prompts = backbone.completions(sample.max_length).encode_prompts(examples, count)
    for prompt, example in zip(prompts, examples, strict=True):
        if not len(prompt["input_ids"]):
            raise OsrmError(f"{example.place}: the prompt has no token that could be answered", "remove the row")

    def read_delta(layer: str) -> torch.Tensor:
        return adapter.delta(layer, torch.float32, backbone.device).dense()

    with (
        with_backbone_deltas(backbone.model, read_delta, list(adapter.layers)),
        progress(f"write {adapter.name}", len(prompts), "answers") as advance,
    ):
        answers = backbone.generate_tokens(backbone.model, prompts, BATCH_SIZE, count, task.stop, advance)
    encoder_decoder = backbone.model.config.is_encoder_decoder
    return [
        encode_generated_answer(prompt, answer, encoder_decoder)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
