"""Damaged files that libraries read: one line that names the file, whatever the library says."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from tests.run_cli import Run, listing, osrm

TASK = "merged/tasks/pair/adapter_config.json"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(run: Run, *words: str) -> None:
    """Exit code 1, one line of error that has all the words, at most one hint, and nothing else."""
    assert run.code == 1, run
    assert all(word in run.error for word in words), run.error
    assert len(run.stderr.splitlines()) <= 2
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"task_type": "CAUSAL_LM"}, "task_type is CAUSAL_LM"),
        ({"task_type": 5}, "task_type is 5"),
        ({"target_modules": ["dense"]}, "no factors for"),
        ({"target_modules": [None]}, "target_modules is [None]"),
        ({"modules_to_save": "classifier"}, "modules_to_save is 'classifier'"),
        ({"use_newlora": True}, "unknown setting 'use_newlora'"),
        ({"r": None}, "rank None"),
        ({"use_rslora": "false"}, "use_rslora is 'false', expected true or false"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out is 1, expected true or false"),
        ({"r": 3}, "expected (3, d_in)"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is ['x']"),
    ],
    ids=str,
)
def test_settings_of_a_task_of_a_merged_folder(project_copy: Path, values: dict[str, Any], word: str) -> None:
    change(project_copy / TASK, **values)
    refused(osrm("eval", "merged", "--no-single", cwd=project_copy), "merged/tasks/pair", word)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"5"], ids=repr)
def test_settings_that_are_no_json_object(project_copy: Path, content: bytes) -> None:
    (project_copy / TASK).write_bytes(content)
    refused(osrm("calibrate", "merged", "--samples", 12, cwd=project_copy), TASK)


def test_a_setting_that_changes_nothing_is_not_read(project_copy: Path) -> None:
    change(project_copy / TASK, init_lora_weights="gaussian", lora_dropout=0.5, inference_mode=False)
    assert osrm("eval", "merged", "--no-single", "--out", "a.json", cwd=project_copy).code == 0


def test_a_record_without_its_adapter(project_copy: Path) -> None:
    path = project_copy / "merged/tasks/pair/osrm.json"
    change(path, inputs=json.loads(path.read_text())["inputs"][:1])
    refused(osrm("calibrate", "merged", "--samples", 12, cwd=project_copy), "merged/tasks/pair", "does not record")


@pytest.mark.parametrize("modules", [".*", "(?i)QUERY", ["nothing"], "((query))|x"], ids=str)
def test_target_modules_that_are_not_the_factors(project_copy: Path, modules: object) -> None:
    change(project_copy / "adapters/mood/adapter_config.json", target_modules=modules)
    refused(osrm("eval", "adapters/mood", cwd=project_copy), "adapters/mood does not fit")


@pytest.mark.parametrize("option", ["--lr", "--interference-penalty"])
def test_infinite_settings_of_a_training(project_copy: Path, option: str) -> None:
    run = osrm("train", "starts/mood", "--limit", 8, option, "1e400", "-o", "t", cwd=project_copy)
    refused(run, f"{option} is inf, expected 0 or more")


def test_a_tokenizer_s_inputs_have_names(project_copy: Path, base: Path) -> None:
    change(base / "tokenizer_config.json", model_input_names=[["input_ids"], "attention_mask"])
    run = osrm("train", "starts/mood", "--limit", 8, "--model", base, "-o", "t", cwd=project_copy)
    refused(run, str(base))


def test_a_tokenizer_that_names_no_attention_mask(project_copy: Path, base: Path) -> None:
    change(base / "tokenizer_config.json", model_input_names=["input_ids"])
    run = osrm("train", "starts/mood", "--limit", 8, "--model", base, "-o", "t", cwd=project_copy)
    assert run.code == 0, run.stderr


def test_a_limit_beyond_all_numbers(project_copy: Path) -> None:
    assert osrm("eval", "adapters/mood", "--limit", 10**22, cwd=project_copy).code == 0


def test_a_start_of_an_unknown_kind(project_copy: Path) -> None:
    change(project_copy / "starts/mood/adapter_config.json", task_type="X")
    run = osrm("train", "starts/mood", "--limit", 8, "-o", "t", cwd=project_copy)
    refused(run, "starts/mood has settings that PEFT refuses", "X")


def test_settings_with_a_number_that_is_none(project_copy: Path) -> None:
    change(project_copy / "adapters/mood/adapter_config.json", inference_mode=float("nan"))
    run = osrm("merge", "adapters/mood", "adapters/pair", "-o", "m", cwd=project_copy)
    refused(run, "adapters/mood/adapter_config.json", "NaN is not a finite number")


@pytest.mark.parametrize("method", ["regmean++", "fisher"])
def test_a_hint_names_no_option_that_merge_lacks(project_copy: Path, method: str) -> None:
    path = project_copy / "adapters/mood/osrm.json"
    record = json.loads(path.read_text())
    record["task"]["max_length"] = record["settings"]["max_length"] = 2
    path.write_text(json.dumps(record))
    words = ("adapters/mood", "adapters/pair", "--method", method, "--samples", 8, "-o", "m")
    run = osrm("merge", *words, cwd=project_copy)
    refused(run, "a length of 2 tokens is too short")
    assert "else max_length in its task.toml" in run.stderr


def test_recorded_scores_of_a_wrong_type(project_copy: Path) -> None:
    path = project_copy / "merged/tasks/mood/osrm.json"
    inputs = json.loads(path.read_text())["inputs"]
    inputs[0]["dev"]["scores"] = {"accuracy": [1]}
    change(path, inputs=inputs)
    refused(osrm("eval", "merged", cwd=project_copy), "merged/tasks/mood/osrm.json", "accuracy")


def add_tokens(folder: Path) -> None:
    """Words for which the model has no embedding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"w{i}w" for i in range(9)] + [" w1", "w2 "])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("score", ["NaN", "1e999", "[1]", '"x"'])
