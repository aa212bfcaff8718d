"""Masked diffusion (MDLM, Sahoo et al., 2024, arXiv 2406.07524): every position sees every other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser, Sample, check_sampler, reveal, turns
from armd.layers import self_attend
from armd.masks import EVERYTHING
from armd.model import ArmdConfig
from armd.orders import Order
from armd.sampling import coin


class MaskedDiffusion(Denoiser):
    """A bidirectional transformer. It keeps no cache: whatever is written changes every row."""

    @classmethod
    def noise_block(cls, config: ArmdConfig) -> int:
        return 0

    def predict(self, tokens: Int[Tensor, "B N"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        rows = self._rows(tokens, masked)
        rotation = self.rotary(torch.arange(tokens.shape[1], device=tokens.device)[None])
        for layer in self.layers:
            rows = self.run_layer(self_attend, layer, rows, rotation, EVERYTHING)
        return self.norm(rows)

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        """The last hidden row of every token, in generation order: a pass a block, with all later tokens masked."""
        order = order.to(tokens.device)
        rows = torch.zeros(*tokens.shape, self.config.hidden_size, device=tokens.device, dtype=self.mask.dtype)
        for block in range(int(order.blocks.max()) + 1):
            seen = self.predict(tokens, order.text_blocks >= block)
            rows = torch.where((order.text_blocks == block)[..., None], seen, rows)
        return order.to_generation(rows)


@torch.inference_mode()
def denoising(
    model: MaskedDiffusion,
    length: int,
    *,
    steps: int | None = None,
    schedule: str = "even",
    skip_idle: bool = True,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 1,
) -> Iterator[Int[Tensor, "B N"]]:
    """The ancestral sampler of masked diffusion, linear schedule: yields the texts, -1 at masks, after each pass.

    A pass runs over all positions and reveals some: of the masked positions any are equally likely, and what is written
    stays. The head is applied only where a token is revealed.

    Args:
        length: number N of tokens.
        steps: steps of the schedule; default N.
        schedule: `ancestral`, as of MDLM: each token's step is drawn on its own. `even`: every step reveals its share
            of them, the mean of that draw.
        skip_idle: make no pass for a step that reveals nothing. As the network is told no time, its rows would be those
            of the step before, which MDLM's cached sampler keeps. The texts are the same, in fewer passes.
        seed, temperature, batch_size: as of `decode.generate`.
    """
    steps = length if steps is None else steps
    check_sampler(model, length, length, steps, schedule, temperature, batch_size)
    samples = torch.arange(batch_size, device=model.device)[:, None]
    positions = torch.arange(length, device=model.device).expand(batch_size, -1)
    tokens = torch.full_like(positions, -1)
    turn = turns(coin(seed, samples, positions, draw=1), steps, schedule)  # draw 0 is the noise of the tokens
    for step in turn.unique().tolist() if skip_idle else range(steps):
        with model.evaluating():
            rows = model.predict(tokens, tokens < 0)
        tokens = reveal(model, rows, tokens, turn == step, seed, temperature)
        yield tokens


def sample_masked_diffusion(model: MaskedDiffusion, length: int, **options: Any) -> Sample:
    """Write texts by `denoising`, whose options these are, to the end."""
    return Sample.collect(denoising(model, length, **options))
