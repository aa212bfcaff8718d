"""Decoding with caches. `stream` yields an event a forward pass; every consumer reads that one generator.

A pass takes in the tokens that the last pass wrote (content rows, layers 1..L2s) and predicts the next block of the
order (prediction rows, all layers). Known tokens, that is a prompt or what a template gives, are read one by one in
text order, all in the first pass.

    pass 1    content  BOS e_1 .. e_m      prediction  e_1 .. e_m, block 1      (rows of e_n only fill the cache)
    pass 2    content  block 1             prediction  block 2
    ...                                    the last block is never read back
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.cache import Cache
from armd.errors import UserError
from armd.masks import HIDDEN
from armd.model import Armd
from armd.orders import Order
from armd.sampling import check_sampling, gumbel, log_probs

MODES = ("exact", "sequential", "parallel")


@dataclass(frozen=True)
class Event:
    """What one forward pass wrote. Rows of the batch may write different numbers of tokens; `valid` says which count.

    Attributes:
        step: the pass, from 1.
        positions: (B, T) long, text positions.
        tokens: (B, T) long.
        log_probs: (B, T) float64, nats: log p of each token under the model (temperature 1, nothing cut off).
        valid: (B, T) bool.
    """

    step: int
    positions: Int[Tensor, "B T"]
    tokens: Int[Tensor, "B T"]
    log_probs: Float[Tensor, "B T"]
    valid: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class Generation:
    """Finished texts.

    Attributes:
        tokens: (B, N) long, in text order, the given tokens included.
        lengths: (B,) long, tokens up to and including the first end-of-text token after the prompt; N without one.
        steps: (B, N) long, the pass that wrote each token; 0 for given tokens.
        log_probs: (B, N) float64, nats: log p of each written token under the model in the order and blocks it was
            written; 0 for given tokens.
        forward_passes: passes of the network, the one that reads the prompt included.
        acceptance: share of drafts accepted, None for modes that draft nothing.
    """

    tokens: Int[Tensor, "B N"]
    lengths: Int[Tensor, "B"]
    steps: Int[Tensor, "B N"]
    log_probs: Float[Tensor, "B N"]
    forward_passes: int
    acceptance: float | None = None


@dataclass(frozen=True)
class Request:
    """What to write: checked arguments of `generate`.

    Attributes:
        tokens: (B, N) long in text order, -1 at the holes.
        order: known tokens first, one a block; then the holes.
    """

    tokens: Int[Tensor, "B N"]
    order: Order
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: bool


def make_request(
    model: Armd,
    *,
    length: int | None = None,
    prompt: Sequence[int] | Tensor | None = None,
    template: Sequence[int] | Tensor | None = None,
    streams: int = 1,
    mode: str = "exact",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    stop: bool = True,
) -> Request:
    """Check the arguments of `generate` and lay out tokens and order."""
    check_sampling(temperature, top_k, top_p)
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    if template is not None:
        if length is not None or prompt is not None or streams != 1:
            raise UserError("template cannot be combined with length, prompt or streams: its holes say it all")
        tokens = _tokens("template", template, batch_size, model, lowest=-1)
        if not (tokens < 0).any():
            raise UserError("template has no hole: mark at least one position with -1")
        order = Order.template(tokens < 0)
    else:
        if length is None or length < 1:
            raise UserError(f"length={length} must be at least 1 new token")
        known = _tokens("prompt", [] if prompt is None else prompt, batch_size, model, lowest=0)
        tokens = F.pad(known, (0, length), value=-1)
        order = Order.strided(len(tokens), tokens.shape[1], streams, prompt=known.shape[1])
    limit = model.config.max_position_embeddings
    if tokens.shape[1] > limit:
        parts = f"template of {tokens.shape[1]}"
        if length is not None:
            parts = f"prompt {tokens.shape[1] - length} + length {length}"
        raise UserError(f"{parts} tokens exceed max_position_embeddings={limit}")
    return Request(tokens, order if mode == "parallel" else order.sequential(), temperature, top_k, top_p, seed, stop)


def stream(model: Armd, request: Request) -> Iterator[Event]:
    """Write the holes of a request, yielding an event after every forward pass."""
    order, tokens = request.order.to(model.device), request.tokens.to(model.device)
    was_training = model.training
    model.eval()
    try:
        yield from _passes(model, request, order, order.to_generation(tokens))
    finally:
        model.train(was_training)


def generate(
    model: Armd,
    *,
    length: int | None = None,
    prompt: Sequence[int] | Tensor | None = None,
    template: Sequence[int] | Tensor | None = None,
    streams: int = 1,
    mode: str = "exact",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    stop: bool = True,
) -> Generation:
    """Write text.

    Args:
        length: number of new tokens after the prompt.
        prompt: (P,) or (B, P) token ids to go on from.
        template: (N,) or (B, N) token ids with -1 at the holes, instead of length and prompt.
        streams: number S of equal streams the new tokens are cut into; 1 is left to right.
        mode: `parallel` writes one token of every stream in a pass, as if they were independent (the paper's SBP).
            `sequential` writes one token a pass in the same order. `exact` keeps the sequential law and text.
        temperature, top_k, top_p: the sampled law, see `sampling.log_probs`; temperature 0 is greedy.
        seed: same seed, same text.
        batch_size: number of texts; row b draws the same text whatever the other rows.
        stop: end a left-to-right text at the end-of-text token (the rest is filled with it).

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
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        stop=stop,
    )
    return collect(model, request, stream(model, request))


