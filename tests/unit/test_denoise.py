"""The sampler of masked and block diffusion: its log-probabilities are the model's own, a row is the row alone."""

from __future__ import annotations

import pytest
import torch

from armd import BlockDiffusion, MaskedDiffusion, Order, denoise, nll
from armd.baselines import Denoiser
from armd.baselines.sampler import turns
from conftest import make_model

TEMPLATE = torch.tensor([[4, -1, -1, 5, -1, -1, -1, 6], [-1, 1, -1, 2, 3, -1, 4, 4], [1, -1, 3, 4, 5, 6, 7, 8]])


def options_of(kind: type[Denoiser]) -> list[dict]:
    prompts = [{"length": 10}, {"length": 9, "prompt": [1, 2, 3, 4, 5]}, {"template": [3, 1, 4, -1, -1, -1, -1]}]
    return prompts + [{"template": TEMPLATE, "batch_size": 3}] * (kind is MaskedDiffusion)


@torch.no_grad()
@pytest.mark.parametrize(("steps", "schedule"), [(None, "even"), (3, "even"), (1, "even"), (5, "ancestral")])
@pytest.mark.parametrize("kind", [MaskedDiffusion, BlockDiffusion])
def test_log_probs_are_the_likelihood_of_the_steps(kind: type[Denoiser], steps: int | None, schedule: str) -> None:
    """What `nll` says of the text in the order and blocks it was written, whatever was cut off and cooled."""
    model = make_model(kind, block_size=4)
    for options in options_of(kind):
        out = denoise(model, steps=steps, schedule=schedule, temperature=0.7, top_k=6, seed=5, **options)
        given, block = out.steps == 0, torch.arange(out.tokens.shape[1]) // 4 * (kind is BlockDiffusion)
        order = Order.from_masking_times(torch.where(given, 9 - block, -out.steps))  # masked last, revealed first
        expected = -nll(model, out.tokens, order).double().masked_fill(given, 0.0)
        torch.testing.assert_close(out.log_probs, expected, rtol=0, atol=2e-5)
        if "template" in options:
            template = torch.as_tensor(options["template"]).expand_as(out.tokens)
            assert torch.equal(given, template >= 0) and torch.equal(out.tokens[given], template[given])


@pytest.mark.parametrize("schedule", ["even", "ancestral"])
@pytest.mark.parametrize("kind", [MaskedDiffusion, BlockDiffusion])
def test_a_text_is_the_same_alone_and_in_any_company(kind: type[Denoiser], schedule: str) -> None:
    model = make_model(kind, block_size=4)
    options = {"prompt": [1, 2], "length": 12, "steps": 4, "schedule": schedule, "seed": 9}
    whole, few = (denoise(model, batch_size=5, rows=rows, **options) for rows in (None, 2))
    assert torch.equal(whole.tokens, few.tokens) and torch.equal(whole.passes, few.passes)
    assert whole.forward_passes < few.forward_passes <= 3 * whole.forward_passes
    alone = denoise(model, **options)
    assert torch.equal(alone.tokens[0], whole.tokens[0]) and alone.forward_passes == alone.passes[0] == whole.passes[0]
    torch.testing.assert_close(alone.log_probs[0], whole.log_probs[0])


def test_templates_of_a_batch_take_their_own_steps() -> None:
    model = make_model(MaskedDiffusion)
    out = denoise(model, template=TEMPLATE, batch_size=3, steps=4)
    assert out.passes.tolist() == [4, 3, 1]  # of 5, 3 and 1 holes
    for text in range(3):
        alone = denoise(model, template=TEMPLATE[: text + 1], batch_size=text + 1, steps=min(4, (5, 3, 1)[0]))
        assert torch.equal(alone.tokens[text], out.tokens[text])


def test_a_greedy_text_is_the_likeliest_of_each_step() -> None:
    model = make_model(MaskedDiffusion)
    out = denoise(model, length=8, temperature=0.0, seed=1)
    assert torch.equal(out.tokens, denoise(model, length=8, top_k=1, seed=1).tokens)
    assert torch.equal(out.tokens, denoise(model, length=8, top_p=1e-9, seed=1).tokens)
    known = torch.where(out.steps < 8, out.tokens, -1)
    best = model.head(model.predict(known.clamp(min=0), known < 0)).argmax(dim=-1)
    assert torch.equal(best[known < 0], out.tokens[known < 0])


def test_even_turns_share_the_holes() -> None:
    masks, chance = torch.rand(50, 9) < 0.6, torch.rand(50, 9, dtype=torch.float64)
    for steps in (1, 3, 9):
        turn = turns(chance, masks, steps, "even")
        assert torch.equal(turn < 0, ~masks)
        for row, holes in zip(turn, masks.sum(dim=1).tolist(), strict=True):
            count = min(steps, holes)
            shares = [(step + 1) * holes // count - step * holes // count for step in range(count)]
            assert row[row >= 0].bincount(minlength=count).tolist() == shares
