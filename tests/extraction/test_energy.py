"""Shares of a difference's energy: sums and bounds that hold for any numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osrm_cli.extraction.energy import energy_by_kind
from osrm_cli.linalg.row_stream import truncate_rank

NAMES = [f"t{i}" for i in range(8)]
ENERGIES = st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1e6), min_size=1)


@given(ENERGIES, st.data())
def test_shares_add_up_and_what_is_lost_is_part_of_them(energies, data):
    kinds = {name: data.draw(st.sampled_from(["linear layers", "norms", "biases"])) for name in energies}
    held = data.draw(st.sets(st.sampled_from(list(energies))))
    kept = {name: data.draw(st.floats(0, 1)) for name in held}
    rows = energy_by_kind(kinds, energies, kept)
    assert rows.keys() == set(kinds.values())
    assert sum(row.tensors for row in rows.values()) == sum(energy > 0 for energy in energies.values())
    total = sum(energies.values())
    assert sum(row.share for row in rows.values()) == pytest.approx(1 if total else 0)
    for kind, row in rows.items():
        assert -1e-12 <= row.lost <= row.share + 1e-12
        if not any(kinds[name] == kind for name in held):
            assert row.lost == pytest.approx(row.share)
    lost = sum(energies[name] * (1 - kept.get(name, 0)) for name in energies)
    assert sum(row.lost for row in rows.values()) == pytest.approx(lost / total if total else 0, abs=1e-12)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_higher_rank_never_loses_more(rows, columns, seed):
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    energies = {"W": float(W.square().sum())}
    lost = []
    for rank in range(1, min(rows, columns) + 1):
        factors, kept = truncate_rank(W, rank)
        lost.append(energy_by_kind({"W": "linear layers"}, energies, {"W": kept})["linear layers"].lost)
        assert lost[-1] == pytest.approx(float((W - factors.dense()).square().sum()) / energies["W"], abs=1e-9)
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] == pytest.approx(0, abs=1e-12)
