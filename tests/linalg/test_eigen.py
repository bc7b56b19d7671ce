import pytest
import torch

from osrm_cli.linalg import eigen

RANK = 6


def spectrum(kind, d):
    steps = torch.arange(1, d + 1, dtype=torch.float64)
    return {
        "clustered": steps**-1.2,  # neighbours at the small end differ by a thousandth
        "flat": 1 + 1e-3 * steps,
        "tiny": torch.where(steps > d - 3, 1e-9, 1.0) * steps**-0.5,
        "null": torch.where(steps > d // 2, 0.0, 1.0) * steps**-1,
        "identity": torch.ones(d, dtype=torch.float64),
    }[kind]


def matrix(values, seed=0):
    d = len(values)
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    S = (Q * values) @ Q.T
    return (S + S.T) / 2


def start(d, seed=1, rank=RANK):
    return torch.randn(rank, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_orthonormal(A, rank=RANK):
    torch.testing.assert_close(A @ A.T, torch.eye(rank, dtype=A.dtype), rtol=0, atol=1e-12)


@pytest.fixture(params=[True, False], ids=["dense", "krylov"])
def dense(request, monkeypatch):
    monkeypatch.setattr(eigen, "DENSE", 10**9 if request.param else 0)
    return request.param


@pytest.fixture
def solved(monkeypatch):
    """Widths of the matrices that were solved densely."""
    widths, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda X: widths.append(len(X)) or eigh(X))
    return widths


@pytest.mark.parametrize("kind", ["clustered", "flat", "tiny", "null", "identity"])
def test_the_smallest_reach_the_sum_of_the_smallest_eigenvalues(kind, dense):
    S = matrix(spectrum(kind, 240))
    A = eigen.smallest_eigenvectors(S, start(240))
    check_orthonormal(A)
    optimum = torch.linalg.eigvalsh(S)[:RANK].sum()
    assert ((A @ S) * A).sum() == pytest.approx(float(optimum), rel=1e-6, abs=1e-12 * float(S.trace()))


@pytest.mark.parametrize("kind", ["clustered", "flat", "tiny", "null", "identity"])
def test_the_largest_reach_the_sum_of_the_largest_eigenvalues(kind, dense):
    S = matrix(spectrum(kind, 240))
    A = eigen.largest_eigenvectors(lambda V: S @ V, start(240))
    check_orthonormal(A)
    assert ((A @ S) * A).sum() == pytest.approx(float(torch.linalg.eigvalsh(S)[-RANK:].sum()), rel=1e-9)


@pytest.mark.parametrize("kind", ["clustered", "flat", "tiny"])
def test_krylov_converges_and_needs_no_dense_solve(kind, monkeypatch, solved):
    monkeypatch.setattr(eigen, "DENSE", 0)
    S, asked = matrix(spectrum(kind, 400)), start(400)
    eigen.smallest_eigenvectors(S, asked)
    eigen.largest_eigenvectors(lambda V: S @ V, asked)
    assert max(solved) < 400


def test_nothing_at_all_needs_no_dense_solve(monkeypatch, solved):
    monkeypatch.setattr(eigen, "DENSE", 0)
    check_orthonormal(eigen.largest_eigenvectors(torch.zeros_like, start(400)))
    assert max(solved) < 400


def test_a_null_space_is_sampled_uniformly(dense):
    """The mean projector of random bases of a null space is the null space's projector times r over its dimension."""
    S = matrix(spectrum("null", 40))
    bases = torch.stack([eigen.smallest_eigenvectors(S, start(40, seed, 3)) for seed in range(300)])
    values, vectors = torch.linalg.eigh(S)
    null = vectors[:, values < 1e-9]
    assert null.shape[1] == 20
    mean = torch.einsum("nri,nrj->ij", bases, bases) / len(bases)
    torch.testing.assert_close(mean, (3 / 20) * null @ null.T, rtol=0, atol=0.06)
    assert (S @ bases[0].T).norm() < 1e-8


def test_rounding_to_float32_is_survived(dense):
    S = matrix(spectrum("null", 240)).float().double()
    assert torch.linalg.eigvalsh(S).min() < 0
    A = eigen.smallest_eigenvectors(S, start(240))
    check_orthonormal(A)
    assert (A @ S).norm() < 1e-6 * S.norm()


@pytest.mark.parametrize("d", [6, 7, 13])
def test_blocks_that_do_not_fit_fall_back(d, dense):
    S = matrix(spectrum("flat", d))
    for A in (eigen.smallest_eigenvectors(S, start(d)), eigen.largest_eigenvectors(lambda V: S @ V, start(d))):
        check_orthonormal(A)


def test_signs_do_not_depend_on_the_solver():
    A = torch.tensor([[0.1, -3.0, 2.0], [4.0, 0.0, -1.0]])
    assert torch.equal(eigen.fix_eigenvector_signs(A), torch.tensor([[-0.1, 3.0, -2.0], [4.0, 0.0, -1.0]]))
    assert torch.equal(eigen.fix_eigenvector_signs(-A), eigen.fix_eigenvector_signs(A))
