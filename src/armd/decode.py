"""Decoding with caches. `stream` yields an event a forward pass; every consumer reads that one generator.

A pass holds content rows for tokens not yet in the cache, drafts included, and prediction rows for the next ranks of
the order. Four tokens are committed (c), two are drafted (d), the window is three:

    rank                  0   1   2   3   4   5   6
    token                 c   c   c   c   d   d   .
    content rows                      x   x   x             rank 3 was committed by the last pass
    prediction rows                       y   y   y         row n sees the tokens of ranks below n, as in training

While the drafts before it are right, a row gives the very conditional that writing one token at a time would give, and
the first row always does. `exact` checks the drafts against these rows, commits up to the first correction, and takes
what the other rows say as the next drafts. `sequential` is a window of one. `parallel` commits a whole block unchecked.
`docs/decoding.md` has the argument in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.cache import Cache
from armd.errors import UserError
from armd.masks import Visibility, before
from armd.model import Transformer
from armd.request import Request, make_request
from armd.sampling import coin, gumbel, warp

TIE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.03}
"""A choice is reported as a tie if its two best scores are closer than what rounding moves logits by, in nats."""


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
        tested, accepted: (R,) long, drafts checked and found right in this pass.
        ties: (R,) long, tokens whose choice rounding could have changed (see `TIE`).
        bound: (R,) float64, total variation spent by `tolerance`.
    """

    step: int
    texts: Int[Tensor, "R"]
    positions: Int[Tensor, "R T"]
    tokens: Int[Tensor, "R T"]
    log_probs: Float[Tensor, "R T"]
    valid: Bool[Tensor, "R T"]
    tested: Int[Tensor, "R"]
    accepted: Int[Tensor, "R"]
    ties: Int[Tensor, "R"]
    bound: Float[Tensor, "R"]


@dataclass(frozen=True)
class Generation:
    """Finished texts.

    Attributes:
        tokens: (B, N) long, in text order, the given tokens included.
        lengths: (B,) long, tokens up to and including the first stop token after the prompt; N without one.
        steps: (B, N) long, the pass that wrote each token; 0 for given tokens, and for those after a stop token.
        log_probs: (B, N) float64, nats: log p of each written token under the model in the order and blocks it was
            written, one token a block unless the mode is `parallel`; 0 where steps is 0.
        forward_passes: passes of the network, the one that reads the prompt included.
        passes: (B,) long, those in which a text took part.
        tested, accepted: (B,) long, drafts checked, and found right.
        ties: (B,) long, tokens whose choice rounding could have changed (see `TIE`).
        bound: (B,) float64, the total variation to the sequential law that `tolerance` spent on each text.
    """

    tokens: Int[Tensor, "B N"]
    lengths: Int[Tensor, "B"]
    steps: Int[Tensor, "B N"]
    log_probs: Float[Tensor, "B N"]
    forward_passes: int
    passes: Int[Tensor, "B"]
    tested: Int[Tensor, "B"]
    accepted: Int[Tensor, "B"]
    ties: Int[Tensor, "B"]
    bound: Float[Tensor, "B"]

    @property
    def acceptance(self) -> float | None:
        """Share of the checked drafts that were right; None if nothing was drafted."""
        tested = int(self.tested.sum())
        return int(self.accepted.sum()) / tested if tested else None

    @property
    def tokens_per_pass(self) -> float:
        """Tokens a text gains in a pass, all passes counted."""
        return int((self.steps > 0).sum()) / int(self.passes.sum())


