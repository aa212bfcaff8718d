"""The likelihood meter against brute force, against decoding, and the choice it is there for."""

from __future__ import annotations

import math

import pytest
import torch

from armd import Armd, Order, UserError, nll
from armd.data import TokenDataset, documents, prepare
from armd.decode import collect, stream
from armd.evals import choose_streams, meter, read_meter
from armd.evals.likelihood import orders_of
from armd.evals.meter import Meter, compare, cut, draft_order, exact_passes, left_ranks
from armd.request import Request
from armd.sampling import gumbel
from conftest import make_model

N = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("meter")
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"a stitch in time saves {i + 9}, " * 20)
    prepare(lambda: documents([str(folder / "*.txt")]), "byte", folder / "data", held_out=0.3)
    return TokenDataset(folder / "data", "valid", N)


@pytest.fixture(scope="module")
def model() -> Armd:
    return make_model(vocab_size=257, max_position_embeddings=N)


# ---- one rank --------------------------------------------------------------------------------------------------------


def test_agreement_and_variation_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    V, B, T = 3, 2, 5
    g = torch.Generator().manual_seed(0)
    checked, drafted, weight = (torch.randn(*shape, generator=g) for shape in ((B, T, 4), (B, T, 4), (V, 4)))
    samples, positions = torch.tensor([[3], [7]]), torch.stack([torch.randperm(T, generator=g) for _ in range(B)])
    match, variation = compare(checked, drafted, weight, 9, samples, positions)
    for b in range(B):
        for t in range(T):
            q, r = ((weight @ rows[b, t]).double().softmax(0) for rows in (checked, drafted))
            noise = gumbel(9, samples[b : b + 1], positions[b : b + 1, t : t + 1], V)[0, 0]
            best = [max(range(V), key=lambda v: (law.log() + noise)[v].item()) for law in (q, r)]
            assert match[b, t] == (best[0] == best[1])
            assert variation[b, t].item() == pytest.approx(sum(max(0, (q - r)[v].item()) for v in range(V)), abs=1e-6)
    assert 0 < match.sum() < match.numel()
    monkeypatch.setattr(meter, "CHUNK_LOGITS", 4 * V * B * 2)  # two ranks at a time
    chunked = compare(checked, drafted, weight, 9, samples, positions)
    assert torch.equal(chunked[0], match)
    torch.testing.assert_close(chunked[1], variation, rtol=0, atol=1e-6)  # kernels round by shape


def test_agreement_follows_its_law() -> None:
    """By fixed noise both choose i with probability 1 / sum_j max(q_j / q_i, r_j / r_i), summed over i."""
    q, r = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    draws = 20_000
    rows = [law.log().expand(1, draws, 3) for law in (q, r)]
    match, _ = compare(*rows, torch.eye(3), 0, torch.zeros(1, 1, dtype=torch.long), torch.arange(draws)[None])
    law = sum(1 / torch.maximum(q / q[i], r / r[i]).sum() for i in range(3))
    assert match.double().mean().item() == pytest.approx(float(law), abs=4 * math.sqrt(0.25 / draws))


# ---- many ranks ------------------------------------------------------------------------------------------------------


def strided_passes(match: list[bool], streams: int) -> tuple[int, int, int]:
    return exact_passes(match, [n - streams if n >= streams else -1 for n in range(len(match))], streams)


def test_commit_rule_by_hand() -> None:
    assert strided_passes([True] * 12, 1) == (12, 0, 0)
    # Ranks 0 | 1-4 | 5-8 | 9-11: rank 4 was drafted before its left neighbour was there, one draft wrong of ten.
    assert strided_passes([True] * 12, 4) == (4, 10, 9)
    assert strided_passes([True] * 400, 4)[0] == pytest.approx(100, abs=2)
    assert strided_passes([True] + [False] * 11, 12)[0] == 12  # heads that all need one another come one by one
    for wrong in range(2, 100):
        match = [n != wrong for n in range(400)]
        assert 100 <= strided_passes(match, 4)[0] <= 104


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_nats_are_those_of_nll(model: Armd, dataset: TokenDataset, streams: int) -> None:
    read = read_meter(model, dataset, streams, texts=5, batch_size=2)
    tokens, order = dataset.eval_batch(0, 5), Order.strided(5, N, streams)
    with torch.no_grad():
        assert read.sequential == pytest.approx(nll(model, tokens, order.sequential()).mean().item(), abs=1e-5)
        assert read.parallel == pytest.approx(nll(model, tokens, order).mean().item(), abs=1e-5)
    assert read.penalty == pytest.approx(read.parallel - read.sequential)
    if streams == 1:
        assert (read.variation, read.agreement, read.acceptance, read.tokens_per_pass) == (0, 1, None, 1)
    else:
        assert 0 < read.variation < 1 - read.agreement + 0.2 and read.tokens_per_pass < streams


