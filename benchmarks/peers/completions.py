"""transformers' own way with prompts and completions: Trainer with labels of -100, `generate` one prompt at a time.

Called as ``python -m benchmarks.peers.completions train TASK TRAIN DEV dynamic|max_length``, or
``... generate TASK COUNT OUT``, which times our batches beside it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)

from osrm_cli.models.base_model import find_base_model
from osrm_cli.models.text.backbone import TextBackbone
from osrm_cli.tasks.loading import load_split
from osrm_cli.tasks.task import TextExample


def encoded(examples: list[TextExample], tokenizer: Any, length: int | None) -> list[dict[str, list[int]]]:
    """Prompt and completion with labels on the completion, perhaps padded to one length."""
    rows = []
    for example in examples:
        prompt = tokenizer(example.prompt)["input_ids"]
        ids = [*tokenizer(example.prompt + example.completion)["input_ids"], tokenizer.eos_token_id]
        labels, mask = [-100] * len(prompt) + ids[len(prompt) :], [1] * len(ids)
        padding = max(0, (length or 0) - len(ids))
        ids, mask = ids + [tokenizer.pad_token_id] * padding, mask + [0] * padding
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels + [-100] * padding})
    return rows


def train(task: str, count: int, dev: int, padding: str) -> None:
    """One epoch and an evaluation, as our command."""
    place = find_base_model("smollm2")
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place)
    length = 128 if padding == "max_length" else None
    splits = [load_split(task, "mini-text", split).text_examples for split in ("train", "dev")]
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(
            output_dir="trainer",
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            num_train_epochs=1,
            learning_rate=4e-4,
            train_sampling_strategy="random" if length else "group_by_length",
            eval_strategy="epoch",
            prediction_loss_only=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=encoded(splits[0][:count], tokenizer, length),
        eval_dataset=encoded(splits[1][:dev], tokenizer, length),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    ).train()


def generate(task: str, count: int, out: Path) -> None:
    """Seconds of our batches, and of one prompt at a time; the answers are the same."""
    backbone = TextBackbone.load(find_base_model("smollm2"), torch.device("cpu"))
    examples = load_split(task, "mini-text", "dev").text_examples[:count]
    prompts = backbone.completions(512).encode_prompts(examples, 40)
    start = time.perf_counter()
    ours = backbone.generate(backbone.model, prompts, 64, 40, [], lambda _: None)
    middle = time.perf_counter()
    theirs = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt["input_ids"]).long()[None]
        written = backbone.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
        theirs.append(backbone.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
    if ours != theirs:
        raise RuntimeError("the answers differ")
    seconds = {"ours": middle - start, "alone": time.perf_counter() - middle}
    out.write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        generate(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
