"""What every method must satisfy, and by name, who is exempt and why."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.merging.methods import Method, find_method
from osrm_cli.merging.methods.layer_updates import LayerUpdates, MaskedDelta
from osrm_cli.merging.methods.options import MethodOptions
from tests.merging.methods.strategies import EVERY, NAMES, close, dense, layer, layers, merge, update

few = settings(deadline=None, max_examples=5, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

RANDOM = {row.name for row in EVERY if "seed" in row.needs}  # opposite adapters cancel in expectation only
FLAT = {"iso-c", "iso-cts"}  # a flat spectrum is the method
BY_SUM_OF_WEIGHTS = {"average", "pico+average"}  # dividing by the sum of the weights is the method
BY_FACTORS = {  # Pico reads B, others both factors as they are, not the update
    *(row.name for row in EVERY if "pico" in row.wrappers),
    *("robust-merge", "lora-lego"),
}
BY_CLUSTER = {"lora-lego"}  # ranks that cancel need not be in one cluster
LINEAR = {  # in the weights
    *("task-arith", "cat", "core-task-arith", "adamerging", "dare", "magnitude", "breadcrumbs", "della-linear"),
    *("regmean", "regmean++", "lot", "sequential", "fisher", "wudi"),
}
DATA = ("second_moments", "fisher", "cross_moments", "drifts")  # fields of LayerUpdates beside the updates
WITHOUT = dict.fromkeys(DATA)
CUTS = {"svd", "pico+svd", "lora-lego"}  # below the rank of the sum something is lost, that is the method

every = pytest.mark.parametrize("method", EVERY, ids=lambda row: row.name)


def uncut(method: Method, **options: object) -> dict[str, object]:
    return {**options, "rank": 99} if method.name in CUTS else options


@every
@few
@given(layers(tasks=1, kinds=("full", "deficient", "zero")))
def test_one_adapter_is_itself(method: Method, one: LayerUpdates) -> None:
    if method.name not in FLAT:
        close(merge(method, one, density=1.0), one.deltas[0].dense().double())


@every
@few
@given(layers(kinds=("full", "deficient")), st.randoms(use_true_random=False))
def test_order_of_adapters_changes_no_byte(method: Method, several: LayerUpdates, random: object) -> None:
    order = list(range(len(several.adapters)))
    random.shuffle(order)
    fields = ("adapters", "deltas", "weights", *DATA)
    shuffled = replace(several, **{field: tuple(getattr(several, field)[i] for i in order) for field in fields})
    assert torch.equal(merge(method, several), merge(method, shuffled))


@every
@few
@given(layers(tasks=3))
def test_names_of_adapters_do_not_matter(method: Method, several: LayerUpdates) -> None:
    if method.name not in RANDOM:
        renamed = replace(several, adapters=("z", "y", "x"))
        close(merge(method, renamed), merge(method, several))


@every
@few
@given(layers(tasks=1, kinds=("full", "deficient")))
def test_opposite_adapters_cancel(method: Method, one: LayerUpdates) -> None:
    if method.name not in RANDOM | BY_CLUSTER:
        (dW,) = one.deltas
        both = replace(
            one,
            adapters=NAMES[:2],
            deltas=(dW, LowRank(-dW.B, dW.A)),
            weights=(1.0, 1.0),
            **{field: getattr(one, field) * 2 for field in DATA},
        )
        close(merge(method, both), torch.zeros(one.shape), float(dW.dense().norm()), within=1e-6)


@pytest.mark.parametrize("name", sorted(LINEAR))
@few
@given(layers(tasks=3), st.lists(st.floats(0.25, 2), min_size=6, max_size=6))
def test_linear_methods_are_linear_in_the_weights(name: str, several: LayerUpdates, weights: list[float]) -> None:
    method, first, second = find_method(name), weights[:3], weights[3:]
    together = tuple(a + b for a, b in zip(first, second, strict=True))
    parts = [merge(method, replace(several, weights=tuple(some))) for some in (first, second)]
    close(merge(method, replace(several, weights=together)), sum(parts))


@every
@few
@given(layers(tasks=3), st.lists(st.sampled_from([-1.5, 0.5, 2.0]), min_size=3, max_size=3))
def test_weight_is_the_size_of_the_update(method: Method, several: LayerUpdates, weights: list[float]) -> None:
    if method.name not in BY_SUM_OF_WEIGHTS:
        scaled = tuple(dW.scaled(w) for dW, w in zip(several.deltas, weights, strict=True))
        weighted = merge(method, replace(several, weights=tuple(weights)))
        assert torch.equal(weighted, merge(method, replace(several, deltas=scaled)))


@every
@few
@given(layers(), st.floats(-2, 2))
def test_lambda_scales_the_result(method: Method, several: LayerUpdates, scale: float) -> None:
    close(merge(method, several, scale=scale), scale * merge(method, several), float(merge(method, several).norm()))


@every
@few
@given(layers(kinds=("full", "zero", "deficient")))
def test_zero_and_rank_deficient_updates_are_allowed(method: Method, several: LayerUpdates) -> None:
    result = method.load()(several, MethodOptions())
    assert dense(result).isfinite().all()
    assert dense(result).shape == several.shape
    if method.exact:
        assert isinstance(result, LowRank)
        assert result.rank <= sum(dW.rank for dW in several.deltas)


@every
@few
@given(layers(kinds=("zero",)))
def test_nothing_merges_to_nothing(method: Method, several: LayerUpdates) -> None:
    assert merge(method, several).abs().max() == 0


@every
@few
@given(layers(tasks=3), st.integers(0, 99))
def test_only_the_updates_matter_not_how_they_are_factored(method: Method, several: LayerUpdates, seed: int) -> None:
    if method.name in BY_FACTORS:
        return
    generator = torch.Generator().manual_seed(seed)
    rewritten = []
    for dW in several.deltas:
        exact = dW.to(torch.float64)
        turn = torch.linalg.qr(torch.randn(dW.rank, dW.rank, generator=generator, dtype=torch.float64)).Q * 3
        B, A = exact.B @ turn, torch.linalg.solve(turn, exact.A)
        rewritten.append(LowRank(torch.cat([B / 4, 0 * B, 3 * B / 4], 1), torch.cat([A, A, A])))
    same = replace(several, deltas=tuple(dW.to(torch.float64) for dW in several.deltas))
    other = replace(several, deltas=tuple(rewritten))
    close(merge(method, other, **uncut(method)), merge(method, same, **uncut(method)))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_in_float32_or_better_inside(method: Method, dtype: torch.dtype) -> None:
    several = layer((9, 7), [3, 1, 2])
    halves = replace(several, deltas=tuple(dW.to(dtype) for dW in several.deltas))
    widened = replace(several, deltas=tuple(dW.promoted() for dW in halves.deltas))
    result = method.load()(halves, MethodOptions())
    form = result.B if isinstance(result, LowRank) else result.unified if isinstance(result, MaskedDelta) else result
    assert form.dtype in (torch.float32, torch.float64)
    assert torch.equal(merge(method, halves), merge(method, widened))


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_same_seed_same_bytes(name: str) -> None:
    several = layer((9, 8), [3, 1, 2])
    drawn = [merge(find_method(name), several, density=0.5, seed=seed) for seed in (0, 0, 1)]
    elsewhere = merge(find_method(name), replace(several, name="encoder.1.query"), density=0.5)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], elsewhere)


def test_a_mask_depends_on_its_own_adapter_alone() -> None:
    several = layer((9, 8), [3, 1, 2])
    alone = [
        replace(several, adapters=(name,), deltas=(dW,), weights=(1.0,), **WITHOUT)
        for name, dW in zip(several.adapters, several.deltas, strict=True)
    ]
    close(merge(find_method("dare"), several), sum(merge(find_method("dare"), one) for one in alone))


def test_dare_is_right_in_expectation() -> None:
    several = layer((6, 5), [2, 2])
    for name in ("dare", "core-dare", "della"):
        alone = replace(several, adapters=("a",), deltas=several.deltas[:1], weights=(1.0,), **WITHOUT)
        mean = sum(merge(find_method(name), alone, density=0.5, seed=seed) for seed in range(800)) / 800
        close(mean, alone.deltas[0].dense().double(), within=0.1)


@few
@given(layers(kinds=("full", "deficient", "zero")))
def test_the_sum_is_the_sum_in_every_space(several: LayerUpdates) -> None:
    expected = sum(dW.dense().double() for dW in several.deltas)
    for name in ("task-arith", "cat", "core-task-arith", "adamerging"):
        close(merge(find_method(name), several), expected, sum(float(dW.dense().norm()) for dW in several.deltas))


@few
@given(layers(kinds=("full",)))
def test_element_rules_that_drop_nothing_are_sums_in_every_space(several: LayerUpdates) -> None:
    expected = sum(dW.dense().double() for dW in several.deltas)
    for name in ("dare", "magnitude", "breadcrumbs", "core-dare", "core-magnitude", "core-breadcrumbs"):
        close(merge(find_method(name), several, density=1.0), expected)


@every
def test_an_adapter_without_the_layer_leaves_no_arbitrary_direction(method: Method) -> None:
    """What fills in for nothing must not be visible: not the zeros' factors, not a null vector of theirs."""
    several = layer((9, 8), [3, 2, 2])
    generator = torch.Generator().manual_seed(7)
    zeros = (LowRank(torch.zeros(9, 0), torch.zeros(0, 8)), update(9, 8, 2, "zero", generator))
    results = [
        merge(method, replace(several, deltas=(several.deltas[0], nothing, several.deltas[2])), **uncut(method))
        for nothing in zeros
    ]
    close(results[0], results[1])


