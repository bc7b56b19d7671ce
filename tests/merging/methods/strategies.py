"""Random layers for the tests of the merging rules."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream
from osrm_cli.merging.methods import METHODS, Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates, MaskedDelta
from osrm_cli.merging.methods.options import MethodOptions

# Rows that take two adapters have tests of their own.
PAIRS = [find_method("nearswap")]

# Every other row, and Pico before one of each kind.
EVERY = [
    *(row for row in METHODS if row not in PAIRS),
    *(find_method(f"pico+{rule}") for rule in ("average", "svd", "ties", "dare", "core-ties", "knots-ties", "tsv")),
]

# Every such row, and Pico before every one that it can go before.
_LEARNED = {row.name for row in METHODS if row.learns_weights or row.data_statistic == "factors"}
COMPOSED = [
    *(row for row in METHODS if row not in PAIRS),
    *(
        find_method(f"pico+{row.name}")
        for row in METHODS
        if row not in PAIRS and not row.is_task_aware and row.name != "pico" and row.name not in _LEARNED
    ),
]

NAMES = ("cola", "mrpc", "qnli", "sst2")


def update(d_out: int, d_in: int, rank: int, kind: str, generator: torch.Generator) -> LowRank:
    """Factors whose product has the kind's peculiarity."""
    B = torch.randn(d_out, rank, generator=generator)
    A = torch.randn(rank, d_in, generator=generator)
    if kind == "zero":
        B = torch.zeros_like(B)
    if kind == "deficient" and rank > 1:
        B[:, 1], A[-1] = B[:, 0], 2 * A[0]
    return LowRank(B, A)


def layer(
    shape: tuple[int, int], ranks: list[int], seed: int = 0, kinds: list[str] | None = None, **changes: object
) -> LayerUpdates:
    generator = torch.Generator().manual_seed(seed)
    kinds = kinds or ["full"] * len(ranks)
    updates = [update(*shape, rank, kind, generator) for rank, kind in zip(ranks, kinds, strict=True)]
    inputs = [torch.randn(3 * shape[1], shape[1], generator=generator, dtype=torch.float64) for _ in ranks]
    fields = {
        "name": "encoder.0.query",
        "adapters": NAMES[: len(ranks)],
        "deltas": tuple(updates),
        "weights": (1.0,) * len(ranks),
        "second_moments": tuple(x.T @ x / len(x) for x in inputs),
        "cross_moments": tuple(x.T @ x / len(x) for x in inputs),  # as if no layer below had changed anything
        "drifts": tuple(torch.zeros(shape) for _ in ranks),
        "fisher": tuple(torch.rand(shape, generator=generator) for _ in ranks),
    }
    return LayerUpdates(**{**fields, **changes})


@st.composite
def layers(draw: st.DrawFn, tasks: int | None = None, kinds: tuple[str, ...] = ("full",)) -> LayerUpdates:
    """Layers of any shape with mixed ranks, also 0, also with ``sum r_t`` above the width."""
    shape = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    count = tasks or draw(st.integers(2, 4))
    ranks = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count))
    return layer(shape, ranks, draw(st.integers(0, 2**32)), chosen)


def merge(method: Method, updates: LayerUpdates, **options: object) -> Tensor:
    """The merged update, dense and float64; of a task-aware result, the unified update."""
    return dense(method.load()(updates, MethodOptions(**options)))


def dense(result: LowRank | RowStream | MaskedDelta) -> Tensor:
    if isinstance(result, MaskedDelta):
        return result.unified.double()
    return (result.to(torch.float64) if isinstance(result, LowRank) else result).dense().double()


def close(found: Tensor, expected: Tensor, size: float | None = None, within: float = 1e-5) -> None:
    """Equality relative to the norm, which is what float32 inputs allow."""
    error = float(torch.linalg.norm(found - expected))
    assert error <= within * (float(torch.linalg.norm(expected)) if size is None else size) + 1e-12, error
