"""Shares of a task's examples, collected apart, are the whole."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osrm_cli.features import shards
from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.storage import input_files, safetensors_writer
from tests.run_cli import ROOT, listing, osrm

ALL = ("--statistic", "mean", "--statistic", "second-moment", "--statistic", "samples", "--statistic", "sketch:4")
ARGS = ("--samples", 20, "--batch-size", 3)
QUERY = "bert.encoder.layer.1.attention.self.query"


def collect(project_copy: Path, *more: object, task: str = "mood") -> None:
    run = osrm("collect", "--task", task, *ARGS, *more, cwd=project_copy)
    assert run.code == 0, run


def in_shards(project_copy: Path, count: int, *more: object, out: str = "parts", task: str = "mood") -> None:
    for index in range(1, count + 1):
        collect(project_copy, "--shard", f"{index}/{count}", "--out", out, *more, task=task)


@pytest.mark.parametrize("count", [2, 3, 8])  # of seven batches: one share is empty
def test_merged_shards_are_the_whole(project_copy: Path, count: int) -> None:
    in_shards(project_copy, count, *ALL)
    collect(project_copy, *ALL, "--out", "whole")
    assert osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy).code == 0
    merged, whole = (
        load_file(project_copy / "parts/mood.safetensors"),
        load_file(project_copy / "whole/mood.safetensors"),
    )
    assert merged.keys() == whole.keys()
    for name, tensor in whole.items():
        if not name.endswith("sketch:4"):
            torch.testing.assert_close(merged[name], tensor, rtol=2e-7, atol=1e-9)
    facts = dict(FeaturesFile.open(project_copy / "parts/mood.safetensors").record)
    bounds = facts.pop("bounds")
    expected = dict(FeaturesFile.open(project_copy / "whole/mood.safetensors").record)
    assert expected.pop("bounds").keys() == bounds.keys()
    assert facts == expected


def test_sums_of_shards_are_exact(project_copy: Path) -> None:
    """In float64, before anything is rounded to what the file holds."""
    in_shards(project_copy, 3, "--statistic", "second-moment")
    collect(project_copy, "--shard", "1/1", "--statistic", "second-moment", "--out", "whole")
    whole = load_file(project_copy / "whole/mood.shard-1-of-1.safetensors")
    parts = [load_file(path) for path in shards.find_feature_shards(project_copy / "parts/mood.safetensors")]
    for name, tensor in whole.items():
        total = sum(part[name] for part in parts)
        assert torch.equal(total, tensor) if tensor.dim() == 0 else (total - tensor).norm() <= 1e-14 * tensor.norm()


def test_a_merged_sketch_keeps_its_bound(project_copy: Path) -> None:
    in_shards(project_copy, 3, "--statistic", "sketch:4", "--statistic", "second-moment")
    osrm("collect", "--task", "mood", "--merge-shards", "--out", "parts", cwd=project_copy)
    held, facts = (
        load_file(project_copy / "parts/mood.safetensors"),
        FeaturesFile.open(project_copy / "parts/mood.safetensors").record,
    )
    bound = facts["bounds"][f"{QUERY}.sketch:4"]
    C, S = held[f"{QUERY}.second-moment"].double() * facts["tokens"], held[f"{QUERY}.sketch:4"].double()
    lacking = torch.linalg.eigvalsh(C - S.T @ S)
    assert bound["energy"] == pytest.approx(float(C.trace()), rel=1e-5)
    assert -1e-5 * bound["energy"] <= lacking.min()
    assert 0 < lacking.max() <= bound["error"] * (1 + 1e-5)


def test_a_set_of_shards_serves_as_the_file(project_copy: Path) -> None:
    (project_copy / "features/pair.safetensors").unlink()
    in_shards(project_copy, 2, *ALL[:6], out="features", task="pair")
    for objective in ("osrm", "gevd"):
        args = ("init", "--each", "--objective", objective, "--overwrite", "--out")
        assert osrm(*args, "from-parts", cwd=project_copy).code == 0
        assert osrm("collect", "--merge-shards", "--out", "features", "--overwrite", cwd=project_copy).code == 0
        assert osrm(*args, "from-whole", cwd=project_copy).code == 0
        (project_copy / "features/pair.safetensors").unlink()
        for task in ("mood", "score"):
            ours, theirs = (
                project_copy / out / task / "adapter_model.safetensors" for out in ("from-parts", "from-whole")
            )
            assert ours.read_bytes() == theirs.read_bytes()
    read = json.loads((project_copy / "from-parts/mood/osrm.json").read_text())["inputs"]
    parts = [f"features/pair.shard-{i}-of-2.safetensors" for i in (1, 2)]
    assert [entry["path"] for entry in read] == ["features/mood.safetensors", *parts, "features/score.safetensors"]


def test_regmean_reads_a_set_of_shards(project_copy: Path) -> None:
    merge = ("merge", "adapters/mood", "adapters/pair", "--method", "regmean", "--out")
    (project_copy / "features/pair.safetensors").unlink()
    in_shards(project_copy, 2, out="features", task="pair")
    assert osrm(*merge, "parts", cwd=project_copy).code == 0
    used = json.loads((project_copy / "parts/osrm.json").read_text())["features"]
    assert len(used) == 3


def test_an_incomplete_set_names_what_is_missing(project_copy: Path) -> None:
    in_shards(project_copy, 4)
    for index in (2, 4):
        (project_copy / f"parts/mood.shard-{index}-of-4.safetensors").unlink()
    wanted = "parts lacks shards 2, 4 of 4 of task 'mood'"
    run = osrm("init", "--exclude", "pair", "--features", "parts", "--out", "new", cwd=project_copy)
    assert (run.code, run.error) == (1, wanted)
    run = osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy)
    assert (run.code, run.error) == (1, wanted)
    assert "hint: osrm collect --task mood --shard 2/4" in run.stderr


def test_shards_that_do_not_belong_together(project_copy: Path) -> None:
    in_shards(project_copy, 2)
    collect(project_copy, "--shard", "2/2", "--seed", 1, "--overwrite", "--out", "parts")
    run = osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy)
    odd = "parts/mood.shard-2-of-2.safetensors differs from parts/mood.shard-1-of-2.safetensors in its data"
    assert (run.code, run.error) == (1, odd)
    collect(project_copy, "--shard", "2/2", "--batch-size", 4, "--overwrite", "--out", "parts")
    assert osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy).error.endswith("in its shards")
    collect(project_copy, "--shard", "1/3", "--out", "parts")
    error = osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy).error
    assert error == "parts holds shards of 2 and of 3 of task 'mood'"


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2", "1/" + "9" * 5000])
def test_a_shard_that_is_none(project_copy: Path, shard: str) -> None:
    run = osrm("collect", "--task", "mood", f"--shard={shard}", "--out", "new", cwd=project_copy)
    assert (run.code, run.error) == (1, f"shard '{shard}', expected i/n with i from 1 to n")


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (f"{QUERY}.mean.sum", None),
        (f"{QUERY}.mean.sum", torch.ones(3, dtype=torch.float64)),
        (f"{QUERY}.mean.sum", torch.full((16,), float("nan"), dtype=torch.float64)),
        (f"{QUERY}.mean.tokens", torch.tensor(-4)),
        (f"{QUERY}.mean.tokens", torch.ones(2, dtype=torch.int64)),
        (f"{QUERY}.samples.rows", torch.arange(50)),
        (f"{QUERY}.second-moment.sum", torch.ones(16, dtype=torch.float64)),
        (f"{QUERY}.sketch:4.rows", torch.ones(2, 3, dtype=torch.float64)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_sums_are_named_and_no_task_is_merged(
    project_copy: Path, tensor: str, value: torch.Tensor | None
) -> None:
    """The first task's shards are whole: its file is not written either."""
    in_shards(project_copy, 2, *ALL)
    in_shards(project_copy, 2, *ALL, task="pair")
    path = project_copy / "parts/pair.shard-2-of-2.safetensors"
    facts, contents = input_files.read_safetensors_record(path), load_file(path)
    del contents[tensor]
    safetensors_writer.save_tensors(path, contents if value is None else {**contents, tensor: value}, facts)
    before = listing(project_copy)
    run = osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy)
    assert run.code == 1
    assert tensor.rpartition(".")[0] in run.error
    assert listing(project_copy) == before


