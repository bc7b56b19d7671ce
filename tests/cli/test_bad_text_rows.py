"""Rows of text tasks that cannot be used: one line with file and row, and nothing written, by any command."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run_cli import osrm

SYSTEM, USER = {"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}
ANSWER, TOOL = {"role": "assistant", "content": "w3"}, {"role": "tool", "content": "w4"}
PAIR = {"prompt": "w1 w2 ", "completion": "w3"}
CHAT = {"messages": [USER, ANSWER]}
TURN = "{{ message.role[0] + ' ' + message.content + ' </s> ' }}"
REFUSES = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    + TURN
    + "{% endfor %}{% if add_generation_prompt %}a {% endif %}"
)
DROPS = "{% for message in messages if message.role != 'system' %}" + TURN + "{% endfor %}"

# By kind: a good row, the bad one, the tokenizer's template, and what the line says after file and row.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], str | None, str]] = {
    "missing prompt": (PAIR, {"completion": "w3"}, None, "column 'prompt' holds nothing, expected text"),
    "empty prompt": (PAIR, {**PAIR, "prompt": " "}, None, "column 'prompt' holds nothing, expected text"),
    "missing completion": (PAIR, {"prompt": "w1"}, None, "column 'completion' holds nothing, expected text"),
    "empty completion": (PAIR, {**PAIR, "completion": ""}, None, "column 'completion' holds nothing, expected text"),
    "no answer at the end": (CHAT, {"messages": [ANSWER, USER]}, REFUSES, "'messages' ends with a message of the role"),
    "refused role": (CHAT, {"messages": [TOOL, ANSWER]}, REFUSES, "the chat template refuses the chat: no tools here"),
    "dropped system turn": (CHAT, {"messages": [SYSTEM, USER, ANSWER]}, DROPS, "the chat template drops the system"),
    "long completion": (PAIR, {**PAIR, "completion": "w3 " * 40}, None, "the completion has 41 tokens, more than fit"),
    "no template": (CHAT, CHAT, None, "holds a chat, but"),
}
COMMANDS = {  # by command: the split that it reads first
    "collect --max-length 16": "train",
    "train {start} --max-length 16": "train",
    "eval {start} --max-length 16": "dev",
    "sweep {start} --lambda 0.5 --max-length 16": "dev",
}


@pytest.fixture
def base(tiny_writer: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_writer("llama"), folder)
    return folder


def set_tokenizer(base: Path, **settings: Any) -> None:
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def run(command: str, base: Path, start: Path, folder: Path) -> str:
    """The one line of a command that fails, and that nothing is written."""
    before = sorted(path for path in folder.rglob("*"))
    words = command.format(start=start).split()
    done = osrm(*words, "--data", "tasks", "--model", str(base), "-q", cwd=folder)
    assert done.code == 1, done
    assert sorted(path for path in folder.rglob("*")) == before
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("hint: ")]
    return line


@pytest.fixture
def start(base: Path, completion_tasks: Path, tmp_path: Path) -> Path:
    """A start that is made for a task named ``talk``, on the base model as it is."""
    made = tmp_path / "made"
    made.mkdir()
    shutil.copytree(completion_tasks / "same", made / "tasks" / "talk")
    shutil.copytree(completion_tasks / "last", made / "tasks" / "last")
    for command in ("collect --samples 5 --statistic mean --statistic second-moment", "init --each --rank 2"):
        words = ("--data", "tasks", "--model", str(base)) if command.startswith("collect") else ()
        assert osrm(*command.split(), *words, "-q", cwd=made).code == 0
    return made / "starts" / "talk"


@pytest.mark.parametrize("kind", KINDS)
def test_bad_row(kind: str, base: Path, start: Path, tmp_path: Path) -> None:
    good, bad, template, message = KINDS[kind]
    if template:
        set_tokenizer(base, chat_template=template)
    folder = tmp_path / "project"
    (folder / "tasks" / "talk").mkdir(parents=True)
    for split in ("train", "dev"):
        (folder / "tasks" / "talk" / f"{split}.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    numbers = "1|2" if kind == "no template" else "2"  # every row, in the order of the draw
    for command, split in COMMANDS.items():
        line = run(command, base, start, folder)
        assert re.match(rf"error: tasks/talk/{split}\.jsonl:({numbers})\b", line), (command, line)
        assert message in line


def test_no_end_token(base: Path, start: Path, tmp_path: Path) -> None:
    set_tokenizer(base, eos_token=None, pad_token="<pad>")
    folder = tmp_path / "project"
    (folder / "tasks" / "talk").mkdir(parents=True)
    for split in ("train", "dev"):
        (folder / "tasks" / "talk" / f"{split}.jsonl").write_text(2 * (json.dumps(PAIR) + "\n"))
    for command in COMMANDS:
        assert "has no end token" in run(command, base, start, folder)
