"""Every block of ``osrm`` commands runs as it stands, in a folder of tiny models and small tasks.

What a page or a block begins with is made once and laid out under the names that it uses. Only the words of
``stand_ins`` are replaced: the names of real models.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.documents.commands import Block, find_blocks, find_commands, of_kind
from tests.documents.running import run_lines, run_osrm
from tests.run_cli import ROOT

# Once each: the README's commands are those of the site's first page, too.
BLOCKS = [block for block in find_blocks() if "osrm " in " ".join(block.lines)]
BLOCKS = [block for index, block in enumerate(BLOCKS) if block.lines not in {other.lines for other in BLOCKS[:index]}]
STUDIES = [
    block
    for block in BLOCKS
    if block.page.startswith(("docs/results.md", "studies/")) or "adapters/mpnet/" in " ".join(block.lines)
]
# Pages with a test of their own; the others begin with what the README's commands make.
OWN_TESTS = {"docs/tutorial.md", "docs/guides/demo.md", "docs/guides/text-tasks.md", "docs/guides/own-data.md"}
FOLLOWING = {block.page for block in BLOCKS if block not in STUDIES} - OWN_TESTS
TEXT_HEADINGS = ("Merging with prompts", "Tasks that are answered with text")
# The demo runs on the real models, in tests/cli/test_demo.py.
DEMOS = {"osrm demo", "osrm demo --seed 0", "osrm demo --text"}
UNET_LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
# Distilling takes 180 steps unless the command says otherwise; the settings file says 20.
FEW_STEPS = "[merge]\nsteps = 20\n"


def _folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def _without_demos(block: Block) -> tuple[str, ...]:
    return tuple(line for line in block.lines if not re.search(r"\bosrm demo\b", line))


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(FOLLOWING))
def test_the_commands_of_a_page_run(page: str, pipeline: Path, stand_ins: Mapping[str, Path], tmp_path: Path) -> None:
    folder = _folder(pipeline, tmp_path)
    if page == "docs/guides/convert.md":
        _save_dora(stand_ins["smollm2"], folder / "doras/mood")
        (folder / "base").symlink_to(stand_ins["smollm2"])
        for name in ("ink", "paper"):
            _save_diffusion_lora(folder / f"{name}.safetensors")
    if page == "docs/guides/merge.md":
        for task in ("sst2", "mrpc"):
            run_osrm(["merge", f"adapters/{task}", "--as", "model", "--out", f"my-{task}"], folder)
    if page == "docs/reference/cli.md":
        run_osrm(["merge", "adapters/sst2", "--as", "model", "--out", "my-model"], folder)
        _save_diffusion_lora(folder / "style.safetensors")
        settings = (folder / "osrm.toml").read_text()
        (folder / "osrm.toml").write_text(settings.replace('data = "data"\n', ""))  # else it counts before 'mini'
    for block in BLOCKS:
        if block.page == page and block not in STUDIES:
            if page == "docs/reference/cli.md":  # examples for themselves: each begins with the same adapters
                shutil.rmtree(folder / "adapters")
                shutil.copytree(pipeline / "adapters", folder / "adapters")
            run_lines(_without_demos(block), folder, stand_ins)


def _save_diffusion_lora(path: Path) -> None:
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(6, 2)}
    save_file({f"{UNET_LAYER}.{name}.weight": factor for name, factor in factors.items()}, path)


def _save_dora(base: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    get_peft_model(model, settings).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/guides/text-tasks.md", "docs/guides/own-data.md"])
def test_the_commands_on_text_tasks_run(
    page: str, writers: Path, stand_ins: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path
    shutil.copytree(writers / "prompts", folder / "prompts")
    for task in ("wikisql", "snips"):
        shutil.copytree(writers / "tasks" / task, folder / "tasks" / task)
    for block in BLOCKS:
        if block.page == page:
            run_lines(block.lines, folder, stand_ins)
    assert list(folder.glob("features/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("block", STUDIES, ids=lambda block: f"{block.page}-{block.number}")
def test_the_commands_of_a_study_run(
    block: Block, request: pytest.FixtureRequest, stand_ins: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path
    for line in block.lines:
        for study in re.findall(r"cd (studies/\S+)", line):
            for path in (ROOT / study).glob("*.parquet"):
                (folder / study).mkdir(parents=True, exist_ok=True)
                (folder / study / path.name).symlink_to(path)
    if not list(folder.iterdir()):
        made = request.getfixturevalue("writers" if block.heading in TEXT_HEADINGS else "glue")
        folder = _folder(made, tmp_path)
        _lay_out_adapters(block, folder)
        if all("--method distill" in line for line in block.lines if "osrm merge" in line):
            settings = (folder / "osrm.toml").read_text()
            (folder / "osrm.toml").write_text(settings + FEW_STEPS)
    assert run_lines(_draw_first_reports_alone(block.lines), folder, stand_ins) > 0


def _draw_first_reports_alone(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Of several reports on one table the first is written; the others are computed, from fewer resamples."""
    seen: set[str] = set()
    lighter = []
    for line in lines:
        tables = set(re.findall(r"osrm report (\S+\.parquet)", line))
        lighter.append(f"{line} --dry-run --resamples 200" if tables & seen else line)
        seen |= tables
    return tuple(lighter)


