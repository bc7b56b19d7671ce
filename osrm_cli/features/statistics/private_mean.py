"""A mean that reveals little about any one example, and what it reveals."""

import torch

from osrm_cli.errors import OsrmError

DELTA = 1e-5
MAX_NOISE = 1e9  # of sigma and of clip: beyond, nothing is left of the mean
MIN_SIGMA = 0.01  # noise multiplier; below, epsilon is in the thousands and beyond what the accountant can count


def check_privacy(sigma: float, clip: float) -> None:
    """Check, before anything is read, that a private mean can be had.

    Raises:
        OsrmError: If sigma protects nobody, clip is not a positive number, or the accountant is not installed.
    """
    if not (MIN_SIGMA <= sigma <= MAX_NOISE and 0 < clip <= MAX_NOISE):
        raise OsrmError(
            f"sigma is {sigma:g} and clip {clip:g}, expected {MIN_SIGMA} or more and a number above 0, "
            f"both up to {MAX_NOISE:g}"
        )
    privacy_epsilon(sigma, 1)


def private_mean(samples: torch.Tensor, clip: float, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian mechanism for the mean of the examples' means, ``(d_in,)``, float64.

    Each example's mean is clipped to norm ``clip``, so that adding or removing one moves the sum by at most ``clip``;
    every coordinate of the mean gets noise of standard deviation ``sigma * clip / k``, ``k`` being public. Each layer
    is one Gaussian mechanism with noise multiplier ``sigma``: the budget composes over the layers.

    Args:
        samples: Token mean of every example, ``(k, d_in)``.
        clip: Largest norm that an example's mean may have.
        sigma: Noise multiplier.
        generator: Source of the noise, on the CPU.

    Raises:
        OsrmError: If there is no example.
    """
    if len(samples) == 0:
        raise OsrmError("there are no examples to take a private mean of")
    samples = samples.to("cpu", torch.float64)
    norms = samples.norm(dim=1, keepdim=True)
    clipped = samples * (clip / norms.clamp(min=clip))
    noise = torch.randn(samples.shape[1], generator=generator, dtype=torch.float64)
    mean: torch.Tensor = clipped.mean(dim=0)
    return mean + noise * (sigma * clip / len(samples))


def privacy_epsilon(sigma: float, mechanisms: int, delta: float = DELTA) -> float:
    """Epsilon of ``(epsilon, delta)``-differential privacy, examples being added or removed.

    The privacy loss distributions (arXiv:2106.08567) of all mechanisms are composed by Google's accountant.

    Args:
        sigma: Noise multiplier of each Gaussian mechanism.
        mechanisms: How many there are, one for each distinct input of the target layers.
        delta: Chance that the bound does not hold.

    Raises:
        OsrmError: If the accountant is not installed.
    """
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise OsrmError(
            "a private mean needs the accountant dp-accounting, which is not installed", "pip install dp-accounting"
        ) from None
    # Losses reach to about mu^2 / 2, mu^2 = mechanisms / sigma^2: where that is far, coarser steps keep them countable.
    step = 1e-4 * max(1.0, mechanisms / sigma**2 / 20)
    accountant = PLDAccountant(value_discretization_interval=step)
    accountant.compose(dp_event.GaussianDpEvent(sigma), mechanisms)
    return float(accountant.get_epsilon(delta))
