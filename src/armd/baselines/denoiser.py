"""What masked and block diffusion share: a network that fills masks, and its continuous-time bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from armd.cache import Cache
from armd.errors import UserError
from armd.layers import drop
from armd.model import ArmdConfig, Transformer
from armd.noise import Noise
from armd.objective import row_nll, weighted_nll

Reader = Callable[[Tensor, int, int], Tensor]


class Denoiser(Transformer):
    """A network that predicts masked tokens from the others; a mask is a vector of its own, so it predicts no mask.

    It is told no time, as the masks it sees say all there is to know (Ou et al., 2024).
    """

    def __init__(self, config: ArmdConfig) -> None:
        super().__init__(config)
        del self.bos  # all positions have a row from the start
        self.mask = nn.Parameter(torch.randn(config.hidden_size) * 0.02)

    @classmethod
    def noise_block(cls, config: ArmdConfig) -> int:
        """Consecutive tokens that are masked at the same time; 0: the whole text."""
        raise NotImplementedError

    def predict(self, tokens: Int[Tensor, "B N"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """The last hidden row of every position in text order, ready for the head; masked tokens have no influence.

        Rows of tokens that are not masked mean nothing.
        """
        raise NotImplementedError

    def reader(self, batch: int, length: int) -> Reader:
        """What the sampler reads texts of `length` tokens by: a pass that may remember what it has read.

        Returns:
            (B, N) tokens in text order, -1 at masks, and the first and one past the last position of the block to be
            written -> (B, L, D) the last hidden rows of that block. Blocks are written from left to right.
        """
        raise NotImplementedError

    def new_cache(self, batch: int, length: int) -> Cache:
        raise UserError(f"{type(self).__name__} does not write with generate: use denoise")

    def _rows(self, tokens: Tensor, masked: Tensor, slots: Tensor) -> Tensor:
        rows = torch.where(masked[..., None], self.mask, self.embed(torch.where(masked, 0, tokens)))
        rows = self._at_slots(rows, slots)
        return drop(rows, self.config.dropout) if self.training else rows


# ---- the continuous-time bound ---------------------------------------------------------------------------------------


def bound(model: Denoiser, tokens: Int[Tensor, "B N"], noise: Noise) -> Float[Tensor, "B N"]:
    """The negative ELBO of masked diffusion in continuous time (Sahoo et al., 2024), one draw of it in one pass.

    For block diffusion every block has a time of its own (Arriola et al., 2025). The mean over noise of a row's sum is
    the mean of the text's NLL over all orders the model can write it in (Ou et al., 2024), so at least -log p(text).

    Returns:
        (B, N) nats in text order, float32: 1 / t times the cross-entropy at masked tokens, 0 elsewhere.
    """
    rows, weights = _denoised(model, tokens, noise)
    return row_nll(rows, model.head_weight, tokens) * weights


def bound_loss(model: Denoiser, tokens: Int[Tensor, "B N"], noise: Noise) -> Float[Tensor, ""]:
    """The mean of `bound` over tokens, with its gradient in the same pass."""
    rows, weights = _denoised(model, tokens, noise)
    return weighted_nll(rows, model.head_weight, tokens, weights / tokens.numel(), model.compiled)


def _denoised(model: Denoiser, tokens: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """The rows that predict the masked tokens, and what each counts."""
    limit = model.config.max_position_embeddings
    if tokens.shape != noise.masked.shape:
        raise UserError(f"tokens are {tuple(tokens.shape)} but the noise is {tuple(noise.masked.shape)}")
    if tokens.shape[1] > limit:
        raise UserError(f"{tokens.shape[1]} tokens exceed max_position_embeddings={limit}")
    noise = noise.to(tokens.device)
    return model.predict(tokens, noise.masked), noise.weights


@dataclass(frozen=True)
class Bound:
    """An estimate of the bound over K times, in nats per text: (B,) each.

    Attributes:
        mean: the mean over the times, without bias.
        stderr: standard error as if the times were drawn apart; they are spread, so it is rather too large.
    """

    mean: Tensor
    stderr: Tensor


def estimate_bound(
    model: Denoiser,
    tokens: Int[Tensor, "B N"],
    times: int,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Bound:
    """Score texts at `times` times each, one pass a time, with `counted` noise.

    Args:
        generator: of the noise; or one for each text, whose noise then does not depend on the rest of the batch.
    """
    if times < 1:
        raise UserError(f"times={times} must be at least 1")
    B, N = tokens.shape
    generators = generator if isinstance(generator, Sequence) else [generator] * B
    size = model.noise_block(model.config)
    noises = [Noise.draw(times, N, block_size=size, counted=True, generator=g) for g in generators]
    each = (Noise.concatenate([noise.rows(torch.tensor([k])) for noise in noises]) for k in range(times))
    total = torch.stack([bound(model, tokens, noise).sum(dim=1) for noise in each]).double()  # (K, B)
    spread = total.std(dim=0) if times > 1 else torch.full_like(total[0], math.nan)
    return Bound(total.mean(dim=0), spread / math.sqrt(times))
