"""Random draws keyed by their purpose, so that order, sharding and number of processes cannot change them."""

import hashlib

import torch


def stream_key(seed: int, *names: str) -> int:
    """A signed number of 64 bits that depends on ``seed`` and ``names`` alone."""
    key = "\0".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big", signed=True)


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator whose stream depends on ``seed`` and ``names`` alone.

    Args:
        seed: The user's seed.
        names: Purpose of the draw, such as the objective, the task and the layer.
    """
    return torch.Generator().manual_seed(stream_key(seed, *names))


def gaussian(rows: int, columns: int, seed: int, *names: str) -> torch.Tensor:
    """Standard normal draws ``(rows, columns)``, float64, keyed by ``seed`` and ``names``.

    Drawn in float32: five times as fast, and the tensors derived from them are stored in float32.
    """
    return torch.randn(rows, columns, generator=generator(seed, *names), dtype=torch.float32).to(torch.float64)


# SplitMix64 (Steele, Lea and Flood 2014): its step and its two factors, as signed numbers.
_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def uniform_rows(key: int, place: slice, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Some rows of a matrix of uniform draws in ``[0, 1)``, ``(rows, columns)``, float32.

    Each entry is a function of the key and its own place: whatever rows are drawn together, on whatever device. Two
    neighbours in a row are the halves of one number of 64 bits, the lower half first.

    Args:
        key: Of the matrix, see ``stream_key``.
        place: Rows to draw.
        columns: Width of the matrix.
        device: Where.
    """
    pairs = (columns + 1) // 2
    z = torch.arange(place.start * pairs + 1, place.stop * pairs + 1, device=device).mul_(_STEP).add_(key)
    z = _xor_shift_random_bits(_xor_shift_random_bits(_xor_shift_random_bits(z, 30).mul_(_FIRST), 27).mul_(_SECOND), 31)
    halves = z.view(torch.int32).view(-1, 2 * pairs)[:, :columns]
    return (halves >> 8).to(torch.float32).mul_(2.0**-24).add_(0.5)  # 24 bits, which float32 holds exactly


def _xor_shift_random_bits(z: torch.Tensor, shift: int) -> torch.Tensor:
    """``z ^ (z >> shift)`` of unsigned numbers, in place; PyTorch's shift fills in the sign."""
    return z.bitwise_xor_((z >> shift).bitwise_and_((1 << 64 - shift) - 1))