def test_scores_in_training_json_that_are_not_numbers_are_unknown(project_copy: Path, score: str) -> None:
    path = project_copy / "adapters/mood/training.json"
    log = json.loads(path.read_text())
    log["dev"]["scores"]["accuracy"] = "HERE"
    path.write_text(json.dumps(log).replace('"HERE"', score))
    assert osrm("merge", "adapters/mood", "adapters/pair", "-o", "m", cwd=project_copy).code == 0
    assert json.loads((project_copy / "m/osrm.json").read_text())["inputs"][0]["dev"] is None


def test_a_record_with_a_number_that_is_none(project_copy: Path) -> None:
    change(project_copy / "starts/mood/osrm.json", settings={"rank": float("nan")})
    run = osrm("train", "starts/mood", "--limit", 8, "-o", "t", cwd=project_copy)
    refused(run, "starts/mood/osrm.json", "NaN is not a finite number")


@pytest.mark.parametrize(
    "values",
    [{"settings": {"method": "ties"}}, {"settings": {"options": {}}}, {"settings": None}, {"inputs": [{"path": "x"}]}],
    ids=str,
)
def test_a_record_that_does_not_say_how_it_was_merged(project_copy: Path, values: dict[str, Any]) -> None:
    change(project_copy / "merged/osrm.json", **values)
    refused(osrm("eval", "merged", "--no-single", cwd=project_copy), "merged/osrm.json does not record")


BASE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "tokenizer.json": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "tokenizer_config.json": lambda path: change(path, pad_token=[1]),
    "special_tokens_map.json": lambda path: add_tokens(path.parent),
    "config.json": lambda path: change(path, num_attention_heads=[[]]),
    "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:2000]),
}


@pytest.fixture
def base(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "base"))


