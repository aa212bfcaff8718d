"""The pass of a decoder, and what it keeps between passes.

A pass holds content rows for tokens not yet in the cache, drafts included, and prediction rows for the next ranks of
the order. Four tokens are committed (c), two are drafted (d), the window is three:

    rank                  0   1   2   3   4   5   6
    token                 c   c   c   c   d   d   .
    content rows                      x   x   x             rank 3 was committed by the last pass
    prediction rows                       y   y   y         row n sees the tokens of ranks below n, as in training

While the drafts before it are right, a row gives the very conditional that writing one token at a time would give, and
the first row always does. `exact` checks the drafts against these rows, commits up to the first correction, and takes
what the other rows say as the next drafts. `sequential` is a window of one. `parallel` commits a block of several
tokens unchecked; the stream heads before them, blocks of one, it drafts and checks as `exact` does.
`docs/decoding.md` has the argument in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.cache import Cache
from armd.checks import BY_NAME, Check
from armd.masks import Visibility, before
from armd.model import Transformer
from armd.orders import Order
from armd.request import Request


@dataclass(frozen=True)
class Event:
    """What one forward pass wrote. Texts may get different numbers of tokens; `valid` says which count.

    Attributes:
        step: the pass, from 1.
        texts: (R,) long, the text each row belongs to.
        positions: (R, T) long, text positions.
        tokens: (R, T) long.
        log_probs: (R, T) float64, nats: log p of each token under the model (temperature 1, nothing cut off).
        valid: (R, T) bool.
        active: (R,) bool, texts that were not finished before.
        tested, accepted: (R,) long, drafts checked and found right in this pass.
        ties: (R,) long, tokens whose choice rounding could have changed (see `checks.TIE`); None: not looked for.
        bound: (R,) float64, total variation spent by `tolerance`.
    """

    step: int
    texts: Int[Tensor, "R"]
    positions: Int[Tensor, "R T"]
    tokens: Int[Tensor, "R T"]
    log_probs: Float[Tensor, "R T"]
    valid: Bool[Tensor, "R T"]
    active: Bool[Tensor, "R"]
    tested: Int[Tensor, "R"]
    accepted: Int[Tensor, "R"]
    ties: Int[Tensor, "R"] | None
    bound: Float[Tensor, "R"]


def _take_compiled(model: Transformer, rows: int, length: int) -> tuple[Callable[..., Tensor], Cache]:
    """A compiled pass with the cache it was compiled for: a CUDA graph writes to the very same memory each time.

    It is taken out of the model's store while a writer uses it, so that two writers never share a cache.
    """
    stored: Any = model.__dict__.setdefault("compiled_passes", {}).pop(_compiled_key(model, rows, length), None)
    if stored is not None:
        return stored[0], stored[1]
    graph = model.device.type == "cuda"
    cache = model.new_cache(rows, length)
    if graph:
        cache.fix_addresses()
    return torch.compile(model.advance, dynamic=False, mode="reduce-overhead" if graph else None), cache


def _compiled_key(model: Transformer, rows: int, length: int) -> tuple[Any, ...]:
    return rows, length, model.bos.dtype, model.device


class Writer:
    """The texts being written, one a row, and the pass that moves all of them on.

    Every row is at its own place: all counts below are (R,) ranks of its order.

    Attributes:
        done: ranks below are committed.
        frontier: ranks below hold a token, committed or drafted.
        cached: content columns below hold what will stay; column 0 is BOS, rank r is at r + 1.
        filled: prediction columns below hold what will stay; rank r is at r.
    """

    def __init__(self, model: Transformer, request: Request, rows: int, compiled: bool = False) -> None:
        self.model, self.request, self.device = model, request, model.device
        self.static = compiled or model.device.type == "cuda"
        texts = (request.tokens < 0).any(dim=1).nonzero()[:, 0]  # the others are whole already
        rows = min(rows, len(texts))
        self.waiting = iter(texts[rows:].tolist())
        self.length = request.tokens.shape[1]
        largest = int((request.order.block_ends - request.order.block_starts).max())
        self.window = largest if request.mode == "parallel" else 1 + request.drafts
        self.compiled = compiled
        if compiled:
            self.advance, self.cache = _take_compiled(model, rows, self.length)
            self.cache.forget(torch.arange(rows, device=self.device))
        else:
            self.advance, self.cache = model.advance, model.new_cache(rows, self.length)
        self.passes, self.steady = 0, False  # steady: no row has known tokens still to be read
        for name, value in self._fresh(texts[:rows]).items():
            setattr(self, name, value)
        self.check: Check = BY_NAME[request.check](request, rows, self.window, model.config.vocab_size, self.device)

    def close(self) -> None:
        """Give a compiled pass back for the next writer."""
        if self.compiled:
            key = _compiled_key(self.model, self.cache.ranks.shape[0], self.length)
            self.model.__dict__["compiled_passes"][key] = self.advance, self.cache

    texts: Tensor
    samples: Tensor
    positions: Tensor
    tokens: Tensor
    starts: Tensor
    ends: Tensor
    reach: Tensor
    known: Tensor
    done: Tensor
    frontier: Tensor
    cached: Tensor
    filled: Tensor
    age: Tensor
    finished: Tensor

    def _fresh(self, texts: Tensor) -> dict[str, Tensor]:
        """The state of some texts before their first pass, in generation order; one more token takes what is void."""
        order = self.request.order.rows(texts)
        tokens = order.to_generation(self.request.tokens[texts])
        known, nothing = (tokens >= 0).sum(dim=1), torch.zeros_like(texts)
        state = {
            "texts": texts, "samples": self.request.samples[texts][:, None], "positions": order.positions,
            "tokens": F.pad(tokens, (0, 1)), "starts": order.block_starts, "ends": order.block_ends,
            "reach": _reach(order),
            "known": known, "done": known, "frontier": known, "cached": nothing, "filled": nothing, "age": nothing,
            "finished": torch.zeros_like(texts, dtype=torch.bool),
        }  # fmt: skip
        return {name: value.to(self.device) for name, value in state.items()}

    @torch.no_grad()
    def make_room(self) -> bool:
        """Put waiting texts into the rows of finished ones, or drop such rows; false when all is written."""
        free = [row for row, finished in enumerate(self.finished.tolist()) if finished]  # the one wait for the device
        texts = [text for _, text in zip(free, self.waiting, strict=False)]
        if texts:
            rows = torch.tensor(free[: len(texts)], device=self.device)
            for name, value in self._fresh(torch.tensor(texts)).items():
                setattr(self, name, getattr(self, name).index_copy(0, rows, value))
            self.cache.forget(rows)
            self.steady = False
        elif len(free) == len(self.finished):
            return False
        elif 2 * len(free) >= len(self.finished) and not self.compiled:  # not for every row: a copy costs about a pass
            self._keep((~self.finished).nonzero()[:, 0])
        return True

    def _keep(self, rows: Tensor) -> None:
        for name in self._fresh(torch.tensor([0])):
            setattr(self, name, getattr(self, name)[rows])
        self.check.keep(rows)
        self.cache.keep(rows)

    @torch.no_grad()
    def step(self) -> Event:
        """One forward pass: read, predict, choose, check, commit."""
        with self.model.evaluating():
            return self._step()

    def _step(self) -> Event:
        last = torch.where(self.finished, self.filled, self._last())
        hidden = self._predict(last)
        ranks = self.done[:, None] + torch.arange(hidden.shape[1], device=self.device)
        inside = ranks < last[:, None]
        ranks = ranks.clamp(max=self.length - 1)
        positions, drafts = self.positions.gather(1, ranks), self.tokens.gather(1, ranks)
        tested = (ranks < self.frontier[:, None]) & inside

        logits = self.model.head(hidden)
        verdict = self.check(logits, self.samples, positions, drafts, tested, self.age)
        chosen, run = verdict.chosen, verdict.run
        mass = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(dim=-1)
        logs = logits.gather(-1, chosen[..., None])[..., 0].double() - mass.double()

        available = inside.sum(dim=1)
        size = (self.ends - self.starts).gather(1, ranks[:, :1])[:, 0]  # a block of several is written unchecked
        count = torch.where(size > 1, available, torch.minimum(run + 1, available))
        index = torch.arange(hidden.shape[1], device=self.device)
        commit = index < count[:, None]
        met = tested & (index <= run[:, None])
        self.tokens = self.tokens.scatter(1, torch.where(inside, ranks, self.length), chosen)
        self.cached = torch.where(self.finished, self.cached, self.done + torch.minimum(run, available) + 1)
        self.done = self.done + count
        self.filled = self.done
        self.frontier = torch.where(self.finished, self.frontier, last)
        self.age = self.age + 1
        self.passes += 1
        active, self.finished, self.steady = ~self.finished, self._finished(), True
        tested_now = met.sum(dim=1)
        return Event(
            self.passes, self.texts.clone(), positions, chosen, logs, commit, active,
            tested=tested_now,
            accepted=torch.minimum(run, tested_now),
            ties=None if verdict.ties is None else (verdict.ties & commit).sum(dim=1),
            bound=(verdict.variation * met).sum(dim=1),
        )  # fmt: skip

    def _last(self) -> Tensor:
        """One past the last rank that the pass predicts."""
        reach = self.reach.gather(1, self.done.clamp(max=self.length - 1)[:, None])[:, 0]
        return torch.minimum(self.done + self.window, reach)

    def _predict(self, last: Tensor) -> Tensor:
        """Hidden rows of the ranks from `done` on, (R, T, D), and the pass that makes them."""
        N, spare = self.length, self.cache.spare
        # Content: all tokens not yet cached. Padding rows go to the spare column and see BOS only.
        steady = self.static and self.steady
        columns = self.cached[:, None] + self._range(self.frontier + 1 - self.cached, steady)
        real = (columns <= self.frontier[:, None]) & ~self.finished[:, None]
        rank = (columns - 1).clamp(0, N - 1)
        tokens = self.tokens.gather(1, rank).clamp(min=0)
        slots = torch.where(columns == 0, 0, self.positions.gather(1, rank) + 1)
        content_limits = torch.where(columns == 0, 1, self.ends.gather(1, rank) + 1)
        columns = torch.where(real, columns, spare)

        # Prediction: known ranks too in a text's first pass, so that later rows can look at them.
        ranks = self.filled[:, None] + self._range(last - self.filled, steady)
        wanted = ranks < last[:, None]
        ranks = ranks.clamp(max=N - 1)
        limits = torch.minimum(self.starts.gather(1, ranks), self.frontier[:, None]) + 1
        limits = torch.where(wanted, limits, 1)
        prediction_limits = torch.where(wanted, self.ends.gather(1, ranks), 1)

        every = torch.arange(self.length + 1 if self.static else self._columns(last), device=self.device)
        see = Visibility.of_masks(
            *(before(limit[:, None, :, None], every) for limit in (content_limits, limits, prediction_limits))
        )
        target_slots, target_columns = self.positions.gather(1, ranks) + 1, torch.where(wanted, ranks, spare)
        advance = self.advance if steady else self.model.advance
        hidden = advance(self.cache, tokens, slots, columns, target_slots, target_columns, limits, see)
        if self.steady:
            return hidden
        skip = self.done - self.filled  # the rows of known ranks have done their work
        index = skip[:, None] + self._range(last - self.done, False)
        return hidden.gather(1, index.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[2]))

    def _range(self, counts: Tensor, steady: bool) -> Tensor:
        """As many rows as the row with most needs; the same number in every pass where shapes must not change."""
        return torch.arange(self.window if steady else max(int(counts.max()), 1), device=self.device)

    def _columns(self, last: Tensor) -> int:
        return int(torch.maximum(last, self.frontier).max()) + 1

    def _finished(self) -> Tensor:
        """Rows that are whole, or hold a stop token before which all is written."""
        over = self.done >= self.length
        if not self.request.stop:
            return over
        rank = torch.arange(self.length, device=self.device)
        written = rank < self.done[:, None]
        is_stop = torch.isin(self.tokens[:, :-1], torch.tensor(self.request.stop, device=self.device))
        is_stop &= written & (rank >= self.known[:, None])
        end = torch.where(is_stop, self.positions, self.length).amin(dim=1)
        before_end = (written & (self.positions < end[:, None])).sum(dim=1)
        return over | (before_end == end)


def _reach(order: Order) -> Tensor:
    """(B, N): one past the last rank that a pass may predict with each rank as its first.

    That is the end of a block of several tokens, and the end of a run of blocks of one: those are drafted and checked.
    """
    rank = torch.arange(order.length)
    several = torch.where(order.block_ends - order.block_starts > 1, rank, order.length)
    next_several = several.flip(1).cummin(dim=1).values.flip(1)  # the first such rank from here on
    return torch.where(several == rank, order.block_ends, next_several)
