"""Every method against its dense float64 reference, and the least-squares methods against their objective."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.merging.methods import Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates, MaskedDelta
from osrm_cli.merging.methods.options import MethodOptions
from tests.merging.methods.numpy_reference import RULES, emr, regmean, svd
from tests.merging.methods.numpy_reference_more import nearswap
from tests.merging.methods.numpy_sparsify import top
from tests.merging.methods.strategies import COMPOSED, close, layer, merge

# More room than rank, less room than rank, ranks above the width, ranks that fill it exactly, many blocks of rows.
CASES = [((12, 9), [2, 3, 1]), ((7, 15), [3, 3]), ((6, 5), [4, 4, 4]), ((10, 10), [1, 4, 3, 2]), ((150, 8), [2, 3])]

# float64 factors, so that the comparison can be strict and no entry falls on the other side of a threshold.
OPTIONS = MethodOptions(
    density=0.4,
    rank=2,
    outliers=0.06,
    window=0.3,
    common=0.7,
    alpha=0.8,
    ridge=0.1,
    epsilon=0.5,
    bonus=0.3,
    reach=0.2,
    primary="mrpc",
)


def exact_layer(shape: tuple[int, int], ranks: list[int]) -> LayerUpdates:
    several = layer(shape, ranks, seed=sum(ranks))
    return replace(
        several,
        deltas=tuple(dW.to(torch.float64) for dW in several.deltas),
        weights=(1.0, 0.7, -0.4, 1.3)[: len(ranks)],
        cross_moments=tuple(C + 0.3 * torch.eye(shape[1]) - 0.2 * C.roll(1, 0) for C in several.second_moments),
        drifts=tuple(0.1 * F.double() for F in several.fisher),
        fisher=tuple(F.double() for F in several.fisher),
    )


def arguments(several: LayerUpdates) -> dict[str, object]:
    return {
        **asdict(OPTIONS),
        "updates": [dW.dense().numpy() for dW in several.weighted],
        "factors": [(dW.B.numpy(), dW.A.numpy()) for dW in several.weighted],
        "Bs": [dW.B.numpy() for dW in several.weighted],
        "weights": list(several.weights),
        "keys": [(OPTIONS.seed, several.name, adapter) for adapter in several.adapters],
        "moments": [C.numpy() for C in several.second_moments],
        "cross": [D.numpy() for D in several.cross_moments],
        "drifts": [drift.numpy() for drift in several.drifts],
        "information": [F.numpy() for F in several.fisher],
    }


ONE_UPDATE = [row for row in COMPOSED if not row.is_task_aware]


@pytest.mark.parametrize("method", ONE_UPDATE, ids=lambda row: row.name)
@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_equals_the_dense_reference(method: Method, shape: tuple[int, int], ranks: list[int]) -> None:
    several = exact_layer(shape, ranks)
    given = arguments(several)
    if not method.name.startswith("pico"):
        given.pop("Bs")
    expected = torch.from_numpy(np.asarray(RULES[method.name](**given)))
    close(merge(method, several, **asdict(OPTIONS)), expected, within=1e-9)


@pytest.mark.parametrize("primary", [None, "cola", "mrpc"])
@pytest.mark.parametrize(("shape", "ranks"), [case for case in CASES if len(case[1]) == 2])
def test_nearswap_equals_the_dense_reference(shape: tuple[int, int], ranks: list[int], primary: str | None) -> None:
    several = exact_layer(shape, ranks)
    updates = arguments(several)["updates"]
    expected = nearswap(updates[::-1] if primary == "mrpc" else updates, 0.2)
    close(merge(find_method("nearswap"), several, reach=0.2, primary=primary), torch.from_numpy(expected), within=1e-12)


@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_svd_without_features_equals_the_dense_reference(shape: tuple[int, int], ranks: list[int]) -> None:
    several = exact_layer(shape, ranks)
    expected = torch.from_numpy(svd([dW.dense().numpy() for dW in several.weighted], rank=2))
    close(merge(find_method("svd"), replace(several, second_moments=None), rank=2), expected, within=1e-9)


@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_emr_equals_the_dense_reference(shape: tuple[int, int], ranks: list[int]) -> None:
    several = exact_layer(shape, ranks)
    unified, masks, rescalers = emr(**arguments(several))
    result = find_method("emr").load()(several, OPTIONS)
    assert isinstance(result, MaskedDelta)
    close(result.unified, torch.from_numpy(unified), within=1e-12)
    for index, (mask, rescaler) in enumerate(zip(masks, rescalers, strict=True)):
        assert torch.equal(result.masks[index], torch.from_numpy(mask))
        close(result.for_task(index), torch.from_numpy(rescaler * mask * unified), within=1e-12)


def test_sum_of_agreeing_entries() -> None:
    several = exact_layer((6, 5), [2, 2, 2])
    trimmed = np.stack([top(dW.dense().numpy(), 0.5) for dW in several.weighted])
    agreeing = np.where(trimmed * np.sign(trimmed.sum(0)) > 0, trimmed, 0).sum(0)
    close(merge(find_method("ties"), several, density=0.5, aggregate="sum"), torch.from_numpy(agreeing), within=1e-12)


@pytest.mark.parametrize("name", ["regmean", "wudi"])
def test_no_small_step_improves_a_least_squares_solution(name: str) -> None:
    several = replace(exact_layer((6, 9), [2, 3]), weights=(1.0, 1.0))
    updates = [dW.dense() for dW in several.deltas]
    moments = several.second_moments
    if name == "wudi":
        moments = [dW.T @ dW / dW.square().sum() for dW in updates]

    def objective(X: torch.Tensor) -> float:
        return sum(float((((X - dW) @ C) * (X - dW)).sum()) for dW, C in zip(updates, moments, strict=True))

    best = merge(find_method(name), several, alpha=1.0)
    for seed in range(20):
        step = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(best) <= objective(best + 1e-3 * step)


def test_regmean_without_data_in_some_directions_takes_the_average_there() -> None:
    several = replace(exact_layer((5, 6), [2, 2]), weights=(1.0, 1.0))
    seen = torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    moments = tuple(seen @ C @ seen for C in several.second_moments)
    merged = merge(find_method("regmean"), replace(several, second_moments=moments))
    mean = sum(dW.dense() for dW in several.deltas) / 2
    close(merged[:, 3:], mean[:, 3:], within=1e-6)
    within = [C[:3, :3].numpy() for C in several.second_moments]
    expected = regmean([dW.dense()[:, :3].numpy() for dW in several.deltas], within, alpha=0.9)
    close(merged[:, :3], torch.from_numpy(expected), within=1e-6)


def test_fisher_without_information_takes_the_mean() -> None:
    several = replace(exact_layer((4, 3), [2, 2]), fisher=(torch.zeros(4, 3),) * 2)
    close(merge(find_method("fisher"), several), sum(dW.dense() for dW in several.weighted) / 2)


@pytest.mark.parametrize(
    ("name", "field"),
    [("regmean", "second_moments"), ("lot", "second_moments"), ("sequential", "drifts"), ("fisher", "fisher")],
)
def test_a_method_says_what_it_lacks(name: str, field: str) -> None:
    with pytest.raises(OsrmError, match="needs"):
        merge(find_method(name), replace(layer((4, 3), [2, 2]), **{field: None}))


def test_average_of_opposite_weights_is_refused() -> None:
    with pytest.raises(OsrmError, match="add up to 0"):
        merge(find_method("average"), replace(layer((4, 3), [2, 2]), weights=(1.0, -1.0)))
