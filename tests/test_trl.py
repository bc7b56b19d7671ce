"""Starts that TRL's SFTTrainer trains, and the folders that it saves, in every command."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.text.completions import CompletionTokenizer
from osrm_cli.tasks.loading import draw_examples, load_split
from tests.run_cli import listing, osrm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of TRL's own settings
WEIGHTS = "adapter_model.safetensors"
TASKS = ("last", "same")
ADAPTERS = tuple(f"adapters/{task}" for task in TASKS)
IDS = torch.tensor([[5, 6, 7]])


def load_peft(base: Path, folder: Path, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder), **settings)


def run(folder: Path, *words: str) -> str:
    done = osrm(*words, cwd=folder)
    assert done.code == 0, (words, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def trained(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project whose starts TRL has trained; never written to by a test."""
    trl = pytest.importorskip("trl")
    from datasets import load_dataset

    folder, base = tmp_path_factory.mktemp("trl"), tiny_writer("llama")
    (folder / "osrm.toml").write_text(
        f'model = "{base}"\ndata = "{completion_tasks}"\ndtype = "float32"\nquiet = true\n'
    )
    run(folder, "collect", "--samples", "20", *(word for task in TASKS for word in ("--task", task)))
    run(folder, "init", "--each", "--rank", "4")
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    for task in TASKS:
        trainer = trl.SFTTrainer(
            load_peft(base, folder / "starts" / task, is_trainable=True),
            trl.SFTConfig(
                output_dir=str(folder / "out"), report_to="none", use_cpu=True, bf16=False, max_steps=10,
                learning_rate=0.01, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            ),
            train_dataset=load_dataset("json", data_files=str(completion_tasks / task / "train.jsonl"), split="train"),
            processing_class=AutoTokenizer.from_pretrained(base, pad_token="<unk>"),
        )  # fmt: skip
        assert torch.equal(trainer.model.eval()(IDS).logits, before)
        trainer.train()
        trainer.save_model(str(folder / "adapters" / task))
        saved = load_file(folder / "adapters" / task / WEIGHTS)
        assert any("lora_B" in name and tensor.any() for name, tensor in saved.items())
        assert not (folder / "adapters" / task / "osrm.json").exists()
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A folder of its own with the same features and adapters."""
    for name in ("osrm.toml", "features", "adapters"):
        (tmp_path / name).symlink_to(trained / name)
    return tmp_path


def inputs_of(base: Path, data: Path, task: str, layers: list[str]) -> dict[str, torch.Tensor]:
    """Each layer's inputs, ``(tokens, d_in)``, by hooks on the base model, one example at a time."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    examples = draw_examples(load_split(task, data, "train"), 20, 0).text_examples
    seen: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    for layer in layers:
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, layer=layer: seen[layer].append(args[0][0].double())
        )
    for encoding in CompletionTokenizer(load_tokenizer(base), False, 64).encode(examples)[1]:
        with torch.no_grad():
            model(input_ids=torch.from_numpy(encoding["input_ids"]).long()[None])
    return {layer: torch.cat(parts) for layer, parts in seen.items()}


def updates_of(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """PEFT's own update of each adapted layer."""
    model = load_peft(base, folder).base_model.model
    return {
        name: module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def energy(matrix: torch.Tensor, inputs: torch.Tensor) -> float:
    """Mean of ``||W x||^2``."""
    return float((inputs @ matrix.T).square().sum(1).mean())


def test_merge_and_eval(project: Path) -> None:
    run(project, "merge", *ADAPTERS)
    run(project, "eval", "merged")
    assert set(json.loads((project / "merged" / "scores.json").read_text())["tasks"]) == set(TASKS)


def test_diagnose_measures_their_interference(
    project: Path, tiny_writer: Callable[[str], Path], completion_tasks: Path
) -> None:
    base = tiny_writer("llama")
    run(project, "merge", *ADAPTERS)
    run(project, "eval", "merged")
    found = json.loads(
        run(project, "diagnose", "features", *ADAPTERS, "--scores", "merged/scores.json", "--json")
    )["interference"]  # fmt: skip
    weights = AutoModelForCausalLM.from_pretrained(base).double()
    for own in TASKS:
        updates = updates_of(base, project / "adapters" / own)
        for other in TASKS:
            inputs = inputs_of(base, completion_tasks, other, list(updates))
            ratios = [
                energy(update, inputs[layer]) / energy(weights.get_submodule(layer).weight.detach(), inputs[layer])
                for layer, update in updates.items()
            ]
            assert found[own][other] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    assert found["last"]["same"] > 0


def test_retrofit_changes_a_alone_and_says_by_how_much(
    project: Path, tiny_writer: Callable[[str], Path], completion_tasks: Path
) -> None:
    base = tiny_writer("llama")
    run(project, "retrofit", *ADAPTERS, "--features", "features", "--out", "retrofitted")
    for own, other in (TASKS, TASKS[::-1]):
        old, new = project / "adapters" / own, project / "retrofitted" / own
        before, after = (load_file(folder / WEIGHTS) for folder in (old, new))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]) == ("lora_B" in name), name
        assert (new / "adapter_config.json").read_bytes() == (old / "adapter_config.json").read_bytes()
        carried = {name for name in listing(old) if "token" in name}
        assert carried
        assert all((new / name).read_bytes() == (old / name).read_bytes() for name in carried)
        was, now = updates_of(base, old), updates_of(base, new)
        x = {task: inputs_of(base, completion_tasks, task, list(was)) for task in (own, other)}
        lost = sum(energy(now[layer] - was[layer], x[own][layer]) for layer in was)
        changed = json.loads((new / "osrm.json").read_text())["changed"]
        assert changed["own"] == pytest.approx((lost / sum(energy(was[n], x[own][n]) for n in was)) ** 0.5, rel=1e-4)
        left = sum(energy(now[layer], x[other][layer]) for layer in was)
        assert changed["others"] == pytest.approx(left / sum(energy(was[n], x[other][n]) for n in was), rel=1e-4)
        assert changed["others"] < 1
    run(project, "merge", *(f"retrofitted/{task}" for task in TASKS))
    run(project, "eval", "merged", "--no-generate")
