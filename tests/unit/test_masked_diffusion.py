"""Masked diffusion: its bound is the mean over all orders, its samplers write every token by the law of the network."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from armd import MaskedDiffusion, Order, UserError, any_order_nll, denoise, generate, nll
from armd.baselines import PrefixMaskedDiffusion, bound, estimate_bound
from armd.baselines.sampler import turns
from armd.noise import Noise
from armd.objective import mdm_loss
from armd.orders import generator
from armd.sampling import coin
from conftest import ORDERS, QUERIES, chi_square, make_config, make_model


@pytest.mark.parametrize("steps", [1, 3, 7, 12, None])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_is_written_once(steps: int | None, temperature: float) -> None:
    model = make_model(MaskedDiffusion)
    options = {"length": 12, "steps": steps, "seed": 3, "temperature": temperature}
    out = denoise(model, batch_size=2, **options)
    assert out.forward_passes == (steps or 12) and (out.passes == out.forward_passes).all()
    for step in range(out.forward_passes + 1):  # every one of the even schedule writes its share
        assert ((out.steps <= step).sum(dim=1) == 12 * step // out.forward_passes).all()
    assert not (out.tokens < 0).any() and out.tokens_per_pass == 12 / out.forward_passes
    assert torch.equal(denoise(model, **options).tokens[0], out.tokens[0])


def law(model: MaskedDiffusion) -> dict[tuple[int, ...], float]:
    """The probability of each text of three tokens: mean over the orders of the product of the conditionals."""
    texts: dict[tuple[int, ...], float] = dict.fromkeys(itertools.product(range(3), repeat=3), 0.0)

    @functools.cache
    def laws(tokens: tuple[int, ...]) -> Tensor:
        return model.head(model.predict(known := torch.tensor([tokens]), known < 0))[0].double().softmax(dim=-1)

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
    texts = denoise(model, length=3, seed=seed, batch_size=n).tokens
    counts = torch.bincount(texts @ torch.tensor([9, 3, 1]), minlength=27)
    expected = n * torch.tensor(list(law(model).values()))
    assert expected.sum() == pytest.approx(n) and expected.max() > 2 * expected.min()
    assert ((counts - expected) ** 2 / expected).sum() < 54.05  # chi-square, 26 degrees of freedom, p = 0.001


@torch.no_grad()
@pytest.mark.parametrize("kind", [MaskedDiffusion, PrefixMaskedDiffusion])
@pytest.mark.parametrize("order", ["left_to_right", "uniform", "strided", "one_block"])
def test_scores_see_earlier_blocks_only(order: str, kind: type[MaskedDiffusion]) -> None:
    model, g = make_model(kind), torch.Generator().manual_seed(0)
    order = ORDERS[order](2, 8, g)
    tokens = torch.randint(11, (2, 8), generator=g)
    for block in range(int(order.blocks.max()) + 1):
        later = order.text_blocks >= block
        changed = torch.where(later, (tokens + 1) % 11, tokens)
        own = order.text_blocks == block
        assert torch.equal(model(tokens, order)[own], model(changed, order)[own])


@torch.no_grad()
@pytest.mark.parametrize("query", QUERIES)
def test_the_prefix_layer_sees_the_known_tokens_around_a_mask(query: str) -> None:
    """As an ARMD target whose evidence they all are; a known token's row is its embedding alone."""
    model = make_model(PrefixMaskedDiffusion, query=query, kernel_width=2)
    tokens, masked = torch.arange(8)[None] % 11, torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1]]).bool()
    rows, plain = model._rows(tokens, masked, torch.arange(8)[None]), model.embed(tokens)
    assert torch.equal(rows[~masked], plain[~masked])
    known = torch.where(masked[..., None], 0.0, plain)
    table = torch.nn.functional.pad(known, (0, 0, 1, 0))
    slots = masked.nonzero()[:, 1][None] + 1
    ranks = torch.cat((torch.zeros(1, 1), masked + 1.0), dim=1).long()
    hints = model.prefix.at(table, ranks, slots, torch.full_like(slots, 2))
    torch.testing.assert_close(rows[masked], model.mask + hints[0], rtol=0, atol=1e-6)
    assert (query == "shift") == torch.equal(hints[0, 0], hints[0, 1])  # the rightmost known token, for all masks


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
    with pytest.raises(UserError, match="MaskedDiffusion does not write with generate"):
        generate(model, length=4)
    for options, message in (
        ({"length": 8, "steps": 9}, "steps=9 must be at least 1 and at most 8, as no step of the even schedule"),
        ({"length": 8, "steps": 0, "schedule": "ancestral"}, "steps=0 must be at least 1$"),
        ({"length": 8, "schedule": "odd"}, "schedule='odd' must be one of even, ancestral"),
        ({"length": 8, "rows": 0}, "rows=0 must be at least 1"),
        ({"length": 25}, "length 25 tokens exceed max_position_embeddings=24"),
        ({"length": 8, "temperature": -1.0}, "temperature=-1"),
        ({"template": [1, 2]}, "template has no hole"),
    ):
        with pytest.raises(UserError, match=message):
            denoise(model, **options)


