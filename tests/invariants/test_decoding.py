"""Decoding with caches equals the full pass, and what is written follows the law it says it follows."""

from __future__ import annotations

import itertools

import pytest
import torch

from armd import Autoregressive, Order, UserError, generate, make_request, nll, stream
from armd.decode import collect
from conftest import QUERIES, chi_square, make_model

HOLES = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [1] * 12]).bool()


def template(seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(0, 11, HOLES.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(HOLES, -1, tokens)


REQUESTS = {
    "left to right": {"length": 12},
    "prompt": {"length": 8, "prompt": [1, 2, 3, 4]},
    "strided, sequential": {"length": 12, "streams": 4, "mode": "sequential"},
    "strided, parallel": {"length": 12, "streams": 4, "mode": "parallel"},
    "prompt, parallel": {"length": 8, "streams": 2, "mode": "parallel", "prompt": [5, 0, 3]},
    "ragged template, parallel": {"template": template(), "mode": "parallel"},
    "ragged template, sequential": {"template": template(), "mode": "sequential"},
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("two_stream", [1, 3])
@pytest.mark.parametrize("query", QUERIES)
def test_cached_equals_full_pass(query: str, two_stream: int, name: str) -> None:
    """The log-probabilities met while decoding are those of one training pass over the finished text."""
    model = make_model(query=query, num_two_stream_layers=two_stream)
    request = make_request(model, batch_size=3, seed=1, **REQUESTS[name])
    out = collect(request, stream(model, request))
    with torch.no_grad():
        full = -nll(model, out.tokens, request.order).double()
    holes = request.tokens < 0
    torch.testing.assert_close(out.log_probs[holes], full[holes], rtol=0, atol=2e-5)
    assert (out.log_probs[~holes] == 0).all() and (out.steps[~holes] == 0).all() and (out.steps[holes] > 0).all()
    assert torch.equal(out.tokens[~holes], request.tokens[~holes])
    blocks = int((request.order.blocks[:, -1] + 1 - (~holes).sum(dim=1)).max())
    assert out.forward_passes == int(out.steps.max()) <= blocks  # blocks of one are drafted and checked
    assert out.forward_passes == blocks or request.mode != "sequential"


@pytest.mark.parametrize("name", REQUESTS)
def test_row_of_a_batch_equals_the_row_alone(name: str) -> None:
    model = make_model()
    together = generate(model, batch_size=3, seed=2, **REQUESTS[name])
    options = dict(REQUESTS[name])
    if "template" in options:
        options["template"] = options["template"][0]
    alone = generate(model, batch_size=1, seed=2, **options)
    assert torch.equal(together.tokens[0], alone.tokens[0])
    assert not torch.equal(together.tokens[1], together.tokens[2])


def test_exact_has_the_text_of_sequential() -> None:
    model = make_model()
    for name, options in REQUESTS.items():
        options = {k: v for k, v in options.items() if k != "mode"}
        exact, sequential = (generate(model, seed=3, batch_size=3, mode=m, **options) for m in ("exact", "sequential"))
        assert torch.equal(exact.tokens, sequential.tokens), name


@pytest.mark.parametrize("query", QUERIES)
def test_a_text_may_be_as_long_as_the_model_allows(query: str) -> None:
    model = make_model(query=query)
    out = generate(model, length=24, streams=4)
    assert out.tokens.shape == (1, 24) and (out.tokens >= 0).all()


def test_seed_decides_the_text() -> None:
    model = make_model()
    first, again, other = (generate(model, length=20, seed=s).tokens for s in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("mode", ["exact", "sequential", "parallel"])
def test_greedy_takes_the_most_likely_token(mode: str) -> None:
    model = make_model()
    request = make_request(model, length=12, streams=3, mode=mode, temperature=0.0)
    out = collect(request, stream(model, request))
    best = model(out.tokens, request.order).argmax(-1)
    assert torch.equal(best, out.tokens)


@pytest.mark.parametrize(("streams", "mode"), [(1, "sequential"), (2, "sequential"), (2, "parallel")])
def test_samples_follow_the_enumerated_law(streams: int, mode: str) -> None:
    """Chi-square over all 3^4 texts: 8,000 samples against exp(-nll) of the order and blocks. p > 0.001."""
    model = make_model(vocab_size=3, seed=1)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    draws = 8000
    request = make_request(model, length=4, streams=streams, mode=mode, batch_size=draws, seed=11)
    tokens = collect(request, stream(model, request)).tokens
    order = request.order.rows(torch.zeros(len(every), dtype=torch.long))
    with torch.no_grad():
        law = torch.exp(-nll(model, every, order).double().sum(dim=1))
    assert chi_square(torch.bincount(tokens @ torch.tensor([27, 9, 3, 1]), minlength=81), law) > 0.001


def test_parallel_and_sequential_laws_differ() -> None:
    """So the chi-square test above can tell them apart."""
    model = make_model(vocab_size=3, seed=1)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    order = Order.strided(len(every), 4, 2)
    with torch.no_grad():
        parallel, sequential = (torch.exp(-nll(model, every, o).sum(1)) for o in (order, order.sequential()))
    assert (parallel - sequential).abs().sum() / 2 > 0.05


def test_events_stream_in_the_order() -> None:
    model = make_model()
    request = make_request(model, length=12, streams=3, mode="parallel", batch_size=2)
    events = list(stream(model, request))
    assert [event.step for event in events] == list(range(1, len(events) + 1))
    for row in range(2):
        written = torch.cat([event.positions[row, event.valid[row]] for event in events])
        assert torch.equal(written, request.order.positions[row])


def test_left_to_right_stops_at_the_end_of_text() -> None:
    model = make_model(eos_token_id=4)
    out = generate(model, length=20, prompt=[4, 1], batch_size=16, seed=0)
    for tokens, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True):
        new = tokens[2:]
        end = new.index(4) + 1 if 4 in new else 20
        assert length == 2 + end and set(new[end:]) <= {4}
    assert (out.lengths < 22).any()
    ended = out.lengths < 22
    assert (out.steps[ended, -1] == 0).all()  # nothing was spent on what follows the end
    free = generate(model, length=20, prompt=[4, 1], batch_size=16, seed=0, stop=False)
    assert (free.steps[:, 2:] > 0).all()
    for b in range(16):
        assert torch.equal(free.tokens[b, : out.lengths[b]], out.tokens[b, : out.lengths[b]])


def test_all_rows_ended_ends_the_passes() -> None:
    model = make_model(eos_token_id=4)
    with torch.no_grad():
        model.embed.weight[4] += 3 * model.norm.weight  # end of text very likely
    out = generate(model, length=20, batch_size=2, seed=0)
    assert out.forward_passes == int((out.lengths).max())


def test_generation_leaves_the_model_as_it_was() -> None:
    model = make_model(dropout=0.5)
    model.train()
    first, again = (generate(model, length=8, seed=0).tokens for _ in range(2))
    assert model.training and torch.equal(first, again)
    assert all(p.grad is None for p in model.parameters())


def test_autoregressive_model_decodes_with_its_cache() -> None:
    model = make_model(Autoregressive)
    out = generate(model, prompt=torch.tensor([[1, 2, 3], [4, 5, 6]]), length=9, batch_size=2, seed=5)
    full = -nll(model, out.tokens, Order.left_to_right(2, 12)).double()
    torch.testing.assert_close(out.log_probs[:, 3:], full[:, 3:], rtol=0, atol=2e-5)
    with pytest.raises(UserError, match="left to right only"):
        generate(model, length=8, streams=2)
