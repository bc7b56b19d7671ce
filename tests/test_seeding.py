import hashlib

import torch

from osrm_cli.seeding import gaussian, generator


def test_the_key_is_the_sha256_of_seed_and_names():
    digest = hashlib.sha256(b"3\0osrm\0sst2\0layer.0").digest()
    expected = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    assert torch.equal(
        torch.rand(9, generator=generator(3, "osrm", "sst2", "layer.0")), torch.rand(9, generator=expected)
    )


def test_every_part_of_the_key_counts():
    keys = [(0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a", "b", ""), (0, "a")]
    draws = {tuple(gaussian(1, 4, *key).flatten().tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_a_draw_does_not_depend_on_draws_before_it():
    first = gaussian(2, 3, 0, "x")
    torch.manual_seed(5)
    gaussian(7, 7, 0, "y")
    assert torch.equal(gaussian(2, 3, 0, "x"), first)
    assert first.dtype == torch.float64
