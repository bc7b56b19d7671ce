"""The pipeline on tasks that are answered with text, from outside, on small causal models and a T5."""

import json
import shutil
import string
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.run_cli import osrm

COMMANDS = (
    "collect --samples 20 --statistic mean --statistic second-moment",
    "init --each --rank 4",
    "train starts/same starts/backwards starts/last --epochs 2 --lr 0.01 --interference-penalty 0",
    "merge adapters/same adapters/backwards adapters/last --method task-arith --lambda 0.5",
    "eval merged --base --predictions",
)


FAMILIES = ("llama", "gpt2", "t5", "mistral", "gemma2", "qwen2")


@pytest.fixture(scope="session", params=FAMILIES)
def written(
    request: pytest.FixtureRequest,
    tiny_writer: Callable[[str], Path],
    completion_tasks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A project of three text tasks: features, starts, adapters, merged folder, scores; never written to by a test."""
    folder = tmp_path_factory.mktemp(f"written-{request.param}")
    (folder / "osrm.toml").write_text(
        f'model = "{tiny_writer(request.param)}"\ndata = "{completion_tasks}"\ndtype = "float32"\nquiet = true\n'
    )
    for command in COMMANDS:
        assert osrm(*command.split(), cwd=folder).code == 0
    return folder


def family_of(folder: Path) -> str:
    return next(name for name in FAMILIES if name in folder.name)


def load_base(folder: Path, tiny_writer: Callable[[str], Path]) -> Any:
    kind = AutoModelForSeq2SeqLM if family_of(folder) == "t5" else AutoModelForCausalLM
    return kind.from_pretrained(tiny_writer(family_of(folder))).eval()


def load_peft(base: Any, folder: Path, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(base, str(folder), **settings)


def loss(model: Any, folder: Path, task: str, tiny_writer: Callable[[str], Path], tasks: Path) -> float:
    """Mean loss per completion token by plain transformers, one example at a time."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_writer(family_of(folder)))
    total, count = 0.0, 0
    for line in (tasks / task / "dev.jsonl").read_text().splitlines():
        row = json.loads(line)
        if family_of(folder) == "t5":
            inputs = tokenizer(row["prompt"], return_tensors="pt")
            labels = tokenizer(row["completion"], return_tensors="pt").input_ids
        else:
            start = len(tokenizer(row["prompt"]).input_ids)
            ids = [*tokenizer(row["prompt"] + row["completion"]).input_ids, tokenizer.eos_token_id]
            inputs = {"input_ids": torch.tensor([ids])}
            labels = torch.tensor([[-100] * start + ids[start:]])
        with torch.no_grad():
            value = model(**inputs, labels=labels).loss
        tokens = int((labels != -100).sum())
        total, count = total + float(value) * tokens, count + tokens
    return total / count


def test_starts_leave_the_base_as_it_is_and_can_be_trained_by_anyone(
    written: Path, tiny_writer: Callable[[str], Path]
) -> None:
    config = json.loads((written / "starts" / "same" / "adapter_config.json").read_text())
    assert config["task_type"] == ("SEQ_2_SEQ_LM" if family_of(written) == "t5" else "CAUSAL_LM")
    assert config["modules_to_save"] is None
    base = load_base(written, tiny_writer)
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    if family_of(written) == "t5":
        ids["decoder_input_ids"] = ids["input_ids"]
    with torch.no_grad():
        before = base(**ids).logits
        model = load_peft(base, written / "starts" / "same", is_trainable=True).eval()
        assert torch.equal(model(**ids).logits, before)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_scores_are_plain_transformers_losses(
    written: Path, tiny_writer: Callable[[str], Path], completion_tasks: Path
) -> None:
    scores = json.loads((written / "merged" / "scores.json").read_text())
    for task, row in scores["tasks"].items():
        folders = {"merged": written / "merged", "single": written / "adapters" / task}
        models = {name: load_peft(load_base(written, tiny_writer), path).eval() for name, path in folders.items()}
        models["base"] = load_base(written, tiny_writer)
        expected = {n: loss(model, written, task, tiny_writer, completion_tasks) for n, model in models.items()}
        assert row["metrics"]["loss"] == pytest.approx(expected["merged"], abs=1e-5)
        assert row["single_loss"] == pytest.approx(expected["single"], abs=1e-5)
        assert row["base_loss"] == pytest.approx(expected["base"], abs=1e-5)
        assert row["loss_ratio"] == pytest.approx(100 * expected["single"] / expected["merged"])
        gained, kept = expected["base"] - expected["single"], expected["base"] - expected["merged"]
        assert row["kept"] == pytest.approx(100 * kept / gained, rel=1e-3)
        assert expected["single"] < expected["base"], "training has taught the adapter nothing"
        assert len(scores["answers"][task]) == row["examples"] == 12
    for key in ("loss_ratio", "kept"):
        assert scores["average"][key] == pytest.approx(sum(row[key] for row in scores["tasks"].values()) / 3)


def test_recorded_dev_loss_is_that_of_eval(written: Path) -> None:
    scores = json.loads((written / "merged" / "scores.json").read_text())
    for task, row in scores["tasks"].items():
        recorded = json.loads((written / "adapters" / task / "training.json").read_text())["dev"]["scores"]
        assert recorded["loss"] == pytest.approx(row["single_loss"], abs=1e-5)


@pytest.mark.parametrize("written", ["llama"], indirect=True)
def test_empty_answers_are_told(written: Path, completion_tasks: Path, tmp_path: Path) -> None:
    shutil.copytree(completion_tasks / "last", tmp_path / "tasks" / "last")
    (tmp_path / "tasks" / "last" / "task.toml").write_text(f"stop = {list(string.printable[:94])}\n".replace("'", '"'))
    words = ("eval", str(written / "merged"), "--task", "last", "--data", "tasks", "--out", "scores.json")
    done = osrm(*words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "last: 12 of 12 answers of the merged model are empty" in done.stderr
    assert "answers of the merged" not in osrm(*words, "--no-generate", "--overwrite", cwd=tmp_path).stderr


def test_merged_alone_is_the_result(written: Path) -> None:
    assert not (written / "merged" / "tasks").exists()
    config = json.loads((written / "merged" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["rank_pattern"] == {}
    card = (written / "merged" / "README.md").read_text()
    auto = "AutoModelForSeq2SeqLM" if family_of(written) == "t5" else "AutoModelForCausalLM"
    assert f"PeftModel.from_pretrained({auto}.from_pretrained(" in card
    assert "type: text-generation" in card


def test_whole_model_scores_as_the_adapter(written: Path, tmp_path: Path) -> None:
    adapters = [str(written / "adapters" / task) for task in ("backwards", "last", "same")]
    (tmp_path / "osrm.toml").write_bytes((written / "osrm.toml").read_bytes())
    assert osrm("merge", *adapters, "--lambda", "0.5", "--as", "model", cwd=tmp_path).code == 0
    assert osrm("eval", "merged", cwd=tmp_path).code == 0
    ours = json.loads((tmp_path / "merged" / "scores.json").read_text())["tasks"]
    for task, row in json.loads((written / "merged" / "scores.json").read_text())["tasks"].items():
        assert ours[task]["metrics"]["loss"] == pytest.approx(row["metrics"]["loss"], abs=1e-5)
        assert ours[task]["single"] == row["single"]


def test_sweep_scores_losses_and_the_best_writes(written: Path, tmp_path: Path) -> None:
    adapters = [str(written / "adapters" / task) for task in ("backwards", "last", "same")]
    (tmp_path / "osrm.toml").write_bytes((written / "osrm.toml").read_bytes())
    done = osrm(
        "sweep", *adapters, "--method", "task-arith", "--method", "ties", "--lambda", "0,0.5,1", "--generate",
        "--validation-split", "train", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    sweep = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    merged = json.loads((written / "merged" / "scores.json").read_text())["tasks"]
    point = next(p for p in sweep["points"] if p["method"] == "task-arith" and p["options"]["lambda"] == 0.5)
    base = next(p for p in sweep["points"] if p["method"] == "task-arith" and p["options"]["lambda"] == 0)
    for task, row in merged.items():
        assert point["test"]["tasks"][task]["metrics"]["loss"] == pytest.approx(row["metrics"]["loss"], abs=1e-5)
        assert base["test"]["tasks"][task]["metrics"]["loss"] == pytest.approx(row["base_loss"], abs=1e-5)
        assert sweep["single"]["test"]["tasks"][task]["metrics"]["exact_match"] == row["single"]
    best = {row["point"] for row in sweep["best"]}
    for index, point in enumerate(sweep["points"]):
        wrote = "exact_match" in point["test"]["tasks"]["same"]["metrics"]
        assert wrote == (index in best)


def test_sweep_in_which_every_point_writes_selects_by_the_tasks_metrics(written: Path, tmp_path: Path) -> None:
    adapters = [str(written / "adapters" / task) for task in ("backwards", "last", "same")]
    (tmp_path / "osrm.toml").write_bytes((written / "osrm.toml").read_bytes())
    words = ("--lambda", "0,0.5,1", "--validation-split", "train", "--limit", 12, "--generate-all")
    done = osrm("sweep", *adapters, *words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    sweep = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert sweep["settings"]["generate"] == "all"
    for point in (sweep["single"], *sweep["points"]):
        for part in ("validation", "test"):
            for row in point[part]["tasks"].values():
                assert row["headline"] == row["metrics"]["exact_match"] != row["metrics"]["likelihood"]
    merged = json.loads((written / "merged" / "scores.json").read_text())["tasks"]
    point = next(point for point in sweep["points"] if point["options"]["lambda"] == 0.5)
    for task, row in merged.items():
        assert point["test"]["tasks"][task]["headline"] == row["headline"]
        assert sweep["single"]["test"]["tasks"][task]["headline"] == row["single"]
    averages = [point["validation"]["average"] for point in sweep["points"]]
    assert [row["point"] for row in sweep["best"]] == [averages.index(max(averages))]


def test_diagnose_retrofit_and_report(written: Path, tmp_path: Path) -> None:
    adapters = [str(written / "adapters" / task) for task in ("backwards", "last", "same")]
    (tmp_path / "osrm.toml").write_bytes((written / "osrm.toml").read_bytes())
    features, scores = str(written / "features"), str(written / "merged" / "scores.json")
    assert osrm("diagnose", features, *adapters, "--scores", scores, cwd=tmp_path).code == 0
    done = osrm("retrofit", *adapters, "--features", features, "--out", "retrofitted", cwd=tmp_path)
    assert done.code == 0, done.stderr
    retrofitted = sorted(str(path) for path in (tmp_path / "retrofitted").iterdir())
    assert osrm("merge", *retrofitted, cwd=tmp_path).code == 0
    assert osrm("eval", "merged", "--no-generate", cwd=tmp_path).code == 0
    row = json.loads((tmp_path / "merged" / "scores.json").read_text())["tasks"]["same"]
    assert row["headline"] == row["metrics"]["likelihood"]
    done = osrm("report", scores, "--out", "report", cwd=tmp_path)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("written", FAMILIES[:3], indirect=True)
def test_methods_that_read_data(written: Path, completion_tasks: Path, tmp_path: Path) -> None:
    """Prompts alone suffice for those that learn from the single adapters; Fisher needs completions."""
    (tmp_path / "osrm.toml").write_bytes((written / "osrm.toml").read_bytes())
    for task in ("last", "same"):
        rows = [json.loads(line) for line in (completion_tasks / task / "train.jsonl").read_text().splitlines()]
        path = tmp_path / "prompts" / task / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))

    def merge(*words: str) -> Any:
        adapters = [str(written / "adapters" / task) for task in ("last", "same")]
        return osrm("merge", *adapters, "--overwrite", *words, cwd=tmp_path)

    prompts, steps = ("--data", "prompts", "--samples", "10"), ("--steps", "3")
    for words in (("distill", *steps), ("matched-weights", *steps), ("sequential",), ("regmean++",)):
        done = merge("--method", *words, *prompts, "--out", "learned")
        assert done.code == 0, done.stderr
        done = merge("--method", *words, "--samples", "10")
        assert done.code == 0, done.stderr
        name = "adapter_model.safetensors"
        assert (tmp_path / "learned" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()
    assert merge("--method", "distill", *steps, "--samples", "10", "--completions", "given").code == 0
    assert (tmp_path / "learned" / name).read_bytes() != (tmp_path / "merged" / name).read_bytes()
    for words in (("distill", "--completions", "given"), ("fisher",)):
        assert "has the columns prompt, expected prompt and completion" in merge("--method", *words, *prompts).error
    assert merge("--method", "fisher", "--samples", "10").code == 0
    assert "'last' is answered with text" in merge("--method", "adamerging").error
    assert "has no split 'train'" in _without_train(tmp_path, merge)


def _without_train(folder: Path, merge: Callable[..., Any]) -> str:
    path = folder / "prompts" / "last" / "train.jsonl"
    path.rename(path.with_name("dev.jsonl"))
    error: str = merge("--method", "distill", "--data", "prompts").error
    return error


def test_auto_reads_prompts_where_there_are_some(written: Path, tmp_path: Path) -> None:
    adapters = [str(written / "adapters" / task) for task in ("last", "same")]
    (tmp_path / "osrm.toml").write_bytes((written / "osrm.toml").read_bytes())
    done = osrm("merge", *adapters, "--method", "auto", "--dry-run", cwd=tmp_path)
    assert "by sequential" in done.stdout, done.stderr
    done = osrm("merge", *adapters, "--method", "auto", "--data", "nowhere", "--dry-run", cwd=tmp_path)
    assert "by knots-ties" in done.stdout, done.stderr
    words = ["--features", str(written / "features"), "--data", "nowhere"]
    done = osrm("merge", *adapters, "--method", "auto", *words, "--dry-run", cwd=tmp_path)
    assert "by regmean" in done.stdout, done.stderr


@pytest.mark.parametrize(("key", "value"), [("chat_template", "{{ messages }}"), ("eos_token", "w1")])
def test_another_template_or_end_token_is_refused(
    key: str, value: str, written: Path, tiny_writer: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / tiny_writer(family_of(written)).name
    shutil.copytree(tiny_writer(family_of(written)), base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, key: value}))
    commands = [("eval", "merged"), ("eval", "adapters/last"), ("sweep", "adapters/last", "adapters/same")]
    for command, *folders in commands:
        paths = [str(written / folder) for folder in folders]
        done = osrm(command, *paths, "--model", str(base), "--out", "scores", "-q", cwd=tmp_path)
        assert done.code == 1
        assert f"the adapter was trained with another {key.replace('_', ' ')} than the model's" in done.error
        assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("written", ["llama"], indirect=True)
def test_classifier_and_writer_of_one_base_merge_together(
    written: Path, tiny_writer: Callable[[str], Path], text_tasks: Path, completion_tasks: Path, tmp_path: Path
) -> None:
    model = str(tiny_writer("llama"))
    for command in (
        f"collect --task mood --task pair --data {text_tasks} --model {model} --samples 20",
        "init --each --rank 4",
        "train starts/mood --epochs 1 --lr 0.01",
        f"merge adapters/mood {written / 'adapters' / 'same'} --lambda 0.5",
        "eval merged",
    ):
        done = osrm(*command.split(), cwd=tmp_path)
        assert done.code == 0, done.stderr
    tasks = json.loads((tmp_path / "merged" / "scores.json").read_text())["tasks"]
    assert "accuracy" in tasks["mood"]["metrics"]
    assert "exact_match" in tasks["same"]["metrics"]
    assert [path.name for path in (tmp_path / "merged" / "tasks").iterdir()] == ["mood"]
    done = osrm("train", "starts/mood", "--data", str(completion_tasks), "--out", "again", cwd=tmp_path)
    assert done.code == 1
