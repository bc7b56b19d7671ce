"""Merges to a model go on where they were interrupted, and do not begin where the disk has no room."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from osrm_cli.errors import OsrmError
from osrm_cli.merging.merge import merge_adapters
from tests.run_cli import ROOT, osrm

Merge = Callable[..., Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in many files, and two adapters."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=60, **sizes))
    model.save_pretrained(folder / "base", max_shard_size="5KB")
    assert len(list((folder / "base").glob("model-*.safetensors"))) > 4
    for name in ("a", "b"):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.data.normal_(0, 0.2)
        adapted.save_pretrained(str(folder / name))
    return folder


@pytest.fixture
def merge(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """Merge in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    settings = {"model": str(inputs / "base"), "form": "model", "options": {"rank": 2}}
    return lambda **more: merge_adapters([inputs / "a", inputs / "b"], "ties", **{**settings, **more})


def interrupt_after(layers: int) -> Callable[..., AbstractContextManager[Callable[[int], None]]]:
    """A progress that presses Ctrl-C."""

    @contextmanager
    def progress(_what: str, _total: int, _unit: str) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if done >= layers:
                raise KeyboardInterrupt

        yield advance

    return progress


class Seen(NamedTuple):
    """A file as the disk has it."""

    number: int
    time: int


def look(folder: Path) -> dict[str, Seen]:
    return {path.name: Seen(path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_merge_goes_on(merge: Merge, tmp_path: Path) -> None:
    merge(out="whole")
    with pytest.raises(KeyboardInterrupt):
        merge(resume=True, progress=interrupt_after(5))
    finished = look(tmp_path / "merged.unfinished")
    assert len(finished) > 2
    assert not (tmp_path / "merged").exists()
    totals, done = [], []

    @contextmanager
    def count(_what: str, total: int, _unit: str) -> Iterator[Callable[[int], None]]:
        totals.append(total)
        yield done.append

    merge(resume=True, progress=count)
    assert totals == [sum(done)]
    assert 0 < sum(done) <= 6  # two of the eight layers or more lie there already
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert finished.items() <= look(tmp_path / "merged").items()  # the very same files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "whole"]


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from osrm_cli.merging.merge import merge_adapters

@contextmanager
def progress(*_):
    yield lambda count: done.append(count) or (len(done) == 5 and os.kill(os.getpid(), signal.SIGKILL))

done, (folder,) = [], sys.argv[1:]
settings = dict(model=f"{folder}/base", form="model", options={"rank": 2}, resume=True, progress=progress)
merge_adapters([f"{folder}/a", f"{folder}/b"], "ties", **settings)
"""


@pytest.mark.slow
def test_a_killed_merge_goes_on(merge: Merge, inputs: Path, tmp_path: Path) -> None:
    merge(out="whole")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, inputs], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    finished = look(tmp_path / "merged.unfinished")
    assert finished
    merge(resume=True)
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert finished.items() <= look(tmp_path / "merged").items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "whole"]  # nor a hidden folder


def test_what_is_left_belongs_to_one_merge(merge: Merge, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge(resume=True, progress=interrupt_after(5))
    with pytest.raises(OsrmError, match=r"merged.unfinished contains an unfinished merge") as caught:
        merge()
    assert caught.value.hint == "continue it with --resume, or start over with --overwrite"
    for other in ({"options": {"rank": 1}}, {"options": {"rank": 2, "density": 0.3}}, {"dtype": "bfloat16"}):
        with pytest.raises(OsrmError, match="files of another merge, or its inputs have changed"):
            merge(resume=True, **other)
    merge(overwrite=True, dry_run=True)
    assert (tmp_path / "merged.unfinished").exists()
    merge(overwrite=True)
    assert not (tmp_path / "merged.unfinished").exists()


def test_what_cannot_be_resumed(merge: Merge) -> None:
    for more in ({"form": "adapter"}, {"features": "features"}):
        with pytest.raises(OsrmError):
            merge(resume=True, **more)


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["", "resumed"])
def test_a_disk_without_room(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: tuple[str, ...]
) -> None:
    needed = sum(path.stat().st_size for path in (inputs / "base").glob("*.safetensors"))
    usage = shutil.disk_usage(tmp_path)
    words = ("merge", inputs / "a", inputs / "b", "--as", "model", "--model", inputs / "base", *resume)
    for free, code in ((needed // 2, 1), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        run = osrm(*words, "--dry-run", cwd=tmp_path)
        assert run.code == code, run
        if code:
            assert run.error == "cannot write merged: it takes 0.0 GiB, its disk has 0.0 GiB left"
    run = osrm(*words, cwd=tmp_path)
    assert run.code == 0, run
