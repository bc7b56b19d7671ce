import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.linalg import interference
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.retrofit import solvers
from osrm_cli.seeding import gaussian

D_IN, D_OUT, RANK, TASKS = 24, 18, 3, 3


def draw(*shape, seed):
    return gaussian(shape[0], shape[1], seed, "test")


def inputs(task, n=200):
    """Tokens of one task: correlated, not centred."""
    return draw(n, D_IN, seed=task) @ draw(D_IN, D_IN, seed=100 + task) / 5 + draw(1, D_IN, seed=200 + task)


def moment(task):
    X = inputs(task)
    return X.T @ X / len(X)


def update(task, dtype=torch.float64):
    return LowRank(2 * draw(D_OUT, RANK, seed=300 + task), draw(RANK, D_IN, seed=400 + task)).to(dtype)


def test_energy_is_the_mean_over_tokens():
    expected = (inputs(1) @ update(0).dense().T).square().sum(dim=1).mean()
    torch.testing.assert_close(interference.delta_energy(update(0), moment(1)), expected, rtol=1e-12, atol=0)
    by_rows = interference.delta_energy_of_rows(update(0), inputs(1) / len(inputs(1)) ** 0.5)
    torch.testing.assert_close(by_rows, expected, rtol=1e-12, atol=0)


def test_energy_of_the_base_model_is_the_mean_over_tokens():
    W = draw(D_OUT, D_IN, seed=9)
    expected = (inputs(1) @ W.T).square().sum(dim=1).mean()
    torch.testing.assert_close(interference.weight_energy(W, moment(1)), expected, rtol=1e-12, atol=0)


def test_projection_is_the_least_squares_fit():
    A = draw(RANK + 2, D_IN, seed=7) * 3
    found = solvers.solve_projection(update(0, torch.float32), A)
    torch.testing.assert_close(found.B, update(0).dense() @ torch.linalg.pinv(A), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.A, A)


def test_projection_on_its_own_rows_loses_nothing():
    old = update(0)
    mixed = draw(RANK, RANK, seed=8) @ old.A
    torch.testing.assert_close(solvers.solve_projection(old, mixed).dense(), old.dense(), rtol=1e-10, atol=1e-12)


def test_balanced_updates_add_up_to_regmean():
    sums = [inputs(t, n=50 * (t + 1)).T @ inputs(t, n=50 * (t + 1)) for t in range(TASKS)]
    merged = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for t in range(TASKS):
        others = sum(sums[u] for u in range(TASKS) if u != t)
        merged += update(t).B @ solvers.solve_balanced(update(t).A, sums[t], others, mu=1.0)
    grams = torch.stack(sums)
    weighted = torch.stack([update(t).dense() for t in range(TASKS)]) @ grams
    regmean = weighted.sum(0) @ torch.linalg.inv(grams.sum(0))
    assert (merged - regmean).norm() < 1e-8 * regmean.norm()


@pytest.mark.parametrize("mu", [0.1, 1.0, 30.0])
def test_balanced_minimises_its_objective(mu):
    old, C, others = update(0), moment(0), moment(1) + moment(2)
    X = (old.B @ solvers.solve_balanced(old.A, C, others, mu)).requires_grad_()
    difference = X - old.dense()
    objective = ((difference @ C) * difference).sum() + mu * ((X @ others) * X).sum()
    (gradient,) = torch.autograd.grad(objective, X)
    assert gradient.norm() < 1e-9 * (old.dense() @ C).norm()


def test_tasks_that_do_not_overlap_lose_nothing():
    """Own inputs in the first half of the coordinates, the others' in the second; both moments singular."""
    own, others = inputs(0).clone(), inputs(1).clone()
    own[:, D_IN // 2 :], others[:, : D_IN // 2] = 0, 0
    A = solvers.solve_balanced(update(0).A, own.T @ own, others.T @ others, mu=5.0)
    torch.testing.assert_close(A @ own.T, update(0).A @ own.T, rtol=0, atol=1e-7)
    assert (A @ others.T).abs().max() < 1e-7


def test_what_no_task_shows_is_shared_by_all():
    """Every task's inputs in the first half: in the second half the merge is the average, as regmean's."""
    seen = [inputs(task).clone() for task in range(TASKS)]
    for X in seen:
        X[:, D_IN // 2 :] = 0
    others = sum(X.T @ X for X in seen[1:])
    A = solvers.solve_balanced(update(0).A, seen[0].T @ seen[0], others, mu=1.0, count=TASKS - 1)
    torch.testing.assert_close(A[:, D_IN // 2 :], update(0).A[:, D_IN // 2 :] / TASKS, rtol=1e-9, atol=0)


def test_without_cost_the_update_stays():
    torch.testing.assert_close(
        solvers.solve_balanced(update(0).A, moment(0), moment(1), 0.0), update(0).A, rtol=1e-8, atol=1e-8
    )
    narrow = inputs(0)[:5]  # singular
    A = solvers.solve_balanced(update(0).A, narrow.T @ narrow, moment(1), 0.0)
    torch.testing.assert_close(A @ narrow.T, update(0).A @ narrow.T, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(OsrmError, match="mu is -1"):
        solvers.solve_balanced(update(0).A, moment(0), moment(1), -1.0)
    zero = torch.zeros(D_IN, D_IN)
    with pytest.raises(OsrmError, match="all second moments are zero"):
        solvers.solve_balanced(update(0).A, zero, zero, 1.0)