def test_large_adapters_that_cancel_leave_no_direction_behind() -> None:
    several = layer((9, 8), [2, 3, 3])
    one, other = several.deltas[0].scaled(1e-5), several.deltas[1]
    merged = merge(find_method("iso-c"), replace(several, deltas=(one, other, other.scaled(-1))))
    close(merged, merge(find_method("iso-c"), replace(several, deltas=(one, other.scaled(0), other.scaled(0)))))


@pytest.mark.parametrize("name", ["ties", "emr", "core-ties", "knots-ties"])
def test_a_sum_that_is_rounding_elects_no_sign(name: str) -> None:
    several = layer((40, 30), [2, 3, 5])
    one, other, _ = (dW.to(torch.float64) for dW in several.deltas)
    third = LowRank(torch.cat([-one.B, -other.B], dim=1), torch.cat([one.A, other.A]))
    zero_sum = replace(several, deltas=(one, other, third))
    assert merge(find_method(name), zero_sum, density=1.0).norm() < 0.1 * one.dense().norm()


def test_precisions_may_differ_between_adapters() -> None:
    several = layer((70, 8), [3, 2, 2])
    types = (torch.bfloat16, torch.float64, torch.float32)
    mixed = replace(several, deltas=tuple(dW.to(dtype) for dW, dtype in zip(several.deltas, types, strict=True)))
    for method in EVERY:
        close(merge(method, mixed), merge(method, several), within=0.2)


