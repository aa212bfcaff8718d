"""Masking noise: each text's times are uniform, a batch's times leave nothing out, a token is masked with its time."""

from __future__ import annotations

import pytest
import torch

from armd import UserError
from armd.noise import Noise
from conftest import chi_square


@pytest.mark.parametrize(("block_size", "interval"), [(0, (0.0, 1.0)), (4, (0.0, 1.0)), (4, (0.3, 0.8))])
def test_times_are_spread_over_the_interval(block_size: int, interval: tuple[float, float]) -> None:
    noise = Noise.draw(8, 10, block_size=block_size, interval=interval, generator=torch.Generator().manual_seed(0))
    low, high = interval
    per_block = noise.times[:, :: block_size or 10]
    assert torch.equal(noise.times, per_block.repeat_interleave(block_size or 10, dim=1)[:, :10])
    assert (noise.times > low).all() and (noise.times <= high).all()
    strata = ((per_block - low) / (high - low) * 8).ceil().sort(dim=0).values  # one time in each eighth
    assert torch.equal(strata, torch.arange(1.0, 9)[:, None].expand_as(strata))
    if block_size:
        assert (per_block[:, 0] - per_block[:, 1]).abs().min() > 0  # blocks have times of their own


def test_every_row_of_the_batch_has_uniform_times() -> None:
    """Else what a text is scored by would depend on its place in the batch."""
    g = torch.Generator().manual_seed(1)
    first = torch.stack([Noise.draw(2, 1, generator=g).times[:, 0] for _ in range(4000)])
    assert (first.mean(dim=0) - 0.5).abs().max() < 4 * (1 / 12 / 4000) ** 0.5
    assert (first < 0.1).float().mean(dim=0).sub(0.1).abs().max() < 4 * (0.09 / 4000) ** 0.5


def test_a_token_is_masked_with_its_time_and_weighs_its_inverse() -> None:
    noise = Noise.draw(4000, 6, block_size=3, generator=torch.Generator().manual_seed(2))
    for low in (0.0, 0.25, 0.5, 0.75):
        here = (noise.times > low) & (noise.times <= low + 0.25)
        assert noise.masked[here].float().mean().item() == pytest.approx(low + 0.125, abs=0.03)
    assert torch.equal(noise.weights > 0, noise.masked)
    torch.testing.assert_close(noise.weights[noise.masked] * noise.times[noise.masked], torch.ones(noise.masked.sum()))
    picked = torch.tensor([7, 3])
    assert torch.equal(noise.rows(picked).masked, noise.masked[picked])
    assert torch.equal(noise.rows(picked).times, noise.times[picked])


@pytest.mark.parametrize("block_size", [0, 3])
def test_counted_noise_masks_exactly_its_share(block_size: int) -> None:
    g = torch.Generator().manual_seed(3)
    noise = Noise.draw(12, 7, block_size=block_size, counted=True, generator=g)  # a last block of one token
    for start in range(0, 7, block_size or 7):
        block = slice(start, start + (block_size or 7))
        size = noise.masked[:, block].shape[1]
        counts = noise.masked[:, block].sum(dim=1)
        torch.testing.assert_close(noise.times[:, block], (counts / size)[:, None].expand(-1, size))
        assert counts.min() == 1 and counts.max() == size  # spread over the batch


def test_counted_noise_masks_every_set_alike() -> None:
    g = torch.Generator().manual_seed(4)
    noise = Noise.draw(24_000, 5, block_size=4, counted=True, generator=g)
    sets = torch.bincount(noise.masked[:, :4].long() @ torch.tensor([8, 4, 2, 1]), minlength=16)
    numbers = torch.tensor([bin(i).count("1") for i in range(16)])
    chance = torch.tensor([0.0, 1 / 16, 1 / 24, 1 / 16, 1 / 4])[numbers].double()  # 1/4 a number, over its sets
    assert chance.sum().item() == pytest.approx(1) and chi_square(sets, chance) > 0.001 and noise.masked[:, 4].all()


def test_mistakes() -> None:
    for interval in ((-0.1, 1.0), (0.5, 0.5), (0.9, 0.2), (0.0, 1.5), (float("nan"), 1.0)):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            Noise.draw(2, 4, interval=interval)
    with pytest.raises(UserError, match="batch=0 and length=4"):
        Noise.draw(0, 4)
    with pytest.raises(UserError, match="block_size=-1"):
        Noise.draw(1, 4, block_size=-1)
