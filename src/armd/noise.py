"""Masking noise: which tokens a masked diffusion model does not see, and what it counts to predict them.

Like an order, noise knows nothing of a network: sizes and a `torch.Generator` in, a mask and its times out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.errors import UserError


@dataclass(frozen=True, eq=False)
class Noise:
    """One draw of the masking process for each text of a batch, every block of a text at a time of its own.

    The schedule is log-linear (Sahoo et al., 2024), alpha_t = 1 - t: at time t each token is masked with probability t
    and the continuous-time bound weighs it by -alpha'_t / (1 - alpha_t) = 1 / t.

    Attributes:
        masked: (B, N) bool in text order, true where the network does not see the token.
        times: (B, N) in (0, 1], the time of each token.
    """

    masked: Bool[Tensor, "B N"]
    times: Float[Tensor, "B N"]

    @property
    def weights(self) -> Float[Tensor, "B N"]:
        """(B, N): what a token's nats count in the bound, 0 where it is seen."""
        return self.masked / self.times

    def rows(self, index: Int[Tensor, "R"]) -> Noise:
        """The noise of some rows of the batch."""
        return Noise(self.masked[index], self.times[index])

    def to(self, device: torch.device | str) -> Noise:
        return Noise(self.masked.to(device), self.times.to(device))

    @classmethod
    def concatenate(cls, parts: Sequence[Noise]) -> Noise:
        """Noise of texts of the same length as one batch."""
        return cls(torch.cat([part.masked for part in parts]), torch.cat([part.times for part in parts]))

    @classmethod
    def draw(
        cls,
        batch: int,
        length: int,
        *,
        block_size: int = 0,
        interval: tuple[float, float] = (0.0, 1.0),
        counted: bool = False,
        generator: torch.Generator | None = None,
    ) -> Noise:
        """Times uniform in the interval and spread over the batch (Kingma et al., 2021), then each token on its own.

        Row i of the batch gets the time (u + i / B) mod 1, one u a block: every row's time is uniform, and together
        they leave no part of the interval out.

        Args:
            block_size: consecutive tokens that share a time; 0: the whole text.
            interval: least and greatest time. Above 0 and below 1 it is the clipped schedule of Arriola et al. (2025),
                which trains, but whose mean is no bound.
            counted: mask exactly the share t of a block, t in steps of one token, instead of each token on its own. The
                bound has the same mean (Ou et al., 2024) and a finite variance: 1 / t no longer meets tokens that are
                masked against all odds.
        """
        low, high = interval
        if batch < 1 or length < 1 or block_size < 0:
            raise UserError(f"batch={batch} and length={length} must be at least 1, block_size={block_size} at least 0")
        if not 0 <= low < high <= 1:
            raise UserError(f"interval={interval} of times must lie between 0 and 1, the lesser first")
        places = torch.arange(length)
        blocks = places // (block_size or length)
        start = torch.rand(1, int(blocks[-1]) + 1, generator=generator, dtype=torch.float64)
        spread = (start + torch.arange(batch)[:, None] / batch) % 1  # in [0, 1)
        times = (high - (high - low) * spread)[:, blocks]
        chance = torch.rand(batch, length, generator=generator)
        if not counted:
            return cls(chance < times, times.float())
        sizes, first = blocks.bincount()[blocks], torch.searchsorted(blocks, blocks)
        counts = (times * sizes).ceil()
        rank = (chance + blocks).argsort(dim=1).argsort(dim=1) - first  # a random place in the own block
        return cls(rank < counts, (counts / sizes).float())
