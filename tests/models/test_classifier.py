import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    PreTrainedTokenizerFast,
)

from osrm_cli.errors import OsrmError
from osrm_cli.models.backbone import check_max_length
from osrm_cli.models.base_model import find_base_model, hub, identify_base_model, resolve_base_model
from osrm_cli.models.classifier import LoadedModel, load_classifier, load_tokenizer
from osrm_cli.models.target_modules import (
    as_target_modules,
    default_target_modules,
    find_target_layers,
    is_conv1d,
    layer_widths,
)
from osrm_cli.storage.records import BaseModelId
from tests.conftest import FAMILIES

Tiny = Callable[[str], Path]
HEADS = {"deberta-v2": ["classifier", "pooler"], "t5": ["classification_head"]}
HEADS |= {"llama": ["score"], "qwen2": ["score"], "gpt2": ["score"]}
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def load(folder: Path, num_labels: int = 2, seed: int = 0) -> LoadedModel:
    return load_classifier(folder, num_labels, load_tokenizer(folder), torch.float32, seed)


@pytest.fixture
def copy(tiny_model: Tiny, tmp_path: Path) -> Path:
    """A BERT of one's own, to damage."""
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "model"))


# Finding and identifying


def test_folder_is_itself_and_its_digest_is_that_of_the_weights(tiny_model: Tiny, copy: Path) -> None:
    assert find_base_model(str(copy)) == copy
    found, theirs = identify_base_model(str(copy)), identify_base_model(str(tiny_model("bert")))
    assert found.name == str(copy)
    assert found.revision is None
    assert found.sha256 == theirs.sha256
    (copy / "README.md").write_text("no part of the weights")
    assert identify_base_model(str(copy)).sha256 == found.sha256
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert identify_base_model(str(copy)).sha256 != found.sha256


def test_minilm_and_its_hub_id_are_one_model(minilm: str) -> None:
    ours, theirs = identify_base_model(minilm), identify_base_model(HUB_ID)
    assert find_base_model(minilm) == find_base_model(HUB_ID)
    assert ours == theirs
    assert ours.name == HUB_ID  # a name that any program can load


