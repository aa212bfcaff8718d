"""The batches of a run: texts and orders of every step, each a pure function of (seed, step), made one step ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from armd.data import TokenDataset
from armd.orders import Family, Order
from armd.train.config import TrainConfig
from armd.train.parallel import Replica


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step.

    Attributes:
        family: the order family of all its texts.
        parts: tokens (B, N) in text order and their orders, one pair a forward pass.
    """

    family: Family
    parts: list[tuple[Tensor, Order]]


def make_batch(tokens: Tensor, step: int, config: TrainConfig, replica: Replica) -> Batch:
    """Draw the orders of a step, take those of this process's texts, and bring both to the device by forward passes."""
    family = config.orders.family(step, config.seed, config.max_steps)
    order = config.orders.order(step, config.seed, config.max_steps, config.batch_size, tokens.shape[1])
    order, device = order.rows(torch.tensor(replica.rows)), replica.model.device
    rows = torch.arange(len(tokens)).split(replica.micro)
    return Batch(family, [(tokens[part].to(device), order.rows(part).to(device)) for part in rows])


class Batches:
    """The batches of this process, by step.

    While a step runs, a thread makes the next one: it reads the texts, draws the orders on the CPU, where they are the
    same whatever the device, and copies both. Nobody waits for that copy, so the memory need not be pinned.
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
