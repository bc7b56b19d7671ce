"""Rows of an embedding that adapters have trained: a merge computes what PEFT computes with the single adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config

from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from tests.token_adapters import CASES, load, load_base, logits, save_adapter, save_base

EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", CASES)
def test_one_adapter_is_carried_over_exactly(tmp_path, case, is_tied):
    base, settings = save_base(tmp_path / "base", is_tied), CASES[case]
    expected = save_adapter(tmp_path / "a", base, **settings)
    assert not torch.allclose(expected, logits(load_base(base, settings.get("grown", 0))), atol=0.01)
    merge_adapters([tmp_path / "a"], options={"lambda": 1.0}, out=tmp_path / "merged")
    found = load(base, tmp_path / "merged", settings.get("grown", 0))
    torch.testing.assert_close(logits(found), expected, **EXACT)
    merge_adapters(
        [tmp_path / "merged"], options={"lambda": 1.0}, form="model", model=str(base), out=tmp_path / "model"
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(found), expected, rtol=1e-6, atol=5e-6)


def test_encoder_decoder_ties_every_use(tmp_path):
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "base")
    settings = {"kind": "SEQ_2_SEQ_LM"}
    expected = save_adapter(tmp_path / "a", tmp_path / "base", [3, 7], targets=["q"], **settings)
    merge_adapters([tmp_path / "a"], options={"lambda": 1.0}, out=tmp_path / "merged")
    found = logits(load(tmp_path / "base", tmp_path / "merged", **settings), **settings)
    torch.testing.assert_close(found, expected, **EXACT)
    merge_adapters([tmp_path / "a"], options={"lambda": 1.0}, form="model", out=tmp_path / "model")
    found = logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model"), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_rows_that_adapters_share_are_written_once_whatever_lambda_is(tmp_path, scale):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "a", base, [3, 7], seed=1)
    save_adapter(tmp_path / "b", base, [3, 7], seed=2)
    _reverse_rows(tmp_path / "b")
    result = merge_adapters([tmp_path / "a", tmp_path / "b"], options={"lambda": scale}, out=tmp_path / "merged")
    assert result.notes[0].startswith("model.embed_tokens (rows 3, 7): stored as a whole, carried over as is")
    assert any("modules_to_save or trained rows: use --as model" in warning for warning in result.warnings)
    rows = {name: open_adapter(tmp_path / name).trained_rows()["model.embed_tokens"] for name in ("a", "merged")}
    assert rows["merged"].indices == rows["a"].indices == (3, 7)
    assert torch.equal(rows["merged"].values, rows["a"].values)
    merge_adapters([tmp_path / "a", tmp_path / "b"], options={"lambda": scale}, form="model", out=tmp_path / "model")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    torch.testing.assert_close(found, logits(load(base, tmp_path / "merged")), rtol=1e-6, atol=5e-6)


def _reverse_rows(folder):
    """The same rows in another order, in settings and tensors."""
    tensors, path = load_file(folder / "adapter_model.safetensors"), folder / "adapter_config.json"
    rows = {name: tensor.flip(0) if "delta" in name else tensor for name, tensor in tensors.items()}
    save_file(rows, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "trainable_token_indices": values["trainable_token_indices"][::-1]}))


@pytest.mark.parametrize("tokens", [[3, 8], [3, 7, 8], [9], None], ids=str)
@pytest.mark.parametrize("form", ["adapter", "model"])
def test_rows_that_differ_are_refused(tmp_path, tokens, form):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "a", base, [3, 7])
    save_adapter(tmp_path / "b", base, tokens)
    with pytest.raises(OsrmError, match=r"a and .*b differ in row \d of model.embed_tokens, which is stored as a"):
        merge_adapters([tmp_path / "a", tmp_path / "b"], form=form, out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_type_of_its_own(tmp_path, dtype):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "a", base, [3])
    merge_adapters([tmp_path / "a"], form="model", dtype=dtype, out=tmp_path / "model")
    found = load_file(tmp_path / "model/model.safetensors")["model.embed_tokens.weight"]
    expected = open_adapter(tmp_path / "a").trained_rows()["model.embed_tokens"].values[0]
    assert torch.equal(found[3], expected.to(getattr(torch, dtype)))


@pytest.mark.parametrize(("size", "problem"), [(5, "has trained its row 7, 16 wide"), (None, None)])
def test_rows_beyond_the_vocabulary_are_refused(tmp_path, size, problem):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "a", base, [7])
    if size is None:
        merge_adapters([tmp_path / "a"], form="model", out=tmp_path / "model")
        return
    tensors = load_file(base / "model.safetensors")
    cut = {name: tensor[:size].clone() if len(tensor) == 40 else tensor for name, tensor in tensors.items()}
    save_file(cut, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OsrmError, match=problem):
        merge_adapters([tmp_path / "a"], form="model", out=tmp_path / "model")


def test_a_task_aware_method_refuses_them(tmp_path):
    save_adapter(tmp_path / "a", save_base(tmp_path / "base"), [3])
    with pytest.raises(OsrmError, match=r"trained row 3 of model.embed_tokens as a whole, which emr cannot hold"):
        merge_adapters([tmp_path / "a"], "emr", out=tmp_path / "merged")
