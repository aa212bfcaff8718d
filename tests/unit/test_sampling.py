"""From logits to tokens."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from armd.sampling import gumbel, log_probs

LOGITS = torch.tensor([2.0, 1.0, 0.0, 1.0, -1.0])


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(log_probs(LOGITS, 0.5), (LOGITS.double() * 2).log_softmax(0))


def test_greedy_is_a_point_mass_on_the_first_best() -> None:
    assert log_probs(torch.tensor([0.0, 3.0, 3.0]), 0.0).exp().tolist() == [0.0, 1.0, 0.0]


def test_top_k_keeps_ties() -> None:
    assert (log_probs(LOGITS, top_k=2) > -torch.inf).tolist() == [True, True, False, True, False]
    assert torch.equal(log_probs(LOGITS, top_k=99), log_probs(LOGITS))


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.floats(0.01, 1.0))
def test_top_p_is_the_smallest_set_that_reaches_p(logits: list[float], p: float) -> None:
    law = torch.tensor(logits, dtype=torch.float64).softmax(0)
    kept = log_probs(torch.tensor(logits, dtype=torch.float64), top_p=p) > -torch.inf
    assert law[kept].sum() >= min(p, 1.0) - 1e-9
    assert law[kept].sum() - law[kept].min() < p  # without its least likely token the set falls short
    if not kept.all():
        assert law[kept].min() >= law[~kept].max()
    assert abs(log_probs(torch.tensor(logits), top_p=p).exp().sum().item() - 1) < 1e-9


def test_noise_is_a_function_of_seed_sample_position_and_token() -> None:
    samples, positions = torch.tensor([[0], [1]]), torch.tensor([[3, 5], [5, 9]])
    noise = gumbel(7, samples, positions, 50)
    assert noise.shape == (2, 2, 50) and noise.dtype == torch.float64
    assert torch.equal(gumbel(7, torch.tensor([[0]]), torch.tensor([[5]]), 50)[0, 0], noise[0, 1])
    assert torch.equal(gumbel(7, torch.tensor([[1]]), torch.tensor([[5]]), 20)[0, 0], noise[1, 0, :20])
    assert len(torch.unique(noise)) == noise.numel()
    assert not torch.equal(gumbel(8, samples, positions, 50), noise)


def test_noise_is_gumbel() -> None:
    """Kolmogorov-Smirnov over 400,000 values, and uncorrelated neighbours."""
    noise = gumbel(1, torch.arange(20)[:, None], torch.arange(20).expand(20, 20), 1000).flatten()
    assert noise.isfinite().all()
    ordered = noise.sort().values
    law = torch.exp(-torch.exp(-ordered))
    steps = torch.arange(1, len(noise) + 1) / len(noise)
    assert (law - steps).abs().max() < 1.95 / len(noise) ** 0.5  # p > 0.001
    centred = noise - noise.mean()
    for lag in (1, 1000, 20_000):  # neighbouring tokens, positions, samples
        assert abs((centred[lag:] * centred[:-lag]).mean() / centred.var()) < 0.01


def test_gumbel_max_draws_from_the_law() -> None:
    law = log_probs(torch.tensor([1.0, 0.0, -1.0]))
    noise = gumbel(3, torch.arange(20_000)[:, None], torch.zeros(20_000, 1, dtype=torch.long), 3)
    share = torch.bincount((law + noise).argmax(-1)[:, 0], minlength=3) / 20_000
    assert (share - law.exp()).abs().max() < 0.012
