"""``osrm extract``: factors, what PEFT makes of them, what is reported, and every refusal."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertForMaskedLM

from osrm_cli import extract_adapter, merge_adapters
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from tests import factories
from tests.extraction.full_models import is_linear, save_classifiers, text_logits, tune, weights, writer
from tests.run_cli import listing, osrm, process

WHOLE = 10_000  # a rank above any width


def everything(model, name):
    return True


def peft_logits(base, folder, labels=2):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    return factories.logits(PeftModel.from_pretrained(model, str(folder)).eval())


# --- the adapter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_peft_computes_what_the_model_computes_at_full_rank(tmp_path, family):
    (tuned,) = save_classifiers(tmp_path, family, 1, labels=3)
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned1", rank=WHOLE, out=tmp_path / "a")
    found = peft_logits(tmp_path / "base", tmp_path / "a", 3)
    torch.testing.assert_close(found, factories.logits(tuned), atol=1e-5, rtol=1e-4)
    assert result.held == pytest.approx(1, abs=1e-7)
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["fan_in_fan_out"] == (family == "gpt2")
    assert set(result.layers) == {n.removesuffix(".weight") for n, _ in tuned.named_parameters() if is_linear(tuned, n)}


def test_factors_are_the_truncated_svd_of_each_difference(tmp_path):
    save_classifiers(tmp_path, "bert", 1)
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned1", rank=5, out=tmp_path / "a")
    adapter, base, tuned = open_adapter(tmp_path / "a"), weights(tmp_path / "base"), weights(tmp_path / "tuned1")
    assert len(adapter.layers) == 3 * 6 + 1  # the pooler too
    for layer, shape in adapter.layers.items():
        difference = tuned[f"{layer}.weight"] - base[f"{layer.removeprefix('bert.')}.weight"]
        U, S, Vh = torch.linalg.svd(difference)
        expected = U[:, :5] * S[:5] @ Vh[:5]
        assert shape.rank == result.ranks[layer] == 5
        assert (factories.dense(adapter, layer) - expected).norm() < 1e-5 * expected.norm()
        assert result.kept[layer] == pytest.approx(float(S[:5].square().sum() / S.square().sum()), abs=1e-7)


def test_a_share_of_the_energy_gives_ranks_that_peft_reads(tmp_path):
    save_classifiers(tmp_path, "bert", 1)
    by_share = extract_adapter(tmp_path / "base", tmp_path / "tuned1", rank="auto:0.9", out=tmp_path / "a")
    extract_adapter(tmp_path / "base", tmp_path / "tuned1", energy=0.9, out=tmp_path / "b")
    assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == (
        tmp_path / "b/adapter_model.safetensors"
    ).read_bytes()
    assert len(set(by_share.ranks.values())) > 1
    assert min(by_share.kept.values()) >= 0.9
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    peft_model = PeftModel.from_pretrained(base, str(tmp_path / "a"))
    for layer in by_share.layers:
        expected = factories.dense(open_adapter(tmp_path / "a"), layer)
        torch.testing.assert_close(factories.delta(peft_model, layer).double(), expected, atol=1e-6, rtol=1e-5)
    both = extract_adapter(tmp_path / "base", tmp_path / "tuned1", rank=3, energy=0.9, out=tmp_path / "c")
    assert max(both.ranks.values()) == 3


def test_only_layers_that_differ_are_adapted(tmp_path):
    save_classifiers(tmp_path, "bert", 1, changes=lambda model, name: is_linear(model, name) and "query" in name)
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned1", rank=2, out=tmp_path / "a")
    assert [layer.rpartition(".")[2] for layer in result.layers] == ["query"] * 3
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["query"]


def test_target_modules_narrow_it_down(tmp_path):
    save_classifiers(tmp_path, "bert", 1)
    words = {"target_modules": ["query", "value"], "rank": WHOLE}
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned1", out=tmp_path / "a", **words)
    assert {layer.rpartition(".")[2] for layer in result.layers} == {"query", "value"}
    base, tuned = weights(tmp_path / "base"), weights(tmp_path / "tuned1")
    energies = {n: float((tuned[f"bert.{n}"] - W).square().sum()) for n, W in base.items()}
    held = sum(energy for name, energy in energies.items() if "query" in name or "value" in name)
    assert result.held == pytest.approx(held / sum(energies.values()), rel=1e-6)


# --- what is reported -----------------------------------------------------------------------------------------------


def test_shares_by_kind_are_those_of_the_tensors(tmp_path):
    save_classifiers(tmp_path, "bert", 1, changes=everything)
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned1", rank=4, out=tmp_path / "a")
    base, tuned = weights(tmp_path / "base"), weights(tmp_path / "tuned1")
    energies = {name: float((tuned[f"bert.{name}"] - W).square().sum()) for name, W in base.items()}
    total = sum(energies.values())
    signs = {"embeddings": "_embeddings.", "norms": "LayerNorm.", "biases": "dense.bias"}
    for kind, sign in signs.items():
        names = [name for name in energies if sign in name]
        names += [
            name for name in energies if kind == "biases" and name.endswith(("query.bias", "key.bias", "value.bias"))
        ]
        assert result.kinds[kind].tensors == len(names)
        assert result.kinds[kind].share == pytest.approx(sum(energies[name] for name in names) / total, rel=1e-6)
        assert result.kinds[kind].lost == result.kinds[kind].share
    assert sum(kind.share for kind in result.kinds.values()) == pytest.approx(1)
    kept = sum(energies[f"{n.removeprefix('bert.')}.weight"] * share for n, share in result.kept.items())
    assert result.held == pytest.approx(kept / total, rel=1e-6)
    assert any("does not hold" in warning and "embeddings" in warning for warning in result.warnings)


def test_head_and_names_of_classes_are_carried(tmp_path):
    save_classifiers(tmp_path, "bert", 1, labels=3)
    path = tmp_path / "tuned1/config.json"
    names = {"0": "no", "1": "maybe", "2": "yes"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": names}))
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned1", out=tmp_path / "a")
    head = open_adapter(tmp_path / "a").head_tensors()
    tuned = load_file(tmp_path / "tuned1/model.safetensors")
    assert head.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in head.items())
    assert list(result.labels) == ["no", "maybe", "yes"]
    assert json.loads((tmp_path / "a/osrm.json").read_text())["labels"] == ["no", "maybe", "yes"]
    merge_adapters([tmp_path / "a"], out=tmp_path / "merged")
    found = peft_logits(tmp_path / "base", tmp_path / "merged/tasks/a", 3)
    torch.testing.assert_close(found, peft_logits(tmp_path / "base", tmp_path / "a", 3), atol=1e-5, rtol=1e-4)


def test_a_base_model_with_another_head_is_told(tmp_path):
    (tuned,) = save_classifiers(tmp_path, "bert", 1)
    model = BertForMaskedLM(tuned.config)
    model.bert.load_state_dict(factories.model("bert").bert.state_dict(), strict=False)
    model.save_pretrained(str(tmp_path / "masked"))
    result = extract_adapter(tmp_path / "masked", tmp_path / "tuned1", rank=WHOLE, out=tmp_path / "a")
    assert any("the base model alone has" in note and "cls.predictions" in note for note in result.notes)
    # The base model for masked words has no pooler: it is the head's.
    assert list(result.heads) == ["bert.pooler.dense", "classifier"]
    torch.testing.assert_close(
        peft_logits(tmp_path / "masked", tmp_path / "a"), factories.logits(tuned), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tied_weights_count_once(tmp_path, family):
    base = writer(family, tie_word_embeddings=True)
    base.save_pretrained(str(tmp_path / "base"))
    tuned = tune(writer(family, tie_word_embeddings=True), 1, everything)
    tuned.save_pretrained(str(tmp_path / "tuned"))
    path = tmp_path / "tuned/model.safetensors"
    stored = load_file(path)
    assert "lm_head.weight" not in stored
    once = extract_adapter(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "a")
    assert once.kinds["embeddings"].tensors == (2 if family == "gpt2" else 1)
    assert "output layer" not in once.kinds
    embedding = next(name for name in stored if "wte" in name or "embed_tokens" in name)
    save_file({**stored, "lm_head.weight": stored[embedding].clone()}, path, {"format": "pt"})
    twice = extract_adapter(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "b")
    assert twice.kinds == once.kinds
    assert not twice.heads


def test_an_output_layer_of_its_own_is_a_kind_of_its_own(tmp_path):
    writer("llama", tie_word_embeddings=False).save_pretrained(str(tmp_path / "base"))
    tuned = tune(writer("llama", tie_word_embeddings=False), 1, everything)
    tuned.save_pretrained(str(tmp_path / "tuned"))
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned", rank=WHOLE, out=tmp_path / "a")
    assert result.kinds["output layer"].lost == result.kinds["output layer"].share > 0
    assert not any("lm_head" in layer for layer in result.layers)
    assert not result.heads
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"


def test_added_rows_are_told(tmp_path):
    writer("llama", tie_word_embeddings=True).save_pretrained(str(tmp_path / "base"))
    tuned = tune(writer("llama", tie_word_embeddings=True), 1, is_linear)
    tuned.resize_token_embeddings(64)
    tuned.save_pretrained(str(tmp_path / "tuned"))
    result = extract_adapter(tmp_path / "base", tmp_path / "tuned", rank=WHOLE, out=tmp_path / "a")
    assert result.added_rows == {"model.embed_tokens.weight": 4}
    assert result.warnings == [
        "model.embed_tokens.weight has 4 rows that the base model does not have: no adapter can hold them"
    ]
    assert result.held == pytest.approx(1)
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "a"))
    torch.testing.assert_close(text_logits(found), text_logits(tuned)[..., :60], atol=1e-5, rtol=1e-4)
    back = extract_adapter(tmp_path / "tuned", tmp_path / "base", rank=WHOLE, out=tmp_path / "b")
    assert back.added_rows == {"model.embed_tokens.weight": -4}
    assert "lacks 4 rows" in back.warnings[0]


# --- files as people have them --------------------------------------------------------------------------------------


def test_shards_and_one_file_give_the_same_bytes(tmp_path):
    (tuned,) = save_classifiers(tmp_path, "bert", 1)
    tuned.save_pretrained(str(tmp_path / "sharded/tuned1"), max_shard_size="8KB")
    assert len(list((tmp_path / "sharded/tuned1").glob("*.safetensors"))) > 2
    for name, source in {"a": "tuned1", "b": "sharded/tuned1"}.items():
        extract_adapter(tmp_path / "base", tmp_path / source, rank=4, out=tmp_path / name)
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_subtracted_in_float32(tmp_path, kind):
    base, tuned = factories.model("bert").to(kind), tune(factories.model("bert").to(kind), 1, is_linear)
    base.save_pretrained(str(tmp_path / "base"))
    tuned.save_pretrained(str(tmp_path / "tuned"))
    extract_adapter(tmp_path / "base", tmp_path / "tuned", rank=WHOLE, out=tmp_path / "a")
    adapter, old, new = open_adapter(tmp_path / "a"), weights(tmp_path / "base"), weights(tmp_path / "tuned")
    assert adapter.dtype == torch.float32
    for layer in adapter.layers:
        expected = new[f"{layer}.weight"] - old[f"{layer}.weight"]
        assert (factories.dense(adapter, layer) - expected).norm() < 1e-6 * expected.norm()
    extract_adapter(tmp_path / "base", tmp_path / "tuned", dtype="bfloat16", out=tmp_path / "b")
    assert open_adapter(tmp_path / "b").dtype == torch.bfloat16


def test_full_rank_merges_like_the_dense_differences(tmp_path):
    save_classifiers(tmp_path, "bert", 1, 2)
    for seed in (1, 2):
        extract_adapter(tmp_path / "base", tmp_path / f"tuned{seed}", rank=WHOLE, out=tmp_path / f"a{seed}")
    base, *tuned = (weights(tmp_path / name) for name in ("base", "tuned1", "tuned2"))
    paths = [tmp_path / "a1", tmp_path / "a2"]
    words = {"form": "model", "model": str(tmp_path / "base"), "options": {"lambda": 0.4}}
    merge_adapters(paths, out=tmp_path / "sum", **words)
    merge_adapters(paths, "iso-c", out=tmp_path / "iso", **words)
    found, flat = weights(tmp_path / "sum"), weights(tmp_path / "iso")
    for name in (f"{layer}.weight".removeprefix("bert.") for layer in open_adapter(paths[0]).layers):
        total = sum(model[f"bert.{name}"] - base[name] for model in tuned)
        assert (found[name] - base[name] - 0.4 * total).norm() < 1e-6 * found[name].norm()
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        assert (flat[name] - base[name] - 0.4 * S.mean() * U @ Vh).norm() < 1e-5 * found[name].norm()


@pytest.mark.parametrize("method", ["task-arith", "ties", "tsv"])
def test_at_full_rank_adapters_merge_as_the_full_models_do(tmp_path, method):
    save_classifiers(tmp_path, "bert", 1, 2)
    words = {"model": str(tmp_path / "base"), "options": {"lambda": 0.4}}
    for seed in (1, 2):
        extract_adapter(tmp_path / "base", tmp_path / f"tuned{seed}", rank=WHOLE, out=tmp_path / f"a{seed}")
    merge_adapters([tmp_path / "tuned1", tmp_path / "tuned2"], method, out=tmp_path / "models", **words)
    merge_adapters([tmp_path / "a1", tmp_path / "a2"], method, form="model", out=tmp_path / "adapters", **words)
    base, models, adapters = (weights(tmp_path / name) for name in ("base", "models", "adapters"))
    for name in (f"{layer}.weight".removeprefix("bert.") for layer in open_adapter(tmp_path / "a1").layers):
        assert (models[name] - base[name]).norm() > 1e-3 * base[name].norm()
        assert (adapters[name] - models[name]).norm() < 1e-6 * models[name].norm(), name


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_from_outside(tmp_path):
    save_classifiers(tmp_path, "bert", 1)
    run = process("extract", "base", "tuned1", "--rank", 4, "--json", "--quiet", cwd=tmp_path)
    assert run.code == 0, run
    told = json.loads(run.stdout)
    assert (told["path"], told["rank"], told["layers"], told["heads"]) == ("extracted/tuned1", 4, 19, ["classifier"])
    assert listing(tmp_path / "extracted/tuned1") == {"adapter_config.json", "adapter_model.safetensors", "osrm.json"}
    record = json.loads((tmp_path / "extracted/tuned1/osrm.json").read_text())
    assert record["base"]["name"] == "base"
    assert record["energy"] == told["energy"]
    again = osrm("extract", "base", "tuned1", "--rank", 4, cwd=tmp_path)
    assert "exists already" in again.error
    shown = osrm("extract", "base", "tuned1", "--rank", 4, "--overwrite", "--quiet", cwd=tmp_path)
    assert "extracted/tuned1: rank 4, 19 layers" in shown.stdout
    assert "linear layers" in shown.stdout
    assert osrm("verify", "extracted/tuned1", cwd=tmp_path).code == 0


def test_a_dry_run_says_what_no_rank_can_hold(tmp_path):
    save_classifiers(tmp_path, "bert", 1, changes=everything)
    run = osrm("extract", "base", "tuned1", "--dry-run", "--json", cwd=tmp_path)
    told = json.loads(run.stdout)
    assert told["would_write"] == "extracted/tuned1"
    assert told["energy"]["linear layers"]["lost"] == 0
    assert told["held"] == pytest.approx(told["energy"]["linear layers"]["share"])
    assert not (tmp_path / "extracted").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--rank", "many"), "option 'rank' is 'many'"),
        (("--rank", "0"), "--rank is 0, expected 1 or more"),
        (("--rank", "auto:2"), "--energy is 2, expected a share above 0, at most 1"),
        (("--energy", "0"), "--energy is 0, expected a share above 0, at most 1"),
        (("--rank", "auto:0.9", "--energy", "0.9"), "--rank auto and --energy are the same"),
        (("--target-modules", "nosuch"), "no linear layer matches --target-modules nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_options(tmp_path, words, error):
    save_classifiers(tmp_path, "bert", 1)
    run = osrm("extract", "base", "tuned1", *words, cwd=tmp_path)
    assert (run.code, run.stdout) == (1, "")
    assert error in run.error


def other_family(folder):
    save_classifiers(folder / "other", "gpt2", 1)
    shutil.rmtree(folder / "tuned1")
    shutil.move(folder / "other/tuned1", folder / "tuned1")


def wider(folder):
    path = folder / "tuned1/model.safetensors"
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors = load_file(path)
    save_file({**tensors, name: torch.zeros(16, 20)}, path, {"format": "pt"})


def not_finite(folder):
    path = folder / "tuned1/model.safetensors"
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors = load_file(path)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


def quantized(folder):
    path = folder / "tuned1/model.safetensors"
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].to(torch.int8)}, path, {"format": "pt"})


def the_same(folder):
    shutil.rmtree(folder / "tuned1")
    shutil.copytree(folder / "base", folder / "tuned1")


def an_adapter(folder):
    shutil.rmtree(folder / "tuned1")
    factories.save(folder / "tuned1")


def unknown_architecture(folder):
    path = folder / "tuned1/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "nosuch"}))


def no_settings(folder):
    (folder / "tuned1/config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (other_family, "are not one architecture: "),
        (wider, "query.weight is (16, 20) in "),
        (not_finite, "NaN or infinity in bert.encoder.layer.0.attention.self.query.weight"),
        (quantized, "is quantized (I8)"),
        (the_same, "no linear layer of tuned1 differs from base"),
        (an_adapter, "tuned1 is an adapter, expected a fully fine-tuned model"),
        (unknown_architecture, "the model cannot be built"),
        (no_settings, "tuned1 is not a fine-tuned model: config.json is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_that_cannot_be_compared(tmp_path, damage, error):
    save_classifiers(tmp_path, "bert", 1)
    damage(tmp_path)
    run = osrm("extract", "base", "tuned1", cwd=tmp_path)
    assert run.code == 1
    assert error in run.error
    assert not (tmp_path / "extracted").exists()


def test_missing_models(tmp_path):
    save_classifiers(tmp_path, "bert", 1)
    with pytest.raises(OsrmError, match="fine-tuned model 'nosuch' is neither a folder"):
        extract_adapter(tmp_path / "base", "nosuch")
    with pytest.raises(OsrmError, match="base model 'nosuch' is neither a folder"):
        extract_adapter("nosuch", tmp_path / "tuned1")
