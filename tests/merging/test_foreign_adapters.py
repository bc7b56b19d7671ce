"""Adapters as Axolotl and LLaMA-Factory leave them: PEFT's files, with what these trainers save beside them.

The folders are built by PEFT and transformers, as the trainers' sources have it: Axolotl saves the base model's
``config.json`` and the tokenizer with its template and added tokens; LLaMA-Factory the tokenizer, logs and checkpoints.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.run_cli import osrm

TEMPLATE = "{% for message in messages %}{{ message.role[0] + ' ' + message.content + ' </s> ' }}{% endfor %}"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TASKS = ("same", "backwards")


def train(base: Path, seed: int, **settings: Any) -> Any:
    """A PEFT model whose factors are random, as if it had been trained."""
    model = AutoModelForCausalLM.from_pretrained(base)
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, **settings))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return peft_model


def save_axolotl(folder: Path, base: Path, seed: int) -> None:
    """``output_dir`` of Axolotl's ``train.py``: special tokens renamed, a template of its own, the model's settings."""
    model = train(base, seed, r=8, lora_alpha=16, target_modules=LINEAR, modules_to_save=None, exclude_modules=None)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<mask>"})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=True)
    model.config.save_pretrained(folder)
    (folder / "debug.log").write_text("axolotl\n")
    (folder / "README.md").write_text("---\nlibrary_name: peft\ntags:\n- axolotl\n---\n")
    model.save_pretrained(folder / "checkpoint-10")


def save_llama_factory(folder: Path, base: Path, seed: int) -> None:
    """``output_dir`` of LLaMA-Factory's ``sft`` workflow with ``plot_loss``: regular LoRA with ``lora_target: all``."""
    model = train(base, seed, r=4, lora_alpha=8, target_modules=LINEAR[::-1], modules_to_save=None, use_rslora=True)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    GenerationConfig(max_new_tokens=7, eos_token_id=[2, 4]).save_pretrained(folder)
    model.save_pretrained(folder / "checkpoint-20")
    (folder / "checkpoint-20" / "trainer_state.json").write_text("{}")
    for name in ("all_results.json", "train_results.json", "trainer_state.json"):
        (folder / name).write_text("{}")
    (folder / "trainer_log.jsonl").write_text('{"current_steps": 1}\n')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "llamaboard_config.yaml").write_text("top.lang: en\n")


SAVERS = {"axolotl": save_axolotl, "llama-factory": save_llama_factory}


@pytest.fixture(params=SAVERS)
def trained(request: pytest.FixtureRequest, tiny_writer: Callable[[str], Path], tmp_path: Path) -> Path:
    """A project with two adapters of one trainer, named after their tasks."""
    base = tiny_writer("llama")
    for seed, task in enumerate(TASKS):
        SAVERS[request.param](tmp_path / "adapters" / task, base, seed)
    return tmp_path


def run(folder: Path, *words: str) -> None:
    done = osrm(*words, cwd=folder)
    assert done.code == 0, (words, done.stderr)


def test_every_command_takes_them(trained: Path, tiny_writer: Callable[[str], Path], completion_tasks: Path) -> None:
    base, data = ("--model", str(tiny_writer("llama"))), ("--data", str(completion_tasks))
    adapters = [f"adapters/{task}" for task in TASKS]
    run(trained, "merge", *adapters, "--method", "ties", "--density", "0.5", "--rank", "8")
    run(trained, "eval", "merged", *base, *data)
    scores = json.loads((trained / "merged" / "scores.json").read_text())["tasks"]
    assert set(scores) == set(TASKS)
    run(trained, "collect", *base, *data, "--target-modules", "all-linear", "--samples", "20")
    run(trained, "diagnose", "features", *adapters)
    run(trained, "retrofit", *adapters, "--features", "features", "--out", "retrofitted")
    run(trained, "merge", *(f"retrofitted/{task}" for task in TASKS), "--out", "again")
    run(trained, "eval", "again", *base, *data, "--no-generate")


