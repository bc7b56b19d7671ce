"""Adapters of single experts, as transformers 4 made them: PEFT stacks them, and has to be able to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.writer import write_adapter
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.merge import merge_adapters

WIDTHS = {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=60, **sizes, **experts)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def save(folder: Path, base: Path, rank: int, seed: int, targets: tuple[str, ...]) -> Path:
    generator = torch.Generator().manual_seed(seed)
    shapes = {}
    for block in range(2):
        if "q_proj" in targets:
            shapes[f"model.layers.{block}.self_attn.q_proj"] = (16, 16)
        for expert in range(3):
            name = f"model.layers.{block}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{name}.{part}": WIDTHS[part] for part in targets if part in WIDTHS}
    deltas = {
        layer: LowRank(*(0.3 * torch.randn(size, generator=generator) for size in ((d_out, rank), (rank, d_in))))
        for layer, (d_out, d_in) in shapes.items()
    }
    folder.mkdir()
    write_adapter(folder, deltas, AdapterConfig(str(base), task_type="CAUSAL_LM", target_modules=targets))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    return found


@pytest.mark.filterwarnings("ignore")  # PEFT says that it converts
@pytest.mark.parametrize(
    ("second", "options"),
    [(("q_proj",), {}), (("w1", "w2", "w3"), {}), (("w1", "w2", "w3"), {"energy": 0.8}), (("q_proj", "w1"), {})],
    ids=["attention", "experts", "ranks by energy", "some of the experts' layers"],
)
def test_peft_loads_merged_adapters_of_experts(
    base: Path, tmp_path: Path, second: tuple[str, ...], options: dict[str, float]
) -> None:
    adapters = [
        save(tmp_path / "a", base, 3, 1, ("q_proj", "w1", "w2", "w3")),
        save(tmp_path / "b", base, 2, 2, second),
    ]
    method = "svd" if options else "task-arith"
    merge_adapters(adapters, method, options=options, out=tmp_path / "adapter")
    merge_adapters(adapters, method, options=options, form="model", out=tmp_path / "model")
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert (logits(plain) - expected).abs().max() > 1e-3
    found = logits(PeftModel.from_pretrained(plain, str(tmp_path / "adapter")))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
