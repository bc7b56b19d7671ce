import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.private_mean import check_privacy, private_mean
from osrm_cli.seeding import gaussian, generator

SAMPLES = gaussian(50, 6, 0, "samples") + 1


def private(clip, sigma, seed=0, samples=SAMPLES):
    return private_mean(samples, clip, sigma, generator(seed, "private"))


def test_without_noise_or_clipping_it_is_the_mean():
    torch.testing.assert_close(private(1e9, 0), SAMPLES.mean(0))


def test_no_example_moves_the_sum_by_more_than_the_clip():
    clip = 1.5
    for outlier in (1.0, 1e6):
        more = torch.cat([SAMPLES, outlier * SAMPLES[:1]])
        moved = (51 * private(clip, 0, samples=more) - 50 * private(clip, 0)).norm()
        assert float(moved) <= clip * (1 + 1e-12)
    assert float(moved) == pytest.approx(clip)
    short = 0.1 * SAMPLES
    torch.testing.assert_close(private(clip, 0, samples=short), short.mean(0))


def test_noise_has_its_size_and_is_seeded():
    clip, sigma = 2.0, 3.0
    noise = torch.stack([private(clip, sigma, seed) - private(clip, 0) for seed in range(500)])
    assert float(noise.std()) == pytest.approx(sigma * clip / 50, rel=0.05)
    assert float(noise.mean().abs()) < 0.05 * sigma * clip / 50
    assert torch.equal(private(clip, sigma, 4), private(clip, sigma, 4))


def test_bad_values_are_refused():
    for clip, sigma in (
        (0, 1),
        (-1, 1),
        (1, -1),
        (1, 0),
        (1, 1e-3),
        (float("nan"), 1),
        (1, float("nan")),
        (1, float("inf")),
    ):
        with pytest.raises(OsrmError, match=r"expected 0\.01 or more and a number above 0"):
            check_privacy(sigma, clip)
    with pytest.raises(OsrmError, match="no examples"):
        private(1, 1, samples=SAMPLES[:0])
