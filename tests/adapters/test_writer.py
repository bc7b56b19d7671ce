"""Written adapters load in plain PEFT, without warnings, as what they were."""

import json

import pytest
import torch
from safetensors.torch import load_file

from osrm_cli.adapters.config import AdapterConfig
from osrm_cli.adapters.layers import AdapterLayer
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.adapters.writer import write_adapter, write_adapter_stream
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from tests.factories import delta, load

QUERY = [f"bert.encoder.layer.{index}.attention.self.query" for index in range(3)]


def random_updates(layers, ranks, d_out=16, d_in=16):
    generator = torch.Generator().manual_seed(3)
    return {
        layer: LowRank(torch.randn(d_out, rank, generator=generator), torch.randn(rank, d_in, generator=generator))
        for layer, rank in zip(layers, ranks, strict=True)
    }


@pytest.mark.parametrize("ranks", [(3, 3, 3), (2, 5, 1)])
def test_peft_loads_the_same_updates(tmp_path, ranks):
    updates = random_updates(QUERY, ranks)
    write_adapter(tmp_path, updates, AdapterConfig("bert"))
    peft_model = load(tmp_path)
    for layer, update in updates.items():
        torch.testing.assert_close(delta(peft_model, layer), update.dense(), rtol=1e-6, atol=1e-6)


def test_a_layer_whose_name_ends_another_keeps_its_rank(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.Linear(4, 4),
            "deep": torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "aa": torch.nn.Linear(4, 4)}),
        }
    )
    updates = random_updates(["a", "deep.a"], (2, 3), 4, 4)
    write_adapter(tmp_path, updates, AdapterConfig(None))
    from peft import PeftModel

    peft_model = PeftModel.from_pretrained(model, str(tmp_path))
    for layer, update in updates.items():
        torch.testing.assert_close(delta(peft_model, layer), update.dense())


def test_alpha_is_kept_where_it_is_given(tmp_path):
    updates = random_updates(QUERY, (2, 4, 4))
    write_adapter(tmp_path, updates, AdapterConfig(None, lora_alpha=16, target_modules=("query",)))
    adapter = open_adapter(tmp_path)
    assert [adapter.layers[layer].scaling for layer in QUERY] == [8, 4, 4]
    peft_model = load(tmp_path)
    torch.testing.assert_close(delta(peft_model, QUERY[0]), 8 * updates[QUERY[0]].dense())


def test_heads_come_with_their_own_type(tmp_path):
    heads = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.randn(3).to(torch.float64)}
    config = AdapterConfig("bert", task_type="SEQ_CLS", modules_to_save=("classifier",))
    write_adapter(tmp_path, random_updates(QUERY, (1, 1, 1)), config, heads, torch.bfloat16)
    adapter = open_adapter(tmp_path)
    assert adapter.dtype == torch.bfloat16
    for name, tensor in adapter.head_tensors().items():
        assert tensor.dtype == heads[name].dtype
        assert torch.equal(tensor, heads[name])
    loaded = load(tmp_path, labels=3).base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(loaded.weight, heads["classifier.weight"])


def test_every_tensor_starts_at_a_multiple_of_its_width(tmp_path):
    heads = {
        "classifier.bias": torch.ones(3, dtype=torch.bfloat16),
        "classifier.scale": torch.ones(1, dtype=torch.float64),
    }
    config = AdapterConfig("bert", modules_to_save=("classifier",))
    write_adapter(tmp_path, random_updates(QUERY, (1, 1, 1), 5, 3), config, heads)
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    widths = {"BF16": 2, "F32": 4, "F64": 8}
    for name, entry in header.items():
        if name != "__metadata__":
            assert (start + entry["data_offsets"][0]) % widths[entry["dtype"]] == 0


def test_same_inputs_same_bytes_in_any_order(tmp_path):
    updates = random_updates(QUERY, (2, 5, 1))
    config = AdapterConfig("bert", modules_to_save=("b", "a"), target_modules=("value", "query"))
    for name, order in (("one", QUERY), ("two", QUERY[::-1])):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, [(layer, updates[layer]) for layer in order], config)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    written = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert written["target_modules"] == ["query", "value"]
    assert written["modules_to_save"] == ["a", "b"]
    assert written["init_lora_weights"] is True


def test_embeddings(tmp_path):
    update = random_updates(["transformer.wte"], (2,), 16, 60)
    wte = {"transformer.wte": AdapterLayer(16, 60, 2, 1.0, embedding=True)}
    with write_adapter_stream(tmp_path, update, AdapterConfig(None), shapes=wte) as writer:
        writer.add("transformer.wte", update["transformer.wte"])
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.transformer.wte.lora_embedding_{factor}" for factor in "AB"
    }
    peft_model = load(tmp_path, "gpt2")
    torch.testing.assert_close(delta(peft_model, "transformer.wte"), update["transformer.wte"].dense())


def test_what_does_not_fit_the_type_is_refused(tmp_path):
    big = {"x": LowRank(torch.full((2, 1), 1e6), torch.ones(1, 2))}
    with pytest.raises(OsrmError, match=r"x: entries up to 1e\+06 cannot be written as float16"):
        write_adapter(tmp_path, big, AdapterConfig(None), dtype=torch.float16)
    broken = {"x": LowRank(torch.full((2, 1), torch.nan), torch.ones(1, 2))}
    with pytest.raises(OsrmError, match="x: NaN or infinity"):
        write_adapter(tmp_path, broken, AdapterConfig(None))