@pytest.mark.parametrize("name", BASE_DAMAGE)
@pytest.mark.parametrize("command", ["collect --task mood --samples 4 --out o", "train starts/mood --limit 16 --out o"])
def test_base_model(project_copy: Path, base: Path, name: str, command: str) -> None:
    BASE_DAMAGE[name](base / name)
    before = listing(project_copy)
    refused(osrm(*command.split(), "--model", base, cwd=project_copy), str(base))
    assert listing(project_copy) == before


@pytest.mark.parametrize("content", ["", "[]", '"x"', "5", "[" * 100_000], ids=lambda content: content[:3])
def test_settings_of_a_base_model_that_are_no_object(project_copy: Path, base: Path, content: str) -> None:
    (base / "config.json").write_text(content)
    words = ("merge", "adapters/mood", "adapters/pair", "--as", "model", "--model", base, "--out", "o")
    refused(osrm(*words, cwd=project_copy), f"{base}/config.json")


@pytest.mark.parametrize("name", ["num_attention_heads", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("value", [-1, 0])
def test_a_size_of_a_base_model_that_is_none(project_copy: Path, base: Path, name: str, value: int) -> None:
    change(base / "config.json", **{name: value})
    run = osrm("train", "starts/mood", "--limit", 16, "--out", "o", "--model", base, cwd=project_copy)
    refused(run, f"{base}/config.json: {name} is {value}, expected 1 or more")


@pytest.mark.parametrize("method", ["fisher --samples 4", "distill --steps 2 --samples 4"])
def test_weights_so_large_that_results_are_not_finite(project_copy: Path, method: str) -> None:
    path = project_copy / "adapters/mood/adapter_model.safetensors"
    save_file({name: tensor * (1e35 if "lora" in name else 1) for name, tensor in load_file(path).items()}, path)
    words = ("merge", "adapters/mood", "adapters/pair", "--method", *method.split(), "--out", "o")
    refused(osrm(*words, cwd=project_copy), "a weight is damaged or too large")


@pytest.mark.parametrize(
    "content", ["", "{}", '{"weight_map": {}}', '{"weight_map": "x"}', '{"weight_map": {"a": 5}}'], ids=repr
)
def test_index_of_a_base_model(project_copy: Path, base: Path, content: str) -> None:
    (base / "model.safetensors.index.json").write_text(content)
    words = ("merge", "adapters/mood", "adapters/pair", "--as", "model", "--model", base, "--out", "o")
    refused(osrm(*words, cwd=project_copy), "model.safetensors.index.json")


@pytest.mark.parametrize(
    "command", ["collect --task mood --samples 4", "train starts/mood --limit 8", "eval adapters/mood"]
)
def test_a_tensor_that_the_index_names_is_missing(project_copy: Path, base: Path, command: str) -> None:
    AutoModel.from_pretrained(base).save_pretrained(base, max_shard_size="20KB")
    path = max(base.glob("model-*.safetensors"))
    (base / "model.safetensors").unlink(missing_ok=True)
    tensors = load_file(path)
    name, _ = tensors.popitem()
    save_file(tensors, path, metadata={"format": "pt"})
    run = osrm(*command.split(), "--model", base, "--out", "o", cwd=project_copy)
    refused(run, f"{path} lacks {name}")


def test_numbers_that_are_not(project_copy: Path, base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][:] = torch.inf
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    run = osrm("collect", "--task", "mood", "--samples", 4, "--model", base, "--out", "o", cwd=project_copy)
    refused(run, "NaN or infinity")
    words = ("merge", "adapters/mood", "adapters/pair", "--as", "model", "--out", "m")
    assert osrm(*words, cwd=project_copy).code == 0
    save_file(tensors, project_copy / "m/model.safetensors", metadata={"format": "pt"})
    refused(osrm("eval", "m", "--no-single", cwd=project_copy), "NaN")
    refused(osrm("calibrate", "m", "--samples", 12, cwd=project_copy), "NaN or infinity in the representations")
    shutil.rmtree(project_copy / "m")
    assert osrm(*words, cwd=project_copy).code == 0
    path = project_copy / "m/tasks/mood/head.safetensors"
    head = load_file(path)
    head["classifier.bias"][0] = torch.nan
    save_file(head, path)
    refused(osrm("calibrate", "m", "--samples", 12, "--overwrite", cwd=project_copy), str(Path("m/tasks/mood/head")))
    save_file({**head, "classifier.bias": torch.ones(2, dtype=torch.int32)}, path)
    refused(osrm("eval", "m", "--no-single", cwd=project_copy), "no floating-point numbers in classifier.bias")


@pytest.fixture
def unfinished(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newest checkpoint of a run of two epochs that ended at the last moment."""
    from osrm_cli.training import train as module

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "measure_adapter_drift", end)
        assert osrm(*RESUME, cwd=project_copy).code == 130
    folder = project_copy / "o/.mood.training"
    shutil.rmtree(folder / "checkpoint-6")
    return folder / "checkpoint-3"


RESUME = ("train", "starts/mood", "--epochs", 2, "--lr", 0.01, "--out", "o")
CHECKPOINT_DAMAGE: dict[str, Callable[[Path], object]] = {
    "optimizer.pt": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "scheduler.pt": lambda path: path.write_bytes(b"x" * 100),
    "rng_state.pth": lambda path: torch.save({"python": 5}, path),
    "adapter_model.safetensors": lambda path: save_file(dict(list(load_file(path).items())[1:]), path),
    "training_args.bin": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("name", CHECKPOINT_DAMAGE)
def test_a_damaged_checkpoint_is_named_and_stays(project_copy: Path, unfinished: Path, name: str) -> None:
    CHECKPOINT_DAMAGE[name](unfinished / name)
    run = osrm(*RESUME, "--resume", cwd=project_copy)
    refused(run, "o/.mood.training/checkpoint-3")
    assert "hint: start over with --overwrite" in run.stderr or name == "training_args.bin"
    assert (unfinished / "trainer_state.json").is_file()


def test_an_undamaged_checkpoint_gives_the_same_adapter(project_copy: Path, unfinished: Path) -> None:
    assert osrm(*RESUME, "--resume", cwd=project_copy).code == 0
    assert osrm(*RESUME[:-1], "p", cwd=project_copy).code == 0
    one, two = (project_copy / name / "mood/adapter_model.safetensors" for name in "op")
    assert one.read_bytes() == two.read_bytes()


def test_a_checkpoint_whose_log_is_damaged_counts_as_incomplete(project_copy: Path, unfinished: Path) -> None:
    change(unfinished / "trainer_state.json", log_history=[{"loss": "x"}])
    run = osrm(*RESUME, "--resume", cwd=project_copy)
    assert run.code == 0, run


@pytest.fixture
def task_aware(project_copy: Path) -> Path:
    assert osrm("merge", "adapters/mood", "adapters/pair", "--method", "emr", "-o", "emr", cwd=project_copy).code == 0
    return project_copy / "emr/tasks/mood"


def test_a_factor_under_another_name(project_copy: Path, task_aware: Path) -> None:
    record = json.loads((task_aware / "osrm.json").read_text())
    factors = list(record["rescalers"].items())
    for name in ("", "x", factors[1][0]):
        change(task_aware / "osrm.json", rescalers=dict([(name, 1.0), *factors[1:]]))
        run = osrm("eval", "emr", "--no-single", cwd=project_copy)
        refused(run, "holds nothing for layer")


def test_masks_of_another_size(project_copy: Path, task_aware: Path) -> None:
    path = task_aware / "masks.safetensors"
    masks = load_file(path)
    save_file({name: mask[:-1] for name, mask in masks.items()}, path)
    refused(osrm("eval", "emr", "--no-single", cwd=project_copy), "emr/tasks/mood/masks.safetensors", "does not fit")
    save_file({name: mask.to(torch.int16) for name, mask in masks.items()}, path)
    refused(osrm("eval", "emr", "--no-single", cwd=project_copy), "emr/tasks/mood/masks.safetensors", "does not fit")
