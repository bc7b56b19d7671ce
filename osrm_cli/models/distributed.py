"""Processes under a launcher such as torchrun or accelerate: each reads its share, and the first one writes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate.utils.environment import get_cpu_distributed_information
from torch import distributed


class Reducible(Protocol):
    """A sum that can be sent to another process and added there."""

    def state(self) -> dict[str, torch.Tensor]:
        """The state of the sum so far."""

    def layout(self) -> dict[str, torch.Tensor]:
        """Tensors with the names, types and dimensions of the state's, of any sizes."""

    def merge_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Add the state of another process."""


def _launcher_environment() -> tuple[int, int, int]:
    """Rank, number of processes, and rank on this machine, as set by torchrun, MPI or similar."""
    information = get_cpu_distributed_information()
    return information.rank, information.world_size, information.local_rank


def process_rank() -> int:
    """This process's rank, from 0."""
    return _launcher_environment()[0]


def process_count() -> int:
    """Number of processes."""
    return _launcher_environment()[1]


def local_device(device: torch.device) -> torch.device:
    """The GPU that this process uses, if there are several."""
    return torch.device("cuda", _launcher_environment()[2]) if device.type == "cuda" else device


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes, if there are any."""
    if process_count() == 1:
        yield
        return
    # Messages are sent from main memory, whatever the device.
    distributed.init_process_group("gloo", rank=process_rank(), world_size=process_count())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def reduce_to_first_process(sums: Mapping[str, Sequence[Reducible]]) -> None:
    """Add up every process's sums in the first process, one by one; all processes must call it alike."""
    for total in (total for totals in sums.values() for total in totals):
        if process_rank():
            _send_tensors(total.state())
        else:
            for source in range(1, process_count()):
                total.merge_state(_receive_tensors(source, total.layout()))


def _send_tensors(state: dict[str, torch.Tensor]) -> None:
    """Each tensor's sizes, then its numbers: nothing is copied."""
    for tensor in state.values():
        distributed.send(torch.tensor([*tensor.shape, 0]), 0)
        if tensor.numel():
            distributed.send(tensor.contiguous(), 0)


def _receive_tensors(source: int, layout: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}
    for name, like in layout.items():
        sizes = torch.zeros(like.ndim + 1, dtype=torch.int64)
        distributed.recv(sizes, source)
        state[name] = torch.empty(sizes[:-1].tolist(), dtype=like.dtype)
        if state[name].numel():
            distributed.recv(state[name], source)
    return state
