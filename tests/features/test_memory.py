"""Statistics within bounds: what they take is said before, and groups of layers give the bytes of one pass."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.features import memory as memory_module
from osrm_cli.features.collect import collect_features
from osrm_cli.features.memory import StatisticsSize, format_memory_size, parse_statistics_memory, plan_statistics_memory
from osrm_cli.features.statistics.table import find_statistic
from tests.conftest import WORDS, save_tokenizer
from tests.run_cli import ROOT, osrm

LIMIT = "256MiB"
STATISTICS = ["mean", "second-moment", "sketch:4", "samples"]
MOMENTS = StatisticsSize([find_statistic("mean"), find_statistic("second-moment")], 100, 2048)
Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("1.5 mib", 3 << 19), ("700B", 700), ("2TiB", 2 << 40), ("0.5KiB", 512)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_statistics_memory(text) == size
    assert parse_statistics_memory(format_memory_size(size)) == size


@pytest.mark.parametrize("text", ["", "8", "8G", "8GB", "-1GiB", "0B", "0.1B", "1e9B", "lots", "9" * 5000 + "B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OsrmError, match="expected a size with its unit"):
        parse_statistics_memory(text)


@pytest.mark.parametrize("size", [1, 1023, 1025, 123_456_789, (1 << 33) + 1])
def test_a_size_rounded_up_is_enough(size: int) -> None:
    assert size <= parse_statistics_memory(format_memory_size(size, up=True)) <= 1.2 * size


def test_layers_of_an_8b_model_fit_into_8_gib() -> None:
    """32 layers: queries, keys and values share an input, gate and up another."""
    widths = {"self_attn.q_proj": 4096, "self_attn.o_proj": 4096, "mlp.gate_proj": 4096, "mlp.down_proj": 14336}
    layers = {f"{layer}.{name}": width for layer in range(32) for name, width in widths.items()}
    plan = plan_statistics_memory(layers, MOMENTS, 8 << 30)
    assert [name for group in plan.groups for name in group] == list(layers)
    assert len(plan.groups) == 6
    assert plan.peak <= 8 << 30 < plan.whole
    assert plan_statistics_memory(layers, MOMENTS, plan.whole).groups == [list(layers)]
    assert len(plan_statistics_memory(dict.fromkeys("abc", 4096), MOMENTS, MOMENTS.bytes([4096] * 2)).groups) == 2


def test_a_layer_that_does_not_fit() -> None:
    with pytest.raises(OsrmError) as caught:
        plan_statistics_memory({"a": 64, "down": 28672}, MOMENTS, 8 << 30)
    found = "the statistics of down, whose inputs are 28,672 wide, take 9.9GiB, --memory allows 8GiB"
    assert str(caught.value) == found
    needed = re.fullmatch(
        r"give it with --memory (\S+), or take --statistic sketch:64 instead of second-moment: \S+",
        caught.value.hint or "",
    )
    assert needed
    assert len(plan_statistics_memory({"down": 28672}, MOMENTS, parse_statistics_memory(needed[1])).groups) == 1


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers, beside which that would be all."""
    monkeypatch.setattr(memory_module, "WORK_BYTES", 0)


def collect(folder: Path, tasks: Path, out: Path, **settings: Any) -> dict[str, bytes]:
    """The files of two tasks, byte by byte."""
    names = sorted(path.name for path in tasks.iterdir())[:2]
    chosen = {"samples": 20, "max_length": 32, "batch_size": 3, "statistics": STATISTICS, **settings}
    done = collect_features(names, tasks, model=str(folder), out=out, **chosen)
    passes = {plan["passes"] for plan in done.memory.values()}
    assert not passes or (min(passes) > 1) == ("memory" in settings)
    return {name: path.read_bytes() for name, path in done.paths.items() if path.exists()}


