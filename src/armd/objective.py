"""Losses and likelihoods: one function an equation.

All are in nats. A likelihood is that of an (order, blocks) pair; it is never quoted without saying which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from armd.errors import UserError
from armd.model import Transformer
from armd.orders import Family, Order

CHUNK_LOGITS = 2**24
"""Most logits held at once (64 MiB in float32); longer losses go chunk by chunk and recompute in the backward pass."""


def _cross_entropy(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, weight).float(), targets, reduction="none")


def row_nll(
    hidden: Float[Tensor, "B N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Cross-entropy of (B, N, D) hidden rows, float32, without ever holding all (B, N, V) logits."""
    rows, goal = hidden.flatten(0, 1), targets.flatten()
    size = max(CHUNK_LOGITS // weight.shape[0], 1)
    if len(rows) <= size:
        return _cross_entropy(rows, weight, goal).view_as(targets)
    parts = zip(rows.split(size), goal.split(size), strict=True)
    if torch.is_grad_enabled():
        losses = [checkpoint(_cross_entropy, row, weight, part, use_reentrant=False) for row, part in parts]
    else:
        losses = [_cross_entropy(row, weight, part) for row, part in parts]
    return torch.cat(losses).view_as(targets)


def nll(model: Transformer, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N"]:
    """Eq. (2) with gamma = 1: the exact negative log-likelihood of each token under (order, blocks), in one pass.

    Args:
        tokens: (B, N) long in text order.
        order: the generation order and its blocks.

    Returns:
        (B, N) nats in text order, float32. A row's sum is -log p(text) of the (order, blocks) law.
    """
    model.check(tokens, order)
    order = order.to(tokens.device)
    hidden = model.hidden(tokens, order)
    return order.to_text(row_nll(hidden, model.head_weight, order.to_generation(tokens)))


# ---- re-weightings of Eq. (2): training losses, not likelihoods ------------------------------------------------------

Weighting = Callable[[Order], Tensor]  # -> gamma of each token, (B, N) in text order

WEIGHTINGS: dict[str, Weighting] = {
    # gamma = 1: the likelihood itself.
    "likelihood": lambda order: torch.ones_like(order.positions, dtype=torch.float32),
    # Every block counts the same, whatever its size.
    "per_block": lambda order: 1.0 / order.to_text(_block_sizes(order)),
    # Late tokens, which see more evidence, count more: rank / mean rank.
    "late": lambda order: 2.0 * (order.text_blocks + 1) / (order.blocks[:, -1:] + 2),
}


def loss(
    model: Transformer, tokens: Int[Tensor, "B N"], order: Order, weighting: str = "likelihood"
) -> Float[Tensor, ""]:
    """The training loss: Eq. (2), mean nats per token, with a named gamma."""
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting={weighting!r} is unknown; choose one of {', '.join(WEIGHTINGS)}")
    nats = nll(model, tokens, order)
    if weighting == "likelihood":
        return nats.mean()
    return (nats * WEIGHTINGS[weighting](order.to(tokens.device))).mean()


def _block_sizes(order: Order) -> Tensor:
    counts = torch.zeros_like(order.blocks).scatter_add_(1, order.blocks, torch.ones_like(order.blocks))
    return counts.gather(1, order.blocks).float()


# ---- the masked diffusion loss ---------------------------------------------------------------------------------------


def mdm_loss(
    model: Transformer, tokens: Int[Tensor, "B N"], tau: Int[Tensor, "B N"], t: int, steps: int
) -> Float[Tensor, "B"]:
    """Eq. (1), the term of one time t of the discrete-time masked diffusion bound with a linear schedule.

    At time t a token is masked if tau <= t. All masked tokens are predicted from the unmasked ones, weighted by
    (alpha^{t-1} - alpha^t) / (1 - alpha^t), the chance that a token masked at t is unmasked at t - 1. With
    alpha^t = 1 - t / steps that is 1 / t. `steps` times the mean over uniform t and tau estimates Eq. (2) with
    gamma = 1 without bias, for a network that reads its evidence as a set.

    Args:
        tau: (B, N) masking time of each token, 1..steps.
        t: the time, 1..steps.

    Returns:
        (B,) nats.
    """
    if not 1 <= t <= steps:
        raise UserError(f"t={t} must be between 1 and steps={steps}")
    masked = tau <= t
    # Two blocks: the unmasked tokens, then all masked ones.
    order = Order.from_masking_times(torch.where(masked, 0, 1))
    return torch.where(masked.to(tokens.device), nll(model, tokens, order), 0.0).sum(dim=1) / t


# ---- averages over orders --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OrderAverage:
    """Likelihood over K uniformly drawn orders, in nats per text: (B,) each.

    Attributes:
        mean: mean NLL over the orders, an upper bound of -log p(x) of the uniform mixture of orders.
        stderr: its standard error over the orders.
        iwae: the tighter bound -log mean exp(-NLL) over the K orders (Burda et al., 2016); never above `mean`.
    """

    mean: Tensor
    stderr: Tensor
    iwae: Tensor


def any_order_nll(
    model: Transformer,
    tokens: Int[Tensor, "B N"],
    orders: int,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> OrderAverage:
    """Score texts under `orders` uniform orders each, one pass an order.

    Args:
        generator: of the orders; or one for each text, whose orders then do not depend on the rest of the batch.
    """
    if orders < 1:
        raise UserError(f"orders={orders} must be at least 1")
    B, N = tokens.shape

    def draw() -> Order:
        if isinstance(generator, Sequence):
            return Family("uniform").orders(N, generator)
        return Order.uniform(B, N, generator=generator)

    draws = [nll(model, tokens, draw()).sum(dim=1) for _ in range(orders)]
    total = torch.stack(draws).double()  # (K, B)
    spread = total.std(dim=0) if orders > 1 else torch.full_like(total[0], math.nan)
    return OrderAverage(
        mean=total.mean(dim=0),
        stderr=spread / math.sqrt(orders),
        iwae=math.log(orders) - torch.logsumexp(-total, dim=0),
    )
