"""Masked diffusion (MDLM, Sahoo et al., 2024, arXiv 2406.07524): every position sees every other."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser, Reader
from armd.layers import self_attend
from armd.masks import EVERYTHING
from armd.model import ArmdConfig
from armd.orders import Order


class MaskedDiffusion(Denoiser):
    """A bidirectional transformer. It keeps no cache: whatever is written changes every row."""

    @classmethod
    def noise_block(cls, config: ArmdConfig) -> int:
        return 0

    def predict(self, tokens: Int[Tensor, "B N"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        slots = torch.arange(tokens.shape[1], device=tokens.device)[None]
        rows, rotation = self._rows(tokens, masked, slots), self.rotary(slots)
        for layer in self.layers:
            rows = self.run_layer(layer, self_attend, rows, rotation, EVERYTHING)
        return self.norm(rows)

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        """The last hidden row of every token, in generation order: a pass a block, with all later tokens masked."""
        order = order.to(tokens.device)
        rows = torch.zeros(*tokens.shape, self.config.hidden_size, device=tokens.device, dtype=self.mask.dtype)
        for block in range(int(order.blocks.max()) + 1):
            seen = self.predict(tokens, order.text_blocks >= block)
            rows = torch.where((order.text_blocks == block)[..., None], seen, rows)
        return order.to_generation(rows)

    def reader(self, batch: int, length: int) -> Reader:
        return lambda tokens, start, end: self.predict(tokens, tokens < 0)
