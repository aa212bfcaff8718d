"""From logits to tokens. Pure functions; all randomness is counter-based, a function of what it is for.

A token is drawn as argmax(log p + g), g Gumbel noise (Gumbel-max). The noise of a (seed, sample, position, token) never
changes, whatever is drawn before, beside or after it: the same seed gives the same text at any batch size, and a draft
can be checked against the very coin it was drawn with. It is made in float64 of 52-bit uniforms: float32 noise cuts off
the tail and lowers the effective temperature (arXiv 2409.02908).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.errors import UserError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer: the SplitMix64 increment
_DRAW = -2960836687050489127  # an odd constant that keeps draws apart from samples and positions


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Refuse impossible sampling settings by name."""
    if temperature != 0 and not 1e-4 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 (greedy) or a number >= 0.0001")
    if top_k < 0:
        raise UserError(f"top_k={top_k} must be >= 0 (0 is off)")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must be above 0 and at most 1 (1 is off)")


def check_seed(seed: int) -> None:
    """Refuse a seed that the counters cannot hold."""
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"seed={seed} must fit in 64 bits")


def warp(
    logits: Float[Tensor, "*R V"], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*R V"]:
    """The law that is sampled, up to a constant: (..., V) float64, -inf where a token is cut off.

    Args:
        logits: (..., V).
        temperature: divides the logits; 0 leaves the most likely token only (the first of equals).
        top_k: keep the k most likely tokens (0: all). Tokens equal to the k-th are kept.
        top_p: keep the most likely tokens until their mass reaches p.
    """
    return warp_within(logits, temperature, top_k, top_p, 0.0)[0]


def warp_within(
    logits: Float[Tensor, "*R V"], temperature: float, top_k: int, top_p: float, slack: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The law of `warp`, and the largest and the smallest set of tokens it could keep if every logit moved by `slack`.

    Where nothing is cut off the three are one tensor.
    """
    logits = logits.double()
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        law = torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
        return law, law, law
    if temperature != 1:
        logits, slack = logits / temperature, slack / temperature
    by_k = 0 < top_k < logits.shape[-1]
    if not by_k and top_p == 1:
        return logits, logits, logits
    ranked, index = logits.sort(dim=-1, descending=True, stable=True)

    def cut(slack: float) -> Tensor:
        kept = torch.ones_like(ranked, dtype=torch.bool)
        if by_k:
            last, next_one = ranked[..., top_k - 1 : top_k], ranked[..., top_k : top_k + 1]
            kept = ranked >= last - 2 * slack if slack >= 0 else ranked > next_one - 2 * slack
        if top_p < 1:
            mass = torch.where(kept, ranked, -torch.inf).softmax(dim=-1)
            kept &= (mass.cumsum(dim=-1) - mass) * math.exp(-2 * slack) < top_p  # the mass before a token
        kept[..., 0] = True
        return logits.masked_fill(~torch.zeros_like(kept).scatter(-1, index, kept), -torch.inf)

    return (law := cut(0.0)), cut(slack) if slack else law, cut(-slack) if slack else law


def log_probs(
    logits: Float[Tensor, "*R V"], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*R V"]:
    """The sampled law: (..., V) float64 log-probabilities, normalised; the arguments are those of `warp`."""
    return warp(logits, temperature, top_k, top_p).log_softmax(dim=-1)


def gumbel(
    seed: int, samples: Int[Tensor, "B 1"], positions: Int[Tensor, "B T"], vocab_size: int, draw: int | Tensor = 0
) -> Float[Tensor, "B T V"]:
    """Gumbel noise of every (seed, draw, sample, text position, token): (B, T, V) float64.

    `draw` numbers independent coins for the same token: the noise of draw 0 is the one fixed for good.
    """
    return _uniform(seed, samples, positions, vocab_size, draw).log_().neg_().log_().neg_()


def coin(
    seed: int, samples: Int[Tensor, "B 1"], positions: Int[Tensor, "B T"], draw: int | Tensor
) -> Float[Tensor, "B T"]:
    """A uniform number in (0, 1) of every (seed, draw, sample, text position): (B, T) float64."""
    return _uniform(seed, samples, positions, 1, draw)[..., 0]


def _uniform(seed: int, samples: Tensor, positions: Tensor, count: int, draw: int | Tensor) -> Tensor:
    key = _mix(torch.tensor([[seed]], device=positions.device)) + draw * _DRAW
    key = _mix(_mix(key + samples) + positions)
    steps = torch.arange(1, count + 1, device=positions.device) * _GOLDEN
    bits = _mix(key[..., None] + steps).bitwise_right_shift_(12).bitwise_and_(2**52 - 1)
    return bits.double().add_(0.5).mul_(2.0**-52)


def _mix(x: Tensor) -> Tensor:
    """The SplitMix64 finaliser (Steele et al., 2014) on int64, whose products wrap around."""
    x = x + _GOLDEN
    x.bitwise_xor_((x >> 30).bitwise_and_(2**34 - 1)).mul_(-4658895280553007687)  # in place: this is the hot path
    x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(-7723592293110705685)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))