def test_what_lies_beside_them_arrives(trained: Path, tiny_writer: Callable[[str], Path]) -> None:
    base, adapters = str(tiny_writer("llama")), [f"adapters/{task}" for task in TASKS]
    theirs = AutoTokenizer.from_pretrained(trained / adapters[0])
    run(trained, "merge", *adapters)
    run(trained, "merge", *adapters, "--as", "model", "--model", base, "--out", "whole")
    for folder in (trained / "merged", trained / "whole"):
        ours = AutoTokenizer.from_pretrained(folder)
        assert ours.chat_template == theirs.chat_template == TEMPLATE
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.get_added_vocab() == theirs.get_added_vocab()
        expected = trained / adapters[0] / "generation_config.json"
        if expected.is_file():
            assert GenerationConfig.from_pretrained(folder).max_new_tokens == 7
            assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 4]
    for unwanted in ("training_args.bin", "trainer_state.json", "debug.log", "checkpoint-10", "checkpoint-20"):
        assert not (trained / "merged" / unwanted).exists()
    config = json.loads((trained / "merged" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == base


def test_their_template_is_the_one_that_scores(trained: Path, tiny_writer: Callable[[str], Path]) -> None:
    """The base model has no chat template; what the adapters were trained with lies beside them."""
    base = ("--model", str(tiny_writer("llama")), "--data", "chats")
    rows = [
        {"messages": [{"role": "user", "content": f"w{i} w{i + 1} "}, {"role": "assistant", "content": f"w{i} "}]}
        for i in range(8)
    ]
    for task in TASKS:
        (trained / "chats" / task).mkdir(parents=True)
        (trained / "chats" / task / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapters = [f"adapters/{task}" for task in TASKS]
    run(trained, "merge", *adapters, "--lambda", "0.5")
    run(trained, "eval", "merged", *base, "--base")
    run(trained, "merge", *adapters, "--lambda", "0.5", "--as", "model", *base[:2], "--out", "whole")
    run(trained, "eval", "whole", *base)
    run(trained, "sweep", *adapters, "--method", "task-arith", "--lambda", "0.5", *base)
    scores = [json.loads((trained / name / "scores.json").read_text())["tasks"] for name in ("merged", "whole")]
    for task in TASKS:
        assert scores[0][task]["metrics"]["loss"] == pytest.approx(scores[1][task]["metrics"]["loss"], abs=1e-5)


def test_the_sum_is_peft_s_own(trained: Path, tiny_writer: Callable[[str], Path]) -> None:
    base = tiny_writer("llama")
    run(trained, "merge", *(f"adapters/{task}" for task in TASKS), "--method", "task-arith", "--lambda", "0.5")
    run(trained, "merge", *(f"adapters/{task}" for task in TASKS), "--lambda", "0.5", "--as", "model", "--out", "whole",
        "--model", str(base))  # fmt: skip
    expected = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for task in TASKS:
        peft_model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), trained / "adapters" / task)
        merged = peft_model.merge_and_unload().state_dict()
        plain = AutoModelForCausalLM.from_pretrained(base).state_dict()
        for name in expected:
            expected[name] = expected[name] + 0.5 * (merged[name] - plain[name])
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), trained / "merged")
    for ours in (adapter.merge_and_unload(), AutoModelForCausalLM.from_pretrained(trained / "whole")):
        for name, tensor in ours.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


def grow(folder: Path, base: Path, seed: int) -> None:
    """An adapter with two tokens more, as both trainers save it: embeddings and output layer as a whole."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    peft_model = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    peft_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, that embeddings have grown
def test_added_tokens_arrive_with_their_embeddings(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path: Path
) -> None:
    base = tiny_writer("llama")
    for seed, task in enumerate(TASKS):
        grow(tmp_path / "adapters" / task, base, seed)
    adapters = [f"adapters/{task}" for task in TASKS]
    run(tmp_path, "merge", *adapters)
    run(tmp_path, "merge", *adapters, "--as", "model", "--model", str(base), "--out", "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids = torch.tensor([tokenizer("w1 <tool> w2").input_ids])
    assert tokenizer.convert_tokens_to_ids("<tool>") in ids[0]
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    adapter = PeftModel.from_pretrained(model, tmp_path / "merged").eval()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert whole.config.vocab_size == len(tokenizer)
    data = ("--data", str(completion_tasks), "--no-single", "--no-generate")
    run(tmp_path, "eval", "whole", "--model", str(base), *data)
    refused = osrm("eval", "merged", "--model", str(base), *data, cwd=tmp_path)
    assert "size mismatch" in refused.error
    assert "merge with --as model and score that" in refused.stderr
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, adapter(ids).logits, atol=1e-5, rtol=1e-5)
