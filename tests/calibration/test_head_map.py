"""Calibration on a model in memory, for every kind of head, beside plain PEFT."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.calibration.head_map import calibrated_head, fit_head_map
from osrm_cli.calibration.ridge_map import RidgeMap
from osrm_cli.errors import OsrmError
from osrm_cli.models import linear_head
from osrm_cli.models.classifier import load_classifier, load_tokenizer, with_adapter_on_backbone
from osrm_cli.models.token_batches import compute_logits, tokenize_for_classifier
from osrm_cli.tasks.task import Example
from tests.conftest import WORDS

CPU = torch.device("cpu")
PADDED = {"atol": 1e-4, "rtol": 1e-4}  # beside the same example alone: sums in another order
# Layers to adapt, modules to save, name of the head's last layer.
FAMILIES = {
    "bert": (["query", "value"], ["classifier"], "classifier"),
    "roberta": (["query", "value"], ["classifier"], "classifier.out_proj"),
    "mpnet": (["q", "v"], ["classifier"], "classifier.out_proj"),
    "deberta-v2": (["query_proj", "value_proj"], ["pooler", "classifier"], "classifier"),
    "t5": (["q", "v"], ["classification_head"], "classification_head.out_proj"),
    "llama": (["q_proj", "v_proj"], ["score"], "score"),
    "gpt2": (["c_attn"], ["score"], "score"),
}


class Bed:
    """Two random adapters of one base model, their head, and some examples."""

    def __init__(self, family: str, base: Path, folder: Path) -> None:
        self.base, self.tokenizer = base, load_tokenizer(base)
        self.folders = [self._save(family, folder / name, seed) for seed, name in enumerate(("single", "merged"))]
        draw = random.Random(0)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(40)]
        self.encodings = tokenize_for_classifier(self.tokenizer, [Example((text,), None) for text in texts], 32)
        self.model = load_classifier(base, 3, self.tokenizer, torch.float32, 0).model

    def _save(self, family: str, folder: Path, seed: int) -> Path:
        targets, saved, _ = FAMILIES[family]
        conv = family == "gpt2"
        config = LoraConfig(
            task_type="SEQ_CLS", target_modules=targets, modules_to_save=saved, r=3, fan_in_fan_out=conv
        )
        torch.manual_seed(0)  # one head for both
        model = get_peft_model(self.plain(), config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        model.save_pretrained(str(folder))
        return folder

    def plain(self) -> Any:
        """The classifier that transformers makes of the base model."""
        model = AutoModelForSequenceClassification.from_pretrained(self.base, num_labels=3)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def run(self, folder: Path, batch_size: int = 8) -> tuple[str, torch.nn.Linear, torch.Tensor]:
        """Name of the last layer, the layer, and what it is fed with, by the code under test."""
        with with_adapter_on_backbone(self.model, open_adapter(folder), 3) as whole:
            rows = linear_head.compute_representations(
                whole, self.encodings, self.tokenizer, CPU, batch_size, lambda _: None
            )
            return *linear_head.find_head_layer(whole), rows

    def reference(self, folder: Path, change: Callable[[PeftModel], None] = lambda _: None) -> tuple[Any, Any]:
        """Inputs of the last layer and logits, one example at a time without padding, through plain PEFT."""
        model = PeftModel.from_pretrained(self.plain(), str(folder)).eval()
        change(model)
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        fed: list[torch.Tensor] = []
        last.register_forward_pre_hook(lambda _, args: fed.append(args[0].reshape(-1, args[0].shape[-1])[-1]))
        with torch.no_grad():
            logits = [
                model(**{k: torch.from_numpy(value)[None] for k, value in one.items()}).logits[0]
                for one in self.encodings
            ]
        return torch.stack(fed), torch.stack(logits)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bed(family: str, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bed:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on Conv1D
        return Bed(family, tiny_model(family), tmp_path_factory.mktemp("adapters"))


def test_representations_are_what_the_last_layer_is_fed_with(family: str, bed: Bed) -> None:
    name, layer, rows = bed.run(bed.folders[0])
    fed, logits = bed.reference(bed.folders[0])
    assert name == FAMILIES[family][2]
    torch.testing.assert_close(rows, fed, **PADDED)
    torch.testing.assert_close(linear(rows, layer.weight, layer.bias), logits, **PADDED)
    torch.testing.assert_close(bed.run(bed.folders[0], 3)[2], rows, **PADDED)


def test_the_model_is_as_before(bed: Bed) -> None:
    with with_adapter_on_backbone(bed.model, open_adapter(bed.folders[0]), 3) as whole:
        rest = (bed.tokenizer, CPU, 8, lambda _: None)
        before = compute_logits(whole, bed.encodings, *rest)
        linear_head.compute_representations(whole, bed.encodings, *rest)
        assert torch.equal(compute_logits(whole, bed.encodings, *rest), before)


def test_the_calibrated_head_is_the_map_and_then_the_old_head(bed: Bed) -> None:
    """Through plain PEFT, with the merged adapter's own representations: exact, and closer to the single adapter."""
    _, _, single = bed.run(bed.folders[0])
    name, layer, merged = bed.run(bed.folders[1])
    found = fit_head_map(layer, merged, single)
    assert found.improves
    old = {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    new = calibrated_head(old, name, found)
    assert new.keys() == old.keys()

    def change(model: PeftModel) -> None:
        [model.get_submodule(n) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)][
            -1
        ].load_state_dict({key.rpartition(".")[2]: tensor for key, tensor in new.items()})

    fed, logits = bed.reference(bed.folders[1], change)
    mapped = fed.double() @ found.M + (0 if found.shift is None else found.shift)
    bias = None if layer.bias is None else layer.bias.double()
    expected = linear(mapped, layer.weight.double(), bias)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    wanted = bed.reference(bed.folders[0])[1]
    assert (logits - wanted).square().mean() < (bed.reference(bed.folders[1])[1] - wanted).square().mean()


def test_a_head_without_a_bias_gets_none(family: str, bed: Bed) -> None:
    _, layer, merged = bed.run(bed.folders[1])
    found = fit_head_map(layer, merged, bed.run(bed.folders[0])[2])
    assert (found.shift is None) == (layer.bias is None) == (family in ("llama", "gpt2"))


def identity(width: int, error: float) -> RidgeMap:
    return RidgeMap(torch.eye(width).double() * 2, None, 1.0, 1.0, 1.0, error, 1.0)


def test_a_map_that_does_not_help_leaves_the_head_alone() -> None:
    head = {"score.weight": torch.ones(2, 3), "other": torch.ones(1)}
    assert calibrated_head(head, "score", identity(3, 1.0)) == head
    changed = calibrated_head(head, "score", identity(3, 0.9))
    assert torch.equal(changed["score.weight"], torch.full((2, 3), 2.0))
    assert changed["other"] is head["other"]
    assert torch.equal(head["score.weight"], torch.ones(2, 3))


def test_heads_that_cannot_be_calibrated(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(OsrmError, match=r"the head has no score\.weight"):
        calibrated_head({"classifier.weight": torch.ones(1)}, "score", identity(3, 0.9))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=3)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "classifier"]))
    with pytest.raises(OsrmError, match="BertForSequenceClassification does not end in a plain linear layer of 3"):
        linear_head.find_head_layer(adapted)