def collect(model: Armd, request: Request, events: Iterator[Event]) -> Generation:
    """Put the events of a request together."""
    tokens = request.tokens.clone()
    steps, logs, passes = torch.zeros_like(tokens), torch.zeros(tokens.shape, dtype=torch.float64), 0
    for event in events:
        passes = event.step
        row, column = event.valid.cpu().nonzero(as_tuple=True)
        position = event.positions.cpu()[row, column]
        tokens[row, position] = event.tokens.cpu()[row, column]
        steps[row, position] = event.step
        logs[row, position] = event.log_probs.cpu()[row, column]
    eos = model.config.eos_token_id
    if eos is not None:  # tokens a left-to-right text no longer had to write
        tokens[tokens < 0] = eos
    return Generation(tokens, _lengths(request, tokens, eos), steps, logs, passes)


# ---- the passes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Some blocks of every order: ranks (B, W), padded on the right where `valid` is false."""

    ranks: Tensor
    valid: Tensor

    @classmethod
    def between(cls, order: Order, first: Tensor, last: Tensor) -> _Rows:
        """The tokens of blocks first..last-1, each (B,); blocks never decrease, so they are consecutive ranks."""
        start = (order.blocks < first[:, None]).sum(dim=1, keepdim=True)
        end = (order.blocks < last[:, None]).sum(dim=1, keepdim=True)
        ranks = start + torch.arange(int((end - start).max()), device=start.device)
        return cls(ranks.clamp(max=order.length - 1), ranks < end)

    def slots(self, order: Order) -> Tensor:
        return order.positions.gather(1, self.ranks) + 1

    def blocks(self, order: Order) -> Tensor:
        return torch.where(self.valid, order.blocks.gather(1, self.ranks) + 1, HIDDEN)


def _passes(model: Armd, request: Request, order: Order, tokens: Tensor) -> Iterator[Event]:
    """The decoding loop; tokens are in generation order here, known ones first."""
    B = order.batch
    known = (tokens >= 0).sum(dim=1)
    nothing = torch.zeros_like(known)
    passes = int((order.blocks[:, -1] + 1 - known).max())
    written = [_Rows.between(order, known + j, known + j + 1) for j in range(passes)]
    capacity = 1 + int(known.max()) + sum(rows.ranks.shape[1] for rows in written)
    cache = model.new_cache(B, order.length, capacity)
    samples = torch.arange(B, device=tokens.device)[:, None]
    stops = _Stop(model, request)

    read, predict = _Rows.between(order, nothing, known), _Rows.between(order, nothing, known + 1)
    for j, rows in enumerate(written):
        hidden = _advance(model, cache, order, tokens, read, predict, with_bos=j == 0)
        if j == 0:  # the first block stands behind each row's known tokens
            hidden = hidden.gather(1, rows.ranks[..., None].expand(-1, -1, hidden.shape[2]))
        positions = order.positions.gather(1, rows.ranks)
        new, logs = _sample(model, hidden, request, samples, positions)
        new, valid = stops(new, rows.valid)
        tokens = tokens.scatter(1, rows.ranks, torch.where(valid, new, tokens.gather(1, rows.ranks)))
        yield Event(j + 1, positions, new, logs, valid)
        if stops.all():
            return
        read, predict = rows, written[j + 1] if j + 1 < passes else rows


