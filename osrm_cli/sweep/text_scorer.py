"""Score many merges of text tasks on one language model: by loss, and the best of them or all by what they write."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from osrm_cli.adapters.tokenizer_files import find_tokenizer_files
from osrm_cli.evaluation.answers import example_losses, make_text_score, score_answers
from osrm_cli.evaluation.scores import TaskScore
from osrm_cli.merging.plan import MergePlan
from osrm_cli.models.text.backbone import TOKENIZER_NAME, TextBackbone
from osrm_cli.models.text.completions import check_chat_template
from osrm_cli.progress import Advance, Progress
from osrm_cli.sweep.scorer import ScoresBySplit, group_sweep_scores
from osrm_cli.sweep.tasks import SweepTask
from osrm_cli.sweep.weights import SweptDeltaSource, SweptSingleDeltas, SweptWeights
from osrm_cli.tasks.text.metrics import LIKELIHOOD, loss_scores
from osrm_cli.tasks.validation_split import TEST, VALIDATION


class SweepText:
    """A task that is answered with text, with its tokenized examples.

    Args:
        task: The task and its adapter.
        backbone: Supplies model and tokenizer.
        skip_long: Leave out examples whose completion is too long.

    Attributes:
        completions: Has made the tokens, and knows what to warn of.
        examples: Those that are scored, one part after the other.
        encodings: The same as tokens.
        rows: Indices of the examples by part.

    Raises:
        OsrmError: If an example cannot be used, or the adapter saw another template in training.
    """

    def __init__(self, task: SweepTask, backbone: TextBackbone, skip_long: bool) -> None:
        self.task, self.name, self.index, self.backbone = task, task.adapter.name, task.index, backbone
        check_chat_template(task.adapter.record.get("template"), backbone.tokenizer, self.name)
        self.completions = backbone.completions(task.max_length, skip_long)
        kept = {part: self.completions.encode(task.parts.text_examples_of(part)) for part in task.parts.indices}
        self.examples = [example for examples, _ in kept.values() for example in examples]
        self.encodings = [encoding for _, encodings in kept.values() for encoding in encodings]
        self.rows: dict[str, range] = {}
        for part, (examples, _) in kept.items():
            first = sum(map(len, self.rows.values()))
            self.rows[part] = range(first, first + len(examples))
        self._by_loss = replace(task.parts.task, metrics=(LIKELIHOOD,))

    def score(self, batch_size: int, advance: Advance) -> dict[str, TaskScore]:
        """Loss and likelihood on each part; the likelihood is the primary score."""
        losses = self.backbone.losses(self.backbone.model, self.encodings, batch_size, advance)
        return {
            part: make_text_score(
                self._by_loss, loss_scores(losses.mean(rows)), example_losses(losses, rows), len(rows)
            )
            for part, rows in self.rows.items()
        }

    def add_answers(
        self, part: str, score: TaskScore, is_primary: bool, batch_size: int, progress: Progress
    ) -> TaskScore:
        """A score of one part with the metrics of the answers that the model writes to it.

        Args:
            part: The part.
            score: Its score by loss.
            is_primary: The task's own metrics make the primary score, instead of the likelihood.
            batch_size: Maximum prompts per batch.
            progress: Shows progress bars.
        """
        rows = self.rows[part]
        examples, encodings = [self.examples[row] for row in rows], [self.encodings[row] for row in rows]
        task, model = self.task.parts.task, self.backbone.model
        written = score_answers(
            self.backbone, model, task, examples, encodings, self.completions, batch_size, progress
        )[0]
        metrics = {**score.metrics, **written.metrics}
        if not is_primary:
            return replace(score, metrics=metrics)
        return make_text_score(task, metrics, {**score.per_example, **written.per_example}, score.examples)


class TextSweepScorer:
    """One language model in memory, on which the merges are scored one after the other.

    Args:
        plan: Supplies the layers and the adapters.
        tasks: The tasks to score.
        base_dir: Folder of the base model.
        device: Device of the computation.
        dtype: Precision of the model. Updates are always added in float32.
        batch_size: Maximum examples per batch.
        skip_long: Leave out examples whose completion is too long.

    Attributes:
        examples: Number of examples on which one merge is run.
        warnings: What the user should know about the examples.

    Raises:
        OsrmError: If an adapter does not fit the base model or the tokenizer, or an example cannot be used.
    """

    def __init__(
        self,
        plan: MergePlan,
        tasks: Sequence[SweepTask],
        base_dir: Path,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        skip_long: bool = False,
    ) -> None:
        carried = find_tokenizer_files(plan.adapters)[0].get(TOKENIZER_NAME)
        backbone = TextBackbone.load(base_dir, device, beside=carried.parent if carried else None)
        saved = plan.read_saved_modules()
        backbone.check_layers(plan.shapes)
        backbone.replace_values(saved.values, saved.rows)
        self._adapters, self._batch_size = plan.adapters, batch_size
        self._weights = SweptWeights(backbone.model, plan.layers, dtype)
        self._texts = [SweepText(task, backbone, skip_long) for task in tasks]
        self.warnings = list(dict.fromkeys(warning for text in self._texts for warning in text.completions.warnings))
        self.examples = sum(len(text.encodings) for text in self._texts)

    def score_single_adapters(self, advance: Advance) -> ScoresBySplit:
        """Score every task's own adapter."""
        return self.score(self.single_adapters, advance)[0]

    @property
    def single_adapters(self) -> SweptDeltaSource:
        """The update of each task's own adapter."""
        return SweptSingleDeltas(self._adapters)

    def score(self, deltas: SweptDeltaSource, advance: Advance) -> list[ScoresBySplit]:
        """Score one merge on every task."""
        results = {text.name: text.score(self._batch_size, advance) for text in self._weights.each(self._texts, deltas)}
        return [group_sweep_scores(results)]

    def add_answers(
        self, deltas: SweptDeltaSource, scores: ScoresBySplit, everywhere: bool, progress: Progress
    ) -> ScoresBySplit:
        """Scores of one merge with the metrics of written answers beside the loss.

        Args:
            deltas: The merge.
            scores: Its scores by loss.
            everywhere: Answers are written to both parts, and the tasks' own metrics make the primary scores; otherwise
                to the test part alone.
            progress: Shows progress bars.
        """
        parts = (VALIDATION, TEST) if everywhere else (TEST,)
        found = {part: dict(own) for part, own in scores.items()}
        for text in self._weights.each(self._texts, deltas):
            for part in parts:
                found[part][text.name] = text.add_answers(
                    part, scores[part][text.name], everywhere, self._batch_size, progress
                )
        return found