def generate(
    model: Transformer,
    *,
    length: int | None = None,
    prompt: Sequence[int] | Tensor | None = None,
    template: Sequence[int] | Tensor | None = None,
    streams: int = 1,
    mode: str = "exact",
    drafts: int | None = None,
    check: str = "noise",
    tolerance: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    stop: bool | Sequence[int] = True,
    rows: int | None = None,
    compiled: bool = False,
) -> Generation:
    """Write text.

    Args:
        length: number of new tokens after the prompt.
        prompt: (P,) or (B, P) token ids to go on from.
        template: (N,) or (B, N) token ids with -1 at the holes, instead of length and prompt; each hole is a stream.
        streams: number S of equal streams the new tokens are cut into; 1 is left to right.
        mode: `sequential` writes one token a pass. `exact` drafts and checks: the law of `sequential` in fewer passes.
            `parallel` writes one token of every stream in a pass, as if they were independent (the paper's SBP).
        drafts: tokens guessed beyond the next one in an exact pass; default 2 S - 2, the two ends of S streams.
        check: how drafts are checked: `noise` (the text itself is that of `sequential`) or `rejection` (the law is).
        tolerance: with `rejection`, accept a draft this much more readily: at most this total variation a token.
        temperature, top_k, top_p: the sampled law, see `sampling.warp`; temperature 0 is greedy.
        seed: same seed, same text.
        batch_size: number of texts; a text does not depend on the others.
        stop: end a text at the end-of-text token, or at these tokens: it is over once all before one is written, and
            the rest is filled with it. Templates are always written whole.
        rows: texts written at once, default all; a text that is finished makes room for the next.
        compiled: compile the pass (torch.compile; on a GPU a CUDA graph). The first call takes about a minute.

    Raises:
        UserError: an argument is impossible; the message names it, its value and what is allowed.
    """
    request = make_request(
        model,
        length=length,
        prompt=prompt,
        template=template,
        streams=streams,
        mode=mode,
        drafts=drafts,
        check=check,
        tolerance=tolerance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        stop=stop,
    )
    return collect(request, stream(model, request, rows, compiled))


def stream(model: Transformer, request: Request, rows: int | None = None, compiled: bool = False) -> Iterator[Event]:
    """Write the texts of a request, at most `rows` at once, yielding an event a forward pass."""
    if rows is not None and rows < 1:
        raise UserError(f"rows={rows} must be at least 1")
    was_training = model.training
    model.eval()
    try:
        writer = Writer(model, request, min(rows or len(request), len(request)), compiled)
        while writer.make_room():
            yield writer.step()
    finally:
        model.train(was_training)


def collect(request: Request, events: Iterator[Event]) -> Generation:
    """Put the events of a request together."""
    tokens = request.tokens.clone()
    B = len(tokens)
    steps, logs = torch.zeros_like(tokens), torch.zeros(tokens.shape, dtype=torch.float64)
    passes, tested, accepted, ties = torch.zeros(4, B, dtype=torch.long)
    bound, forward_passes = torch.zeros(B, dtype=torch.float64), 0
    for event in events:
        forward_passes, texts = event.step, event.texts.cpu()
        row, column = event.valid.cpu().nonzero(as_tuple=True)
        at = texts[row], event.positions.cpu()[row, column]
        tokens[at] = event.tokens.cpu()[row, column]
        logs[at] = event.log_probs.cpu()[row, column]
        steps[at] = event.step
        passes[texts] += 1
        for total, value in (
            (tested, event.tested), (accepted, event.accepted), (ties, event.ties), (bound, event.bound),
        ):  # fmt: skip
            total[texts] += value.cpu()
    lengths = torch.full((B,), tokens.shape[1])
    if request.stop:
        stops = torch.isin(tokens, torch.tensor(request.stop)) & (request.tokens < 0)
        first = stops.long().argmax(dim=1, keepdim=True)
        after = stops.any(dim=1, keepdim=True) & (torch.arange(tokens.shape[1]) > first)
        lengths = torch.where(stops.any(dim=1), first[:, 0] + 1, lengths)
        tokens = torch.where(after, tokens.gather(1, first), tokens)
        steps, logs = steps.masked_fill(after, 0), logs.masked_fill(after, 0)
    return Generation(tokens, lengths, steps, logs, forward_passes, passes, tested, accepted, ties, bound)


@lru_cache(maxsize=4)
def _compiled(model: Transformer, rows: int, length: int) -> tuple[Callable[..., Tensor], Cache]:
    """The compiled pass and the cache it was compiled for: a CUDA graph writes to the very same memory each time."""
    graph = model.device.type == "cuda"
    store = model.new_cache(rows, length)
    if graph:
        store.fix_addresses()
    return torch.compile(model.advance, dynamic=False, mode="reduce-overhead" if graph else None), store


