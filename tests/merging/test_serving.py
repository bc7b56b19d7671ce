"""Where vLLM or llama.cpp would refuse or misread a merged adapter that writes: every rule of the guide's tables."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, MixtralConfig

from osrm_cli.merging.merge import merge_adapters
from tests.run_cli import ROOT

BOTH = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
CONVERTER = "llama.cpp's converter knows no factors of stacked experts"
# By the beginnings of the rows of the guide: what breaks the rule, and what the merge says of it.
CASES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "`modules_to_save` holds nothing but": [
        ({"modules_to_save": ["lm_head"]}, "vLLM and llama.cpp load no adapter with modules_to_save"),
        ({"trainable_token_indices": [4]}, "vLLM and llama.cpp load no adapter with modules_to_save or trained rows"),
    ],
    "the largest rank at most": [({"r": 300}, "vLLM loads ranks up to 512, this one is 600: give --rank 512")],
    "targets `embed_tokens` and `lm_head`": [
        ({"target_modules": ["q_proj", "lm_head"]}, "vLLM loads an adapted lm_head with some models alone"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "vLLM loads an adapted embed_tokens with some models alone"),
    ],
    "stacked experts:": [
        ({"target_parameters": list(BOTH[1:])}, f"{CONVERTER}, and vLLM none of one of the two alone: use --as model"),
        ({"target_parameters": list(BOTH[:1])}, f"{CONVERTER}, and vLLM none of one of the two alone: use --as model"),
    ],
    "the model's class takes LoRA": [
        ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, "vLLM takes no adapters of GPT-2, and llama.cpp's")
    ],
    "the model is there": [
        ({"target_modules": ["q"], "task_type": "SEQ_2_SEQ_LM"}, "vLLM serves no encoder-decoder that writes text")
    ],
    "every tensor is `lora_A` or `lora_B`": [
        ({"modules_to_save": ["lm_head"]}, "vLLM and llama.cpp load no adapter with modules_to_save")
    ],
    "every layer's name is one": [({"target_parameters": list(BOTH)}, f"{CONVERTER}: use --as model")],
    "the converter of GPT-2 turns": [
        ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, "vLLM takes no adapters of GPT-2, and llama.cpp's")
    ],
    "one `lora_alpha`, divided": [
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}, "llama.cpp reads one lora_alpha for all layers")
    ],
}


def guide_rows() -> list[list[str]]:
    """The rows of the tables of rules in the guide: the rule, its file, and what of a merged adapter."""
    guide = (ROOT / "docs" / "guides" / "text-tasks.md").read_text(encoding="utf-8")
    lines = guide.partition("## Serving the result")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if "---" not in row[0] and not row[0].endswith("'s rule")]


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_writer: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    def choose(settings: dict[str, Any]) -> Path:
        if "target_parameters" in settings:
            sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = MixtralConfig(vocab_size=60, num_key_value_heads=1, num_local_experts=3, **sizes)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "experts")
            return tmp_path / "experts"
        if settings.get("task_type") == "SEQ_2_SEQ_LM":
            return tiny_writer("t5")
        return tiny_writer("gpt2" if settings.get("fan_in_fan_out") else "llama")

    return choose


def save(folder: Path, base: Path, **settings: Any) -> Path:
    kind = AutoModelForSeq2SeqLM if settings.get("task_type") == "SEQ_2_SEQ_LM" else AutoModelForCausalLM
    chosen = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 4, **settings}
    peft_model = get_peft_model(kind.from_pretrained(base), LoraConfig(**chosen))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(sum(folder.name.encode())))
    peft_model.save_pretrained(str(folder))
    return folder


def served(result: Any) -> list[str]:
    return [text for text in [*result.warnings, *result.notes] if "vLLM" in text or "llama.cpp" in text]


def test_every_rule_that_a_merge_can_check_has_a_case() -> None:
    rows = guide_rows()
    assert all(len(row) == 3 and re.search(r"`[\w/]+(\.py|\.h|\.cpp|/)`", row[1]) for row in rows)
    checked = [row[0] for row in rows if re.search(r"warning|note", row[2])]
    assert len(checked) == len(CASES)
    for beginning in CASES:
        assert sum(rule.startswith(beginning) for rule in checked) == 1, beginning


@pytest.mark.filterwarnings("ignore")  # of PEFT, on embeddings, Conv1D and experts
@pytest.mark.parametrize(
    ("settings", "problem"),
    [case for cases in CASES.values() for case in cases],
    ids=[f"{rule} {number}" for rule, cases in CASES.items() for number in range(len(cases))],
)
def test_what_servers_refuse(settings: dict[str, Any], problem: str, base: Callable[..., Path], tmp_path: Path) -> None:
    model = base(settings)
    adapters = [save(tmp_path / name, model, **settings) for name in ("a", "b")]
    (said,) = served(merge_adapters(adapters, out=tmp_path / "merged"))
    assert said.startswith(problem)
    assert not served(merge_adapters(adapters, form="model", model=str(model), out=tmp_path / "whole"))


# Architectures as the gguf package, llama.cpp's own, calls them.
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_what_servers_take(family: str, tiny_writer: Callable[[str], Path], tmp_path: Path) -> None:
    """All linear layers: nothing is said, the settings are there, and every name is known."""
    gguf = pytest.importorskip("gguf")
    adapters = [save(tmp_path / name, tiny_writer(family), target_modules="all-linear") for name in ("a", "b")]
    assert not served(merge_adapters(adapters, options={"lambda": 0.3}, out=tmp_path / "merged"))
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["target_modules"]
    assert config["lora_alpha"] == config["r"] == 8
    assert config["bias"] == "none"
    assert config["init_lora_weights"] is True
    unknown = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "use_rslora", "layer_replication")
    unknown += ("lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens")
    assert not any(config.get(name) for name in unknown)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), 2)
    stored = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    assert len(stored) == 2 * 2 * 7
    for name in stored:
        layer = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", name)
        assert layer
        assert names.get_name(f"{layer[1]}.weight", try_suffixes=(".weight",))


def test_names_that_llama_cpp_does_not_know() -> None:
    gguf = pytest.importorskip("gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2MOE, 2)
    for module in ("experts", "experts.base_layer"):  # PEFT's names of the factors of stacked experts
        assert names.get_name(f"model.layers.0.mlp.{module}.weight", try_suffixes=(".weight",)) is None
