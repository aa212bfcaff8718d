"""The order laboratory: what the order, the evidence and the number of streams do to a model's likelihood.

    rank       nats against the rank in the order: how the loss falls as evidence comes in
    evidence   the same evidence read in other orders, before the same targets
    streams    an order written S ranks at a time: nats of both laws, passes predicted

All of it on the held-out texts and the order draws of `evaluate`, so that the numbers of both agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from armd.data import Texts
from armd.decode import collect, stream
from armd.errors import UserError
from armd.evals.likelihood import draws_of, orders_of, parse_orders
from armd.evals.meter import Meter, read_meter
from armd.families import Family
from armd.model import Armd
from armd.objective import nll
from armd.orders import Order, generator
from armd.request import Request


@dataclass(frozen=True)
class Study:
    """What is looked at.

    Attributes:
        orders: orders as `evaluate` names them.
        streams: numbers S of ranks written at a time.
        evidence: numbers of evidence tokens; of a text of N tokens at most N - 1.
        shuffles: orders K that the same evidence is read in.
        targets: tokens predicted after the evidence, at most.
        bins: into how many equal parts the ranks of an order are put.
        measure: texts to write for every order and S, to set decoding beside what is predicted; 0 writes none.
        texts, batch_size, seed: as of `evaluate`.
    """

    orders: tuple[str, ...]
    streams: tuple[int, ...] = (2, 4, 8)
    evidence: tuple[int, ...] = ()
    shuffles: int = 8
    targets: int = 16
    bins: int = 16
    measure: int = 0
    texts: int = 64
    batch_size: int = 16
    seed: int = 0

    def check(self, length: int) -> None:
        """Refuse what texts of this length do not allow."""
        least = {"shuffles": 2, "targets": 1, "bins": 1, "measure": 0, "texts": 1, "batch_size": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"{name}={getattr(self, name)} must be at least {value}")
        for order in parse_orders(",".join(self.orders)):
            if order.partition(":")[0] == "bound":
                raise UserError(f"order {order!r} has no ranks; the laboratory needs orders")
            if not draws_of(order):
                Family.parse(order).check(length)
        for name, values, most in (("streams", self.streams, length), ("evidence", self.evidence, length - 1)):
            for value in values:
                if not 1 <= value <= most:
                    raise UserError(f"{name}={value} must be between 1 and {most} for texts of {length} tokens")
        for streams in self.streams:
            Family("strided", streams).check(length, "streams")

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every order with every S, after the strided orders that decoding uses."""
        own = [(order, streams) for order in self.orders for streams in self.streams]
        return list(dict.fromkeys([(f"strided:{streams}", streams) for streams in self.streams] + own))

    @property
    def ends(self) -> list[int]:
        """How many results there are at the end of each look."""
        return list(accumulate((len(self.orders), len(self.evidence), len(self.pairs))))

    def __len__(self) -> int:
        """How many results there will be."""
        return self.ends[-1]


