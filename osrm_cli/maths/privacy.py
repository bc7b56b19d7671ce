"""A mean that reveals little about any one example, and what it reveals."""

import torch

from osrm_cli.errors import OsrmError

DELTA = 1e-5


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
        OsrmError: If clip is not positive, sigma is negative, or there is no example.
    """
    if not clip > 0 or not sigma >= 0:
        raise OsrmError(f"clip is {clip:g} and sigma {sigma:g}, expected clip above 0 and sigma 0 or more")
    if len(samples) == 0:
        raise OsrmError("there are no examples to take a private mean of")
    samples = samples.to("cpu", torch.float64)
    norms = samples.norm(dim=1, keepdim=True)
    clipped = samples * (clip / norms.clamp(min=clip))
    noise = torch.randn(samples.shape[1], generator=generator, dtype=torch.float64)
    mean: torch.Tensor = clipped.mean(dim=0)
    return mean + noise * (sigma * clip / len(samples))


def epsilon(sigma: float, mechanisms: int, delta: float = DELTA) -> float:
    """Epsilon of ``(epsilon, delta)``-differential privacy, examples being added or removed.

    The privacy loss distributions (arXiv:2106.08567) of all mechanisms are composed by Google's accountant.

    Args:
        sigma: Noise multiplier of each Gaussian mechanism.
        mechanisms: How many there are, one for each distinct input of the target layers.
        delta: Chance that the bound does not hold.

    Raises:
        OsrmError: If sigma is not positive, or the accountant is not installed.
    """
    if not sigma > 0:
        raise OsrmError(f"sigma is {sigma:g}, expected a noise multiplier above 0")
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise OsrmError(
            "a private mean needs the accountant dp-accounting, which is not installed", "pip install dp-accounting"
        ) from None
    accountant = PLDAccountant().compose(dp_event.GaussianDpEvent(sigma), mechanisms)
    return float(accountant.get_epsilon(delta))
