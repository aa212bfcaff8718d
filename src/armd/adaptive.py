"""Orders chosen while writing: the network says which hole it is surest of, and that one is written next.

A pass predicts all open holes from the committed tokens alone; a rule then picks one or several of them by these laws,
never by the tokens drawn. So the law of the text is the product of the conditionals it was written with, whatever the
rule, and `Generation.log_probs` holds its terms.

    known  4 . . 1          pass 1: holes b, c predicted from {a, d}; c is surer
           4 . 2 1          pass 2: hole b predicted from {a, d, c}
           4 3 2 1

A hole sees the committed tokens and itself, no other hole: so with one hole a pass the text has exactly the probability
that `nll` gives it in the order it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from armd.decode import Generation, collect
from armd.errors import UserError
from armd.masks import Visibility, before
from armd.model import Armd
from armd.orders import Order
from armd.request import Request
from armd.sampling import gumbel, log_probs, warp
from armd.writer import Event

Rule = Callable[[Tensor, Tensor, float], Tensor]


def by_margin(law: Tensor, is_open: Tensor, budget: float) -> Tensor:
    """The hole whose two most likely tokens are furthest apart (Kim et al., 2025, arXiv 2502.06768).

    Args:
        law: (B, H, V) log-probabilities of the open holes under the model itself, temperature 1 and nothing cut off.
        is_open: (B, H) bool, false at padding.

    Returns:
        (B, H) bool, the holes to write now.
    """
    best = law.exp().topk(min(2, law.shape[-1]), dim=-1).values
    return _first(best[..., 0] - best[..., -1], is_open)


def by_confidence(law: Tensor, is_open: Tensor, budget: float) -> Tensor:
    """The hole whose most likely token is likeliest; arguments as of `by_margin`."""
    return _first(law.amax(dim=-1), is_open)


def by_entropy(law: Tensor, is_open: Tensor, budget: float) -> Tensor:
    """As many holes, surest first, as keep the sum of entropies but the largest within `budget` nats.

    That sum bounds what the tokens written together can depend on each other (Ben-Hamu et al., 2025, arXiv
    2505.24857). At least one hole is written; a budget of 0 writes one unless others are certain.
    """
    entropy = -(law.exp() * law.clamp(min=-1e9)).sum(dim=-1)
    ranked, index = torch.where(is_open, entropy, torch.inf).sort(dim=1, stable=True)
    finite = torch.where(ranked.isinf(), 0.0, ranked)
    dependence = finite.cumsum(dim=1) - finite  # sorted: the last one taken is the largest
    take = (dependence <= budget) & ~ranked.isinf()
    take[:, 0] = ~ranked[:, 0].isinf()
    return torch.zeros_like(is_open).scatter(1, index, take)


def _first(score: Tensor, is_open: Tensor) -> Tensor:
    """The open hole with the largest score, the leftmost of equals."""
    best = torch.where(is_open, score, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.zeros_like(is_open).scatter(1, best, True) & is_open


RULES: dict[str, Rule] = {"margin": by_margin, "confidence": by_confidence, "entropy": by_entropy}


@dataclass(frozen=True)
class Adaptive:
    """A text written in an order of its own: the `Generation`, and the order and blocks in which it was written."""

    generation: Generation
    order: Order


def generate_adaptive(model: Armd, request: Request, rule: str = "margin", budget: float = 0.0) -> Adaptive:
    """Fill the holes of a request in the order a rule chooses.

    Args:
        request: from `make_request`; its mode, drafts and stop tokens do not count.
        rule: margin, confidence or entropy.
        budget: nats, for entropy.

    Returns:
        The texts. With margin and confidence `log_probs` are those of `nll(model, tokens, order)`; with entropy they
        are those of the law that was followed, in which tokens of one block do not look at each other.
    """
    if rule not in RULES:
        raise UserError(f"rule={rule!r} is unknown; choose one of {', '.join(RULES)}")
    if not 0 <= budget < float("inf"):
        raise UserError(f"budget={budget} must be a number of nats >= 0")
    if not isinstance(model, Armd):
        raise UserError("adaptive orders need an armd model: an autoregressive one has a single order")
    writer = _Writer(model, request, RULES[rule], budget)
    generation = collect(replace(request, stop=()), writer.events())
    return Adaptive(generation, writer.order())


class _Writer:
    """Rows by text position, caches by rank, as in `writer.Writer`: a hole's prediction row moves to its rank."""

    def __init__(self, model: Armd, request: Request, rule: Rule, budget: float) -> None:
        self.model, self.request, self.rule, self.budget = model, request, rule, budget
        self.device = model.device
        B, N = request.tokens.shape
        self.tokens = request.tokens.to(self.device)
        self.known = (self.tokens >= 0).sum(dim=1)
        self.positions = request.order.positions.to(self.device).clone()  # known ones first, in text order
        self.blocks = torch.arange(N, device=self.device).repeat(B, 1)
        self.written = self.known  # blocks so far
        # Candidates need prediction columns beyond those of ranks: 0..N-1 for ranks, N + p for the hole at p.
        self.cache = model.new_cache(B, 2 * N)
        self.done, self.new = torch.zeros_like(self.known), self.known  # ranks in the cache, and not yet
        self.text, self.passes = torch.arange(N, device=self.device).expand(B, -1), 0

    def order(self) -> Order:
        return Order(self.positions.cpu(), self.blocks.cpu())

    def events(self) -> Iterator[Event]:
        while bool((self.tokens < 0).any()):
            yield self.step()

    @torch.no_grad()
    def step(self) -> Event:
        """One forward pass: read what is new, predict all open holes, let the rule choose, write."""
        N, r = self.tokens.shape[1], self.request
        is_open = self.tokens < 0
        most = int(is_open.sum(dim=1).max())
        holes = torch.where(is_open, self.text, N).sort(dim=1).values[:, :most]  # (B, H), padded with N
        real, at = holes < N, holes.clamp(max=N - 1)
        with self.model.evaluating():
            logits = self.model.head(self._predict(at, real))
        own = log_probs(logits)
        chosen = self.rule(own, real, self.budget) & real
        score = warp(logits, r.temperature, r.top_k, r.top_p)
        if r.temperature > 0:
            score = score + gumbel(r.seed, r.samples.to(self.device)[:, None], at, logits.shape[-1])
        new = score.argmax(dim=-1)
        self.tokens = F.pad(self.tokens, (0, 1)).scatter(1, torch.where(chosen, at, N), new)[:, :N]
        self._commit(at, chosen)
        self.passes += 1
        nothing, texts = torch.zeros_like(self.known), torch.arange(len(at), device=self.device)
        logs = own.gather(-1, new[..., None])[..., 0]
        return Event(
            self.passes, texts, at, new, logs, chosen, real.any(dim=1), nothing, nothing, None, nothing.double()
        )  # fmt: skip

    def _predict(self, holes: Tensor, real: Tensor) -> Tensor:
        """Hidden rows of the holes from the committed tokens alone, (B, H, D)."""
        (B, N), new, first, spare = self.tokens.shape, self.new, self.passes == 0, self.cache.spare
        start = self.done + 1 - int(first)  # with BOS in the first pass
        columns = start[:, None] + torch.arange(int(new.max()) + int(first), device=self.device)
        reading = columns < (start + new + int(first))[:, None]
        rank = (columns - 1).clamp(0, N - 1)
        position = self.positions.gather(1, rank)
        tokens = self.tokens.gather(1, position).clamp(min=0)
        slots = torch.where(columns == 0, 0, position + 1)
        self.done = self.done + new

        # Targets: the hole at position p in column N + p; known ranks in their own in the first pass.
        target_slots, own = holes + 1, torch.where(real, holes + N, spare)
        limits = (self.done + 1)[:, None].expand_as(holes)
        earlier = self.done[:, None].expand_as(holes)  # prediction columns below: rows of committed ranks
        if first:
            ranks = torch.arange(int(new.max()), device=self.device).expand(B, -1)
            evidence = ranks < new[:, None]
            target_slots = torch.cat((target_slots, self.positions.gather(1, ranks) + 1), dim=1)
            own = torch.cat((own, torch.where(evidence, ranks, spare)), dim=1)
            limits = torch.cat((limits, torch.where(evidence, ranks + 1, 1)), dim=1)
            earlier = torch.cat((earlier, torch.where(evidence, ranks, 0)), dim=1)
        every = torch.arange(spare + 1, device=self.device)  # with the spare column: padding rows see it
        see = Visibility.of_masks(
            before(torch.where(columns == 0, 1, rank + 2)[:, None, :, None], every),
            before(limits[:, None, :, None], every),
            before(earlier[:, None, :, None], every) | (every == own[:, None, :, None]),
        )
        columns = torch.where(reading, columns, spare)
        hidden = self.model.advance(self.cache, tokens, slots, columns, target_slots, own, limits, see)
        return hidden[:, : holes.shape[1]]

    def _commit(self, holes: Tensor, chosen: Tensor) -> None:
        """Give the chosen holes the next ranks and move their prediction rows there."""
        N, spare = self.tokens.shape[1], self.cache.spare
        rank = torch.where(chosen, self.done[:, None] + chosen.cumsum(dim=1) - 1, spare)
        self.cache.prediction.move(torch.where(chosen, holes + N, spare), rank)
        for name, value in (("positions", holes), ("blocks", self.written[:, None].expand_as(holes))):
            wide = F.pad(getattr(self, name), (0, spare + 1 - N))
            setattr(self, name, wide.scatter(1, rank, value)[:, :N])
        self.new = chosen.sum(dim=1)
        self.written = self.written + (self.new > 0)
