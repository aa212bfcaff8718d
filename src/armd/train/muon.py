"""Muon (Jordan et al., 2024): momentum, made orthogonal, as the update of a weight matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from armd.train.parallel import share, whole

QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients of a Newton-Schulz step that brings small singular values up fastest (Jordan et al., 2024)."""
STEPS = 5
"""Newton-Schulz steps; they leave singular values between about 0.5 and 1.5."""
PRECISION = torch.bfloat16
"""Of these steps. Directions of small singular values grow in them, and their rounding too."""


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, roughly, in its precision."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """With the update's root mean square that of AdamW, 0.2 of the rate (Liu et al., 2025).

    As `torch.optim.Muon`, bit for bit; but of matrices cut into shares, each is put together once and every process
    keeps its rows of the update. `torch.optim.Muon` would meet the other processes in every product, sum bfloat16
    across them, and fail where a matrix has fewer rows than there are processes.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"])  # Nesterov
        update = share(orthogonal(whole(ahead.to(PRECISION))), weight)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * (0.2 * math.sqrt(max(weight.shape))))
