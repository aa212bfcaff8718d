"""Optimiser, learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from armd.train.config import OptimConfig


def build(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, not on norms, biases and embeddings' BOS."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, max_steps: int, config: OptimConfig) -> float:
    """The rate of one step: linear warm-up, then the named schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(max_steps - config.warmup_steps, 1)
        return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    if config.schedule == "wsd":
        return config.lr * min(1.0, max(max_steps - step, 0) / max(config.decay_share * max_steps, 1))
    return config.lr


@torch.no_grad()
def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float, step: int) -> None:
    """Exponential moving average, with a shorter memory in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(average, weights, strict=True):
        mean.lerp_(weight, 1 - decay)
