"""Losses and likelihoods: one function an equation.

All are in nats. A likelihood is that of an (order, blocks) pair; it is never quoted without saying which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from armd import plugins
from armd.errors import UserError
from armd.families import Family
from armd.model import Transformer
from armd.orders import Order

CHUNK_LOGITS, GPU_CHUNK_LOGITS = 2**26, 2**28
"""Most logits held at once (256 MiB and 1 GiB in float32); longer losses go chunk by chunk.

A GPU would spend as long on summing the gradients of smaller chunks by the head as on computing them.
"""
GPU_TILE = 128
"""A GPU multiplies matrices much faster whose sides are multiples of this."""


def _chunk_rows(weight: Tensor) -> int:
    rows = max((GPU_CHUNK_LOGITS if weight.is_cuda else CHUNK_LOGITS) // weight.shape[0], 1)
    return rows - rows % GPU_TILE if weight.is_cuda and rows > GPU_TILE else rows


def _cross_entropy(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, weight).float(), targets, reduction="none")


def row_nll(
    hidden: Float[Tensor, "B N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Cross-entropy of (B, N, D) hidden rows, float32, without ever holding all (B, N, V) logits.

    The gradient of long ones computes the logits again, as it cannot know beforehand what each row will weigh; a loss
    whose weights are known is cheaper by `weighted_nll`.
    """
    rows, goal = hidden.flatten(0, 1), targets.flatten()
    size = _chunk_rows(weight)
    if len(rows) <= size:
        return _cross_entropy(rows, weight, goal).view_as(targets)
    parts = zip(rows.split(size), goal.split(size), strict=True)
    if torch.is_grad_enabled():
        losses = [checkpoint(_cross_entropy, row, weight, part, use_reentrant=False) for row, part in parts]
    else:
        losses = [_cross_entropy(row, weight, part) for row, part in parts]
    return torch.cat(losses).view_as(targets)


def _chunk_loss(
    rows: Tensor, weight: Tensor, targets: Tensor, gamma: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor, Tensor]:
    """sum gamma * nll of some rows, and its gradients by rows (R, D) and weight, whose rows from V on are padding."""
    logits = F.linear(rows, weight).to(torch.promote_types(rows.dtype, torch.float32))
    columns = torch.arange(len(weight), device=rows.device)
    if vocabulary < len(weight):
        logits = logits.masked_fill_(columns >= vocabulary, -math.inf)
    log_probs, goal = logits.log_softmax(-1), targets[:, None]
    del logits  # large
    total = -(gamma * log_probs.gather(1, goal)[:, 0]).sum()
    if torch.compiler.is_compiling():  # one loop from logits to slopes
        slope = (log_probs.exp() - (columns == goal).float()) * gamma[:, None]
    else:  # nothing as large again
        slope = log_probs.exp_().scatter_add_(1, goal, torch.full_like(goal, -1, dtype=log_probs.dtype))
        slope.mul_(gamma[:, None])
    slope = slope.to(rows.dtype)
    return total, slope @ weight, slope.T @ rows


@cache
def _compiled_chunk_loss() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_chunk_loss, dynamic=False)


class _WeightedNll(Function):
    """The logits of a chunk are made once: its gradients are taken while they are at hand, and summed in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, gamma: Tensor, compiled: bool) -> Tensor:
        kind = rows.device.type
        size = _chunk_rows(weight)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        chunk = _compiled_chunk_loss() if compiled else _chunk_loss
        values, changes, to_weight = [], [], None
        # Casts are made here: autocast would remember that of the weight, made without a gradient, for later uses.
        with torch.autocast(kind, enabled=False):
            narrow = weight.to(dtype)
            if weight.is_cuda and len(weight) % GPU_TILE:
                narrow = F.pad(narrow, (0, 0, 0, -len(weight) % GPU_TILE))
            for part in zip(rows.to(dtype).split(size), targets.split(size), gamma.split(size), strict=True):
                value, to_rows, change = chunk(part[0], narrow, *part[1:], len(weight))
                values.append(value)
                changes.append(to_rows)
                to_weight = change.to(value.dtype) if to_weight is None else to_weight.add_(change)
        assert to_weight is not None
        ctx.save_for_backward(torch.cat(changes), to_weight[: len(weight)])
        ctx.dtypes = rows.dtype, weight.dtype
        return torch.stack(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        # Scaled where they lie, for they are large; autograd refuses a second call.
        to_rows, to_weight = (
            kept.mul_(grad).to(dtype) for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return to_rows, to_weight, None, None, None


def weighted_nll(
    hidden: Float[Tensor, "B N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "B N"],
    gamma: Float[Tensor, "B N"],
    compiled: bool = False,
) -> Float[Tensor, ""]:
    """sum gamma * `row_nll` in nats, float32, with the gradients by hidden rows and weight taken in the same pass.

    As in linear-cross-entropy kernels (Wijmans et al., 2024), no chunk of logits outlives its turn and none is made
    twice; what is kept for the backward pass is the gradients, (B, N, D) and (V, D).

    Args:
        gamma: (B, N) the weight of every row; no gradient flows to it.
        compiled: run the chunks through torch.compile.
    """
    if not torch.is_grad_enabled():
        return (gamma * row_nll(hidden, weight, targets)).sum()
    rows, goal, scale = hidden.flatten(0, 1), targets.flatten(), gamma.flatten()
    return _WeightedNll.apply(rows, weight, goal, scale, compiled)


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

# A weighting of the user's own is such a function too, named by its file or module (`plugins`).
WEIGHTINGS: dict[str, Weighting] = {
    # gamma = 1: the likelihood itself.
    "likelihood": lambda order: torch.ones_like(order.positions, dtype=torch.float32),
    # Every block counts the same, whatever its size.
    "per_block": lambda order: 1.0 / order.to_text(_block_sizes(order)),
    # Late tokens, which see more evidence, count more: rank / mean rank.
    "late": lambda order: 2.0 * (order.text_blocks + 1) / (order.blocks[:, -1:] + 2),
}


def check_weighting(name: str) -> None:
    """Refuse a name that is none of a weighting; a function of the user's own is not loaded yet."""
    if name not in WEIGHTINGS and not plugins.is_name(name):
        known = ", ".join(WEIGHTINGS)
        raise UserError(f"weighting={name!r} is unknown; choose one of {known}, or {plugins.SPELLED}")


def weights(name: str, order: Order) -> Float[Tensor, "B N"]:
    """The gamma of a named weighting: (B, N) in text order, float32, on the device of the order."""
    check_weighting(name)
    if name in WEIGHTINGS:
        return WEIGHTINGS[name](order)
    gamma = plugins.call(name, order)
    if not isinstance(gamma, Tensor) or gamma.shape != order.positions.shape:
        found = tuple(gamma.shape) if isinstance(gamma, Tensor) else f"a {type(gamma).__name__}"
        raise UserError(f"{name} returned {found}; it must return a tensor {tuple(order.positions.shape)}")
    return gamma.detach().to(order.positions.device, torch.float32)


def loss(
    model: Transformer, tokens: Int[Tensor, "B N"], order: Order, weighting: str = "likelihood"
) -> Float[Tensor, ""]:
    """The training loss: Eq. (2), mean nats per token, with a named gamma."""
    model.check(tokens, order)
    order = order.to(tokens.device)
    hidden = model.hidden(tokens, order)
    gamma = order.to_generation(weights(weighting, order)) / tokens.numel()
    return weighted_nll(hidden, model.head_weight, order.to_generation(tokens), gamma, model.compiled)


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
