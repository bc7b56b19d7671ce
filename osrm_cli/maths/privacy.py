"""A mean that reveals little about any one example; its budget is the accountant's business, not this module's."""

import torch

from osrm_cli.errors import OsrmError


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