def least_memory(*where: Path, **settings: Any) -> str:
    """What the errors ask for until there is none."""
    memory = "1B"
    while True:
        try:
            collect(*where, dry_run=True, memory=memory, **settings)
        except OsrmError as error:
            memory = re.findall(r"--memory ([\d.]+[KM]?i?B)", error.hint or "")[0]
        else:
            return memory


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("more", [{}, {"offload": True}, {"shard": "2/3"}], ids=["whole", "offload", "shard"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_groups_of_layers_give_the_same_bytes(
    family: str, more: dict[str, Any], tiny_writer: Tiny, completion_tasks: Path, tmp_path: Path
) -> None:
    targets = {"target_modules": ["q", "k", "v", "wi", "wo"] if family == "t5" else ["all-linear"], **more}
    where = tiny_writer(family), completion_tasks
    whole = collect(*where, tmp_path / "whole", **targets)
    memory = least_memory(*where, tmp_path / "none", **targets)
    assert collect(*where, tmp_path / "groups", memory=memory, **targets) == whole
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("no_work")
def test_a_gradient_stands_beside_groups(tiny_model: Tiny, text_tasks: Path, tmp_path: Path) -> None:
    settings = {"statistics": ["second-moment", "gradient"], "pooling": "padded"}
    where = tiny_model("bert"), text_tasks
    whole = collect(*where, tmp_path / "whole", **settings)
    memory = least_memory(*where, tmp_path / "none", **settings)
    assert collect(*where, tmp_path / "groups", memory=memory, **settings) == whole


@pytest.mark.usefixtures("no_work")
def test_what_is_said(project_copy: Path) -> None:
    words = ("collect", "--task", "mood", "--samples", 8, "--target-modules", "dense", "--out", "new")
    run = osrm(*words, "--dry-run", cwd=project_copy)
    assert re.search(r"^  statistics take up to \d+(\.\d)?KiB beside the model, in one pass$", run.stdout, re.M)
    plan = json.loads(osrm(*words, "--dry-run", "--json", cwd=project_copy).stdout)["memory"]["mood"]
    assert plan["memory"] == plan["memory_of_one_pass"]
    run = osrm(*words, "--memory", "10KiB", cwd=project_copy)
    found = "the statistics of bert.encoder.layer.0.attention.output.dense, whose inputs are 16 wide, take "
    assert (run.code, run.error.startswith(found), run.error.endswith("--memory allows 10KiB")) == (1, True, True)
    assert not (project_copy / "new").exists()
    needed = (plan["memory"] * 9) // 10
    run = osrm(*words, "--memory", f"{needed}B", cwd=project_copy)
    assert run.code == 0, run
    assert re.search(r"statistics are collected in \d passes; --memory \S+ would do with one", run.stderr)


def test_a_disk_without_room(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("collect", "--task", "mood", "--samples", 8, "--out", "new")
    assert osrm(*words, cwd=project_copy).code == 0
    needed = (project_copy / "new/mood.safetensors").stat().st_size
    usage = shutil.disk_usage(project_copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed // 3))
    run = osrm(*words, "--overwrite", cwd=project_copy)
    assert (run.code, run.error.split(":")[0]) == (1, "cannot write new/mood.safetensors")


MEASURE = """
import sys
from pathlib import Path
from osrm_cli.features.collect import collect_features

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def run(statistics, memory):
    settings = dict(target_modules=["down_proj"], samples=12, batch_size=4, statistics=statistics, memory=memory)
    collect_features([], "tasks", model="model", out="features", overwrite=True, **settings)

run(["mean"], "8GiB")
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
run(["second-moment"], sys.argv[1])
print(memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers whose inputs are far wider than anything else."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("wide")
    (folder / "model").mkdir()
    size = save_tokenizer(folder / "model", "llama")
    shape = {"hidden_size": 16, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=size, bos_token_id=1, eos_token_id=2, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    (folder / "tasks/words").mkdir(parents=True)
    rows = [{"prompt": " ".join(WORDS[i : i + 9]) + " ", "completion": "good"} for i in range(12)]
    (folder / "tasks/words/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def measure_peak(wide: Path, memory: str) -> tuple[int, bytes]:
    """Bytes above those of a process that has collected means, and what was written."""
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, memory], cwd=wide, env=around, capture_output=True, text=True, check=True
    )
    return int(run.stdout), (wide / "features/words.safetensors").read_bytes()


@pytest.mark.slow
def test_the_bound_is_kept(wide: Path) -> None:
    unbounded, whole = measure_peak(wide, "8GiB")
    bounded, same = measure_peak(wide, LIMIT)
    assert same == whole
    assert bounded < parse_statistics_memory(LIMIT) < unbounded  # six sums of 50 MB, and a matrix of 38
