"""Exact decoding: the text (or, by rejection, the law) of one token at a time, whatever was drafted."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armd import Armd, Event, Generation, Order, generate, make_request, nll, stream
from armd.checks import TIE, Verdict
from armd.decode import collect
from armd.request import Request
from armd.sampling import log_probs
from armd.writer import Writer
from conftest import QUERIES, chi_square, make_model

EVERY_TEXT = torch.tensor(list(itertools.product(range(3), repeat=4)))
CODE = torch.tensor([27, 9, 3, 1])


@lru_cache(maxsize=64)
def some_model(query: str, two_stream: int, seed: int, dtype: torch.dtype) -> Armd:
    changes = {"qk_norm": bool(seed % 2), "norm": ("rmsnorm", "layernorm")[seed % 2], "eos_token_id": 4}
    return make_model(query=query, num_two_stream_layers=two_stream, seed=seed, **changes).to(dtype)


@st.composite
def what_to_write(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of `generate` but for the mode: a prompt and streams, or a ragged template."""
    batch = draw(st.integers(1, 3))
    options: dict[str, object] = {
        "batch_size": batch,
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "temperature": draw(st.sampled_from([0.0, 0.5, 1.0, 1.7])),
        "top_k": draw(st.sampled_from([0, 0, 3])),
        "top_p": draw(st.sampled_from([1.0, 1.0, 0.7])),
        "stop": draw(st.sampled_from([False, True, (2, 7)])),
    }
    token = st.integers(0, 10)
    if draw(st.booleans()):
        streams = draw(st.integers(1, 5))
        length = streams * draw(st.integers(1, 20 // streams))
        prompt = draw(st.lists(token, max_size=24 - length))
        return {**options, "streams": streams, "length": length, "prompt": prompt}
    N = draw(st.integers(1, 24))
    hole = st.one_of(st.just(-1), token)
    rows = [draw(st.lists(hole, min_size=N, max_size=N)) for _ in range(batch)]
    rows[0][draw(st.integers(0, N - 1))] = -1
    return {**options, "template": torch.tensor(rows)}


@given(
    what=what_to_write(),
    drafts=st.one_of(st.none(), st.integers(0, 24)),
    rows=st.one_of(st.none(), st.integers(1, 2)),
    query=st.sampled_from(QUERIES),
    two_stream=st.integers(1, 3),
    model_seed=st.integers(0, 3),
)
def test_exact_writes_the_text_of_sequential(
    what: dict[str, object], drafts: int | None, rows: int | None, query: str, two_stream: int, model_seed: int
) -> None:
    """In float64, token for token: any window, stops, batches, rows that make room."""
    model = some_model(query, two_stream, model_seed, torch.float64)
    exact = generate(model, mode="exact", drafts=drafts, rows=rows, **what)
    sequential = generate(model, mode="sequential", **what)
    assert int(sequential.ties.sum()) == 0
    assert torch.equal(exact.tokens, sequential.tokens)
    assert torch.equal(exact.lengths, sequential.lengths)
    torch.testing.assert_close(exact.log_probs, sequential.log_probs, rtol=0, atol=1e-9)
    assert (exact.passes <= sequential.passes).all()
    assert sequential.acceptance is None and int((exact.accepted > exact.tested).sum()) == 0


@pytest.mark.parametrize("law", [{}, {"top_k": 1}, {"top_k": 20}, {"top_p": 0.3}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_differ_only_after_a_reported_tie(dtype: torch.dtype, law: dict[str, float]) -> None:
    """Rounding may tip a choice, or a cut; then the choice was reported, by both ways of writing."""
    texts = differ = tied = 0
    model = make_model(vocab_size=500, hidden_size=64, num_attention_heads=4)
    with torch.no_grad():
        model.embed.weight.mul_(0.3)
    model.to(dtype)
    for seed in range(6):
        options = {"length": 24, "streams": 4, "batch_size": 8, "seed": seed, "stop": False, **law}
        exact, sequential = (generate(model, mode=mode, **options) for mode in ("exact", "sequential"))
        other = (exact.tokens != sequential.tokens).any(dim=1)
        assert (sequential.ties[other] > 0).all() and (exact.ties[other] > 0).all()
        texts, differ, tied = texts + 8, differ + int(other.sum()), tied + int((sequential.ties > 0).sum())
    print(f"{dtype}: {differ} of {texts} texts differ, {tied} hold a choice closer than {TIE[dtype]} nats")
    assert differ == 0 or dtype == torch.bfloat16
    assert tied < texts or dtype == torch.bfloat16  # a report that is always made says nothing


@torch.inference_mode()
def poison(writer: Writer) -> None:
    """Fill with large values all that no later row may see: rejected and future rows of both stores and the table."""
    for b in range(len(writer.done)):
        for store, first in ((writer.cache.content, writer.cached[b]), (writer.cache.prediction, writer.filled[b])):
            store.keys[:, b, :, first:] = 1e3
            store.values[:, b, :, first:] = 1e3
        unknown = writer.cache.ranks[b] >= writer.cached[b]
        writer.cache.table[b, unknown] = 1e3


@pytest.mark.parametrize("check", ["noise", "rejection"])
@pytest.mark.parametrize("two_stream", [1, 3])
@pytest.mark.parametrize("query", QUERIES)
def test_nothing_leaks_from_rejected_drafts(query: str, two_stream: int, check: str) -> None:
    model = some_model(query, two_stream, 0, torch.float64)
    options = {"length": 20, "streams": 4, "batch_size": 3, "seed": 8, "prompt": [1, 2, 3], "check": check}
    request = make_request(model, stop=False, **options)
    writer, events = Writer(model, request, 3), []
    while writer.make_room():
        events.append(writer.step())
        poison(writer)
    out = collect(request, iter(events))
    clean = generate(model, stop=False, **options)
    assert int(clean.accepted.sum()) < int(clean.tested.sum())  # some drafts were rejected
    assert torch.equal(out.tokens, clean.tokens)
    with torch.no_grad():
        full = -nll(model, out.tokens, request.order).double()
    torch.testing.assert_close(out.log_probs[:, 3:], full[:, 3:], rtol=0, atol=1e-5)


def enumerated_law(model: Armd, request: Request) -> torch.Tensor:
    """(81,): probability of every text under the sequential law with the request's temperature and cut-offs."""
    order = request.order.rows(torch.zeros(81, dtype=torch.long)).sequential()
    with torch.no_grad():
        logits = model(EVERY_TEXT, order)
    law = log_probs(logits, request.temperature, request.top_k, request.top_p)
    return law.gather(-1, EVERY_TEXT[..., None])[..., 0].sum(dim=1).exp()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"streams": 2}, {"streams": 4}, {"streams": 2, "temperature": 0.7}, {"streams": 2, "top_k": 2},
        {"streams": 1, "drafts": 3}, {"streams": 2, "check": "noise"},
    ],
    ids=str,
)  # fmt: skip
def test_samples_follow_the_sequential_law(options: dict[str, object], seed: int) -> None:
    """Chi-square over all 3^4 texts, p > 0.001."""
    model = make_model(vocab_size=3, seed=1)
    request = make_request(model, length=4, batch_size=8000, seed=seed, **{"check": "rejection", **options})
    out = run(model, request)
    assert 0.3 < out.acceptance < 0.99  # the check has something to do
    assert chi_square(torch.bincount(out.tokens @ CODE, minlength=81), enumerated_law(model, request)) > 0.001


def run(model: Armd, request: Request) -> Generation:
    writer, events = Writer(model, request, len(request)), []
    while writer.make_room():
        events.append(writer.step())
    return collect(request, iter(events))


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 1.0])
def test_tolerance_spends_no_more_than_it_says(tolerance: float) -> None:
    """The law moves, by less than the mean bound; and more drafts are accepted."""
    model = make_model(vocab_size=3, seed=1)
    draws = 20000
    options = {"length": 4, "streams": 2, "batch_size": draws, "check": "rejection"}
    law = enumerated_law(model, make_request(model, **options))
    strict, loose = (run(model, make_request(model, tolerance=a, **options)) for a in (0.0, tolerance))
    assert (strict.bound == 0).all() and loose.acceptance > strict.acceptance
    assert float(loose.bound.max()) <= tolerance * 3  # three of four tokens can be drafts
    moved = (torch.bincount(loose.tokens @ CODE, minlength=81) / draws - law).abs().sum() / 2
    sampling = 0.5 * (law / draws).sqrt().sum()
    assert moved < loose.bound.mean() + sampling
    if tolerance == 1.0:
        assert loose.acceptance == 1.0 and moved > 3 * sampling  # and the bound is not vacuous


