"""The masked diffusion baseline: its sampler writes every token, in the passes asked for, by the law of the network."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from armd import MaskedDiffusion, Order, UserError, generate, nll, sample_masked_diffusion
from armd.baselines import denoising
from conftest import ORDERS, make_config, make_model


@pytest.mark.parametrize("steps", [1, 3, 7, 12, None])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_is_written_once(steps: int | None, temperature: float) -> None:
    model = make_model(MaskedDiffusion)
    passes = list(denoising(model, 12, steps=steps, seed=3, temperature=temperature, batch_size=2))
    assert len(passes) == (steps or 12)
    before = torch.full((2, 12), -1)
    for step, tokens in enumerate(passes, start=1):
        assert ((tokens >= 0).sum(dim=1) == 12 * step // len(passes)).all()
        assert torch.equal(tokens[before >= 0], before[before >= 0])  # carried over
        before = tokens
    again = sample_masked_diffusion(model, 12, steps=steps, seed=3, temperature=temperature, batch_size=2)
    assert torch.equal(before, again) and not (again < 0).any()
    alone = sample_masked_diffusion(model, 12, steps=steps, seed=3, temperature=temperature)
    assert torch.equal(alone[0], again[0])


def law(model: MaskedDiffusion) -> dict[tuple[int, ...], float]:
    """The probability of each text of three tokens: mean over the orders of the product of the conditionals."""
    texts: dict[tuple[int, ...], float] = dict.fromkeys(itertools.product(range(3), repeat=3), 0.0)

    @functools.cache
    def laws(tokens: tuple[int, ...]) -> Tensor:
        return F.linear(model.denoise(torch.tensor([tokens])), model.head_weight)[0].double().softmax(dim=-1)

    for text in texts:
        for order in itertools.permutations(range(3)):
            known, p = [-1, -1, -1], 1 / 6
            for position in order:
                p *= float(laws(tuple(known))[position, text[position]])
                known[position] = text[position]
            texts[text] += p
    return texts


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_samples_follow_the_enumerated_law(seed: int) -> None:
    model = make_model(MaskedDiffusion, vocab_size=3)
    n = 20_000
    texts = sample_masked_diffusion(model, 3, seed=seed, batch_size=n)
    counts = torch.bincount(texts @ torch.tensor([9, 3, 1]), minlength=27)
    expected = n * torch.tensor(list(law(model).values()))
    assert expected.sum() == pytest.approx(n) and expected.max() > 2 * expected.min()
    assert ((counts - expected) ** 2 / expected).sum() < 54.05  # chi-square, 26 degrees of freedom, p = 0.001


@torch.no_grad()
@pytest.mark.parametrize("order", ["left_to_right", "uniform", "strided", "one_block"])
def test_scores_see_earlier_blocks_only(order: str) -> None:
    model, g = make_model(MaskedDiffusion), torch.Generator().manual_seed(0)
    order = ORDERS[order](2, 8, g)
    tokens = torch.randint(11, (2, 8), generator=g)
    for block in range(int(order.blocks.max()) + 1):
        later = order.text_blocks >= block
        changed = torch.where(later, (tokens + 1) % 11, tokens)
        own = order.text_blocks == block
        assert torch.equal(model(tokens, order)[own], model(changed, order)[own])


@torch.no_grad()
def test_likelihood_is_that_of_the_law() -> None:
    model = make_model(MaskedDiffusion, vocab_size=3)
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    total = torch.zeros(27)
    for positions in itertools.permutations(range(3)):
        order = Order(torch.tensor(positions).expand(27, 3), torch.arange(3).expand(27, 3))
        total += (-nll(model, texts, order).sum(dim=1)).exp() / 6
    assert torch.allclose(total, torch.tensor(list(law(model).values())).float(), atol=1e-6)


def test_mistakes() -> None:
    model = MaskedDiffusion(make_config())
    with pytest.raises(UserError, match="keeps no cache"):
        generate(model, length=4)
    with pytest.raises(UserError, match="steps=9 must be"):
        sample_masked_diffusion(model, 8, steps=9)
    with pytest.raises(UserError, match="length=25 must be"):
        sample_masked_diffusion(model, 25)
    with pytest.raises(UserError, match="temperature=-1"):
        sample_masked_diffusion(model, 8, temperature=-1.0)