def test_snapshot_in_the_hubs_cache(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as the hub's client does it: snapshots are links to blobs that are named by their digests."""
    from osrm_cli.storage import input_files

    commit, cache = "c0ffee" * 6 + "beef", tmp_path / "hub" / "models--someone--tiny"
    snapshot = cache / "snapshots" / commit
    for folder in (snapshot, cache / "blobs", cache / "refs"):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    for path in copy.iterdir():
        blob = cache / "blobs" / input_files.sha256(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_base_model("someone/tiny") == snapshot
    found = identify_base_model("someone/tiny")
    assert (found.name, found.revision) == ("someone/tiny", commit)
    assert found.sha256 == identify_base_model(str(copy)).sha256


def test_pickle_alone_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(OsrmError, match=r"no safetensors weights, found only the pickle pytorch_model\.bin") as caught:
        find_base_model(str(copy))
    assert "save_pretrained" in str(caught.value.hint)


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(OsrmError, match=r"is not a base model: config\.json is missing"):
        find_base_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OsrmError, match="no safetensors weights, found none"):
        find_base_model(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such-model", "nosuchmodel", "a/b/c", "./missing"])
def test_unknown_name_offline_is_one_line(name: str) -> None:
    with pytest.raises(OsrmError, match=f"base model '{name}' is neither a folder nor in the hub's cache") as caught:
        find_base_model(name)
    assert "\n" not in str(caught.value)
    assert "give a folder that is there" in str(caught.value.hint)


def test_artifact_on_other_weights_is_refused(copy: Path, tiny_model: Tiny) -> None:
    recorded = identify_base_model(str(copy))
    assert resolve_base_model(Path("start"), recorded, None, None, None) == (copy, recorded)
    moved, found = resolve_base_model(Path("start"), recorded, None, str(tiny_model("bert")), None)
    assert moved == tiny_model("bert")
    assert found.sha256 == recorded.sha256
    with pytest.raises(OsrmError, match=r"start was made for base model .*model \(weights .*, found .*roberta"):
        resolve_base_model(Path("start"), recorded, None, str(tiny_model("roberta")), None)
    with pytest.raises(OsrmError, match="start does not record its base model"):
        resolve_base_model(Path("start"), None, None, None, None)
    assert resolve_base_model(Path("start"), None, str(copy), None, None)[0] == copy


def test_record_of_a_hub_model_brings_its_revision(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(kind: str, name: str, revision: str | None, config: str, files: list[str]) -> Path:
        asked.append((name, revision))
        return tiny_model("bert")

    monkeypatch.setattr(hub, "fetch_snapshot", fetch)
    recorded = BaseModelId("someone/tiny", "c0ffee", identify_base_model(str(tiny_model("bert"))).sha256)
    resolve_base_model(Path("start"), recorded, None, None, None)
    assert set(asked) == {("someone/tiny", "c0ffee")}


# Loading


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_heads_are_what_the_checkpoint_lacks(tiny_model: Tiny, family: str) -> None:
    classifier = load(tiny_model(family), 3)
    assert classifier.heads == HEADS.get(family, ["classifier"])
    assert classifier.model.config.num_labels == 3
    again, other = load(tiny_model(family), 3), load(tiny_model(family), 3, seed=1)
    same = [torch.equal(a, b) for a, b in zip(classifier.model.parameters(), again.model.parameters(), strict=True)]
    assert all(same)
    differ = {
        name.partition(".")[0]
        for (name, a), b in zip(classifier.model.named_parameters(), other.model.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert differ == set(classifier.heads)


def test_head_of_the_checkpoint_for_other_classes_is_drawn_anew(copy: Path) -> None:
    trained = AutoModelForSequenceClassification.from_pretrained(copy, num_labels=3)
    trained.config.problem_type = "multi_label_classification"
    trained.save_pretrained(copy)
    found = load(copy, 2)
    assert found.model.classifier.weight.shape == (2, 16)
    assert found.model.config.problem_type is None
    assert found.heads == ["classifier"]


def test_weights_that_the_backbone_lacks_travel_with_the_adapter(copy: Path) -> None:
    BertModel.from_pretrained(copy, add_pooling_layer=False).save_pretrained(copy)
    found = load(copy)
    assert found.heads == ["bert.pooler.dense", "classifier"]
    layers = find_target_layers(found, ["dense"])
    assert "bert.pooler.dense" not in layers


def test_weights_of_another_model_are_refused(copy: Path, tiny_model: Tiny) -> None:
    shutil.copy(tiny_model("gpt2") / "model.safetensors", copy)
    with pytest.raises(OsrmError, match=r"its weights are not those of a BertForSequenceClassification: \d+ of \d+"):
        load(copy)


def test_weights_of_another_width_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(OsrmError, match=r"its weights are not those of .* another shape"):
        load(copy)


@pytest.mark.parametrize("cut", [0, 4, 1000])
def test_damaged_weights_are_one_line(copy: Path, cut: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(OsrmError, match="the model cannot be loaded as a sequence classifier") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_model_without_a_tokenizer(copy: Path) -> None:
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(OsrmError, match="model has no tokenizer"):
        load_tokenizer(copy)


def test_tokenizer_pads_with_the_end_token_where_it_has_none(tiny_model: Tiny) -> None:
    assert AutoTokenizer.from_pretrained(tiny_model("gpt2")).pad_token_id is None
    tokenizer = load_tokenizer(tiny_model("gpt2"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert load(tiny_model("gpt2")).model.config.pad_token_id == 2


# Lengths


@pytest.mark.parametrize(
    ("family", "most"),
    [("bert", 256), ("roberta", 255), ("deberta-v2", 256), ("mpnet", 254), ("gpt2", 256), ("llama", 256), ("t5", None)],
)
def test_length_beyond_the_positions_is_refused(tiny_model: Tiny, family: str, most: int | None) -> None:
    if most is None:
        check_max_length(tiny_model(family), 10_000)  # relative positions
        return
    check_max_length(tiny_model(family), most)
    with pytest.raises(OsrmError, match=f"positions for {most} tokens, fewer than the length of {most + 1}") as caught:
        check_max_length(tiny_model(family), most + 1)
    assert caught.value.hint == f"give --max-length {most} or less"


@pytest.mark.parametrize(("family", "most"), [("bert", 256), ("roberta", 255), ("mpnet", 254), ("gpt2", 256)])
def test_that_many_tokens_do_run_and_one_more_does_not(tiny_model: Tiny, family: str, most: int) -> None:
    model = AutoModel.from_pretrained(tiny_model(family))
    ids = torch.full((1, most), 7)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    more = torch.full((1, most + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=more, attention_mask=torch.ones_like(more))


# Targets


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_targets_are_those_that_peft_adapts(tiny_model: Tiny, family: str) -> None:
    classifier = load(tiny_model(family))
    names = default_target_modules(classifier.model)
    found = find_target_layers(classifier, names)
    config = LoraConfig(target_modules=names, task_type="SEQ_CLS", fan_in_fan_out=family == "gpt2")
    adapted = get_peft_model(classifier.model, config)
    lora = [n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if hasattr(m, "lora_A")]
    assert list(found) == lora
    for name in lora:
        layer = adapted.get_submodule(f"base_model.model.{name}")
        assert layer_widths(found[name]) == (layer.in_features, layer.out_features)


def test_conv1d_is_told_from_linear(tiny_model: Tiny) -> None:
    layers = find_target_layers(load(tiny_model("gpt2")), ["c_attn"])
    assert all(is_conv1d(layer) for layer in layers.values())
    assert {layer_widths(layer) for layer in layers.values()} == {(16, 48)}
    assert not is_conv1d(torch.nn.Linear(16, 48))


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "t5", "llama"])
@pytest.mark.parametrize("names", [["all-linear"], ["dense"], ["q", "query", "query_proj", "q_proj"]])
def test_spelling_means_the_same_layers_with_and_without_heads(tiny_model: Tiny, family: str, names: list[str]) -> None:
    classifier = load(tiny_model(family))
    try:
        found = find_target_layers(classifier, names)
    except OsrmError:
        assert names == ["dense"]  # no layer of T5's or Llama's backbone is called so
        return
    assert not any(name.startswith(tuple(classifier.heads)) for name in found)
    spelled = as_target_modules(classifier, names, found)
    bare = LoadedModel(classifier.model, [])
    assert list(find_target_layers(bare, spelled)) == list(found)
    assert spelled == names or spelled == list(found)


def test_unknown_targets_are_told_what_there_is(tiny_model: Tiny) -> None:
    with pytest.raises(OsrmError, match="no linear layer matches --target-modules nosuch") as caught:
        find_target_layers(load(tiny_model("bert")), ["nosuch"])
    assert "query" in str(caught.value.hint)


def test_architecture_without_defaults(tiny_model: Tiny) -> None:
    model = load(tiny_model("bert")).model
    model.config.model_type = "novel"
    with pytest.raises(OsrmError, match="no default target layers are known for model type 'novel'") as caught:
        default_target_modules(model)
    assert "--target-modules" in str(caught.value.hint)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_s_code_is_never_run(tiny_model, tmp_path, monkeypatch, file):
    """Not even where the answer to transformers' question comes through a pipe."""
    folder, planted = tmp_path / "base", tmp_path / "planted"
    shutil.copytree(tiny_model("bert"), folder)
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(planted)!r}).touch()\n"
        "from transformers import BertConfig as Evil, BertTokenizerFast as EvilTokenizer\n"
    )
    values = json.loads((folder / file).read_text())
    if file == "config.json":
        values |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    else:
        values |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (folder / file).write_text(json.dumps(values))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    tokenizer = load_tokenizer(tiny_model("bert"))
    for attempt in (
        lambda: load_tokenizer(folder),
        lambda: load_classifier(folder, 2, tokenizer, torch.float32, 0),
        lambda: check_max_length(folder, 64),
    ):
        with contextlib.suppress(OsrmError):
            attempt()
        assert not planted.exists()


def test_a_tokenizer_whose_template_names_no_token(tmp_path, capfd):
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", "<s>", "one", "two"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("one")["input_ids"] == [2, 3]
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    values["post_processor"]["special_tokens"]["x"] = values["post_processor"]["special_tokens"].pop("<s>")
    path.write_text(json.dumps(values))
    with pytest.raises(OsrmError, match="its tokenizer cannot be loaded: its template names <s>"):
        load_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""  # the library itself would write there that it panics
