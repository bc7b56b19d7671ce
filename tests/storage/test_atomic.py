"""Whole or nothing: whatever happens while an output is written, the target is as it was, or as it should be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.storage import atomic, safetensors_writer
from tests.campaign.rights import be_bound, rights_bind
from tests.run_cli import ROOT

WRITERS = {"file": atomic.write_file, "folder": atomic.write_folder}

# A child process that begins to write, says so, and waits for its end.
CHILD = """
import sys, time
from pathlib import Path
from osrm_cli.cli import app as cli
from osrm_cli.storage import atomic
import signal
signal.signal(signal.SIGTERM, cli._terminate)
writer = {"file": atomic.write_file, "folder": atomic.write_folder}[sys.argv[1]]
with writer(Path(sys.argv[2]), overwrite=True) as stage:
    target = stage if sys.argv[1] == "file" else stage / "part"
    target.write_text("half")
    print("writing", flush=True)
    for _ in range(600):  # a signal just before a single long sleep would wait for its end
        time.sleep(0.1)
"""


def put(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        path.mkdir(exist_ok=True)
        path = path / "part"
    path.write_text(text)


def got(path: Path, kind: str) -> str:
    return (path / "part" if kind == "folder" else path).read_text()


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_appears_only_when_whole(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "deep" / "er" / "out"
    with WRITERS[kind](target) as stage:
        put(stage, kind, "new")
        assert not target.exists()
    assert got(target, kind) == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_failure_leaves_the_target_as_it_was(tmp_path: Path, kind: str, failure: BaseException) -> None:
    target = tmp_path / "out"
    put(target, kind, "old")
    with pytest.raises(type(failure)), WRITERS[kind](target, overwrite=True) as stage:  # noqa: PT012
        put(stage, kind, "new")
        raise failure
    assert got(target, kind) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_no_folder_around_the_target(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError), WRITERS[kind](tmp_path / "deep/er/out"):  # noqa: PT011
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with WRITERS[kind](tmp_path / "deep/er/one") as stage, pytest.raises(ValueError):  # noqa: PT011, PT012
        put(stage, kind, "new")
        with WRITERS[kind](tmp_path / "deep/er/two"):
            raise ValueError
    assert list((tmp_path / "deep/er").iterdir()) == [tmp_path / "deep/er/one"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_signal_in_the_middle_leaves_the_target_as_it_was(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    target = tmp_path / "out"
    put(target, kind, "old")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, kind, str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(number)
        child.wait(timeout=30)
    assert child.returncode != 0
    assert got(target, kind) == "old"
    left = [path.name for path in tmp_path.iterdir() if path != target]
    if number is signal.SIGKILL:  # nobody was left to clean up; the remains are hidden and named as such
        assert all(name.startswith(".out.") and name.endswith(".partial") for name in left)
    else:
        assert left == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt_between_the_two_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    target, rename = tmp_path / "out", Path.rename
    put(target, "folder", "old")
    calls = []

    def interrupted(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == 1 and when == "after":
            rename(self, to)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return rename(self, to)

    with pytest.raises(KeyboardInterrupt), atomic.write_folder(target, overwrite=True) as stage:  # noqa: PT012
        put(stage, "folder", "new")
        monkeypatch.setattr(Path, "rename", interrupted)
    assert got(target, "folder") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_old_files_of_a_replaced_folder_are_gone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic.write_folder(target, overwrite=True) as stage:
        (stage / "part").write_text("new")
    assert [path.name for path in target.iterdir()] == ["part"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic.write_file(tmp_path / "one.safetensors") as stage:
            safetensors_writer.save_tensors(stage, {"a": torch.ones(2)}, {})  # which leaves 0600 by itself
        with atomic.write_folder(tmp_path / "many") as stage:
            (stage / "deep").mkdir()
            safetensors_writer.save_tensors(stage / "deep" / "one.safetensors", {"a": torch.ones(2)}, {})
        assert os.umask(umask) == umask  # reading the mask did not change it
    finally:
        os.umask(before)
    for path in (tmp_path / "one.safetensors", tmp_path / "many/deep/one.safetensors"):
        assert path.stat().st_mode & 0o777 == mode


def test_refused_before_computing(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    put(target, kind, "old")
    with pytest.raises(OsrmError, match=r"out exists already") as caught, WRITERS[kind](target):
        pytest.fail("the body ran")
    assert "--overwrite" in str(caught.value.hint)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OsrmError, match="exists already"):
        atomic.refuse_existing(dangling, overwrite=False)


def test_faster_neighbour_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    with pytest.raises(OsrmError, match="exists already"), WRITERS[kind](target) as stage:  # noqa: PT012
        put(stage, kind, "mine")
        put(target, kind, "theirs")
    assert got(target, kind) == "theirs"


def test_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path(), Path(".."), tmp_path, tmp_path / "here"):
        with pytest.raises(OsrmError, match="current folder"), atomic.write_folder(target, overwrite=True):
            pytest.fail("the body ran")


def full_disk(path: Path) -> None:
    safetensors_writer.save_tensors(path, {"a": torch.zeros(1_000_000)}, {})


def plain(path: Path) -> None:
    path.write_bytes(b"0" * 4_000_000)


LIMITED = """
import resource, sys
from pathlib import Path
from osrm_cli.storage import atomic
from osrm_cli.errors import OsrmError
from tests.storage import test_atomic
write = getattr(test_atomic, sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic.write_file(Path(sys.argv[1]), overwrite=True) as stage:
        write(stage)
except OsrmError as error:
    print(error, error.hint)
"""


@pytest.mark.parametrize("write", [plain, full_disk], ids=["python", "safetensors"])
def test_no_room_is_one_line(tmp_path: Path, write: Callable[[Path], None]) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(target), write.__name__],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == f"cannot write {target}: the file would be larger than allowed nothing was changed\n", done
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_trouble_with_an_input_is_not_called_trouble_with_the_output(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    with pytest.raises(IsADirectoryError), atomic.write_file(tmp_path / "out") as stage:
        stage.write_text((tmp_path / "input").read_text())
    with pytest.raises(PermissionError), atomic.write_file(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "input"))


def test_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file")
    below = tmp_path / "plain" / "out"
    with pytest.raises(OsrmError, match=r"cannot write .*out: a part of the path is a file"), atomic.write_file(below):
        pytest.fail("the body ran")


def test_folder_where_a_file_should_be(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(OsrmError, match="it is a folder"), atomic.write_file(taken, overwrite=True) as stage:
        stage.write_text("new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OsrmError, match="permission denied"), atomic.write_file(tmp_path / "out"):
        pytest.fail("the body ran")


def test_staging_is_beside_the_target_so_that_renaming_is_atomic(tmp_path: Path, kind: str) -> None:
    before = time.time()
    with WRITERS[kind](tmp_path / "out") as stage:
        assert stage.parent.parent.parent == tmp_path
        put(stage, kind, "new")
    assert before <= (tmp_path / "out").stat().st_mtime + 1


def killed_writer(target: Path, kind: str) -> Path:
    """Kill a process while it writes; return the staging folder that it leaves."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, kind, str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.wait(timeout=30)
    (left,) = target.parent.glob(".out.*.partial")
    return left


def test_the_next_writer_removes_what_a_killed_one_has_left(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    put(target, kind, "old")
    killed_writer(target, kind)
    with WRITERS[kind](target, overwrite=True) as stage:
        put(stage, kind, "new")
    assert got(target, kind) == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_old_folder_that_a_killed_writer_has_moved_away_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    put(target, "folder", "old")
    left = killed_writer(target, "folder")
    target.rename(left / "replaced" / "out")  # as far as it would have come
    with pytest.raises(OsrmError, match="exists already"), WRITERS["folder"](target):
        pytest.fail("the body ran")
    assert got(target, "folder") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_another_process_is_writing_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    with WRITERS[kind](target) as stage:
        put(stage, kind, "first")
        with WRITERS[kind](target) as second:
            assert stage.exists()
            put(second, kind, "second")
        put(tmp_path / ".out.abcdefgh.partially", "file", "another's")
        with pytest.raises(OsrmError, match="exists already"), WRITERS[kind](target):
            pytest.fail("the body ran")
        target.rename(tmp_path / "elsewhere")
    assert got(target, kind) == "first"
    assert (tmp_path / ".out.abcdefgh.partially").exists()


def test_a_staging_folder_without_a_lock_is_removed_once_it_is_old(tmp_path: Path) -> None:
    fresh, old, other = (tmp_path / f".{name}.partial" for name in ("out.aaaaaaaa", "out.bbbbbbbb", "outer.cccccccc"))
    for folder in (fresh, old, other):
        folder.mkdir()
        os.utime(folder, (0, 0) if folder != fresh else None)
    with atomic.write_file(tmp_path / "out") as stage:
        stage.write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, other.name, "out"]


def test_a_folder_may_be_called_as_the_staging_folder_s_parts(tmp_path: Path) -> None:
    for name in ("replaced", "new", "lock"):
        for text in ("old", "new"):
            with atomic.write_folder(tmp_path / name, overwrite=True) as stage:
                put(stage, "folder", text)
        assert got(tmp_path / name, "folder") == "new"


@pytest.mark.skipif(not rights_bind(), reason="rights do not bind this user")
def test_an_old_folder_that_may_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    old = tmp_path / "merged" / "tasks"
    old.mkdir(parents=True)
    (old / "head").write_text("old")
    old.chmod(0o500)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            be_bound()
            with atomic.write_folder(tmp_path / "merged", overwrite=True) as stage:
                (stage / "new").write_text("new")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["merged", "merged/new"]