# ---- the continuous-time bound ---------------------------------------------------------------------------------------

TEXT = torch.tensor([[1, 0, 2]])
EVERY_MASK = torch.tensor(list(itertools.product([False, True], repeat=3)))


def expected_bound(model: MaskedDiffusion) -> float:
    """The mean of `bound` over times and masks: all masks are enumerated, times integrated exactly (a polynomial)."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    total = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        noise = Noise(EVERY_MASK, torch.full((8, 3), t))
        chance = torch.where(EVERY_MASK, t, 1 - t).prod(dim=1)
        total += weight * float((chance * bound(model, TEXT.expand(8, -1), noise).sum(dim=1)).sum())
    return total


def expected_counted_bound(model: MaskedDiffusion) -> float:
    """The same for `counted` noise: each number of masks is as likely as each other, and so is each set of a number."""
    shares = EVERY_MASK[1:].float().mean(dim=1, keepdim=True)
    nats = bound(model, TEXT.expand(7, -1), Noise(EVERY_MASK[1:], shares.expand(-1, 3))).sum(dim=1)
    return float((nats / torch.tensor([math.comb(3, int(share * 3)) for share in shares]) / 3).sum())


def mean_over_orders(model: MaskedDiffusion) -> float:
    positions = torch.tensor(list(itertools.permutations(range(3))))
    order = Order(positions, torch.arange(3).expand(6, -1).contiguous())
    return float(nll(model, TEXT.expand(6, -1), order).sum(dim=1).mean())


def equation_1_without_steps(model: MaskedDiffusion) -> float:
    """Eq. (1) by enumeration of all masking times, in the limit of many steps.

    With T steps it is a Riemann sum of a polynomial of degree 2 in t, so itself one in 1 / T: three T give the limit.
    """
    values = []
    for steps in (1, 2, 3):
        tau = torch.tensor(list(itertools.product(range(1, steps + 1), repeat=3)))
        terms = [mdm_loss(model, TEXT.expand(len(tau), -1), tau, t, steps).mean() for t in range(1, steps + 1)]
        values.append(float(sum(terms)))
    return float(np.polyfit([1, 1 / 2, 1 / 3], values, 2)[-1])


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_is_the_mean_over_all_orders_and_equation_1(seed: int) -> None:
    model = make_model(MaskedDiffusion, seed=seed, vocab_size=3)
    orders = mean_over_orders(model)
    assert expected_bound(model) == pytest.approx(orders, rel=1e-5)
    assert expected_counted_bound(model) == pytest.approx(orders, rel=1e-5)
    assert equation_1_without_steps(model) == pytest.approx(orders, rel=1e-5)
    assert law(model)[tuple(TEXT[0].tolist())] > np.exp(-orders)  # a bound


@torch.no_grad()
def test_the_estimate_is_without_bias() -> None:
    model = make_model(MaskedDiffusion, vocab_size=3)
    g = torch.Generator().manual_seed(0)
    found = estimate_bound(model, TEXT.expand(200, -1), 16, generator=g)
    spread = found.mean.std().item() / 200**0.5
    assert abs(found.mean.mean().item() - expected_bound(model)) < 4 * spread
    assert spread < 0.05 and found.stderr.mean().item() > 0.5 * found.mean.std().item()
    exact = any_order_nll(model, TEXT.expand(200, -1), 1, generator=g).mean
    assert abs(found.mean.mean() - exact.mean()) < 4 * (spread**2 + exact.var().item() / 200) ** 0.5


@torch.no_grad()
def test_the_estimate_of_a_text_is_that_of_the_text_alone() -> None:
    model, tokens = make_model(MaskedDiffusion), torch.arange(22).view(2, 11) % 11
    both = estimate_bound(model, tokens, 3, generator=[generator(5, 0), generator(5, 1)])
    alone = estimate_bound(model, tokens[1:], 3, generator=[generator(5, 1)])
    torch.testing.assert_close(both.mean[1:], alone.mean)
    torch.testing.assert_close(both.stderr[1:], alone.stderr)


@torch.no_grad()
def test_masked_tokens_have_no_influence() -> None:
    model, g = make_model(MaskedDiffusion), torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (2, 12), generator=g)
    noise = Noise.draw(2, 12, generator=g)
    changed = torch.where(noise.masked, (tokens + 1) % 11, tokens)
    assert torch.equal(model.predict(tokens, noise.masked), model.predict(changed, noise.masked))
    seen = ~noise.masked
    assert (bound(model, tokens, noise)[seen] == 0).all() and (bound(model, tokens, noise)[noise.masked] > 0).all()


@torch.no_grad()
def test_every_row_sees_every_token_that_is_not_masked() -> None:
    model, tokens = make_model(MaskedDiffusion), torch.arange(9)[None]
    masked = torch.zeros(1, 9, dtype=torch.bool)
    before = model.predict(tokens, masked)
    for n in range(9):
        changed = tokens.clone()
        changed[0, n] = 10
        assert ((model.predict(changed, masked) - before).abs().amax(dim=2) > 1e-4).all()


# ---- the ancestral sampler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["even", "ancestral"])
def test_every_token_has_every_turn_alike(schedule: str) -> None:
    samples, positions = torch.arange(8000)[:, None], torch.arange(5).expand(8000, -1)
    turn = turns(coin(0, samples, positions, draw=1), torch.ones_like(positions, dtype=torch.bool), 4, schedule)
    counts = torch.stack([(turn == step).sum(dim=1) for step in range(4)], dim=1)
    if schedule == "even":  # 5 tokens in 4 steps: 1, 1, 1, 2
        assert (counts == torch.tensor([1, 1, 1, 2])).all()
    law = torch.tensor([1, 1, 1, 2]) / 5 if schedule == "even" else torch.full((4,), 1 / 4)
    for n in range(5):
        found = torch.bincount(turn[:, n], minlength=4) / 8000
        assert (found - law).abs().max() < 4 * (0.25 / 8000) ** 0.5
    together = (turn[:, 0] == turn[:, 1]).float().mean().item()  # drawn apart, two tokens meet once in four
    assert together == pytest.approx(1 / 10 if schedule == "even" else 1 / 4, abs=0.02)


@torch.no_grad()
@pytest.mark.parametrize("steps", [2, 5])
def test_ancestral_samples_follow_their_law(steps: int) -> None:
    """Tokens revealed in the same step are independent: the law is the mean over every token's step."""
    model = make_model(MaskedDiffusion, vocab_size=3)
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    draws = torch.tensor(list(itertools.product(range(steps), repeat=3)))
    expected = torch.zeros(27, dtype=torch.float64)
    for turn in draws:
        order = Order.from_masking_times(-turn.expand(27, -1))  # masked last, revealed first
        expected += (-nll(model, texts, order).double().sum(dim=1)).exp() / len(draws)
    n = 20_000
    found = denoise(model, length=3, steps=steps, schedule="ancestral", seed=steps, batch_size=n)
    counts = torch.bincount(found.tokens @ torch.tensor([9, 3, 1]), minlength=27)
    assert chi_square(counts, expected) > 0.001
    even = torch.tensor(list(law(model).values()))
    assert steps > 2 or chi_square(counts, even) < 1e-6  # and not that of one token at a time


@pytest.mark.parametrize("batch_size", [1, 2])
def test_idle_steps_cost_no_pass(batch_size: int) -> None:
    """Of many steps few reveal a token; the texts are those of a pass in every step, and the real passes are told."""
    model, calls = make_model(MaskedDiffusion), []
    options = {"length": 8, "steps": 50, "schedule": "ancestral", "seed": 3, "batch_size": batch_size}
    every = denoise(model, skip_idle=False, **options)
    model.norm.register_forward_hook(lambda *_: calls.append(1))  # once a pass
    few = denoise(model, **options)
    assert torch.equal(few.tokens, every.tokens) and every.forward_passes == 50
    assert few.forward_passes == len(calls) == len(every.steps.unique()) <= 8 * batch_size
    assert few.passes.tolist() == [len(text.unique()) for text in every.steps]  # a text's own, whoever is beside it
    assert few.passes[0] == denoise(model, **{**options, "batch_size": 1}).forward_passes