def test_log_probs_are_of_the_model_whatever_law_is_sampled() -> None:
    model = some_model("kernel", 2, 0, torch.float64)
    options = {"length": 20, "streams": 4, "batch_size": 3, "temperature": 0.6, "top_p": 0.8, "stop": False}
    for mode in ("exact", "parallel"):
        request = make_request(model, mode=mode, seed=1, **options)
        out = run(model, request)
        with torch.no_grad():
            full = -nll(model, out.tokens, request.order).double()
        torch.testing.assert_close(out.log_probs, full, rtol=0, atol=1e-5)


def test_the_books_are_kept_by_what_was_looked_at() -> None:
    """tested, accepted, ties and bound count rows up to the first rejected draft; forced verdicts, counted by hand."""
    model = some_model("kernel", 1, 0, torch.float64)
    request = make_request(model, length=12, streams=3, stop=False)
    writer = Writer(model, request, 1)

    def force(logits, samples, positions, drafts, tested, age):  # type: ignore[no-untyped-def]
        run_ = torch.tensor([min(1, int(tested.sum()))])  # the first draft stands, the second does not
        chosen = torch.zeros_like(drafts)
        everywhere = torch.ones_like(tested)
        return Verdict(torch.where(torch.arange(drafts.shape[1]) < 1, drafts.clamp(min=0), chosen), run_, everywhere,
                       everywhere.double() / 8)  # fmt: skip

    writer.check = force  # type: ignore[assignment]
    first, second = writer.step(), writer.step()
    assert (first.tested.item(), first.accepted.item(), int(first.valid.sum()), first.ties.item()) == (0, 0, 1, 1)
    assert (second.tested.item(), second.accepted.item(), int(second.valid.sum()), second.ties.item()) == (2, 1, 2, 2)
    assert first.bound.item() == 0 and second.bound.item() == 0.25
    assert int(writer.done) == 3 and int(writer.cached) == 3 and int(writer.frontier) == 1 + 5