def _lay_out_adapters(block: Block, folder: Path) -> None:
    """Put adapters where a block looks: ``adapters/*``, ``adapters/ARM/*`` (three tasks), ``adapters/ARM/TASK``.

    The arm that is named after another base model has an adapter of another base model.
    """
    for word in shlex.split(" ".join(line.partition(" #")[0] for line in block.lines)):
        _, *arm, last = word.split("/") if word.startswith("adapters/") else ("", "")
        tasks = {"*": ("cola", "sst2", "stsb") if arm else [path.name for path in (folder / "made").iterdir()]}
        for task in tasks.get(last, (last,)):
            made = folder / ("other/adapters" if arm == ["mpnet"] else "made") / task
            target = folder.joinpath("adapters", *arm, task)
            if made.is_dir() and not target.exists():
                shutil.copytree(made, target)


def test_no_demo_is_without_its_test() -> None:
    assert {line for line in of_kind("osrm") if line.startswith("osrm demo")} <= DEMOS
    assert (ROOT / "tests/cli/test_demo.py").is_file()


def _program(folder: Path) -> dict[str, str]:
    """The environment of a shell in which ``osrm`` is this checkout's program, and python this interpreter."""
    folder.mkdir()
    for name, words in {"osrm": "-m osrm_cli", "python": ""}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_tutorial_runs(minilm: str, tmp_path: Path) -> None:
    """Block by block, in an empty folder: shell commands as they stand, Python in a file."""
    env = _program(tmp_path / "bin")
    folder = tmp_path / "work"
    folder.mkdir()
    tutorial = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```", tutorial, re.M | re.S):
        named = re.match(r"# (\w+\.py)\n", block)
        if named:  # a file that the reader is told to save
            (folder / named[1]).write_text(block)
            continue
        words = ["bash", "-euo", "pipefail", "-c", block] if kind == "sh" else ["python", "-c", block]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert (folder / "report/report.html").stat().st_size > 10_000


def test_what_is_the_tutorial_s_stands_there_alone() -> None:
    pages = {command.page for command in find_commands() if "tutorial" in command.kinds}
    assert pages == {"docs/tutorial.md"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["starts/sst2/osrm.json", "adapters/sst2/training.json", "merged/osrm.json", "merged/scores.json"],
)
def test_the_keys_of_a_file_are_documented(pipeline: Path, name: str) -> None:
    words = set(re.findall(r"[\w-]+", (ROOT / "docs/reference/file-formats.md").read_text(encoding="utf-8")))
    assert set(json.loads((pipeline / name).read_text())) <= words
