"""The likelihood meter: what S streams cost in nats and save in passes, read off held-out texts without decoding.

Two passes over a text. One holds the rows of exact decoding (`Armd.draft_rows`): checked rows q, the law of one token
at a time, and draft rows r, drawn while the other ranks of their pass were unknown. The other is the ordinary `nll` of
the order cut into blocks, the law of mode `parallel`, which reads its evidence block by block. The order is the strided
one, or any other whose ranks are written S at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.data import Texts
from armd.errors import UserError
from armd.evals.likelihood import draws_of, orders_of
from armd.model import Armd
from armd.objective import CHUNK_LOGITS, nll, row_nll
from armd.orders import Order
from armd.request import MODES
from armd.sampling import gumbel

CANDIDATES = (1, 2, 4, 8, 16, 32)
"""Numbers of streams that `choose_streams` tries."""


@dataclass(frozen=True)
class Meter:
    """S streams on held-out texts. Nats are means per token.

    Attributes:
        streams: S.
        sequential: nats of the strided order, one token at a time: the law of modes sequential and exact.
        parallel: nats of the strided order, a token of every stream at once: the law of mode parallel.
        penalty: parallel - sequential.
        variation: mean total variation between draft and checked row, over all ranks.
        agreement: share of ranks whose draft is right by fixed noise, one pass after the other, nothing repaired.
        acceptance: predicted share of the drafts checked by mode exact that are right; None for one stream.
        tokens_per_pass: predicted for mode exact: its speed-up, N / passes.
    """

    streams: int
    sequential: float
    parallel: float
    penalty: float
    variation: float
    agreement: float
    acceptance: float | None
    tokens_per_pass: float


@torch.inference_mode()
def read_meter(
    model: Armd,
    dataset: Texts,
    streams: int,
    *,
    order: str = "",
    texts: int = 256,
    batch_size: int = 16,
    seed: int = 0,
) -> Meter:
    """Read the meter on the first `texts` held-out texts, at temperature 1; text i has the noise of sample i.

    Args:
        order: an order as `evaluate` names them, whose ranks are written S at a time; the strided one if not given.
    """
    with model.evaluating():
        return _read(model, dataset, streams, order or f"strided:{streams}", texts, batch_size, seed)


def _read(model: Armd, dataset: Texts, streams: int, name: str, texts: int, batch_size: int, seed: int) -> Meter:
    N, texts = dataset.length, min(texts, dataset.eval_windows())
    totals, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    for first in range(0, texts, batch_size):
        tokens = dataset.eval_batch(first, min(batch_size, texts - first)).to(model.device)
        samples = torch.arange(first, first + len(tokens), device=model.device)[:, None]
        for drawn in orders_of(name, N, range(first, first + len(tokens)), seed):
            parallel = nll(model, tokens, cut(drawn, streams))
            order = draft_order(drawn, streams).to(model.device)
            checked, drafted = model.draft_rows(tokens, order)
            sequential = row_nll(checked, model.head_weight, order.to_generation(tokens))
            match, variation = compare(checked, drafted, model.head_weight, seed, samples, order.positions)
            sums = sequential, parallel, variation, match
            totals += torch.stack([values.double().sum() for values in sums]).cpu()
            rows = zip(match.tolist(), left_ranks(drawn).tolist(), strict=True)
            counts += torch.tensor([exact_passes(row, left, streams) for row, left in rows]).sum(dim=0)
    written = texts * N * (draws_of(name) or 1)
    law, block_law, distance, agreement = (totals / written).tolist()
    passes, tested, accepted = counts.tolist()
    acceptance = accepted / tested if tested else None
    return Meter(
        streams, law, block_law, block_law - law, distance, agreement, acceptance, tokens_per_pass=written / passes
    )


def cut(order: Order, streams: int) -> Order:
    """The same positions as mode `parallel` writes them: S ranks one by one, then S a block, as in `Order.strided`."""
    rank = torch.arange(order.length)
    blocks = torch.where(rank < streams, rank, rank // streams + streams - 1)
    return Order(order.positions, blocks.expand(order.batch, -1))


def draft_order(order: Order, streams: int) -> Order:
    """The same positions, `streams` ranks a pass; unlike in `cut`, the heads are drafted together."""
    return Order(order.positions, torch.arange(order.length).expand(order.batch, -1) // streams)


def compare(
    checked: Float[Tensor, "B N D"],
    drafted: Float[Tensor, "B N D"],
    weight: Float[Tensor, "V D"],
    seed: int,
    samples: Int[Tensor, "B 1"],
    positions: Int[Tensor, "B N"],
) -> tuple[Bool[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Whether both rows of a rank choose the same token by the same noise, and their total variation.

    A few ranks at a time: the logits of all are never held.
    """
    match, variation = [], []
    size = max(CHUNK_LOGITS // (4 * len(weight) * len(checked)), 1)  # a few float64 tensors of this size
    for q, r, place in zip(*(rows.split(size, dim=1) for rows in (checked, drafted, positions)), strict=True):
        log_q, log_r = (F.linear(rows, weight).double().log_softmax(dim=-1) for rows in (q, r))
        noise = gumbel(seed, samples, place, len(weight))
        match.append((log_q + noise).argmax(dim=-1) == (log_r + noise).argmax(dim=-1))
        variation.append((log_q.exp() - log_r.exp()).abs().sum(dim=-1) / 2)
    return torch.cat(match, dim=1), torch.cat(variation, dim=1)


def left_ranks(order: Order) -> Int[Tensor, "B N"]:
    """(B, N): the rank of the token left of each rank's, -1 if there is none or it is written later."""
    before = order.to_generation(F.pad(order.inverse, (1, 0), value=order.length)[:, :-1])
    return torch.where(before < torch.arange(order.length), before, -1)


def exact_passes(match: Sequence[bool], left: Sequence[int], streams: int) -> tuple[int, int, int]:
    """Follow the commit rule of mode `exact` over a text: passes, drafts checked, drafts found right.

    A pass commits up to its first wrong draft and predicts the rest of the window anew. What it predicts for a rank is
    wrong if the left neighbour was wrong, or not there yet though `match` counts on it. Behind the frontier, the first
    rank without a draft, it is as good as the draft at that distance in its block. Before it, a wrong draft comes right
    once the rank before it, its neighbour stream, is.

    Args:
        match: (N,) whether the draft of each rank is right if its pass knows the ranks below its block of `streams`.
        left: (N,) the rank of the left neighbour, see `left_ranks`; if strided, one rank of its stream earlier.
    """
    N = len(match)
    right = [False] * N
    passes = done = frontier = tested = accepted = 0
    while done < N:
        wrong = next((n for n in range(done, frontier) if not right[n]), frontier)
        last = min(done + 2 * streams - 1, N)
        for n in reversed(range(wrong + 1, last)):  # backwards: a row reads what the pass found, not what it makes
            block = n // streams * streams
            like = min(block + min(n - frontier, streams - 1), N - 1) if n > frontier else n
            drafted = left[n] < frontier
            if left[n] >= done and (not right[left[n]] if drafted else left[like] < block):
                right[n] = False
            elif n > frontier:
                right[n] = match[like]
            else:
                right[n] = match[n] or right[n - 1]
        passes, tested, accepted = passes + 1, tested + min(wrong + 1, frontier) - done, accepted + wrong - done
        done, frontier = min(wrong + 1, N), last
    return passes, tested, accepted


# ---- choosing the number of streams ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """One number of streams: its law's nats per token, what they are above left to right, and tokens per pass."""

    streams: int
    nats: float
    cost: float
    tokens_per_pass: float


def choose_streams(
    model: Armd,
    dataset: Texts,
    budget: float,
    *,
    candidates: Sequence[int] = CANDIDATES,
    mode: str = "exact",
    texts: int = 8,
    seed: int = 0,
) -> tuple[int, list[Offer]]:
    """The number of streams that writes most tokens a pass within a budget, and the table it was chosen from.

    Args:
        dataset: held-out texts as long as what is to be written; candidates that do not divide their length are left
            out, one stream is always in.
        budget: nats per token that the law of `mode` may cost over the left-to-right law.
        texts: texts to measure on.
    """
    if not budget >= 0:
        raise UserError(f"budget={budget} must be at least 0 nats per token")
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    N = dataset.length
    meters = [
        read_meter(model, dataset, streams, texts=texts, batch_size=4, seed=seed)
        for streams in sorted({1, *candidates})
        if N % streams == 0
    ]
    offers = []
    for meter in meters:
        nats = meter.parallel if mode == "parallel" else meter.sequential
        block_passes = meter.streams + N // meter.streams - 1  # at most: heads are drafted, then a block a pass
        gain = {"exact": meter.tokens_per_pass, "parallel": N / block_passes, "sequential": 1.0}[mode]
        offers.append(Offer(meter.streams, nats, nats - meters[0].sequential, gain))
    affordable = [offer for offer in offers if offer.streams == 1 or offer.cost <= budget]
    return max(affordable, key=lambda offer: offer.tokens_per_pass).streams, offers
