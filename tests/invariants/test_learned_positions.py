"""Learned positions: every way to run a network adds the same embedding to the same token."""

from __future__ import annotations

import pytest
import torch

from armd import Armd, Autoregressive, Order, generate, nll
from armd.baselines import BlockDiffusion, MaskedDiffusion
from conftest import make_model


@pytest.mark.parametrize("kind", [Armd, Autoregressive])
def test_decoding_equals_scoring(kind: type) -> None:
    model = make_model(kind, learned_positions=True)
    out = generate(model, length=9, prompt=[1, 2, 3], seed=4, mode="sequential")
    with torch.no_grad():
        scored = -nll(model, out.tokens, Order.left_to_right(1, 12)).double()
    torch.testing.assert_close(out.log_probs[:, 3:], scored[:, 3:], rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Armd, Autoregressive, MaskedDiffusion, BlockDiffusion])
def test_a_token_means_what_its_place_makes_of_it(kind: type) -> None:
    """The embedding of one place counts for whoever sees its token, and for no one before."""
    model = make_model(kind, learned_positions=True, block_size=1)
    tokens, order = torch.randint(0, 11, (1, 8)), Order.left_to_right(1, 8)
    before = model(tokens, order)
    model.places[5 - isinstance(model, (MaskedDiffusion, BlockDiffusion))] += 1.0  # denoisers have no slot of BOS
    changed = (model(tokens, order) != before).any(dim=2)[0]
    assert changed[5:].all()
    assert not changed[:4].any() or kind is MaskedDiffusion  # whose masks have places too
    assert "places" not in dict(make_model(kind).named_parameters())
