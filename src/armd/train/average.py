"""The moving average of the weights (EMA), which stands in for them where a run is validated and published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from armd.model import Transformer
from armd.train import parallel


@torch.no_grad()
def update(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float, step: int) -> None:
    """Move the average towards the weights, further in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(parallel.own(average), parallel.own(weights), strict=True):
        mean.lerp_(weight, 1 - decay)


@torch.no_grad()
def copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Make the second the values of the first, of which a process may hold its part only."""
    for value, weight in zip(parallel.own(source), parallel.own(target), strict=True):
        weight.copy_(value)


@contextmanager
def standing_in(model: Transformer, average: list[Tensor]) -> Iterator[None]:
    """Within the context the model holds the moving average, if the run keeps one."""
    if not average:
        yield
        return
    weights = [p.detach().clone() for p in model.parameters()]
    copy(average, model.parameters())
    try:
        yield
    finally:
        copy(weights, model.parameters())
