"""Differentially private means, and what they cost."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import brentq
from scipy.stats import norm

from osrm_cli.features.features_file import FeaturesFile
from osrm_cli.features.statistics.private_mean import DELTA, privacy_epsilon
from tests.run_cli import osrm

ARGS = ("collect", "--task", "mood", "--samples", 20, "--out")
needs_accountant = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="the extra 'private' is not installed"
)


@needs_accountant
@pytest.mark.parametrize(("sigma", "mechanisms"), [(1.0, 1), (4.0, 1), (4.0, 12), (20.0, 36)])
def test_epsilon_is_the_analytical_gaussian_mechanism_s(sigma: float, mechanisms: int) -> None:
    """arXiv:1805.06530, Theorem 8, with ``mu = sqrt(n) / sigma``: Gaussian mechanisms compose to one."""
    mu = math.sqrt(mechanisms) / sigma

    def delta(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))

    exact = brentq(lambda epsilon: delta(epsilon) - DELTA, 0, 100)
    assert privacy_epsilon(sigma, mechanisms) == pytest.approx(exact, rel=1e-6)


@needs_accountant
def test_the_file_holds_the_mean_and_its_price_alone(project_copy: Path) -> None:
    run = osrm(*ARGS, "new", "--private", 30, "--clip", 2.5, "--json", cwd=project_copy)
    assert run.code == 0, run
    held = load_file(project_copy / "new/mood.safetensors")
    assert {name.rpartition(".")[2] for name in held} == {"mean"}
    features = FeaturesFile.open(project_copy / "new/mood.safetensors")
    mechanisms = len(held)
    price = {"sigma": 30.0, "clip": 2.5, "delta": 1e-5, "epsilon": privacy_epsilon(30, mechanisms)}
    assert features.record["private"] == {**price, "mechanisms": mechanisms}
    assert json.loads(run.stdout)["features"]["mood"]["private"] == features.record["private"]
    assert features.record["data"]["sha256"] is None
    assert (features.examples, features.tokens) == (20, 20)
    assert "epsilon " in osrm(*ARGS, "text", "--private", 30, "--clip", 2.5, cwd=project_copy).stdout


@needs_accountant
def test_noise_has_its_size_and_no_seed(project_copy: Path) -> None:
    sigma, clip = 0.5, 1.5
    osrm(*ARGS, "plain", "--statistic", "samples", cwd=project_copy)
    plain = load_file(project_copy / "plain/mood.safetensors")
    noise = []
    for out in ("a", "b"):
        assert osrm(*ARGS, out, "--private", sigma, "--clip", clip, cwd=project_copy).code == 0
        held = load_file(project_copy / out / "mood.safetensors")
        for name, mean in held.items():
            samples = plain[name.replace(".mean", ".samples")].double()
            clipped = samples * (clip / samples.norm(dim=1, keepdim=True).clamp(min=clip))
            noise.append(mean.double() - clipped.mean(dim=0))
    found = torch.stack(noise)
    assert float(found.std()) == pytest.approx(sigma * clip / 20, rel=0.35)
    assert len({tuple(row.tolist()) for row in found}) == len(found)


@needs_accountant
def test_private_means_serve_osrm(project_copy: Path) -> None:
    osrm("collect", "--samples", 20, "--private", 5, "--clip", 2, "--out", "new", cwd=project_copy)
    assert osrm("init", "--each", "--features", "new", "--rank", 2, "--out", "s", cwd=project_copy).code == 0


@needs_accountant
@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--statistic", "second-moment"), "--private keeps a mean alone"),
        (("--statistic", "mean", "--statistic", "samples"), "--private keeps a mean alone"),
        (("--shard", "1/2"), "--private and --shard exclude one another"),
    ],
)
def test_nothing_raw_beside_it(project_copy: Path, more: tuple[str, ...], error: str) -> None:
    run = osrm(*ARGS, "new", "--private", 5, "--clip", 2, *more, cwd=project_copy)
    assert run.code == 1
    assert run.error.startswith(error)
    assert not (project_copy / "new").exists()


@pytest.mark.parametrize("alone", [("--private", 5), ("--clip", 2)])
def test_sigma_and_clip_go_together(project_copy: Path, alone: tuple[object, ...]) -> None:
    assert osrm(*ARGS, "new", *alone, cwd=project_copy).code == 2


@pytest.mark.parametrize(
    ("sigma", "clip"), [(0, 1), (-1, 1), (1, 0), (1, -2), ("nan", 1), (1, "nan"), (1e308, 1), (1, 1e308)]
)
def test_values_that_protect_nobody(project_copy: Path, sigma: object, clip: object) -> None:
    run = osrm(*ARGS, "new", f"--private={sigma}", f"--clip={clip}", cwd=project_copy)
    assert run.code == 1
    assert "above 0" in run.error
    assert not (project_copy / "new").exists()


def test_without_the_accountant_the_way_to_it_is_told(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    run = osrm(*ARGS, "new", "--private", 5, "--clip", 2, cwd=project_copy)
    assert (run.code, run.error) == (1, "a private mean needs the accountant dp-accounting, which is not installed")
    assert "hint: pip install dp-accounting" in run.stderr
