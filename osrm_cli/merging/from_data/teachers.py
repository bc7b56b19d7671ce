"""Teachers on other base models: what an adapter says on its own base model of the texts that another one learns from.

Their inner states have other widths and other meanings, so that only outputs are compared: of a classifier its logits;
of a writer the next token's distribution where both have one vocabulary, otherwise the text that it has written.
Compare sequence-level distillation, arXiv:1606.07947.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.task_data import AdapterTaskSample
from osrm_cli.errors import OsrmError
from osrm_cli.merging.foreign import ForeignAdapter
from osrm_cli.merging.from_data.student_heads import make_student_head
from osrm_cli.merging.from_data.task_models import (
    TaskModel,
    load_classifier_task_model,
    load_writer_task_model,
    sample_answer_length,
)
from osrm_cli.models.backbone import Backbone, TaskHead
from osrm_cli.models.base_model import resolve_base_model
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.models.text.completions import encode_generated_answer
from osrm_cli.models.token_batches import IGNORED, Encoding, check_model_vocabulary
from osrm_cli.progress import Progress
from osrm_cli.tasks.task import TextExample


class TeacherModels:
    """The teachers' base models, each loaded once for each kind of task.

    Args:
        device: Device of the models.
        own: Whether teachers write the completions of text tasks; otherwise they read the given ones.
        progress: Shows a bar while answers are written.
    """

    def __init__(self, device: torch.device, own: bool, progress: Progress) -> None:
        self._device, self._own, self._progress = device, own, progress
        self._classifiers: dict[Path, Backbone] = {}
        self._writers: dict[Path, TextBackbone] = {}

    def load_student(
        self, backbone: Backbone | TextBackbone, sample: AdapterTaskSample, adapter: ForeignAdapter, seed: int
    ) -> TaskModel:
        """A task on the merge's base model, with its teacher.

        Args:
            backbone: The merge's base model.
            sample: The task's texts.
            adapter: Its adapter, of another base model.
            seed: Of a new head.

        Raises:
            OsrmError: If the teacher's base model is missing or does not fit, or the teacher would have nothing to say.
        """
        teacher, own_sample = adapter.teacher, replace(sample, adapter=adapter.teacher)
        folder = _find_teacher_base(teacher)
        if isinstance(backbone, TextBackbone):
            if folder not in self._writers:
                self._writers[folder] = TextBackbone.load(folder, self._device)
            writer = self._writers[folder]
            _check_teacher_fits(writer, teacher, sample)
            return self._load_writer(
                backbone, sample, load_writer_task_model(writer, own_sample, self._own, self._progress)
            )
        if folder not in self._classifiers:
            self._classifiers[folder] = Backbone.load(folder, self._device)
        own_backbone = self._classifiers[folder]
        _check_teacher_fits(own_backbone, teacher, sample)
        return TaskModel(
            sample,
            backbone,
            make_student_head(backbone, sample.data.task.num_labels, seed, adapter.name),
            backbone.tokenize(sample.data.examples, sample.max_length),
            teacher=load_classifier_task_model(own_backbone, own_sample, teacher.head_tensors()),
        )

    def _load_writer(self, backbone: TextBackbone, sample: AdapterTaskSample, teacher: TaskModel) -> TaskModel:
        tokens = [_distilled_answer_tokens(encoding) for encoding in teacher.encodings]
        own = self._own and sample.has_prompts
        is_shared = _have_one_vocabulary(backbone.tokenizer, teacher.backbone.tokenizer)
        completions = backbone.completions(sample.max_length, skip_long=True)
        if own and is_shared:
            prompts = completions.encode_prompts(sample.data.text_examples, sample_answer_length(sample))
            encoder_decoder = backbone.model.config.is_encoder_decoder
            encodings = [encode_generated_answer(*pair, encoder_decoder) for pair in zip(prompts, tokens, strict=True)]
        elif own:
            encodings = _encode_teacher_texts(backbone, sample, teacher.backbone.tokenizer, tokens)
        else:
            encodings = completions.encode(sample.data.text_examples)[1]
            if not is_shared or [_distilled_answer_tokens(encoding) for encoding in encodings] != tokens:
                raise OsrmError(
                    f"{sample.adapter.name}: the tokens of {teacher.backbone.folder} are not those of "
                    f"{backbone.folder}, so that what its adapter says of given texts cannot be compared",
                    "leave out --completions given, and give rows with prompts: what it writes is learned then",
                )
        check_model_vocabulary(backbone.tokenizer, encodings, backbone.model, backbone.folder)
        warnings = [*teacher.warnings, *completions.warnings]
        head = TaskHead(backbone.model, {})
        return TaskModel(sample, backbone, head, encodings, warnings, teacher if is_shared else None)


def _find_teacher_base(teacher: Adapter) -> Path:
    try:
        return resolve_base_model(
            teacher.folder, teacher.base, teacher.config.base_model, None, teacher.config.revision
        )[0]
    except OsrmError as error:
        raise OsrmError(
            f"{teacher.source} is to teach on its own base model: {error}",
            "put that model where the adapter says, or into the hub's cache",
        ) from None


def _check_teacher_fits(backbone: Backbone | TextBackbone, teacher: Adapter, sample: AdapterTaskSample) -> None:
    backbone.check_layers(teacher.layers)
    backbone.check_max_length(sample.max_length)


def _have_one_vocabulary(first: Any, second: Any) -> bool:
    """Whether two tokenizers number the same tokens alike, the end token among them."""
    return bool(first.get_vocab() == second.get_vocab() and first.eos_token_id == second.eos_token_id)


def _distilled_answer_tokens(encoding: Encoding) -> list[int]:
    """The tokens that count."""
    return [int(token) for token in encoding["labels"] if token != IGNORED]


def _encode_teacher_texts(
    backbone: TextBackbone, sample: AdapterTaskSample, tokenizer: Any, answers: Sequence[Sequence[int]]
) -> list[Encoding]:
    """What a teacher has written, in another model's tokens; an end that it has not written is not learned."""
    encodings: list[Encoding] = []
    examples = sample.data.text_examples
    for has_ended in (True, False):
        chosen = [
            _with_teacher_answer(example, tokenizer.decode(answer, skip_special_tokens=True))
            for example, answer in zip(examples, answers, strict=True)
            if (tokenizer.eos_token_id in answer) == has_ended
        ]
        if not has_ended:
            chosen = [example for example in chosen if example.reference]
        if chosen:
            encodings += backbone.completions(sample.max_length, skip_long=True).encode(chosen, has_ended)[1]
    return encodings


def _with_teacher_answer(example: TextExample, text: str) -> TextExample:
    is_chat = not isinstance(example.prompt, str)
    return replace(example, completion=({"role": "assistant", "content": text},) if is_chat else text)
