"""Filling holes: every hole a stream, the best of several fillings, and holes of unknown length.

The probability of a filling is exact and costs nothing extra: it is the product of the conditionals it was written
with, hole by hole. Fillings of *different* lengths make texts of different lengths, so these products cannot be
compared. What can: how likely the text after the hole is once so many tokens stand before it,

    p(after | before, L) = E_q [ p(hole, after | before) / q(hole | before, after) ],

with p the left-to-right law and q the law that fills the hole knowing both sides; both are exact here. A few fillings
estimate it without bias, and the length with the largest estimate is chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.decode import Generation, generate
from armd.errors import UserError
from armd.model import Armd
from armd.objective import nll
from armd.orders import Order

MOST_TEMPLATES = 256
"""Most combinations of hole lengths that are tried."""

Part = Sequence[int] | tuple[int, int]


@dataclass(frozen=True)
class Filling:
    """A filled template.

    Attributes:
        tokens: (N,) long.
        holes: half-open ranges of text positions.
        log_probs: nats of each hole: log q of its tokens given the evidence and what was written before them.
        row: which of the fillings it is.
        evidence: nats, the estimated log p(text after the first hole | text before it, these lengths); None where
            all lengths were given.
        generation: all fillings that were drawn.
    """

    tokens: Int[Tensor, "N"]
    holes: list[range]
    log_probs: list[float]
    row: int
    evidence: float | None
    generation: Generation


def hole_ranges(template: Int[Tensor, "N"]) -> list[range]:
    """The runs of -1."""
    positions = (template < 0).nonzero()[:, 0].tolist()
    runs = (list(run) for _, run in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0]))
    return [range(run[0][1], run[-1][1] + 1) for run in runs]


def hole_log_probs(generation: Generation, holes: Sequence[range]) -> Float[Tensor, "B holes"]:
    """(B, holes) nats, float64: the exact log-probability of what stands in each hole."""
    return torch.stack([generation.log_probs[:, hole.start : hole.stop].sum(dim=1) for hole in holes], dim=1)


def fill(model: Armd, parts: Sequence[Part], *, best_of: int = 1, seed: int = 0, **options: Any) -> Filling:
    """Fill a template and keep the most likely filling.

    Args:
        parts: known token ids (a list) and holes (a pair: least and most tokens; equal when the length is known).
        best_of: fillings drawn; the one with the largest log-probability is kept.
        options: further arguments of `generate`, such as temperature, mode or rows.

    Raises:
        UserError: no hole, an impossible length, nothing to tell lengths apart, or more than `MOST_TEMPLATES` of them.
    """
    if best_of < 1:
        raise UserError(f"best_of={best_of} must be at least 1")
    templates = _templates(parts, model.config.max_position_embeddings)
    template, value = templates[0], None
    if len(templates) > 1:
        values = [evidence(model, each, seed=seed) for each in templates]
        value = max(values)
        template = templates[values.index(value)]
    out = generate(model, template=template, batch_size=best_of, seed=seed, **options)
    holes = hole_ranges(template)
    logs = hole_log_probs(out, holes)
    row = int(logs.sum(dim=1).argmax())
    return Filling(out.tokens[row], holes, logs[row].tolist(), row, value, out)


@torch.no_grad()
def evidence(model: Armd, template: Int[Tensor, "N"], draws: int = 32, seed: int = 0) -> float:
    """An estimate of log p(what follows the first hole | what is before it, these lengths), nats.

    The mean of p(holes and what follows) / q(holes) over fillings drawn from q itself: temperature 1, nothing cut off.
    """
    out = generate(model, template=template, batch_size=draws, seed=seed)
    first = hole_ranges(template)[0].start
    tokens = out.tokens.to(model.device)
    with model.evaluating():
        p = -nll(model, tokens, Order.left_to_right(*tokens.shape))[:, first:].double().sum(dim=1).cpu()
    return float(torch.logsumexp(p - out.log_probs.sum(dim=1), dim=0)) - math.log(draws)


def only_template(parts: Sequence[Part], limit: int) -> Tensor:
    """The template of parts whose lengths are all known: (N,) long, -1 at the holes."""
    return _templates(parts, limit)[0]


def _templates(parts: Sequence[Part], limit: int) -> list[Tensor]:
    """One template for every combination of hole lengths."""
    choices: list[list[list[int]]] = []
    for i, part in enumerate(parts):
        if isinstance(part, tuple):
            if i and isinstance(parts[i - 1], tuple):
                raise UserError("two holes stand side by side: write them as one")
            low, high = part
            if not 1 <= low <= high:
                raise UserError(
                    f"hole of {low} to {high} tokens: the length must be at least 1, and the range not empty"
                )
            if high > limit:
                raise UserError(f"hole of {high} tokens exceeds max_position_embeddings={limit}")
            choices.append([[-1] * size for size in range(low, high + 1)])
        else:
            choices.append([list(part)])
    if choices and len(choices[-1]) > 1:
        raise UserError("the last hole has no text behind it, so nothing tells its lengths apart: give one length")
    count = math.prod(len(choice) for choice in choices)
    if count > MOST_TEMPLATES:
        raise UserError(f"the holes have {count} combinations of lengths; at most {MOST_TEMPLATES} are tried")
    if not any(isinstance(part, tuple) for part in parts):
        raise UserError("template has no hole")
    return [torch.tensor(list(itertools.chain(*pieces))) for pieces in itertools.product(*choices)]
