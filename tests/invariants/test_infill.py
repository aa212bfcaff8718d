"""Filling holes: exact probabilities a hole, the best of several, and lengths chosen by likelihood."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from armd import Order, UserError, fill, generate, nll
from armd.infill import evidence, hole_log_probs, hole_ranges, only_template
from conftest import make_model


def test_hole_log_probs_are_those_of_the_template_order() -> None:
    model = make_model()
    template = torch.tensor([3, -1, -1, 5, 6, -1, 2, -1, -1, -1])
    holes = hole_ranges(template)
    assert holes == [range(1, 3), range(5, 6), range(7, 10)]
    out = generate(model, template=template, batch_size=5, seed=1)
    with torch.no_grad():
        full = -nll(model, out.tokens, Order.template((template < 0).expand(5, -1)).sequential()).double()
    wanted = torch.stack([full[:, list(hole)].sum(dim=1) for hole in holes], dim=1)
    torch.testing.assert_close(hole_log_probs(out, holes), wanted, rtol=0, atol=5e-5)


def test_the_most_likely_filling_is_kept() -> None:
    model = make_model()
    best = fill(model, [[1, 2], (3, 3), [4]], best_of=16, seed=3)
    logs = hole_log_probs(best.generation, best.holes).sum(dim=1)
    assert math.isclose(sum(best.log_probs), float(logs.max()), abs_tol=1e-12) and best.evidence is None
    assert torch.equal(best.tokens, best.generation.tokens[int(logs.argmax())])
    assert best.tokens[:2].tolist() == [1, 2] and best.tokens[-1] == 4 and len(best.tokens) == 6


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evidence_is_the_probability_of_what_follows(size: int) -> None:
    """Against the sum over all fillings of the hole, p left to right. The estimate is a mean of ratios p / q."""
    model = make_model(vocab_size=3, seed=1)
    template = only_template([[0], (size, size), [2, 1]], 24)
    fillings = torch.tensor([[0, *hole, 2, 1] for hole in itertools.product(range(3), repeat=size)])
    with torch.no_grad():
        p = -nll(model, fillings, Order.left_to_right(*fillings.shape))[:, 1:].double().sum(dim=1)
        holes = (template < 0).expand(len(fillings), -1)
        q = -torch.where(holes, nll(model, fillings, Order.template(holes).sequential()), 0).double().sum(dim=1)
    exact = float(torch.logsumexp(p, dim=0))
    assert math.isclose(float(q.exp().sum()), 1.0, abs_tol=1e-5)
    draws = 20000
    estimate = evidence(model, template, draws, seed=5)
    spread = float(((2 * p - q).exp().sum() - math.exp(2 * exact)).sqrt()) / math.exp(exact) / math.sqrt(draws)
    assert abs(estimate - exact) < 4 * spread + 1e-6


def test_the_length_is_the_one_that_explains_what_follows() -> None:
    model = make_model(vocab_size=3, seed=2)
    parts = [[0, 1], (1, 3), [2, 2, 1]]
    best = fill(model, parts, seed=0, temperature=0.3)
    values = {}
    for size in (1, 2, 3):
        values[size] = evidence(model, only_template([[0, 1], (size, size), [2, 2, 1]], 24), seed=0)
    assert len(best.holes[0]) == max(values, key=values.__getitem__)
    assert best.evidence == max(values.values()) and len(set(values.values())) == 3


@pytest.mark.parametrize(("parts", "options", "message"), [
    ([[1, 2]], {}, "no hole"),
    ([[1], (0, 3), [1]], {}, "hole of 0 to 3"),
    ([[1], (5, 4), [1]], {}, "hole of 5 to 4"),
    ([[1], (25, 25)], {}, "exceeds max_position_embeddings=24"),
    ([[1], (1, 2), [1]], {"best_of": 0}, "best_of=0"),
    ([(1, 20), [1], (1, 20), [1]], {}, "400 combinations"),
    ([[1], (2, 9)], {}, "no text behind it"),
    ([[1], (2, 2), (3, 3), [4]], {}, "side by side"),
    ([[1] * 23, (2, 2)], {}, "template of 25 tokens exceed"),
])  # fmt: skip
def test_bad_arguments(parts: list[object], options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fill(make_model(), parts, **options)
    assert "\n" not in str(caught.value)
