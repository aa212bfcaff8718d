"""Puzzles as templates: clues are evidence, blanks are holes, and a trained model fills them in an order of choice.

    left_to_right   the blanks in text order
    random          in random order
    margin          the surest cell next, chosen anew in every pass
    exact           runs of neighbouring blanks side by side, each guess checked: several cells a pass

Every order is greedy: each cell takes its likeliest digit, and none is taken back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from armd.adaptive import generate_adaptive
from armd.decode import Generation, collect, stream
from armd.errors import UserError
from armd.model import Armd
from armd.orders import Order, generator
from armd.request import Request, make_request
from armd.sudoku.data import to_tokens


@dataclass(frozen=True)
class Solving:
    """Boards that a model filled.

    Attributes:
        boards: (n, 81) uint8.
        steps: (n, 81) the pass that wrote each cell; 0 for clues.
        passes: (n,) forward passes of each.
        seconds: for all of them together.
    """

    boards: np.ndarray
    steps: np.ndarray
    passes: np.ndarray
    seconds: float

    def solved(self, solutions: np.ndarray) -> np.ndarray:
        """(n,) bool: which boards are the solution in all 81 cells."""
        return (self.boards == solutions).all(axis=1)


def solve(model: Armd, puzzles: np.ndarray, order: str = "margin", *, seed: int = 0, at_once: int = 64) -> Solving:
    """Fill the blanks of puzzles.

    Args:
        model: trained on the data of `prepare_grids`.
        puzzles: (n, 81) integers, 0 for blanks.
        order: left_to_right, random, margin or exact.
        seed: of random orders.
        at_once: puzzles in a forward pass; what is written does not depend on it.

    Raises:
        UserError: the order is unknown, or the model or puzzles are of another kind.
    """
    if order not in ORDERS:
        raise UserError(f"order={order!r} is unknown; choose one of {', '.join(ORDERS)}")
    if at_once < 1:
        raise UserError(f"at_once={at_once} must be at least 1")
    if puzzles.ndim != 2 or puzzles.shape[1] != 81 or not (puzzles == 0).any():
        raise UserError(f"puzzles are {puzzles.shape}; they must be (n, 81) with blanks among them")
    if model.config.vocab_size != 9:
        raise UserError(f"model.vocab_size={model.config.vocab_size} must be 9: one token a digit")
    started = time.perf_counter()
    request = make_request(model, template=to_tokens(puzzles), batch_size=len(puzzles), temperature=0.0, seed=seed)
    written = ORDERS[order](model, request, at_once)
    seconds = time.perf_counter() - started
    tokens, steps, passes = (
        torch.cat([getattr(part, name) for part in written]).numpy() for name in ("tokens", "steps", "passes")
    )
    return Solving((tokens + 1).astype(np.uint8), steps, passes, seconds)


# ---- orders ----------------------------------------------------------------------------------------------------------

Fill = Callable[[Armd, Request, int], list[Generation]]


def _left_to_right(model: Armd, request: Request, at_once: int) -> list[Generation]:
    return _in_order(model, request, torch.arange(81).flip(0).expand(len(request), -1), at_once)


def _random(model: Armd, request: Request, at_once: int) -> list[Generation]:
    return _in_order(model, request, torch.rand(len(request), 81, generator=generator(request.seed)), at_once)


def _in_order(model: Armd, request: Request, urgency: Tensor, at_once: int) -> list[Generation]:
    """The clues in text order, then the blanks by falling urgency, (B, 81) below 81; one cell a pass."""
    text = torch.arange(81)
    order = Order.from_masking_times(torch.where(request.tokens >= 0, 200.0 - text, urgency))
    request = replace(request, order=order, mode="sequential", drafts=0)
    return [collect(request, stream(model, request, at_once))]


def _exact(model: Armd, request: Request, at_once: int) -> list[Generation]:
    return [collect(request, stream(model, request, at_once))]


def _margin(model: Armd, request: Request, at_once: int) -> list[Generation]:
    parts = torch.arange(len(request)).split(at_once)
    return [generate_adaptive(model, _rows(request, part), "margin").generation for part in parts]


def _rows(request: Request, index: Tensor) -> Request:
    order, tokens, samples = request.order.rows(index), request.tokens[index], request.samples[index]
    return replace(request, tokens=tokens, order=order, samples=samples)


ORDERS: dict[str, Fill] = {
    "left_to_right": _left_to_right,
    "random": _random,
    "margin": _margin,
    "exact": _exact,
}