def test_nothing_to_merge(project_copy: Path) -> None:
    error = osrm("collect", "--merge-shards", cwd=project_copy).error
    assert error == "features holds no shards"
    error = osrm("collect", "--merge-shards", "--task", "mood", "--out", "new", cwd=project_copy).error
    assert error == "new holds no shards of task 'mood'"
    error = osrm("collect", "--merge-shards", "--task", "../parts/mood", cwd=project_copy).error
    assert error == "'../parts/mood' cannot be the name of a task"


def test_merging_refuses_what_exists_and_can_be_tried(project_copy: Path) -> None:
    in_shards(project_copy, 2)
    before = listing(project_copy)
    run = osrm("collect", "--merge-shards", "--out", "parts", "--dry-run", "--json", cwd=project_copy)
    assert json.loads(run.stdout) == {"would_write": ["parts/mood.safetensors"]}
    assert listing(project_copy) == before
    for code in (0, 1):
        assert osrm("collect", "--merge-shards", "--out", "parts", cwd=project_copy).code == code


def two_processes(launch: Callable[..., list[subprocess.Popen[str]]], *args: object) -> str:
    """What both print together on stdout; both must end well."""
    with ExitStack() as stack:
        started = [stack.enter_context(process) for process in launch([sys.executable, "-m"], [*map(str, args)])]
        ended = [process.communicate(timeout=600) for process in started]
    assert not any(process.returncode for process in started), ended
    return "".join(stdout for stdout, _ in ended)


