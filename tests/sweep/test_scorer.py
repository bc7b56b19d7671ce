"""The bench of a sweep beside plain PEFT, for every way in which a layer stores its weight."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification

from osrm_cli.merging.layer_data import NoLayerData
from osrm_cli.merging.merged_layer import merge_layers
from osrm_cli.merging.plan import MergePlan
from osrm_cli.merging.recipes.recipe import MergeRecipe, RecipeEntry
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.sweep.grid import SweptDelta
from osrm_cli.sweep.scorer import SweepScorer
from osrm_cli.sweep.tasks import SweepDataSpec
from osrm_cli.tasks.loading import load_split

TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}
HEADS = {"bert": "classifier", "gpt2": "score", "llama": "score", "t5": "classification_head"}


def trained(folder: Path, base: Path, family: str) -> PeftModel:
    """An adapter with a head that puts out one number, written and loaded by plain PEFT."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
        settings = LoraConfig(
            task_type="SEQ_CLS", target_modules=TARGETS[family], r=3, lora_alpha=5, modules_to_save=[HEADS[family]]
        )
        peft_model = get_peft_model(model, settings)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = torch.randn(parameter.shape) * 0.3
        peft_model.save_pretrained(str(folder))
    return peft_model.eval()


@pytest.mark.parametrize("family", TARGETS)
def test_scorer_puts_out_what_peft_does(
    tiny_model: Callable[[str], Path], text_tasks: Path, tmp_path: Path, family: str
) -> None:
    base, folder = tiny_model(family), tmp_path / "score"
    plain = trained(folder, base, family)
    plan = MergePlan.of(MergeRecipe("task-arith", (RecipeEntry(str(folder)),)))
    entrants = SweepDataSpec(str(text_tasks), "dev", "train", None, 64, 0, 0).load_tasks(plan.adapters, [])
    scorer = SweepScorer(plan, entrants, base, torch.device("cpu"), torch.float32, 8)
    results = {layer.name: layer.result for layer in merge_layers(plan, NoLayerData(), plan.layers)}
    (halved,) = scorer.score(SweptDelta(results, 0.5, torch.float32), lambda _: None)
    singles = scorer.score_single_adapters(lambda _: None)  # after another update: the base weights are back
    tokenizer = load_tokenizer(base)
    texts = [example.texts[0] for example in load_split("score", text_tasks, "dev").examples]

    def expected() -> list[float]:
        with torch.inference_mode():
            return [plain(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]

    assert singles["test"]["score"].predictions == pytest.approx(expected(), abs=1e-4)
    for module in plain.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 0.5
    assert halved["test"]["score"].predictions == pytest.approx(expected(), abs=1e-4)
    assert halved != singles
