import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osrm_cli.calibration.ridge_map import (
    MAX_SPREAD,
    calibrated_spread_factor,
    fit_ridge_map,
    fold_into_head,
    leave_one_out,
)
from osrm_cli.errors import OsrmError
from osrm_cli.seeding import gaussian


def pair(n, d, noise=0.1, seed=0):
    """Merged and single representations that differ by a linear map and noise."""
    Z = gaussian(n, d, seed, "z") + 2
    M = torch.eye(d, dtype=torch.float64) + 0.3 * gaussian(d, d, seed, "m")
    return Z, Z @ M - 1 + noise * gaussian(n, d, seed, "e")


def ridge(Z, Y, strength, prior, intercept=True):
    """Ridge regression with an unpenalised intercept or none, by its normal equations."""
    n, d = Z.shape
    design = torch.cat([Z, torch.full((n, 1), float(intercept), dtype=Z.dtype)], dim=1)
    penalty = strength * torch.diag(torch.cat([torch.ones(d), torch.zeros(1)])).double()
    penalty[d, d] = float(not intercept)  # a column of zeros needs some penalty to have a solution
    solution = torch.linalg.solve(design.T @ design + penalty, design.T @ (Y - prior * Z))
    return solution[:d] + prior * torch.eye(d, dtype=Z.dtype), solution[d]


def left_out(Z, Y, strength, prior, intercept=True):
    errors = []
    for i in range(len(Z)):
        keep = torch.arange(len(Z)) != i
        M, shift = ridge(Z[keep], Y[keep], strength, prior, intercept)
        errors.append((Y[i] - Z[i] @ M - shift).square())
    return float(torch.stack(errors).mean())


@given(
    n=st.integers(4, 14),
    d=st.integers(1, 9),
    strength=st.floats(0.01, 100),
    prior=st.sampled_from([0.0, 1.0]),
    intercept=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_closed_form_equals_leaving_one_out(n, d, strength, prior, intercept):
    Z, Y = pair(n, d)
    inputs, target = Z, Y - prior * Z
    if intercept:
        inputs, target = inputs - inputs.mean(0), target - target.mean(0)
    U, values, _ = torch.linalg.svd(inputs, full_matrices=False)
    found = float(leave_one_out(U, values, target, strength, intercept).square().mean())
    assert found == pytest.approx(left_out(Z, Y, strength, prior, intercept), rel=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 30)])
def test_the_map_is_the_ridge_solution_of_the_chosen_strength(n, d, intercept):
    Z, Y = pair(n, d)
    found = fit_ridge_map(Z, Y, intercept=intercept)
    M, shift = ridge(Z, Y, found.strength, found.prior, intercept)
    torch.testing.assert_close(found.M, M, rtol=1e-8, atol=1e-8)
    if intercept:
        torch.testing.assert_close(found.shift, shift, rtol=1e-8, atol=1e-8)
    else:
        assert found.shift is None
    assert found.error == pytest.approx(left_out(Z, Y, found.strength, found.prior, intercept), rel=1e-8)


def test_no_other_strength_leaves_less_error():
    Z, Y = pair(20, 30, noise=1.0)
    found = fit_ridge_map(Z, Y)
    scale = float(torch.linalg.svdvals(Z - Z.mean(0)).square().mean())
    others = [left_out(Z, Y, scale * 10.0**power, prior) for power in range(-4, 5) for prior in (0.0, 1.0)]
    assert found.error <= min(others) * (1 + 1e-9)


def test_an_exact_map_is_found_and_helps_on_new_examples():
    Z, Y = pair(80, 10, noise=0)
    found = fit_ridge_map(Z[:40], Y[:40])
    after = (Z[40:] @ found.M + found.shift - Y[40:]).square().mean()
    assert after < 1e-5 * (Z[40:] - Y[40:]).square().mean()
    assert found.error < 1e-5 * found.before