def by_torchrun(python: list[str], args: list[str]) -> list[subprocess.Popen[str]]:
    options = ["--standalone", "--nproc_per_node", "2"]
    return [begin([*python, "torch.distributed.run", *options, "-m", "osrm_cli", *args], {})]


def by_mpi(python: list[str], args: list[str]) -> list[subprocess.Popen[str]]:
    """As Open MPI's mpirun starts them for `accelerate launch --cpu --num_processes 2 --mpirun_hostfile`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMPI_COMM_WORLD_SIZE": "2"}
    return [begin([*python, "osrm_cli", *args], {**shared, "OMPI_COMM_WORLD_RANK": str(rank)}) for rank in range(2)]


def begin(command: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("launch", [by_torchrun, by_mpi])
def test_processes_of_a_launcher_share_the_work(
    project_copy: Path, monkeypatch: pytest.MonkeyPatch, launch: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    monkeypatch.chdir(project_copy)
    names = ("--task", "mood", "--task", "score")
    args = ("collect", *names, *ARGS, *ALL, "--json", "--out")
    stdout = two_processes(launch, *args, "many")
    assert json.loads(stdout)["features"]["mood"]["examples"] == 20  # one line, of the first process
    assert osrm(*args, "one", cwd=project_copy).code == 0
    for task in ("mood", "score"):
        ours, theirs = (load_file(project_copy / out / f"{task}.safetensors") for out in ("many", "one"))
        for name, tensor in theirs.items():
            if not name.endswith("sketch:4"):
                torch.testing.assert_close(ours[name], tensor, rtol=2e-7, atol=1e-9)
        ours, theirs = (
            dict(FeaturesFile.open(project_copy / out / f"{task}.safetensors").record) for out in ("many", "one")
        )
        assert ours.pop("bounds").keys() == theirs.pop("bounds").keys()
        assert ours == theirs