# ---- one pass after another ------------------------------------------------------------------------------------------


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
        self.waiting = iter(range(rows, len(request)))
        self.length = request.tokens.shape[1]
        self.parallel = request.mode == "parallel"
        sizes = request.order.block_ends - request.order.block_starts
        self.window = int(sizes.max()) if self.parallel else 1 + request.drafts
        self.compiled = compiled
        if compiled:
            self.advance, self.cache = _compiled(model, rows, self.length)
            self.cache.forget(torch.arange(rows, device=self.device))
        else:
            self.advance, self.cache = model.advance, model.new_cache(rows, self.length)
        self.passes = 0
        for name, value in self._fresh(torch.arange(rows)).items():
            setattr(self, name, value)
        if request.check == "rejection":  # the laws that the drafts were drawn from
            self.laws = torch.zeros(rows, self.window, model.config.vocab_size, dtype=torch.float64, device=self.device)

    texts: Tensor
    samples: Tensor
    positions: Tensor
    tokens: Tensor
    starts: Tensor
    ends: Tensor
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
            "tokens": F.pad(tokens, (0, 1)), "starts": order.block_starts, "ends": order.block_ends, "done": known, "frontier": known,
            "cached": nothing, "filled": nothing, "age": nothing, "finished": known == self.length,
        }  # fmt: skip
        return {name: value.to(self.device) for name, value in state.items()}

    @torch.inference_mode()
    def make_room(self) -> bool:
        """Put waiting texts into the rows of finished ones, or drop such rows; false when all is written."""
        free = self.finished.nonzero()[:, 0]
        texts = [text for _, text in zip(free.tolist(), self.waiting, strict=False)]
        if texts:
            free = free[: len(texts)]
            for name, value in self._fresh(torch.tensor(texts)).items():
                setattr(self, name, getattr(self, name).index_copy(0, free, value))
            self.cache.forget(free)
        elif 2 * len(free) >= len(self.finished) and not self.compiled:  # not for every row: a copy costs about a pass
            self._keep((~self.finished).nonzero()[:, 0])
        return bool((~self.finished).any())

    def _keep(self, rows: Tensor) -> None:
        for name in self._fresh(torch.tensor([0])):
            setattr(self, name, getattr(self, name)[rows])
        if self.request.check == "rejection":
            self.laws = self.laws[rows]
        self.cache.keep(rows)

    @torch.inference_mode()
    def step(self) -> Event:
        """One forward pass: read, predict, choose, check, commit."""
        last = torch.where(self.finished, self.filled, self._last())
        hidden = self._predict(last)
        ranks = self.done[:, None] + torch.arange(hidden.shape[1], device=self.device)
        inside = ranks < last[:, None]
        ranks = ranks.clamp(max=self.length - 1)
        positions, drafts = self.positions.gather(1, ranks), self.tokens.gather(1, ranks)
        tested = (ranks < self.frontier[:, None]) & inside

        logits = F.linear(hidden, self.model.head_weight)
        check = self._check_rejection if self.request.check == "rejection" else self._check_noise
        chosen, run, report = check(logits, positions, drafts, tested)
        logs = logits.gather(-1, chosen[..., None])[..., 0].double() - logits.float().logsumexp(dim=-1).double()

        available = inside.sum(dim=1)
        count = available if self.parallel else torch.minimum(run + 1, available)
        index = torch.arange(hidden.shape[1], device=self.device)
        commit = index < count[:, None]
        met = tested & (index <= run[:, None])
        self.tokens = self.tokens.scatter(1, torch.where(inside, ranks, self.length), chosen)
        self.cached = torch.where(self.finished, self.cached, self.done + torch.minimum(run, available) + 1)
        self.done = self.done + count
        self.filled = self.done
        self.frontier = self.done if self.parallel else torch.where(self.finished, self.frontier, last)
        self.age = self.age + 1
        self.passes += 1
        texts, taking_part = self.texts, ~self.finished
        self.finished = self._finished()
        event = Event(
            self.passes, texts, positions, chosen, logs, commit, met.sum(dim=1), torch.minimum(run, met.sum(dim=1)),
            ties=(report.ties & commit).sum(dim=1), bound=(report.variation * met).sum(dim=1),
        )  # fmt: skip
        return event if bool(taking_part.all()) else _rows_of(event, taking_part)

    def _last(self) -> Tensor:
        """One past the last rank that the pass predicts."""
        if self.parallel:
            return self.ends.gather(1, self.done.clamp(max=self.length - 1)[:, None])[:, 0]
        return (self.done + self.window).clamp(max=self.length)

    def _predict(self, last: Tensor) -> Tensor:
        """Hidden rows of the ranks from `done` on, (R, T, D), and the pass that makes them."""
        N, spare = self.length, self.cache.spare
        # Content: all tokens not yet cached. Padding rows go to the spare column and see BOS only.
        steady = self.static and bool((self.filled == self.done).all())
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
        skip = self.done - self.filled  # the rows of known ranks have done their work
        if not bool(skip.any()):
            return hidden
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
        is_stop &= written & (rank >= (self._known())[:, None])
        end = torch.where(is_stop, self.positions, self.length).amin(dim=1)
        before_end = (written & (self.positions < end[:, None])).sum(dim=1)
        return over | (before_end == end)

    def _known(self) -> Tensor:
        known = (self.request.tokens >= 0).sum(dim=1).to(self.device)
        return known[self.texts]

    # ---- choosing and checking: tokens of all rows, and how many drafts from the first on are right -----------------

    def _check_noise(
        self, logits: Tensor, positions: Tensor, drafts: Tensor, tested: Tensor
    ) -> tuple[Tensor, Tensor, _Report]:
        """Gumbel-max with noise that is fixed for good: a draft is right if the row chooses it too."""
        r = self.request
        scores = warp(logits, r.temperature, r.top_k, r.top_p)
        if r.temperature > 0:
            scores = gumbel(r.seed, self.samples, positions, logits.shape[-1]).add_(scores)
            best = scores.topk(min(2, scores.shape[-1]), dim=-1)
            margin = best.values[..., 0] - best.values[..., -1]
            chosen = best.indices[..., 0]
        else:
            chosen = scores.argmax(dim=-1)
            top = logits.float().topk(min(2, logits.shape[-1]), dim=-1).values
            margin = top[..., 0] - top[..., -1]
        run = ((chosen == drafts) & tested).long().cumprod(dim=1).sum(dim=1)
        limit = TIE[logits.dtype] / (r.temperature or 1.0)
        return chosen, run, _Report(margin < limit, torch.zeros_like(margin, dtype=torch.float64))

    def _check_rejection(
        self, logits: Tensor, positions: Tensor, drafts: Tensor, tested: Tensor
    ) -> tuple[Tensor, Tensor, _Report]:
        """Accept a draft with probability q / r, else draw from what r lacks: (q - r)+ (Leviathan et al., 2023)."""
        r, V, T = self.request, logits.shape[-1], logits.shape[1]
        q = warp(logits, r.temperature, r.top_k, r.top_p).softmax(dim=-1)
        draft_law = self.laws[:, :T]
        at = drafts.clamp(min=0)[..., None]
        ratio = q.gather(-1, at)[..., 0] / draft_law.gather(-1, at)[..., 0].clamp(min=1e-300)
        # Coins are new in every pass: a draft that stays is checked by a coin it has not met.
        accept = coin(r.seed, self.samples, positions, 2 * self.age[:, None] + 2) < ratio + r.tolerance
        run = (accept & tested).long().cumprod(dim=1).sum(dim=1)
        index = torch.arange(T, device=logits.device)
        rejected = ((index == run[:, None]) & tested)[..., None]
        lacking = (q - draft_law).clamp(min=0)
        lacking = torch.where(lacking.sum(dim=-1, keepdim=True) > 0, lacking, q)
        noise = gumbel(r.seed, self.samples, positions, V, 2 * self.age[:, None] + 1)
        drawn = (torch.where(rejected, lacking, q).log() + noise).argmax(dim=-1)
        chosen = torch.where(index < run[:, None], drafts, drawn)
        excess = torch.minimum(r.tolerance * draft_law, (draft_law - q).clamp(min=0)).sum(dim=-1)
        # Rows behind the first one not accepted are the next drafts; their laws move to the front.
        ahead = (index + run[:, None] + 1).clamp(max=T - 1)
        self.laws[:, :T] = q.gather(1, ahead[..., None].expand_as(q))
        return chosen, run, _Report(torch.zeros_like(tested), excess)


@dataclass(frozen=True)
class _Report:
    ties: Tensor
    variation: Tensor


def _rows_of(event: Event, rows: Tensor) -> Event:
    """The event without rows that take no part any more."""
    values: dict[str, Any] = {name: value[rows] for name, value in vars(event).items() if name != "step"}
    return Event(step=event.step, **values)
