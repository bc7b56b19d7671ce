"""SentenceTransformer opens merged models and merged adapters of the default base model as it opens their sources."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from osrm_cli.merging.merge import merge_adapters
from osrm_cli.models.base_model import find_base_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the library's own imports

TEXTS = ["a cat sat on the mat", "merging adapters"]


def test_a_merged_model_of_the_default_base_model(minilm: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    base = find_base_model(minilm)
    settings = LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules=["query", "value"])
    adapted = get_peft_model(AutoModel.from_pretrained(base), settings)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(tmp_path / "a"))
    merge_adapters([tmp_path / "a"], form="model", model=minilm, out=tmp_path / "merged")

    plain = library.SentenceTransformer(str(base), device="cpu")
    merged = library.SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    assert [type(part) for part in merged] == [type(part) for part in plain]
    assert len(list(merged)) > 1  # not only the model: pooling too
    before = plain.encode(TEXTS, convert_to_tensor=True)
    plain[0].auto_model.load_state_dict(adapted.merge_and_unload().state_dict())
    expected = plain.encode(TEXTS, convert_to_tensor=True)
    found = merged.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (expected - before).abs().max() > 1e-3  # the adapter counts


def test_a_merged_adapter_keeps_the_modules_around_the_model(minilm: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    base = find_base_model(minilm)
    for seed, name in enumerate("ab"):
        model = library.SentenceTransformer(str(base), device="cpu")
        model.add_adapter(LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"]))
        torch.manual_seed(seed)
        for parameter_name, parameter in model[0].auto_model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(tmp_path / name))
    merge_adapters([tmp_path / "a", tmp_path / "b"], weights={"b": 0.0}, out=tmp_path / "merged")
    merged, single = (library.SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("merged", "a"))
    assert [type(part) for part in merged] == [type(part) for part in single]
    torch.testing.assert_close(
        merged.encode(TEXTS, convert_to_tensor=True), single.encode(TEXTS, convert_to_tensor=True), atol=1e-5, rtol=1e-4
    )
