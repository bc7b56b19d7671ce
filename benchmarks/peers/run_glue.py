"""The recipe of transformers' run_glue example with PEFT: datasets, Trainer, an evaluation after the epoch.

Called as ``python -m benchmarks.peers.run_glue MODEL DATA TASK OUT [max_length | dynamic]``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from osrm_cli.tasks import metrics
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.task import TaskSplit


def encoded(data: TaskSplit, tokenizer: Any, padding: str | bool) -> Dataset:
    """The split as run_glue makes it: columns of text, tokenised by ``map``."""
    columns = data.task.columns
    rows = [{**dict(zip(columns, each.texts, strict=True)), "label": each.label} for each in data.examples]

    def tokenise(batch: dict[str, list[str]]) -> Any:
        return tokenizer(*(batch[name] for name in columns), padding=padding, max_length=128, truncation=True)

    return Dataset.from_list(rows).map(tokenise, batched=True, remove_columns=list(columns))


def main() -> None:
    place, data, task, out, padding = sys.argv[1:]
    set_seed(0)
    fixed = padding == "max_length"
    train, dev = (load_split(task, data, split) for split in ("train", "dev"))
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=train.task.num_labels)
    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    trainer = Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            num_train_epochs=1,
            learning_rate=4e-4,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=encoded(train, tokenizer, "max_length" if fixed else False),
        eval_dataset=encoded(dev, tokenizer, "max_length" if fixed else False),
        data_collator=default_data_collator if fixed else DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda found: metrics.compute_task_scores(
            train.task, metrics.predictions_from_logits(train.task, found.predictions), found.label_ids
        ),
    )
    trainer.train()
    scores = next(row for row in reversed(trainer.state.log_history) if "eval_loss" in row)
    trainer.save_model(out)
    Path(out, "scores.json").write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
