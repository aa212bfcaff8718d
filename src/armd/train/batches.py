"""The batches of a run: texts and draws of every step, each a pure function of (seed, step), made one step ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from armd.baselines import Draw
from armd.data import TokenDataset
from armd.train.config import TrainConfig
from armd.train.parallel import Replica


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step.

    Attributes:
        family: the order family of all its texts, or noise.
        parts: tokens (B, N) in text order and their orders, or their noise, one pair a forward pass.
    """

    family: str
    parts: list[tuple[Tensor, Draw]]


def make_batch(tokens: Tensor, step: int, config: TrainConfig, replica: Replica) -> Batch:
    """Draw what hides the tokens of a step; bring those of this process and their draw to the device, pass by pass."""
    family, draw = config.draw(step, config.batch_size, tokens.shape[1])
    draw, device = draw.rows(torch.tensor(replica.rows)), replica.model.device
    rows = torch.arange(len(tokens)).split(replica.micro)
    return Batch(family, [(tokens[part].to(device), draw.rows(part).to(device)) for part in rows])


class Batches:
    """The batches of this process, by step.

    While a step runs, a thread makes the next one: it reads the texts, draws orders or noise on the CPU, where they are
    the same whatever the device, and copies both. Nobody waits for that copy, so the memory need not be pinned.
    """

    def __init__(self, data: TokenDataset, config: TrainConfig, replica: Replica) -> None:
        self._data, self._config, self._replica = data, config, replica
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: dict[int, Future[Batch]] = {}

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step; that of the next one is begun. Raises what reading the texts raised."""
        now = self._ahead.pop(step, None) or self._thread.submit(self._make, step)
        self._ahead.clear()
        if step + 1 < self._config.max_steps:
            self._ahead[step + 1] = self._thread.submit(self._make, step + 1)
        return now.result()

    def _make(self, step: int) -> Batch:
        config, replica = self._config, self._replica
        return make_batch(self._data.batch(step, config.batch_size, config.seed, replica.rows), step, config, replica)
