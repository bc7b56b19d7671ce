"""Folders in which the commands of the documents run: classifiers of GLUE's tasks, and writers, on tiny models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents.running import run_osrm

# GLUE's names, columns and labels, so that the commands run as they stand.
Row = Callable[[int], dict[str, object]]
GLUE: dict[str, Row] = {
    "sst2": lambda i: {"sentence": f"w{i % 50} {('bad', 'good')[i % 2]}", "label": i % 2},
    "mrpc": lambda i: {"sentence1": f"w{i % 40} w3", "sentence2": f"w{i % 40} w{3 + i % 2}", "label": 1 - i % 2},
    "stsb": lambda i: {"sentence1": f"w{i % 30} w5", "sentence2": f"w{i % 30} w{5 + i % 5}", "score": 5.0 - i % 5},
}
MORE_GLUE: dict[str, Row] = {
    "cola": lambda i: {"sentence": f"w{i % 50} {('poor', 'fine')[i % 2]} w7", "label": i % 2},
    "qqp": lambda i: {"question1": f"w{i % 40} w4", "question2": f"w{i % 40} w{4 + i % 2}", "label": 1 - i % 2},
    "mnli": lambda i: {"premise": f"w{i % 40} w6", "hypothesis": f"w{i % 40} w{6 + i % 3}", "label": i % 3},
    "qnli": lambda i: {"question": f"w{i % 40} w8", "sentence": f"w{i % 40} w{8 + i % 2}", "label": i % 2},
    "rte": lambda i: {"sentence1": f"w{i % 40} w9", "sentence2": f"w{i % 40} w{9 + i % 2}", "label": i % 2},
}
WRITERS = ("arithmetic", "e2e", "grammar", "snips", "wikisplit", "wikisql")


def _write_tasks(folder: Path, tasks: dict[str, Row]) -> None:
    for task, row in tasks.items():
        for split, size in {"train": 150, "dev": 40}.items():
            path = folder / "data" / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(size)))


def _run(commands: tuple[str, ...], folder: Path) -> None:
    for command in commands:
        run_osrm(command.split(), folder)


@pytest.fixture(scope="session")
def stand_ins(tiny_model: Callable[[str], Path], tiny_writer: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny models for those that the documents name."""
    writer = tiny_writer("llama")
    return {"minilm": tiny_model("bert"), "smollm2": writer, "meta-llama/Llama-3.1-8B": writer}


@pytest.fixture(scope="session")
def pipeline(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands have run: what every guide begins with."""
    folder = tmp_path_factory.mktemp("pipeline")
    _write_tasks(folder, GLUE)
    (folder / "osrm.toml").write_text(f'model = "{tiny_model("bert")}"\ndata = "data"\nquiet = true\n')
    first = "collect --statistic mean --statistic second-moment --statistic sketch:8 --statistic gradient"
    _run((first, "init --each --rank 2", "train starts/*", "merge adapters/*", "eval merged"), folder)
    return folder


@pytest.fixture(scope="session")
def glue(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight tasks, and their features, starts and adapters; in ``other/`` those of sst2 on another model."""
    folder = tmp_path_factory.mktemp("glue")
    _write_tasks(folder, GLUE | MORE_GLUE)
    (folder / "osrm.toml").write_text(f'model = "{tiny_model("bert")}"\ndata = "data"\nquiet = true\n')
    train = "train starts/* --epochs 1 --limit 32 --out made"
    _run(("collect --samples 50", "init --each --rank 2", train), folder)
    model = tiny_model("mpnet")
    features = f"collect --task sst2 --samples 50 --model {model} --out other/features"
    start = "init --features other/features --exclude sst2 --objective kaiming --rank 2 --out other/starts"
    train = f"train other/starts/sst2 --model {model} --epochs 1 --limit 32 --out other/adapters"
    _run((features, start, train), folder)
    return folder


@pytest.fixture(scope="session")
def writers(
    tiny_writer: Callable[[str], Path], completion_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Six tasks that are answered with text, one as classifiers would have it, and their adapters."""
    folder = tmp_path_factory.mktemp("writers")
    for task, source in zip(WRITERS, ("same", "backwards", "last") * 2, strict=True):
        shutil.copytree(completion_tasks / source, folder / "tasks" / task)
        rows = [json.loads(line) for line in (folder / f"tasks/{task}/train.jsonl").read_text().splitlines()]
        prompts = folder / f"prompts/{task}/train.jsonl"
        prompts.parent.mkdir(parents=True)
        prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    (folder / "osrm.toml").write_text(f'model = "{tiny_writer("llama")}"\ndata = "tasks"\nquiet = true\n')
    train = "train starts/* --epochs 1 --limit 16 --out made"
    _run(("collect --samples 10", "init --each --rank 2", train), folder)
    return folder
