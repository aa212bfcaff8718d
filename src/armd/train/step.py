"""One optimiser step, and one validation, on this process's rows of a batch."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from armd.data import TokenDataset
from armd.orders import generator
from armd.train import optim
from armd.train.batches import Batch
from armd.train.config import TrainConfig
from armd.train.guard import Guard
from armd.train.parallel import Replica


class Step(NamedTuple):
    """What a step tells: order family, nats per token, gradient norm, and why it was not used (None: it was)."""

    family: str
    loss: float
    grad_norm: float
    fault: str | None


def train_step(
    replica: Replica, optimiser: torch.optim.Optimizer, batch: Batch, step: int, config: TrainConfig, guard: Guard
) -> Step:
    """One optimiser step on this process's rows of the global batch."""
    # Dropout: the processes draw differently, one process as ever.
    torch.manual_seed(int(generator(config.seed, step, 2, *filter(None, [replica.ranks.rank])).initial_seed()))
    replica.model.train()
    rate = optim.learning_rate(step, config.max_steps, config.optim)
    optim.set_rates(optimiser, rate / config.optim.lr)
    optimiser.zero_grad(set_to_none=True)
    losses = []
    for i, (tokens, draw) in enumerate(batch.parts):
        with replica.accumulating(last=i == len(batch.parts) - 1):
            with _autocast(tokens.device, config):
                part = replica(tokens, draw, config.weighting) / len(batch.parts)
            part.backward()
        losses.append(part.detach())
    total = torch.stack(losses).sum().item()  # one wait for the device, however many passes
    total = replica.ranks.sum(total)[0] / replica.ranks.size
    norm = replica.clip(config.optim.grad_clip)
    fault = guard.fault(batch.family, total, norm)
    if fault is None:  # a bad step never reaches the weights
        optimiser.step()
    return Step(batch.family, total, norm, fault)


@torch.no_grad()
def validate(replica: Replica, dataset: TokenDataset, config: TrainConfig) -> dict[str, float]:
    """Held-out nats per token of each order family, always on the same texts and orders, in passes like training's."""
    at_once = replica.micro * replica.ranks.size
    spread = dataset.spread(config.eval_texts)
    texts = spread.eval_windows()
    totals = [0.0] * len(config.eval_orders)
    with replica.evaluating():
        for i, name in enumerate(config.eval_orders):
            draw = config.held_out_draw(name, texts)
            for start in range(0, texts, at_once):
                rows = replica.ranks.rows(min(at_once, texts - start))
                mine = range(start + rows.start, start + rows.stop) or range(start, start + 1)  # all go on in step
                tokens = replica.ranks.attempt(partial(spread.eval_batch, mine.start, len(mine)))
                tokens = tokens.to(replica.model.device)
                with _autocast(tokens.device, config):
                    nats = replica(tokens, draw.rows(torch.tensor(mine)))
                totals[i] += nats.double().mean(dim=1).sum().item() if rows else 0.0
    return {name: total / texts for name, total in zip(config.eval_orders, replica.ranks.sum(*totals), strict=True)}


def _autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