def default_evidence(length: int) -> tuple[int, ...]:
    """From a 32nd of a text to three quarters of it."""
    return tuple(sorted({max(length * share // 32, 1) for share in (1, 2, 4, 8, 16, 24)}))


def _batches(dataset: Texts, study: Study) -> Iterator[tuple[range, Tensor]]:
    """The numbers of some texts, and their tokens."""
    texts = min(study.texts, dataset.eval_windows())
    for start in range(0, texts, study.batch_size):
        numbers = range(start, min(start + study.batch_size, texts))
        yield numbers, dataset.eval_batch(start, len(numbers))


def _stderr(by_text: Tensor) -> Tensor:
    """The standard error of the mean over texts, the first dimension; not a number for one text."""
    n = len(by_text)
    return by_text.std(dim=0) / math.sqrt(n) if n > 1 else torch.full_like(by_text[0], math.nan)


# ---- loss by rank ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankCurve:
    """Held-out nats along an order, one token a block.

    Attributes:
        order: as given.
        ranks: the ends of the bins; bin i holds ranks ranks[i] .. ranks[i + 1] - 1.
        nats, stderr: mean nats per token of each bin over texts, and its standard error.
        mean: over all ranks; what `evaluate` calls the sequential nats per token of the order.
    """

    order: str
    ranks: list[int]
    nats: list[float]
    stderr: list[float]
    mean: float

    def __str__(self) -> str:
        return f"loss by rank, {self.order}"


@torch.inference_mode()
def loss_by_rank(model: Armd, dataset: Texts, order: str, study: Study) -> RankCurve:
    N, bins = dataset.length, min(study.bins, dataset.length)
    ranks = [i * N // bins for i in range(bins + 1)]
    sizes = [high - low for low, high in pairwise(ranks)]
    rows = []
    for texts, tokens in _batches(dataset, study):
        draws = []
        for drawn in orders_of(order, N, texts, study.seed):
            nats = nll(model, tokens.to(model.device), drawn.sequential()).double().cpu()
            draws.append(torch.stack([part.mean(dim=1) for part in drawn.to_generation(nats).split(sizes, dim=1)], 1))
        rows.append(torch.stack(draws).mean(dim=0))
    by_text = torch.cat(rows)  # (texts, bins)
    mean = by_text.mean(dim=0)
    whole = (mean * torch.tensor(sizes)).sum().item() / N
    return RankCurve(order, ranks, mean.tolist(), _stderr(by_text).tolist(), whole)


# ---- the order of the evidence ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """How a network reads the same evidence, a random set of tokens, in K random orders: means per target.

    The targets are the next tokens of a random order, one a block, and the same after every reading. They cannot be one
    block: rows of one block see each other, though not the tokens.

    Attributes:
        evidence: tokens of evidence.
        text_order: nats, the evidence read one token a block in text order.
        shuffled: nats, read in a random order, mean over K.
        one_block: nats, all of it read as one block.
        spread: standard deviation over the K orders of a target's log-probability, mean over targets and texts. 0 for a
            network that reads its evidence as a set.
        spread_stderr, shuffled_stderr, one_block_stderr: standard errors over texts, of the spread, and of what the two
            cost above text order.
    """

    evidence: int
    text_order: float
    shuffled: float
    one_block: float
    spread: float
    spread_stderr: float
    shuffled_stderr: float
    one_block_stderr: float

    def __str__(self) -> str:
        return f"{self.evidence} tokens of evidence"


@torch.inference_mode()
def sensitivity(model: Armd, dataset: Texts, evidence: int, study: Study) -> Sensitivity:
    N, rank = dataset.length, torch.arange(dataset.length)
    one_by_one, at_once = rank, (rank - evidence + 1).clamp(min=0)
    rows = []
    for texts, tokens in _batches(dataset, study):
        draws = [_readings(N, evidence, study.shuffles, generator(study.seed, text)) for text in texts]
        in_text_order, *shuffled = torch.stack(draws, dim=1)  # K + 1 of (B, N)

        def read(positions: Tensor, blocks: Tensor, tokens: Tensor = tokens) -> Tensor:
            order = Order(positions, blocks.expand_as(positions))
            nats = nll(model, tokens.to(model.device), order).double().cpu()
            return order.to_generation(nats)[:, evidence : evidence + study.targets]  # (B, targets)

        in_order, in_block = read(in_text_order, one_by_one), read(in_text_order, at_once)
        others = torch.stack([read(positions, one_by_one) for positions in shuffled])  # (K, B, targets)
        means = in_order.mean(dim=1), others.mean(dim=(0, 2)), in_block.mean(dim=1), others.std(dim=0).mean(dim=1)
        rows.append(torch.stack(means, dim=1))
    by_text = torch.cat(rows)  # (texts, 4)
    above = by_text[:, 1:3] - by_text[:, :1]
    errors = torch.cat((_stderr(by_text)[3:], _stderr(above)))
    return Sensitivity(evidence, *(by_text.mean(dim=0).tolist() + errors.tolist()))


def _readings(length: int, evidence: int, shuffles: int, draw: torch.Generator) -> Tensor:
    """Positions of one text, (K + 1, N): a random set of evidence in text order and in K random ones; then the rest."""
    known, rest = torch.randperm(length, generator=draw).split((evidence, length - evidence))
    known = known.sort().values
    others = [known[torch.randperm(evidence, generator=draw)] for _ in range(shuffles)]
    return torch.stack([torch.cat((each, rest)) for each in (known, *others)])


# ---- orders and streams ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """An order written S ranks at a time.

    Attributes:
        order: as given; its sequential nats are those of `evaluate`.
        meter: nats of both laws, and what mode exact is predicted to do; in `parallel` the first S ranks are written
            one by one, as in the strided order.
        acceptance, tokens_per_pass: of mode exact as measured on texts it wrote; None if none were.
    """

    order: str
    meter: Meter
    acceptance: float | None = None
    tokens_per_pass: float | None = None

    def __str__(self) -> str:
        return f"{self.order}, {self.meter.streams} at a time"


def read_pair(model: Armd, dataset: Texts, order: str, streams: int, study: Study) -> Pair:
    options = {"texts": study.texts, "batch_size": study.batch_size, "seed": study.seed}
    meter = read_meter(model, dataset, streams, order=order, **options)
    if not study.measure:
        return Pair(order, meter)
    drawn = next(orders_of(order, dataset.length, range(study.measure), study.seed)).sequential()
    holes, samples = torch.full_like(drawn.positions, -1), torch.arange(study.measure)
    request = Request(holes, drawn, samples, drafts=min(2 * streams - 2, dataset.length - 1), seed=study.seed)
    out = collect(request, stream(model, request))
    return Pair(order, meter, out.acceptance, out.tokens_per_pass)


# ---- all of it -------------------------------------------------------------------------------------------------------


def explore(model: Armd, dataset: Texts, study: Study) -> Iterator[RankCurve | Sensitivity | Pair]:
    """Look at all that is to be looked at, yielding each result as soon as it is there."""
    study.check(dataset.length)
    with model.evaluating():
        for order in study.orders:
            yield loss_by_rank(model, dataset, order, study)
        for evidence in study.evidence:
            yield sensitivity(model, dataset, evidence, study)
        for order, streams in study.pairs:
            yield read_pair(model, dataset, order, streams, study)
