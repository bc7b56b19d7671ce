import ctypes
import os
import platform
import threading
from pathlib import Path

import pytest
import torch

from osrm_cli.linalg.parallel import in_one_thread, map_in_order, return_free_memory


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (2, 0), (5, 0), (2, 3)])
def test_answers_come_in_order_and_do_not_pile_up(workers: int, ahead: int) -> None:
    started = []

    def double(item: int) -> int:
        started.append(item)
        return 2 * item

    answers = map_in_order(double, range(50), workers, ahead)
    assert [next(answers) for _ in range(10)] == list(range(0, 20, 2))
    assert len(started) <= 10 + workers + ahead - 1
    assert list(answers) == list(range(20, 100, 2))


def test_threads_share_those_of_torch_and_give_them_back() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        found = list(map_in_order(lambda _: (torch.get_num_threads(), threading.get_ident()), range(8), 2))
        later: list[int] = []
        beside = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        beside.start()
        beside.join()
        assert {share for share, _ in found} == {2}
        assert threading.get_ident() not in {thread for _, thread in found}
        assert (torch.get_num_threads(), later) == (4, [4])
    finally:
        torch.set_num_threads(threads)


def test_an_error_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda item: 1 / item, [1, 1, 0, 1], 2))


def test_what_computes_in_one_thread() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert in_one_thread()(torch.get_num_threads)() == 1
        with pytest.raises(ZeroDivisionError), in_one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps free memory scattered")
def test_scattered_free_memory_is_returned() -> None:
    kept = [torch.ones(1 << 14) for _ in range(4000)]  # 64 KiB each: too small to be mapped by themselves
    del kept[:-1]
    before = _resident()
    return_free_memory()
    assert _resident() < before - (100 << 20)


def test_other_c_libraries_keep_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    return_free_memory()
