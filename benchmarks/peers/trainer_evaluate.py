"""Evaluate every task of a merged folder by transformers' Trainer, padded to 128, as run_glue does.

Called as ``python -m benchmarks.peers.trainer_evaluate MODEL DATA MERGED OUT``.
"""

import json
import sys
from pathlib import Path

from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.peers import texts
from osrm_cli.tasks import metrics


def main() -> None:
    place, data, merged, out = map(Path, sys.argv[1:])
    tokenizer = AutoTokenizer.from_pretrained(place)
    arguments = TrainingArguments(
        output_dir=str(out.parent / "trainer"), per_device_eval_batch_size=64, report_to="none", disable_tqdm=True
    )
    scores = {}
    for name, examples in texts.read(data, "dev").items():
        task = examples.task
        base = AutoModelForSequenceClassification.from_pretrained(place, num_labels=task.num_labels)
        found = texts.padded(tokenizer, examples)
        rows = [
            {**{key: values[i] for key, values in found.items()}, "label": label}
            for i, label in enumerate(examples.labels)
        ]
        trainer = Trainer(
            model=PeftModel.from_pretrained(base, str(merged / "tasks" / name)),
            args=arguments,
            eval_dataset=rows,
            data_collator=default_data_collator,
            compute_metrics=lambda found, task=task: metrics.compute_task_scores(
                task, metrics.predictions_from_logits(task, found.predictions), found.label_ids
            ),
        )
        measured = trainer.evaluate()
        scores[name] = {metric: measured[f"eval_{metric}"] for metric in task.metrics}
    out.write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