def test_the_left_neighbour_of_a_strided_order_is_one_rank_of_its_stream_earlier() -> None:
    left = left_ranks(Order.strided(1, 12, 3))[0].tolist()
    assert left == [-1] * 3 + list(range(9))
    assert left_ranks(Order.from_masking_times(torch.tensor([[2, 1, 3]])))[0].tolist() == [-1, -1, 1]


def test_an_order_is_cut_as_the_strided_one_is() -> None:
    order = Order.strided(2, 12, 3)
    assert torch.equal(cut(order.sequential(), 3).blocks, order.blocks)
    assert cut(Order.left_to_right(1, 5), 2).blocks[0].tolist() == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(("name", "streams", "tolerance"), [
    ("strided:4", 4, 0.05), ("strided:8", 8, 0.05), ("uniform", 4, 0.05), ("uniform", 8, 0.05), ("strided:8", 4, 0.05),
])  # fmt: skip
def test_prediction_is_close_to_decoding(name: str, streams: int, tolerance: float) -> None:
    """On texts the model wrote itself, by the noise they were written with."""
    model = make_model(max_position_embeddings=192, num_hidden_layers=2, num_two_stream_layers=1)
    [order] = orders_of(name, 192, range(8), 1)
    holes = torch.full((8, 192), -1)
    request = Request(holes, order.sequential(), torch.arange(8), drafts=2 * streams - 2)
    out = collect(request, stream(model, request))
    drafts = draft_order(order, streams)
    with torch.no_grad():
        checked, drafted = model.draft_rows(out.tokens, drafts)
        match, _ = compare(checked, drafted, model.head_weight, 0, torch.arange(8)[:, None], drafts.positions)
    rows = zip(match.tolist(), left_ranks(order).tolist(), strict=True)
    passes = sum(exact_passes(row, left, streams)[0] for row, left in rows)
    assert out.tokens_per_pass < 0.99 * streams  # there is something to predict
    assert 8 * 192 / passes == pytest.approx(out.tokens_per_pass, rel=tolerance)


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_choice_is_the_fastest_within_the_budget(
    model: Armd, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {1: (2.0, 2.0, 1.0), 2: (2.01, 2.02, 1.9), 4: (2.02, 2.05, 3.8), 8: (2.04, 2.2, 3.0), 16: (2.09, 2.9, 9.0)}

    def fake(model: object, dataset: object, streams: int, **_: object) -> Meter:
        sequential, parallel, gain = table[streams]
        return Meter(streams, sequential, parallel, parallel - sequential, 0.1, 0.9, 0.9, gain)

    monkeypatch.setattr(meter, "read_meter", fake)

    def choose(budget: float, mode: str = "exact", candidates: tuple[int, ...] = (2, 4, 8, 16, 3)) -> int:
        return choose_streams(model, dataset, budget, candidates=candidates, mode=mode)[0]

    assert [choose(b) for b in (0.0, 0.015, 0.025, 0.05, 0.1)] == [1, 2, 4, 4, 16]  # 8 is slower than 4
    assert [choose(b, "parallel") for b in (0.015, 0.025, 0.25, 1.0)] == [1, 2, 4, 4]  # 8 heads take 8 passes
    assert choose(1.0, "sequential") == 1
    _, offers = choose_streams(model, dataset, 0.1, candidates=(2, 3, 4), mode="parallel")
    assert [(o.streams, o.nats, round(o.cost, 6)) for o in offers] == [(1, 2.0, 0.0), (2, 2.02, 0.02), (4, 2.05, 0.05)]
    assert offers[2].tokens_per_pass == N / (4 + N // 4 - 1)
    with pytest.raises(UserError, match=r"budget=-0\.1"):
        choose(-0.1)
    with pytest.raises(UserError, match="mode='fast'"):
        choose(0.1, "fast")


def test_choice_on_a_model(model: Armd, dataset: TokenDataset) -> None:
    free, offers = choose_streams(model, dataset, 100.0)
    assert [o.streams for o in offers] == [1, 2, 4, 8, 16, 32] and free > 1
    assert free == max(offers, key=lambda o: o.tokens_per_pass).streams
    with torch.no_grad():
        first = nll(model, dataset.eval_batch(0, 8), Order.left_to_right(8, N)).mean().item()
    assert offers[0].nats == pytest.approx(first, abs=1e-5) and offers[0].cost == 0
