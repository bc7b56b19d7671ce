import hashlib

import torch

from osrm_cli.seeding import gaussian, generator, uniform_rows


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


def test_uniform_rows_are_the_numbers_of_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]  # of state 1234567
    halves = [half for number in published for half in (number % 2**32, number >> 32)]
    expected = torch.tensor([[(half + 2**31) % 2**32 // 256 / 2**24 for half in halves]])
    assert torch.equal(uniform_rows(1234567, slice(0, 1), 8), expected)


def test_a_uniform_draw_depends_on_its_place_alone():
    whole = uniform_rows(-5, slice(0, 40), 7)
    assert torch.equal(torch.cat([uniform_rows(-5, slice(start, start + 8), 7) for start in range(0, 40, 8)]), whole)
    assert not torch.equal(uniform_rows(-4, slice(0, 40), 7), whole)


def test_uniform_rows_are_uniform_and_neighbours_independent():
    draws = uniform_rows(0, slice(0, 1000), 1000)
    assert 0 <= draws.min() < 1e-5
    assert 1 - 1e-5 < draws.max() < 1
    counts = torch.histc(draws, 100, 0, 1)
    assert (counts - 1e4).square().sum() / 1e4 < 150  # chi square with 99 degrees of freedom
    for other in (draws.roll(1, 0), draws.roll(1, 1), draws.roll(2, 1), uniform_rows(1, slice(0, 1000), 1000)):
        assert abs(torch.corrcoef(torch.stack([draws.flatten(), other.flatten()]))[0, 1]) < 0.005
