import pytest
import torch

from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.second_moment import SecondMoment
from osrm_cli.seeding import gaussian


def draw(rows, columns, *key):
    return gaussian(rows, columns, 0, "gram", *key)


def tokens(task, n=30):
    return draw(n, 12, "tokens", str(task)) @ draw(12, 12, "mix", str(task)) + draw(1, 12, "mean", str(task))


def both(task):
    """The same inputs, whole and as a factor."""
    X = tokens(task)
    return SecondMoment(X.T @ X / len(X), False), SecondMoment(X / len(X) ** 0.5, True)


@pytest.mark.parametrize("factored", [False, True])
def test_every_number_is_the_one_over_the_tokens(factored):
    found, X = both(1)[factored], tokens(1)
    W, update = draw(5, 12, "W"), LowRank(draw(5, 2, "B").float(), draw(2, 12, "A").float())
    Q = torch.linalg.qr(draw(12, 4, "Q"))[0].T
    assert found.trace == pytest.approx(float(X.square().sum(1).mean()), rel=1e-12)
    assert found.energy(update) == pytest.approx(
        float((X @ update.dense().double().T).square().sum(1).mean()), rel=1e-6
    )
    assert found.base_energy(W.float()) == pytest.approx(float((X @ W.T).square().sum(1).mean()), rel=1e-6)
    A = draw(3, 12, "A")
    torch.testing.assert_close(found.energy_shares(A), (X @ A.T).square().sum(0) / X.square().sum())
    assert found.share(Q) == pytest.approx(float((X @ Q.T).square().sum() / X.square().sum()), rel=1e-12)
    torch.testing.assert_close(found.dense(), X.T @ X / len(X))
    spectrum = found.spectrum()
    torch.testing.assert_close((spectrum.vectors.T * spectrum.values) @ spectrum.vectors, X.T @ X / len(X))
    assert (spectrum.values.diff() <= 0).all()


def test_fewer_rows_than_inputs():
    found = SecondMoment(draw(3, 12, "few"), True)
    assert found.spectrum().vectors.shape == (3, 12)
    assert found.share(found.spectrum().main_space(1.0)) == pytest.approx(1)
    zero = SecondMoment(torch.zeros(3, 12, dtype=torch.float64), True)
    assert (zero.share(torch.eye(12, dtype=torch.float64)), zero.trace) == (0, 0)
    assert len(zero.spectrum().main_space()) == 1
