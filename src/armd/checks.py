"""Choosing tokens, and checking drafts against the rows that predict the same ranks.

Both checks look at the drafts of a pass in order and say how many from the first on stand, and what is written after
them. `Noise` keeps the text of one token at a time, `Rejection` keeps its law.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.request import Request
from armd.sampling import coin, gumbel, warp, warp_within

TIE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.03}
"""A choice is reported as a tie if its two best scores are closer than what rounding moves logits by, in nats."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of the rows of a pass.

    Attributes:
        chosen: (R, T) long: accepted drafts, then the token that follows them, then the drafts of the next pass.
        run: (R,) long, drafts that stand, from the first on.
        ties: (R, T) bool, choices that rounding could have changed; None: not looked for.
        variation: (R, T) float64, total variation spent if the draft of that row was looked at.
    """

    chosen: Int[Tensor, "R T"]
    run: Int[Tensor, "R"]
    ties: Bool[Tensor, "R T"] | None
    variation: Float[Tensor, "R T"]


class Noise:
    """Gumbel-max with noise that is fixed for good: a draft stands if the row that checks it chooses it too."""

    def __init__(self, request: Request, rows: int, window: int, vocab_size: int, device: torch.device) -> None:
        self.request = request

    def __call__(
        self, logits: Tensor, samples: Tensor, positions: Tensor, drafts: Tensor, tested: Tensor, age: Tensor
    ) -> Verdict:
        """Judge the rows of a pass.

        Args:
            logits: (R, T, V) of the ranks from the first uncommitted one on.
            samples: (R, 1) number of the text; positions: (R, T) text positions.
            drafts: (R, T) tokens drafted for these ranks; tested: (R, T) bool, where there is one.
            age: (R,) passes the text has behind it.
        """
        few = 4  # rows at once: what is made of them in between then stays in the processor's cache
        rows = zip(logits.split(few, dim=1), positions.split(few, dim=1), strict=True)
        parts = [self._choose(part, samples, where) for part, where in rows]
        chosen, ties = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        run = ((chosen == drafts) & tested).long().cumprod(dim=1).sum(dim=1)
        return Verdict(chosen, run, ties, torch.zeros_like(chosen, dtype=torch.float64))

    def _choose(self, logits: Tensor, samples: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of some rows, and which of them rounding could have changed; (R, T) each."""
        r, tie = self.request, TIE[logits.dtype]
        if r.temperature == 0:
            top = logits.double().topk(min(2, logits.shape[-1]), dim=-1).values
            return logits.argmax(dim=-1), top[..., 0] - top[..., -1] < tie
        law, loose, tight = warp_within(logits, r.temperature, r.top_k, r.top_p, tie)
        noise = gumbel(r.seed, samples, positions, logits.shape[-1])
        chosen = (law + noise).argmax(dim=-1) if loose is not law else None
        best = noise.add_(loose).topk(min(2, noise.shape[-1]), dim=-1)
        ties = best.values[..., 0] - best.values[..., -1] < tie / r.temperature
        if chosen is None:
            return best.indices[..., 0], ties
        cut = tight.gather(-1, chosen[..., None])[..., 0].isinf()
        return chosen, ties | cut | (best.indices[..., 0] != chosen)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch."""


class Rejection:
    """Accept a draft with probability q / r, else draw from what r lacks, (q - r)+ (Leviathan et al., 2023).

    q is the law of the row, r that which the draft was drawn from. With a tolerance a, q / r + a: the law of the token
    then moves by sum_x min(a r, (r - q)+) in total variation, which is at most a.
    """

    def __init__(self, request: Request, rows: int, window: int, vocab_size: int, device: torch.device) -> None:
        self.request = request
        self.laws = torch.zeros(rows, window, vocab_size, dtype=torch.float64, device=device)  # r, from `done` on

    def __call__(
        self, logits: Tensor, samples: Tensor, positions: Tensor, drafts: Tensor, tested: Tensor, age: Tensor
    ) -> Verdict:
        """Judge the rows of a pass; the arguments are those of `Noise`. Coins are new in every pass."""
        request, V, T = self.request, logits.shape[-1], logits.shape[1]
        q = warp(logits, request.temperature, request.top_k, request.top_p).softmax(dim=-1)
        r, at = self.laws[:, :T], drafts.clamp(min=0)[..., None]
        ratio = q.gather(-1, at)[..., 0] / r.gather(-1, at)[..., 0].clamp(min=1e-300)
        accept = coin(request.seed, samples, positions, 2 * age[:, None] + 2) < ratio + request.tolerance
        run = (accept & tested).long().cumprod(dim=1).sum(dim=1)

        index = torch.arange(T, device=logits.device)
        rejected = ((index == run[:, None]) & tested)[..., None]
        lacking = (q - r).clamp(min=0)
        lacking = torch.where(lacking.sum(dim=-1, keepdim=True) > 0, lacking, q)  # only rounding can reject if q = r
        noise = gumbel(request.seed, samples, positions, V, 2 * age[:, None] + 1)
        drawn = (torch.where(rejected, lacking, q).log() + noise).argmax(dim=-1)
        variation = torch.minimum(request.tolerance * r, (r - q).clamp(min=0)).sum(dim=-1)

        ahead = (index + run[:, None] + 1).clamp(max=T - 1)  # rows behind the first one not accepted: the next drafts
        self.laws[:, :T] = q.gather(1, ahead[..., None].expand_as(q))
        chosen = torch.where(index < run[:, None], drafts, drawn)
        return Verdict(chosen, run, None, variation)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch."""
        self.laws = self.laws[rows]


Check = Noise | Rejection
BY_NAME: dict[str, type[Noise] | type[Rejection]] = {"noise": Noise, "rejection": Rejection}