@pytest.mark.parametrize("mode", ["exact", "parallel"])
def test_a_generator_owns_nothing_of_the_model(mode: str) -> None:
    """Between passes the model is in the user's mode; streams may be interleaved, and left alone."""
    model = make_model(dropout=0.5)
    model.train()
    options = {"length": 12, "streams": 3, "mode": mode}
    alone = [generate(model, seed=seed, **options).tokens for seed in range(2)]
    requests = [make_request(model, seed=seed, **options) for seed in range(2)]
    streams = [stream(model, request) for request in requests]
    events: list[list[Event]] = [[], []]
    for one, other in itertools.zip_longest(*streams):
        assert model.training
        for found, event in zip(events, (one, other), strict=True):
            found += [event] if event is not None else []
    for request, found, tokens in zip(requests, events, alone, strict=True):
        assert torch.equal(collect(request, iter(found)).tokens, tokens)
    left = stream(model, requests[0])
    event = next(left)
    event.texts.add_(100)  # an event is the user's
    assert torch.equal(next(left).texts, torch.tensor([0]))
    model.embed(event.tokens).sum().backward()
    del left
    assert model.training


def test_refilled_rows_write_what_they_would_alone() -> None:
    model = some_model("kernel", 2, 0, torch.float64)
    options = {"length": 18, "prompt": [3, 1], "streams": 3, "batch_size": 7, "seed": 4}
    together, queued = generate(model, **options), generate(model, rows=2, **options)
    assert torch.equal(together.tokens, queued.tokens) and torch.equal(together.passes, queued.passes)
    # No row waits for another: with two rows the passes are those of the texts, packed.
    assert queued.forward_passes < 0.75 * int(queued.passes.sum())
    assert (queued.lengths < 20).any()


