"""Optimiser and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from armd.train.config import OptimConfig
from armd.train.muon import Muon


class Pair(torch.optim.Optimizer):
    """Two optimisers over the weights of one model that step, are saved and are loaded as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = first, second
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Groups and state are held once: what is set or loaded here is what the parts work with."""
        first, second = self.parts
        split = len(first.param_groups)
        first.param_groups, second.param_groups = self.param_groups[:split], self.param_groups[split:]
        first.state = second.state = self.state


def muon_matrices(model: nn.Module, config: OptimConfig) -> list[nn.Parameter]:
    """The matrices whose optimiser is Muon: those inside the layers, or none."""
    if config.name != "muon":
        return []
    return [p for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2]


def build(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW; or Muon for the matrices inside the layers and AdamW for all else.

    Weight decay is on matrices only, not on norms, biases and embeddings' BOS.
    """
    inner = muon_matrices(model, config)
    taken = set(map(id, inner))
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in taken]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    optimiser: torch.optim.Optimizer = adamw
    if inner:
        muon = Muon(inner, config.muon_lr, config.muon_momentum, config.weight_decay)
        optimiser = Pair(muon, adamw)
    for group in optimiser.param_groups:
        group["peak"] = group["lr"]
    return optimiser


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to a share of its peak."""
    for group in optimiser.param_groups:
        group["lr"] = share * group["peak"]


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
