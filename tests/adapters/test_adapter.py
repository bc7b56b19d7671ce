"""Reading adapters: the updates are PEFT's own, and whatever is not plain LoRA is refused with the reason."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from osrm_cli.adapters.adapter import check_adapters_share_base
from osrm_cli.adapters.open_adapter import open_adapter
from osrm_cli.errors import OsrmError
from osrm_cli.storage import provenance
from tests.factories import delta, save

HEAD = "base_model.model.classifier.bias"
WEIGHTS = "adapter_model.safetensors"
SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "lora_alpha": 5,
        "rank_pattern": {r"layer\.1\.attention\.self\.query": 2, "value": 3},
        "alpha_pattern": {"query": 7, r"layer.2.attention.self.value": 1},
    },
    "first-match": {"rank_pattern": {"layer.1.attention.self.query": 3, "query": 2}},
    "rslora-patterns": {"use_rslora": True, "rank_pattern": {"value": 9}, "alpha_pattern": {"value": 2}},
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "sst2"
    save(path)
    return path


@pytest.fixture
def folder(template, tmp_path):
    return copy(template, tmp_path / "sst2")


def copy(template, target):
    shutil.copytree(template, target)
    return target


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def check(folder, family="bert", **settings):
    peft_model = save(folder, family, **settings)
    adapter = open_adapter(folder)
    names = {
        name.removeprefix("base_model.model.")
        for name, module in peft_model.named_modules()
        if hasattr(module, "get_delta_weight") and getattr(module, "scaling", None)
    }
    assert set(adapter.layers) == names
    for layer in adapter.layers:
        expected = delta(peft_model, layer)
        torch.testing.assert_close(adapter.delta(layer).dense(), expected, rtol=1e-6, atol=1e-7)
    return peft_model, adapter


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA")
def test_updates_are_pefts(tmp_path, settings):
    check(tmp_path / "a", **settings)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_updates_are_pefts_in_every_family(tmp_path, family):
    check(tmp_path / "a", family)


def test_updates_of_embeddings_are_pefts(tmp_path):
    _, adapter = check(tmp_path / "a", "gpt2", target_modules=["wte", "c_attn"])
    assert adapter.layers["transformer.wte"].embedding
    assert (adapter.layers["transformer.wte"].d_in, adapter.layers["transformer.wte"].d_out) == (60, 16)
    # PEFT adds its own copy of a frozen embedding of this name.
    _, adapter = check(tmp_path / "b", "llama", target_modules=["embed_tokens", "q_proj"])
    assert any(".base_layer." in name for name in adapter.tensors)
    assert set(adapter.head_tensors()) == {"score.weight"}


def test_heads_are_read_under_the_models_names(folder):
    heads = open_adapter(folder).head_tensors()
    stored = load_file(folder / WEIGHTS)
    assert set(heads) == {"classifier.weight", "classifier.bias"}
    for name, tensor in heads.items():
        assert torch.equal(tensor, stored[f"base_model.model.{name}"])


def test_factors_are_unscaled_and_update_is_scaled(folder):
    edit(folder, lora_alpha=6)
    adapter, stored = open_adapter(folder), load_file(folder / WEIGHTS)
    layer = next(iter(adapter.layers))
    factors, update = adapter.lora_factors(layer), adapter.delta(layer)
    assert torch.equal(factors.A, stored[f"base_model.model.{layer}.lora_A.weight"])
    assert torch.equal(factors.B, stored[f"base_model.model.{layer}.lora_B.weight"])
    torch.testing.assert_close(update.B, 1.5 * factors.B)
    assert torch.equal(update.A, factors.A)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_scaling(folder, dtype):
    edit(folder, lora_alpha=3)

    def narrow(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    rewrite(folder, narrow)
    adapter, stored = open_adapter(folder), load_file(folder / WEIGHTS)
    layer = next(iter(adapter.layers))
    assert adapter.dtype == dtype
    update = adapter.delta(layer)
    assert update.B.dtype == torch.float32
    assert torch.equal(update.B, stored[f"base_model.model.{layer}.lora_B.weight"].float() * 0.75)


def test_widest_type_of_mixed_factors(folder):
    def narrow(tensors):
        name = next(name for name in tensors if "lora_A" in name)
        tensors[name] = tensors[name].to(torch.bfloat16)

    rewrite(folder, narrow)
    assert open_adapter(folder).dtype == torch.float32


def test_several_files_with_an_index_are_one_adapter(folder):
    whole = open_adapter(folder)
    expected = {layer: whole.delta(layer).dense() for layer in whole.layers}
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts, weight_map = [{}, {}], {}
    for index, (name, tensor) in enumerate(sorted(tensors.items())):
        weight_map[name] = f"adapter_model-0000{index % 2 + 1}-of-00002.safetensors"
        parts[index % 2][name] = tensor
    for index, part in enumerate(parts):
        save_file(part, folder / f"adapter_model-0000{index + 1}-of-00002.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = open_adapter(folder)
    assert list(sharded.layers) == list(expected)
    for layer, update in expected.items():
        assert torch.equal(sharded.delta(layer).dense(), update)
    path = folder / "adapter_model-00002-of-00002.safetensors"
    lost = min(parts[1])
    save_file({name: tensor for name, tensor in parts[1].items() if name != lost}, path)
    with pytest.raises(OsrmError, match=rf"00002-of-00002\.safetensors lacks {lost}"):
        open_adapter(folder)
    path.unlink()
    with pytest.raises(OsrmError, match=r"00002-of-00002\.safetensors is missing"):
        open_adapter(folder)


def test_name_is_the_tasks_else_the_folders(folder, monkeypatch):
    assert open_adapter(folder).name == "sst2"
    monkeypatch.chdir(folder)
    assert open_adapter(".").name == "sst2"
    odd = copy(folder, folder.parent / "runs@v1" / "rte")
    assert open_adapter(odd).name == "rte"
    provenance.write_record(folder, {"task": {"name": "mood", "columns": ["text"], "labels": ["a"], "metrics": []}})
    assert open_adapter(folder).name == "mood"


def test_layers_come_in_the_models_order(tmp_path):
    torch.manual_seed(0)
    names = [f"base_model.model.layer.{index}.query.lora_{x}.weight" for index in range(12) for x in "AB"]
    tensors = {name: torch.ones(4, 3) if "lora_A" in name else torch.ones(3, 4) for name in names}
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    assert list(open_adapter(tmp_path).layers) == [f"layer.{index}.query" for index in range(12)]


def test_opening_reads_no_tensors(folder):
    def spoil(tensors):
        name = next(name for name in sorted(tensors) if "layer.1" in name and "lora_B" in name)
        tensors[name][0, 0] = math.nan

    rewrite(folder, spoil)
    adapter = open_adapter(folder)
    for layer in adapter.layers:
        if "layer.1" not in layer:
            adapter.delta(layer)
    with pytest.raises(OsrmError, match=r"NaN or infinity in base_model\.model\.bert\.encoder\.layer\.1\..*lora_B"):
        adapter.delta("bert.encoder.layer.1.attention.self.query")


def test_whole_numbers_in_a_head_are_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD].to(torch.int32)}))
    with pytest.raises(OsrmError, match=r"base_model\.model\.classifier\.bias holds no floating-point numbers"):
        open_adapter(folder).head_tensors()


def test_infinity_in_a_head_is_refused(folder):
    rewrite(folder, lambda tensors: tensors[HEAD].fill_(math.inf))
    with pytest.raises(OsrmError, match=r"NaN or infinity in base_model\.model\.classifier\.bias"):
        open_adapter(folder).head_tensors()


def test_digest_covers_settings_and_weights_only(folder):
    before = open_adapter(folder).sha256()
    (folder / "notes.txt").write_text("something else")
    assert open_adapter(folder).sha256() == before
    edit(folder, lora_alpha=9)
    after = open_adapter(folder).sha256()
    assert after != before
    rewrite(folder, lambda tensors: tensors["base_model.model.classifier.bias"].add_(1))
    assert open_adapter(folder).sha256() not in (before, after)


REFUSED = {
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "PEFT type PROMPT_TUNING, expected LORA"),
    "no type": ({"peft_type": None}, "PEFT type None"),
    "dora": ({"use_dora": True}, "DoRA rescales the whole weight"),
    "lora_bias": ({"lora_bias": True}, "lora_bias adds a bias"),
    "bias": ({"bias": "all"}, "bias is 'all', expected 'none'"),
    "kasa": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "trainable tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is set, but .* holds no such rows"),
    "negative token": ({"trainable_token_indices": [-1]}, r"trainable_token_indices is \[-1\], expected different"),
    "token twice": ({"trainable_token_indices": {"wte": [1, 1]}}, "expected different numbers of tokens"),
    "layer replication": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "alora": ({"alora_invocation_tokens": [1]}, "invocation tokens"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
    "olora": ({"init_lora_weights": "olora"}, "changes the base weights"),
    "unknown setting": ({"use_wonder": True}, "unknown setting 'use_wonder'"),
    "rank": ({"r": 0}, "rank 0, expected a positive integer"),
    "alpha": ({"lora_alpha": "16"}, "'16', expected a finite number"),
    "wrong rank": ({"r": 8}, r"lora_A \(4, 16\).*expected \(8, d_in\)"),
    "bad pattern": ({"alpha_pattern": {"(": 2}}, "adapter_config.json"),
    "head not named": ({"modules_to_save": None}, "classifier.bias is neither a LoRA factor nor named"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_anything_but_plain_lora_is_refused(folder, settings, message):
    edit(folder, **settings)
    with pytest.raises(OsrmError, match=message):
        open_adapter(folder)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_real_variants_of_peft_are_refused(tmp_path, settings):
    save(tmp_path / "a", **settings)
    with pytest.raises(OsrmError, match=next(iter(settings))):
        open_adapter(tmp_path / "a")


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
def test_starts_that_leave_the_base_alone_are_read(folder, start):
    edit(folder, init_lora_weights=start)
    assert open_adapter(folder).layers


def drop(name):
    return lambda folder: (folder / name).unlink()


def overwrite(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def pickle_only(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])


def lonely(folder):
    rewrite(folder, lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)))


def convolution(folder):
    def change(tensors):
        name = next(name for name in tensors if "lora_A" in name)
        tensors[name] = tensors[name][:, :, None, None].contiguous()

    rewrite(folder, change)


DAMAGED = {
    "no config": (drop("adapter_config.json"), "adapter_config.json is missing"),
    "broken config": (overwrite("adapter_config.json", b"{"), "adapter_config.json cannot be read"),
    "config no object": (overwrite("adapter_config.json", b"[]"), "contains list, expected a JSON object"),
    "no weights": (drop(WEIGHTS), "adapter_model.safetensors is missing"),
    "empty weights": (overwrite(WEIGHTS, b""), "is empty"),
    "no safetensors": (overwrite(WEIGHTS, b"PK" * 50), "is damaged or not a safetensors file"),
    "truncated weights": (truncate, "is damaged or not a safetensors file"),
    "pickle": (pickle_only, "is a pickle"),
    "lonely factor": (lonely, "is missing"),
    "convolution": (convolution, r"lora_A \(4, 16, 1, 1\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(OsrmError, match=message) as caught:
        open_adapter(folder)
    assert "\n" not in str(caught.value)


def test_neither_folder_nor_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OsrmError, match="adapter 'adapters/none' is neither a folder nor in the hub's cache"):
        open_adapter("adapters/none")
    with pytest.raises(OsrmError, match="is missing"):
        open_adapter(tmp_path / "none")


def test_a_snapshot_in_the_hubs_cache_is_found_offline(folder, tmp_path, monkeypatch):
    repo = tmp_path / "hub" / "models--someone--mood"
    snapshot = repo / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter = open_adapter("someone/mood")
    assert adapter.name == "mood"
    assert adapter.folder == snapshot
    assert open_adapter("someone/mood@" + "a" * 40).name == "mood"


def together(template, tmp_path, *settings):
    for name, values in zip("abc", settings, strict=False):
        edit(copy(template, tmp_path / name), **values)
    check_adapters_share_base([open_adapter(tmp_path / name) for name in "abc"[: len(settings)]])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("org/bert", "org/bert"),
        ("org/bert", "/home/me/bert/"),
        ("/hub/models--org--bert/snapshots/0123", "org/bert"),
        (None, "org/bert"),
    ],
)
def test_base_models_that_agree(template, tmp_path, first, second):
    together(template, tmp_path, {"base_model_name_or_path": first}, {"base_model_name_or_path": second})


def test_other_base_names_and_revisions_are_refused(template, tmp_path):
    names = [{"base_model_name_or_path": name} for name in ("org/bert", None, "org/roberta")]
    with pytest.raises(OsrmError, match=r"a belongs to base model org/bert, but .*c to org/roberta"):
        together(template, tmp_path / "names", *names)
    with pytest.raises(OsrmError, match=r"a belongs to revision one, but .*b to two"):
        together(template, tmp_path / "revisions", {"revision": "one"}, {"revision": "two"})


def test_recorded_digests_decide_over_names(template, tmp_path):
    adapters = []
    for name, digest in (("a", "1" * 64), ("b", "1" * 64), ("c", "2" * 64)):
        edit(copy(template, tmp_path / name), base_model_name_or_path=f"org/{name}")
        provenance.write_record(tmp_path / name, {"base": {"name": name, "revision": None, "sha256": digest}})
        adapters.append(open_adapter(tmp_path / name))
    check_adapters_share_base(adapters[:2])
    with pytest.raises(OsrmError, match=r"c comes from base model c .*, but .*a from a"):
        check_adapters_share_base(adapters)


def test_other_widths_are_refused(template, tmp_path):
    copy(template, tmp_path / "a")
    copy(template, tmp_path / "b")

    def widen(tensors):
        name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
        tensors[name] = torch.ones(4, 20)

    rewrite(tmp_path / "b", widen)
    with pytest.raises(OsrmError, match=r"layer.0.attention.self.query is \(16, 20\) in .*b, but \(16, 16\) in .*a"):
        check_adapters_share_base([open_adapter(tmp_path / name) for name in "ab"])
