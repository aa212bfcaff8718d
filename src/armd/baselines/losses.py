"""One training loss and one held-out score for every architecture, by what hides the tokens: orders or noise."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser, bound, bound_loss
from armd.errors import UserError
from armd.model import Transformer
from armd.noise import Noise
from armd.objective import loss, nll
from armd.orders import Order

Draw = Order | Noise


def nats(model: Transformer, tokens: Int[Tensor, "B N"], draw: Draw) -> Float[Tensor, "B N"]:
    """Each token's nats in text order: `nll` of an order; or `bound` under noise, which is right in the mean only."""
    return nll(model, tokens, draw) if isinstance(draw, Order) else bound(_denoiser(model), tokens, draw)


def training_loss(
    model: Transformer, tokens: Int[Tensor, "B N"], draw: Draw, weighting: str = "likelihood"
) -> Float[Tensor, ""]:
    """Mean nats per token: `objective.loss` of orders, or the mean of `bound`, whose weights are those of the noise."""
    if isinstance(draw, Order):
        return loss(model, tokens, draw, weighting)
    return bound_loss(_denoiser(model), tokens, draw)


def _denoiser(model: Transformer) -> Denoiser:
    if not isinstance(model, Denoiser):
        raise UserError(f"model is a {type(model).__name__}: noise is for masked and block diffusion")
    return model
