"""MLX LM's folders, by the arithmetic of its layers: ``y + scale * (x @ lora_a) @ lora_b``."""

import json

import pytest
import torch
from safetensors.torch import load_file

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.conversion.convert import convert_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from tests.adapters.formats.factories import deltas, write_file, write_peft
from tests.factories import save

LAYER = "model.layers.3.self_attn.q_proj"
OTHER = "model.layers.3.mlp.down_proj"


def write_mlx(folder, shapes=None, scale=20.0, rank=2, seed=0, **settings):
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, (d_out, d_in) in (shapes or {LAYER: (6, 4), OTHER: (4, 8)}).items():
        tensors[f"{layer}.lora_a"] = torch.randn(d_in, rank, generator=generator)
        tensors[f"{layer}.lora_b"] = torch.randn(rank, d_out, generator=generator)
    write_file(folder / "adapters.safetensors", tensors)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    values = {"model": "tiny-llama", "fine_tune_type": "lora", "num_layers": 16, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(values | settings))
    return tensors


def mlx_output(folder, layer, x):
    """What an adapted layer of MLX LM adds to the outputs, from the files that are there."""
    tensors = load_file(folder / "adapters.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    return scale * (x @ tensors[f"{layer}.lora_a"]) @ tensors[f"{layer}.lora_b"]


def test_the_update_is_what_mlx_adds(tmp_path):
    write_mlx(tmp_path / "a", scale=7.5)
    adapter = open_adapter(tmp_path / "a")
    assert (adapter.format, adapter.config.base_model) == ("mlx", "tiny-llama")
    assert (adapter.layers[LAYER].d_out, adapter.layers[LAYER].d_in) == (6, 4)
    for layer, width in {LAYER: 4, OTHER: 8}.items():
        x = torch.randn(5, width)
        torch.testing.assert_close(x @ adapter.delta(layer).dense().T, mlx_output(tmp_path / "a", layer, x))


def test_there_and_back_is_bit_for_bit(tmp_path):
    tensors = write_mlx(tmp_path / "a", scale=0.1, rank=3)
    convert_adapter(tmp_path / "a", tmp_path / "b")
    convert_adapter(tmp_path / "b", tmp_path / "c", "mlx")
    back = load_file(tmp_path / "c" / "adapters.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
    settings = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert settings["lora_parameters"]["scale"] == pytest.approx(0.1, rel=1e-15)
    assert settings["lora_parameters"]["keys"] == ["mlp.down_proj", "self_attn.q_proj"]
    assert (settings["lora_parameters"]["rank"], settings["fine_tune_type"], settings["num_layers"]) == (3, "lora", -1)
    assert settings["model"] == "tiny-llama"


def test_ranks_and_scales_become_one(tmp_path):
    ranks, patterns = {LAYER: 3, OTHER: 2}, {f"^{OTHER}": 7}
    ours = write_peft(tmp_path / "a", {LAYER: (6, 4), OTHER: (4, 8)}, ranks, lora_alpha=4, alpha_pattern=patterns)
    convert_adapter(tmp_path / "a", tmp_path / "b", "mlx")
    for layer, width in {LAYER: 4, OTHER: 8}.items():
        x = torch.randn(5, width)
        torch.testing.assert_close(x @ ours.delta(layer).dense().T, mlx_output(tmp_path / "b", layer, x))
    stored = load_file(tmp_path / "b" / "adapters.safetensors")
    assert {tensor.shape[1] for name, tensor in stored.items() if name.endswith("lora_a")} == {3}


def test_embeddings_are_read_and_written(tmp_path):
    write_mlx(tmp_path / "a", {"model.embed_tokens": (6, 30)}, scale=2.0)
    adapter = open_adapter(tmp_path / "a")
    assert adapter.layers["model.embed_tokens"].embedding
    stored = load_file(tmp_path / "a" / "adapters.safetensors")
    rows = torch.tensor([3, 17])
    added = 2.0 * stored["model.embed_tokens.lora_a"][rows] @ stored["model.embed_tokens.lora_b"]
    torch.testing.assert_close(adapter.delta("model.embed_tokens").dense().T[rows], added)
    convert_adapter(tmp_path / "a", tmp_path / "b")
    convert_adapter(tmp_path / "b", tmp_path / "c", "mlx")
    assert torch.equal(
        load_file(tmp_path / "c" / "adapters.safetensors")["model.embed_tokens.lora_a"],
        stored["model.embed_tokens.lora_a"],
    )


@pytest.mark.parametrize("method", ["ties", "tsv"])
def test_it_goes_through_a_merge(tmp_path, method):
    for name, seed in {"a": 1, "b": 2}.items():
        write_mlx(tmp_path / name, seed=seed)
        convert_adapter(tmp_path / name, tmp_path / f"peft-{name}")
    merge_adapters([tmp_path / "a", tmp_path / "b"], method, out=tmp_path / "direct")
    merge_adapters([tmp_path / "peft-a", tmp_path / "peft-b"], method, out=tmp_path / "merged")
    torch.testing.assert_close(deltas(open_adapter(tmp_path / "direct")), deltas(open_adapter(tmp_path / "merged")))
    convert_adapter(tmp_path / "direct", tmp_path / "out", "mlx")
    torch.testing.assert_close(deltas(open_adapter(tmp_path / "out")), deltas(open_adapter(tmp_path / "merged")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"lora_parameters": None}, "has no lora_parameters"),
        ({"lora_parameters": {"rank": 2}}, "scale of lora_parameters is None"),
        ({"lora_parameters": {"rank": 2, "scale": 2.0, "alpha": 16}}, "has alpha"),
    ],
)
def test_what_is_not_plain_is_refused(tmp_path, settings, message):
    write_mlx(tmp_path / "a", **settings)
    with pytest.raises(OsrmError, match=message):
        open_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{LAYER}.m": torch.ones(6)}, "not one of LoRA's two factors"),
        ({"model.layers.3.mlp.switch_mlp.up_proj.lora_a": torch.ones(4, 2, 6)}, "expected a matrix"),
        ({f"{LAYER}x.lora_b": torch.ones(2, 6)}, "not one of a lora_A and lora_B"),
    ],
)
def test_other_tensors_are_refused(tmp_path, extra, message):
    tensors = write_mlx(tmp_path / "a")
    write_file(tmp_path / "a" / "adapters.safetensors", tensors | extra)
    with pytest.raises(OsrmError, match=message):
        open_adapter(tmp_path / "a")


def test_what_mlx_has_no_place_for_is_refused(tmp_path):
    write_peft(tmp_path / "conv")
    write_peft(tmp_path / "wide", {LAYER: (6, 4)}, dtype=torch.float64)
    save(tmp_path / "head", "llama", task_type="SEQ_CLS")
    for name, message in {"conv": "the convolution", "wide": "no matrices of float64", "head": "as a whole"}.items():
        with pytest.raises(OsrmError, match=message):
            convert_adapter(tmp_path / name, tmp_path / "out", "mlx")
    assert not (tmp_path / "out").exists()
