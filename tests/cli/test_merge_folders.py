"""What merged folders hold beside the weights, and adapters as people name and save them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.run_cli import listing, osrm

ADAPTERS = ("adapters/mood", "adapters/pair")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def base(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A base model with all that such folders hold."""
    folder = Path(shutil.copytree(tiny_model("bert"), tmp_path / "base"))
    for name in KEPT | LEFT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    change(folder / "config.json", dtype="bfloat16", text_config={"torch_dtype": "bfloat16"})
    return folder


KEPT = {
    "modules.json",
    "1_Pooling/config.json",
    "modeling_own.py",
    "qwen.tiktoken",
    "additional_chat_templates/x.jinja",
}
LEFT = {"onnx/model.onnx", "pytorch_model.bin", ".gitattributes", "README.md"}


def test_a_merged_model_keeps_the_files_beside_the_weights(project_copy: Path, base: Path) -> None:
    run = osrm("merge", *ADAPTERS, "--as", "model", "--model", base, "-o", "m", cwd=project_copy)
    assert run.code == 0, run
    files = listing(project_copy / "m")
    assert files >= KEPT | {"config.json", "tokenizer.json"}
    assert not files & (LEFT - {"README.md"})
    assert "merged with task-arith" in (project_copy / "m/README.md").read_text()


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_settings_of_a_merged_model_say_the_type_of_its_weights(project_copy: Path, base: Path, name: str) -> None:
    words = ("--as", "model", "--model", base, "--dtype", name, "-o", "m")
    assert osrm("merge", *ADAPTERS, *words, cwd=project_copy).code == 0
    config = json.loads((project_copy / "m/config.json").read_text())
    assert (config["dtype"], config["text_config"]) == (name, {"dtype": name})
    kinds = {tensor.dtype for tensor in load_file(project_copy / "m/model.safetensors").values()}
    assert kinds == {getattr(torch, name)} == {AutoModel.from_pretrained(project_copy / "m").dtype}


@pytest.mark.parametrize("form", ["adapter", "model"])
def test_the_tokenizer_of_all_adapters_is_the_result_s(project_copy: Path, form: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(json.loads(base_of(project_copy)))
    tokenizer.chat_template = "mine {{ messages[0]['content'] }}"
    for name in ADAPTERS:
        tokenizer.save_pretrained(project_copy / name)
    run = osrm("merge", *ADAPTERS, "--as", form, "-o", "m", cwd=project_copy)
    assert (run.code, run.stderr) == (0, "")
    assert AutoTokenizer.from_pretrained(project_copy / "m").chat_template == tokenizer.chat_template
    tokenizer.chat_template = "another"
    tokenizer.save_pretrained(project_copy / ADAPTERS[1])
    run = osrm("merge", *ADAPTERS, "--as", form, "-o", "n", cwd=project_copy)
    assert run.code == 0
    assert "warning: adapters/mood and adapters/pair carry different tokenizers" in run.stderr
    assert "chat_template.jinja" not in listing(project_copy / "n")


def base_of(project: Path) -> str:
    return (project / "osrm.toml").read_text().splitlines()[0].removeprefix("model = ")


def test_adapters_of_one_name_are_given_names(project_copy: Path) -> None:
    for run in ("one", "two"):
        shutil.copytree(project_copy / "adapters/mood", project_copy / run / "checkpoint 500")
    places = ("one/checkpoint 500", "two/checkpoint 500")
    run = osrm("merge", *places, "-o", "m", cwd=project_copy)
    assert run.code == 1
    assert "hint: give one adapter per task, or a name: NAME=one/checkpoint 500" in run.stderr
    run = osrm(
        "merge", f"first={places[0]}", f"second={places[1]}", "--weight", "second=0.5", "-o", "m", cwd=project_copy
    )
    assert run.code == 0, run
    assert {path.name for path in (project_copy / "m/tasks").iterdir()} == {"first", "second"}
    recipe = yaml.safe_load((project_copy / "m/merge.yaml").read_text())
    assert recipe["adapters"] == [
        {"path": "first=one/checkpoint 500", "weight": 1.0},
        {"path": "second=two/checkpoint 500", "weight": 0.5},
    ]
    assert osrm("merge", "--recipe", "m/merge.yaml", "-o", "n", cwd=project_copy).code == 0
    first, second = ((project_copy / name / "adapter_model.safetensors").read_bytes() for name in "mn")
    assert first == second
    assert osrm("verify", "m", cwd=project_copy).code == 0
    run = osrm("merge", f"a/b={places[0]}", places[1], "-o", "p", cwd=project_copy)
    assert (run.code, run.error) == (1, "'a/b' cannot be the name of a task")


def foreign(project: Path, name: str, **settings: Any) -> Path:
    """An adapter without our record, as another program would have saved it."""
    folder = Path(shutil.copytree(project / "adapters/mood", project / "foreign" / name))
    (folder / "osrm.json").unlink()
    change(folder / "adapter_config.json", **settings)
    return folder


def test_names_of_a_base_model_that_mean_the_same(project_copy: Path) -> None:
    places = [
        foreign(project_copy, "a", base_model_name_or_path="C:\\models\\llama"),
        foreign(project_copy, "b", base_model_name_or_path="unsloth/llama-unsloth-bnb-4bit"),
        foreign(project_copy, "c", base_model_name_or_path="/models/llama", merge_weights=True, rank_pattern={"no": 9}),
    ]
    run = osrm("merge", *places, "-o", "m", cwd=project_copy)
    assert run.code == 0, run
    other = foreign(project_copy, "d", base_model_name_or_path="C:\\models\\mistral")
    assert "belongs to base model" in osrm("merge", *places, other, "-o", "n", cwd=project_copy).error


def test_an_adapter_of_a_causal_model_cannot_be_trained_as_a_classifier(project_copy: Path) -> None:
    change(project_copy / "starts/mood/adapter_config.json", task_type="CAUSAL_LM")
    run = osrm("train", "starts/mood", "--limit", 8, "-o", "t", cwd=project_copy)
    assert run.code == 1
    assert "was initialized for CAUSAL_LM, but task 'mood' has labels" in run.error
    assert not (project_copy / "t").exists()


def test_dora_is_refused_with_a_way_out(project_copy: Path) -> None:
    place = foreign(project_copy, "a", use_dora=True)
    run = osrm("merge", place, "adapters/pair", "-o", "m", cwd=project_copy)
    assert "osrm convert" in run.stderr


def test_the_hint_about_features_names_every_layer(project_copy: Path, text_tasks: Path) -> None:
    for task in ("mood", "pair"):
        words = ("collect", "--task", task, "--target-modules", "dense", "-o", "other", "--samples", 8)
        assert osrm(*words, cwd=project_copy).code == 0
    run = osrm("retrofit", *ADAPTERS, "--features", "other", cwd=project_copy)
    assert run.code == 1
    assert "--target-modules query --target-modules value" in run.stderr