@torch.inference_mode()
def _advance(
    model: Armd, cache: Cache, order: Order, tokens: Tensor, read: _Rows, predict: _Rows, with_bos: bool
) -> Tensor:
    known, slots, blocks = tokens.gather(1, read.ranks).clamp(min=0), read.slots(order), read.blocks(order)
    if with_bos:
        known, slots, blocks = (F.pad(x, (1, 0)) for x in (known, slots, blocks))
    return model.advance(cache, known, slots, blocks, predict.slots(order), predict.blocks(order))


@torch.inference_mode()
def _sample(model: Armd, hidden: Tensor, request: Request, samples: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Draw tokens of (B, T, D) rows; returns them and their log-probabilities under the model, (B, T) each."""
    logits = F.linear(hidden, model.head_weight)
    law = log_probs(logits, request.temperature, request.top_k, request.top_p)
    new = (law + gumbel(request.seed, samples, positions, logits.shape[-1])).argmax(dim=-1)
    return new, log_probs(logits).gather(-1, new[..., None])[..., 0]


class _Stop:
    """Ends the rows of a left-to-right request at the end-of-text token; other orders are written whole."""

    def __init__(self, model: Armd, request: Request) -> None:
        holes = (request.tokens < 0).long()
        ascending = bool((request.order.positions.diff(dim=1) > 0).all() and (holes.diff(dim=1) >= 0).all())
        self.eos = model.config.eos_token_id if request.stop and ascending else None
        self.ended = torch.zeros(len(holes), 1, dtype=torch.bool, device=model.device)

    def __call__(self, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that still count, (B, T), and which those are."""
        if self.eos is None:
            return tokens, valid
        valid = valid & ~self.ended
        self.ended = self.ended | (valid & (tokens == self.eos)).any(dim=1, keepdim=True)
        return torch.where(valid, tokens, self.eos), valid

    def all(self) -> bool:
        return self.eos is not None and bool(self.ended.all())


# ---- arguments and results -------------------------------------------------------------------------------------------


def _tokens(name: str, value: Sequence[int] | Tensor, batch_size: int, model: Armd, lowest: int) -> Tensor:
    """Token ids as (B, N) long on the CPU, checked."""
    try:
        tokens = torch.as_tensor(value, dtype=torch.long).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} must be token ids, (N,) or (batch, N)") from None
    if tokens.ndim == 1:
        tokens = tokens.expand(batch_size, -1)
    if tokens.ndim != 2 or (len(tokens) not in (1, batch_size) and batch_size != 1):
        raise UserError(f"{name} is {tuple(tokens.shape)}; it must be (N,) or (batch_size={batch_size}, N)")
    if len(tokens) < batch_size:
        tokens = tokens.expand(batch_size, -1)
    vocab = model.config.vocab_size
    if tokens.numel() and not (lowest <= int(tokens.min()) and int(tokens.max()) < vocab):
        raise UserError(
            f"{name} holds token {int(tokens.max())} or {int(tokens.min())}; allowed: {lowest}..{vocab - 1}"
        )
    return tokens.clone()


def _lengths(request: Request, tokens: Tensor, eos: int | None) -> Tensor:
    N = tokens.shape[1]
    if eos is None:
        return torch.full((len(tokens),), N)
    ends = (tokens == eos) & (request.tokens < 0)
    return torch.where(ends.any(dim=1), ends.long().argmax(dim=1) + 1, N)