def test_unrelated_representations_shrink_to_their_mean():
    Z, Y = gaussian(60, 20, 0, "z"), gaussian(60, 20, 0, "y") + 5
    found = fit_ridge_map(Z, Y)
    assert found.prior == 0.0
    assert found.M.norm() < 0.2 * 20**0.5
    torch.testing.assert_close(Z.mean(0) @ found.M + found.shift, Y.mean(0))


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_equal_representations_stay(noise):
    """Differences of the size of float32's rounding count as none."""
    Z, _ = pair(16, 30)
    found = fit_ridge_map(Z, Z + noise * gaussian(16, 30, 0, "noise") + noise)
    assert torch.equal(found.M, torch.eye(30, dtype=torch.float64))
    assert not found.shift.any()
    assert not found.improves


def test_a_map_helps_where_left_out_examples_come_closer():
    Z, Y = pair(40, 6)
    assert fit_ridge_map(Z, Y).improves
    Z = torch.ones(4, 3)
    found = fit_ridge_map(Z, Z + torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None])  # the mean of three errs by a third
    assert not found.improves
    assert found.error == pytest.approx((4 / 3) ** 2 * found.before)


def test_spread_of_the_logits_is_kept():
    """Of a half that can be explained and a half that cannot, the first is stretched to the spread of both."""
    n = 400
    Z, W = gaussian(n, 4, 0, "z"), gaussian(3, 4, 0, "w")
    Y = Z + gaussian(n, 4, 0, "noise") + 3
    plain, kept = fit_ridge_map(Z, Y), fit_ridge_map(Z, Y, W)
    assert plain.spread == 1.0
    assert kept.spread == pytest.approx(2**0.5, rel=0.1)
    assert (kept.strength, kept.prior, kept.error) == (plain.strength, plain.prior, plain.error)
    mean = Y.mean(0)
    torch.testing.assert_close(Z @ kept.M + kept.shift - mean, kept.spread * (Z @ plain.M + plain.shift - mean))
    gaps = lambda x: (x @ (W - W.mean(0)).T).std(0).norm()  # noqa: E731
    assert float(gaps(Z @ kept.M)) == pytest.approx(float(gaps(Y)), rel=0.05)


def test_spread_has_limits():
    Z, W = gaussian(60, 20, 0, "z"), gaussian(3, 20, 0, "w")
    noise = gaussian(60, 20, 0, "y")
    assert fit_ridge_map(Z, noise, W).spread == MAX_SPREAD
    assert fit_ridge_map(Z, noise, W[:1]).spread == 1.0  # a score: no classes to decide between
    assert fit_ridge_map(Z, noise, W, intercept=False).spread == 1.0  # would change no decision
    assert calibrated_spread_factor(noise, torch.zeros_like(noise), W) == 1.0
    assert calibrated_spread_factor(noise, 2 * noise, W) == 1.0


def test_constant_representations_are_safe():
    found = fit_ridge_map(torch.ones(5, 3), torch.full((5, 3), 4.0))
    torch.testing.assert_close(torch.ones(3).double() @ found.M + found.shift, torch.full((3,), 4.0).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
def test_folding_is_exact(dtype, bias, intercept):
    Z, Y = pair(12, 7)
    found = fit_ridge_map(Z, Y, intercept=intercept)
    W, b = gaussian(3, 7, 1, "w").to(dtype), gaussian(1, 3, 1, "b")[0].to(dtype) if bias else None
    folded, shift = fold_into_head(found, W, b)
    assert folded.dtype == dtype
    assert (shift is None) == (not bias and not intercept)
    mapped = torch.nn.functional.linear(
        Z @ found.M + (found.shift if intercept else 0), W.double(), None if b is None else b.double()
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    plain = torch.nn.functional.linear(Z, folded.double(), None if shift is None else shift.double())
    torch.testing.assert_close(plain, mapped, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("merged", "single"), [((2, 4), (2, 4)), ((9, 4), (9, 5)), ((9, 4), (8, 4)), ((9,), (9,))])
def test_shapes_that_do_not_fit_are_refused(merged, single):
    with pytest.raises(OsrmError, match="cannot be calibrated"):
        fit_ridge_map(torch.zeros(merged), torch.zeros(single))
