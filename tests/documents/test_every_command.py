"""No command of the documents is without a test: each is of one kind, and each kind has a test that runs it."""

import re

from tests.documents.commands import KINDS, PROGRAMS, find_commands, find_other_blocks
from tests.run_cli import ROOT


def test_every_command_is_of_one_kind() -> None:
    commands = find_commands()
    assert len(commands) > 400
    assert [command for command in commands if len(command.kinds) != 1] == []


def test_every_kind_has_a_test_that_runs_it() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/documents").glob("test_*.py"))
    assert [kind for kind in KINDS if f'"{kind}"' not in tests] == []


def test_commands_stand_in_shell_blocks() -> None:
    """Lines of other blocks would not be found."""
    begins = re.compile(rf"^(\$ |(\.venv/bin/)?({'|'.join(map(re.escape, PROGRAMS))}) )", re.M)
    assert [(page, text) for page, text in find_other_blocks() if begins.search(text)] == []