def test_tsv_counts_an_adapter_and_its_copy_once() -> None:
    one = layer((9, 8), [2])
    twice = replace(layer((9, 8), [2, 2]), deltas=one.deltas * 2)
    close(merge(find_method("tsv"), twice), one.deltas[0].dense().double())


WITHOUT_DATA = [row for row in EVERY if row.exact and not {"features", "data"} & set(row.needs)]


@pytest.mark.parametrize("method", WITHOUT_DATA, ids=lambda row: row.name)
def test_low_rank_methods_build_no_large_matrix(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 200_000  # a dense float32 update would take 149 GiB
    updates = tuple(update(width, width, 1, "full", generator) for _ in range(2))
    result = method.load()(LayerUpdates("wide", ("a", "b"), updates, (1.0, 0.5)), MethodOptions(density=0.5))
    assert isinstance(result, LowRank)
    assert result.shape == (width, width)


def test_nearswap_moves_every_entry_towards_the_other_by_its_reach() -> None:
    two, nearswap = layer((9, 8), [3, 2]), find_method("nearswap")
    one, other = (dW.dense().double() for dW in two.deltas)
    merged = merge(nearswap, two, reach=0.1)
    assert float((merged - one).abs().max()) <= 0.1 + 1e-6
    assert ((merged - other).abs() <= (one - other).abs() + 1e-6).all()
    close(merge(nearswap, two, reach=0.0), one)
    close(merge(nearswap, two, reach=99.0), other)
    close(merge(nearswap, two, reach=99.0, primary="mrpc"), one)
    alone = replace(two, adapters=("cola",), deltas=two.deltas[:1], weights=(1.0,), **WITHOUT)
    close(merge(nearswap, alone), one)


def test_nearswap_refuses_what_it_cannot_take() -> None:
    with pytest.raises(OsrmError, match="takes two adapters, found 3"):
        merge(find_method("nearswap"), layer((4, 3), [1, 1, 1]))
    with pytest.raises(OsrmError, match="no adapter is called 'sst2'"):
        merge(find_method("nearswap"), layer((4, 3), [1, 1]), primary="sst2")


def test_lora_lego_with_a_cluster_for_each_rank_is_the_sum() -> None:
    several = layer((9, 8), [3, 3, 3])
    expected = sum(dW.dense().double() for dW in several.deltas) / 3**0.5  # three times the rank, the same variance
    close(merge(find_method("lora-lego"), several, rank=9), expected)


def test_lora_lego_of_equal_adapters_is_one_of_them() -> None:
    one = layer((9, 8), [3]).deltas[0]
    same = replace(layer((9, 8), [3, 3]), deltas=(one, one))
    close(merge(find_method("lora-lego"), same), one.dense().double())


def test_lora_lego_refuses_a_share_of_the_energy() -> None:
    with pytest.raises(OsrmError, match="number of clusters"):
        merge(find_method("lora-lego"), layer((4, 3), [1, 1]), energy=0.9)


def test_robust_merge_of_equal_adapters_keeps_their_directions() -> None:
    """What is equal is not averaged away: at density 1 two equal adapters give twice one of them."""
    one = layer((9, 8), [3]).deltas[0]
    same = replace(layer((9, 8), [3, 3]), deltas=(one, one))
    close(merge(find_method("robust-merge"), same, density=1.0), 2 * one.dense().double())


def test_lot_leaves_directions_without_data_alone() -> None:
    several = layer((5, 6), [2, 3])
    seen = torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    moments = tuple(seen @ C @ seen for C in several.second_moments)
    merged = merge(find_method("lot"), replace(several, second_moments=moments))
    assert merged[:, 3:].abs().max() < 1e-12
    within = replace(
        several,
        deltas=tuple(LowRank(dW.B, dW.A[:, :3]) for dW in several.deltas),
        second_moments=tuple(C[:3, :3] for C in several.second_moments),
        **dict.fromkeys(("fisher", "cross_moments", "drifts")),
    )
    close(merged[:, :3], merge(find_method("lot"), within), within=1e-9)


def test_doge_makes_the_sum_as_long_as_each_task_along_its_own_rows() -> None:
    several = layer((20, 30), [2, 3, 2])  # too few leading directions for a shared one but the first
    merged = merge(find_method("doge-ta"), several, density=1.0)
    plain = [dW.dense().double() for dW in several.deltas]
    size = sum(float(dW.norm()) for dW in plain) / 3
    summed = sum(size / dW.norm() * dW for dW in plain)

    def conflicts(W: torch.Tensor) -> float:
        return sum(float((dW * (dW - W)).sum(1).square().sum()) for dW in plain)

    assert conflicts(merged) < 1e-6 * conflicts(summed)
    step = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (merged - summed).norm() < (merged + 0.1 * step - summed).norm()


def test_tatr_keeps_what_one_task_alone_changes() -> None:
    several = layer((40, 30), [2, 3])
    B = several.deltas[1].B.clone()
    B[:20] = 0  # the upper half is the first task's alone
    halved = replace(several, deltas=(several.deltas[0], LowRank(B, several.deltas[1].A)))
    merged, total = merge(find_method("tatr"), halved, outliers=0.3), sum(dW.dense().double() for dW in halved.deltas)
    close(merged[:20], total[:20])
    assert int((merged[20:] == 0).sum()) == int(0.3 * 40 * 30)
    close(merge(find_method("tatr"), halved, outliers=0.0), total)


def test_ram_is_the_average_where_all_use_an_entry_and_whole_where_one_does() -> None:
    several = layer((40, 30), [2, 3])
    one, other = (dW.dense().double() for dW in several.deltas)
    close(merge(find_method("ram"), several, epsilon=0.0), (one + other) / 2)
    merged = merge(find_method("ram"), several, epsilon=1.0)
    alone = (one.abs() > 1) & (other.abs() <= 1)
    torch.testing.assert_close(merged[alone].float(), one[alone].float())
    grown = merge(find_method("ram"), several, epsilon=1.0, bonus=0.5)
    torch.testing.assert_close(grown[alone].float(), 1.1 * one[alone].float())  # more is shared than a fifth of them
