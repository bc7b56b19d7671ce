"""Threads that each compute alone, for work in pieces: no piece waits for another, as the threads of one product do."""

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Compute in one thread, also as a decorator: of many short steps, two threads wait for each other at every one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def map_in_order(
    function: Callable[[Item], Answer], items: Sequence[Item], workers: int, ahead: int = 0
) -> Iterator[Answer]:
    """Map in threads and yield the answers in order: what is not yet taken does not pile up.

    Args:
        function: Called with each item; it may call this again.
        items: Any.
        workers: Threads, among which those of torch are shared out; with one, nothing is started.
        ahead: Items beyond one for each worker that are taken up before an answer is taken, so that none has to wait.
    """
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    threads, waiting = torch.get_num_threads(), deque[Future[Answer]]()
    share = max(threads // workers, 1)
    try:
        torch.set_num_threads(share)  # of this thread too: between answers it works beside the others
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == workers + ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # the default of threads that start later, too


def return_free_memory() -> None:
    """Give what threads have freed back to the system, where the C library is glibc, which keeps it scattered."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
