"""The rules on entries, on one matrix in memory: 4 adapters of rank 16, beside their bound, PEFT, and recompression.

The bound forms the four products and adds up the entries of each: what any rule on entries has to do. PEFT's functions
merge the same products; they have no other of these rules. The rule forms the dense result, a truncated one is never
held: twice the rule's time is where truncation takes as long as the rule. In each round all run in turn.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import linear_regression, median

import torch
from peft.utils import merge_utils

from benchmarks import dense, timing
from benchmarks.report import Row, Setting, script
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import NEAR, RowStream, truncate_rank
from osrm_cli.merging.methods import find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates
from osrm_cli.merging.methods.options import MethodOptions

TASKS, RANK, KEPT = 4, 16, 32
# The most that each may take, in units of the bound.
GOALS = {
    "ties": 4,
    "magnitude": 4,
    "breadcrumbs": 4,
    "dare": 5,
    "dare-ties": 5,
    "della": 12,
    "consensus": 5,
    "emr": 5,
    "fisher": 5,
}
PEERS = {
    "ties": merge_utils.ties,
    "magnitude": merge_utils.magnitude_prune,
    "dare": merge_utils.dare_linear,
    "dare-ties": merge_utils.dare_ties,
}


def measure(setting: Setting) -> Iterator[Row]:
    widths = (64, 128) if setting.quick else (1024, 4096, 8192)
    for method, goal in GOALS.items():
        seconds = []
        for width in widths:
            first, *others = _rows(method, width, goal if width == widths[-1] else None, setting.repeats)
            seconds.append(median(first.ours))
            yield from (first, *others)
        slope = linear_regression([math.log(width) for width in widths], [math.log(value) for value in seconds]).slope
        yield Row(f"`{method}`: growth with the width", [slope], "theory", [2.0], unit="exponent")


def _rows(method: str, width: int, goal: float | None, rounds: int) -> list[Row]:
    layer, options = _layer(width, with_fisher=method == "fisher"), MethodOptions()
    rule = find_method(method).load()

    def merge() -> None:
        result = rule(layer, options)
        if isinstance(result, RowStream):
            result.dense()

    result = rule(layer, options)
    runs: dict[str, Callable[[], object]] = {"bound": partial(_bound, layer), "ours": merge}
    if method in PEERS:
        runs["peft"] = partial(_peft, layer, PEERS[method], options.density)
    if isinstance(result, RowStream):
        runs["truncated"] = lambda: truncate_rank(rule(layer, options), KEPT, tolerance=NEAR)
    found = timing.in_turn({name: partial(timing.seconds, run) for name, run in runs.items()}, rounds)
    rows = [Row(f"`{method}`, width {width}", found["ours"], "bound", found["bound"], goal, "within")]
    if method in PEERS:
        same = ""
        if isinstance(result, RowStream) and "seed" not in find_method(method).needs:
            theirs = _peft(layer, PEERS[method], options.density)
            off = int(((result.dense() - theirs).abs() > 1e-5 * theirs.abs().max()).sum())
            same = f"{off} of {theirs.numel():,} entries differ: as large as the last kept but for rounding"
        peer = f"PEFT {PEERS[method].__name__}"
        rows.append(Row(f"`{method}`, width {width}", found["ours"], peer, found["peft"], goal and 2, difference=same))
    if "truncated" in found:
        what = f"`{method}`, width {width}: rule and truncation to rank {KEPT}"
        rows.append(Row(what, found["truncated"], "the rule", found["ours"], goal and 2, "within"))
    return rows


def _peft(layer: LayerUpdates, merge: Callable[..., torch.Tensor], density: float) -> torch.Tensor:
    return merge([update.dense() for update in layer.weighted], torch.tensor(layer.weights), density)


def _bound(layer: LayerUpdates) -> None:
    for update in layer.weighted:
        update.dense().sum()


def _layer(width: int, with_fisher: bool) -> LayerUpdates:
    updates = tuple(LowRank(b, a) for b, a in dense.factors(TASKS, width, RANK))
    draws = torch.Generator().manual_seed(0)
    information = tuple(torch.rand(width, width, generator=draws) for _ in updates) if with_fisher else None
    names = tuple(f"task{index}" for index in range(TASKS))
    return LayerUpdates("layer", names, updates, (1.0,) * TASKS, fisher=information)


if __name__ == "__main__":
    script("elements", measure, __doc__)
