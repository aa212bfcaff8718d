"""Adaptive orders: the rule sees committed tokens only, and the likelihood of what was done is exact."""

from __future__ import annotations

import pytest
import torch

from armd import Order, UserError, generate_adaptive, make_request, nll
from armd.adaptive import RULES, by_confidence, by_entropy, by_margin
from conftest import QUERIES, chi_square, make_model

TEMPLATE = torch.tensor([[-1, 3, -1, -1, 7, -1, 2, -1], [1, -1, -1, 0, -1, -1, -1, -1], [4, 4, 4, -1, 4, 4, 4, 4]])


@pytest.mark.parametrize("rule", ["margin", "confidence"])
@pytest.mark.parametrize("two_stream", [1, 3])
@pytest.mark.parametrize("query", QUERIES)
def test_likelihood_is_that_of_the_order_written(query: str, two_stream: int, rule: str) -> None:
    model = make_model(query=query, num_two_stream_layers=two_stream)
    request = make_request(model, template=TEMPLATE, batch_size=3, seed=2)
    out = generate_adaptive(model, request, rule)
    holes = TEMPLATE < 0
    assert torch.equal(out.generation.tokens[~holes], TEMPLATE[~holes]) and not (out.generation.tokens < 0).any()
    assert out.order.is_sequential and out.generation.forward_passes == int(holes.sum(dim=1).max())
    assert out.generation.passes.tolist() == holes.sum(dim=1).tolist()
    with torch.no_grad():
        full = -nll(model, out.generation.tokens, out.order).double()
    torch.testing.assert_close(out.generation.log_probs[holes], full[holes], rtol=0, atol=2e-5)
    assert (out.generation.log_probs[~holes] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("rule", ["margin", "confidence"])
def test_the_surest_hole_is_written_first(rule: str, temperature: float) -> None:
    """Against full passes: every hole that could have come next, in an order of its own."""
    model = make_model(num_two_stream_layers=2).double()
    request = make_request(model, template=TEMPLATE[0], seed=3, temperature=temperature)
    out = generate_adaptive(model, request, rule)
    with torch.no_grad():
        full = -nll(model, out.generation.tokens, out.order).double()
    holes = TEMPLATE[:1] < 0
    torch.testing.assert_close(out.generation.log_probs[holes], full[holes], rtol=0, atol=1e-5)
    positions, tokens = out.order.positions[0].tolist(), out.generation.tokens
    for rank in range(3, 8):
        sureness = {}
        for hole in positions[rank:]:
            rest = [p for p in positions[rank:] if p != hole]
            order = Order(torch.tensor([[*positions[:rank], hole, *rest]]), torch.arange(8)[None])
            with torch.no_grad():
                best = model(tokens, order)[0, hole].softmax(-1).topk(2).values
            sureness[hole] = float(best[0] - best[1] if rule == "margin" else best[0])
        assert positions[rank] == max(sureness, key=sureness.__getitem__)
    assert positions[3:] != sorted(positions[3:])


def test_entropy_writes_as_many_as_the_budget_allows() -> None:
    model = make_model()
    request = make_request(model, template=TEMPLATE, batch_size=3, seed=2)
    passes = [
        generate_adaptive(model, request, "entropy", budget).generation.forward_passes for budget in (0.0, 3.0, 1e6)
    ]
    assert passes[0] == 6 and 1 < passes[1] < 6 and passes[2] == 1
    greedy = make_request(model, template=TEMPLATE, batch_size=3, temperature=0.0)
    assert generate_adaptive(model, greedy, "entropy", 0.0).generation.forward_passes == 6
    out = generate_adaptive(model, request, "entropy", 3.0)
    assert not out.order.is_sequential and out.order.blocks.shape == TEMPLATE.shape
    assert int(out.order.blocks[0, -1]) + 1 == 3 + int(out.generation.passes[0])


@pytest.mark.parametrize(("rule", "budget"), [("margin", 0.0), ("entropy", 1.2)])
def test_samples_follow_the_law_they_name(rule: str, budget: float) -> None:
    """Every text has one probability; over all texts they sum to one; and the samples follow them."""
    model = make_model(vocab_size=3, seed=1)
    request = make_request(model, template=[-1, 2, -1, -1, -1], batch_size=8000, seed=4)
    out = generate_adaptive(model, request, rule, budget).generation
    code = out.tokens[:, [0, 2, 3, 4]] @ torch.tensor([27, 9, 3, 1])
    law = torch.zeros(81, dtype=torch.float64)
    law[code] = out.log_probs.sum(dim=1).exp()
    torch.testing.assert_close(law[code], out.log_probs.sum(dim=1).exp(), rtol=1e-4, atol=0)
    assert abs(float(law.sum()) - 1) < 2e-3  # what was never drawn is rare
    assert chi_square(torch.bincount(code, minlength=81), law) > 0.001


def test_results_are_the_users() -> None:
    model = make_model(dropout=0.5)
    model.train()
    out = generate_adaptive(model, make_request(model, template=TEMPLATE, batch_size=3))
    nll(model, out.generation.tokens, out.order).sum().backward()
    assert model.training and out.generation.ties is None


def test_rules() -> None:
    law = torch.tensor([[[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.9, 0.1, 0.0], [0.98, 0.01, 0.01]]]).log()
    is_open = torch.tensor([[True, True, True, False]])
    assert by_margin(law, is_open, 0.0)[0].tolist() == [False, False, True, False]
    assert by_confidence(law, is_open, 0.0)[0].tolist() == [False, False, True, False]
    # Entropies 0.69, 1.09, 0.33: one; two cost the smaller; three the two smaller.
    for budget, count in ((0.0, 1), (0.32, 1), (0.34, 2), (1.0, 2), (1.03, 3)):
        assert int(by_entropy(law, is_open, budget).sum()) == count
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert all(not rule(law, nothing, 9.0).any() for rule in RULES.values())


def test_bad_arguments() -> None:
    model = make_model()
    request = make_request(model, template=TEMPLATE, batch_size=3)
    with pytest.raises(UserError, match="rule='luck' is unknown; choose one of margin"):
        generate_adaptive(model, request, "luck")
    with pytest.raises(UserError, match="budget=-1"):
        generate_adaptive(model, request, "entropy", -1.0)
