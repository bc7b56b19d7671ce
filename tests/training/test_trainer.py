"""What is ours of the training loop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from osrm_cli.models.classifier import load_classifier, load_tokenizer
from osrm_cli.tasks.loading import draw_examples, load_split
from osrm_cli.training.fit import EncodedTask, TrainingConfig, fit_adapter

CPU = torch.device("cpu")


def test_dev_batches_hold_examples_of_like_length(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_model("bert")
    tokenizer = load_tokenizer(folder)
    model = get_peft_model(
        load_classifier(folder, 2, tokenizer, torch.float32, 0).model,
        LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]),
    )
    drawn = draw_examples(load_split("mini-mood", "mini", "dev"), 19, 0)
    words = [" ".join(["good"] * (7 * i % 19 + 1)) for i in range(19)]  # lengths 1 to 19 in no order
    data = replace(drawn, examples=tuple(replace(e, texts=(w,)) for e, w in zip(drawn.examples, words, strict=True)))
    lesson = EncodedTask.of(tokenizer, drawn, data, 64)
    seen: list[tuple[int, ...]] = []

    def see(module: torch.nn.Module, args: object, given: dict[str, torch.Tensor]) -> None:
        if not module.training:
            seen.append(tuple(given["input_ids"].shape))

    model.register_forward_pre_hook(see, with_kwargs=True)
    recipe = TrainingConfig(epochs=1, batch_size=4)
    found = fit_adapter(model, tokenizer, lesson, recipe, tmp_path / "work", CPU, None, lambda _: None)
    lengths = sorted((len(encoding["input_ids"]) for encoding in lesson.dev), reverse=True)
    assert seen == [(len(lengths[i : i + 4]), lengths[i]) for i in range(0, 19, 4)]
    assert len(set(lengths)) == 19
    assert found.scores.keys() == {*data.task.metrics, "headline"}