def test_a_text_stops_once_all_before_its_end_is_written() -> None:
    """With several streams too, in every mode; what follows the end is filled with it."""
    model = some_model("kernel", 1, 1, torch.float64)
    for mode in ("exact", "sequential", "parallel"):
        options = {"length": 20, "streams": 4, "batch_size": 24, "seed": 5, "mode": mode}
        out, whole = generate(model, **options), generate(model, stop=False, **options)
        ended = out.lengths < 20
        assert int(ended.sum()) > 0 and int(out.passes.sum()) < int(whole.passes.sum())
        for b, length in enumerate(out.lengths.tolist()):
            assert torch.equal(out.tokens[b, :length], whole.tokens[b, :length])
            assert (out.tokens[b, length - 1 :] == 4).all() or length == 20
            assert 4 not in out.tokens[b, : length - 1]


def test_left_to_right_with_drafts() -> None:
    """Streams = 1: contiguous drafts, the same text, and never more passes than tokens."""
    model = some_model("kernel", 1, 0, torch.float64)
    options = {"length": 24, "batch_size": 4, "seed": 1, "stop": False, "temperature": 0.4}
    plain, drafted = generate(model, **options), generate(model, drafts=5, **options)
    assert torch.equal(plain.tokens, drafted.tokens) and plain.forward_passes == 24
    assert int(drafted.passes.sum()) < int(plain.passes.sum())


def test_compiled_pass_writes_the_same_text() -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    program = """
import torch, armd
torch.manual_seed(0)
config = armd.ArmdConfig(vocab_size=11, hidden_size=16, num_hidden_layers=3, num_two_stream_layers=2,
                         num_attention_heads=2, max_position_embeddings=24)
model = armd.Armd(config).double()
for mode in ("exact", "parallel"):
    options = dict(length=12, prompt=[1, 2], streams=3, batch_size=2, seed=3, mode=mode)
    plain = armd.generate(model, **options)
    for _ in range(2):
        assert torch.equal(armd.generate(model, compiled=True, **options).tokens, plain.tokens)
g = torch.Generator().manual_seed(0)
templates = [torch.where(torch.rand(2, 14, generator=g) < 0.5, -1, torch.randint(11, (2, 14), generator=g))
             for _ in range(4)]
requests = [armd.make_request(model, template=t, batch_size=2, seed=1, drafts=4) for t in templates]
plain = [armd.generate(model, template=t, batch_size=2, seed=1, drafts=4).tokens for t in templates]
for request, tokens in zip(requests, plain):  # nothing stays in the cache of the call before
    assert torch.equal(armd.collect(request, armd.stream(model, request, compiled=True)).tokens, tokens)
pair = zip(*(armd.stream(model, r, compiled=True) for r in requests[:2]))
first = [next(pair) for _ in range(2)]  # two live streams: each has a cache of its own
again = armd.collect(requests[2], armd.stream(model, requests[2], compiled=True))
assert torch.equal(again.tokens, plain[2])
armd.cast(model, "bfloat16")
armd.generate(model, template=templates[0], batch_size=2, compiled=True)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_order_and_law_are_named() -> None:
    """The request's order is the one `nll` scores: sequential but for the mode `parallel`."""
    model = some_model("kernel", 1, 0, torch.float64)
    for mode in ("exact", "sequential", "parallel"):
        order = make_request(model, length=12, streams=3, mode=mode).order
        wanted = Order.strided(1, 12, 3)
        wanted = wanted if mode == "parallel" else wanted.sequential()
        assert torch.equal(order.positions, wanted.positions) and torch.equal(order.blocks, wanted.blocks)


@pytest.mark.parametrize("drafted", [True, False])
def test_parallel_keeps_its_law_while_heads_are_drafted(drafted: bool) -> None:
    """The paper's way, head by head and block by block, gives the same text in more passes."""
    model = some_model("kernel", 2, 1, torch.float64)
    request = make_request(model, length=24, streams=6, mode="parallel", batch_size=5, seed=2, stop=False)
    writer, events = Writer(model, request, 5), []
    if not drafted:
        writer.reach = writer.ends  # one block a pass
    while writer.make_room():
        events.append(writer.step())
    out = collect(request, iter(events))
    assert out.forward_passes < 6 + 3 if drafted else out.forward_passes == 6 + 3
    assert torch.equal(out.tokens, generate(model, length=24, streams=6, mode="parallel", batch_size=5, seed=2,
                                            stop=False).tokens)  # fmt: skip
    with torch.no_grad():
        full = -nll(model, out.tokens, request.order).double()
    torch.testing.assert_close(out.log_probs, full, rtol=0, atol=1e-5)
