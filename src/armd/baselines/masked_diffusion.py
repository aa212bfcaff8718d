"""Masked diffusion (MDLM, Sahoo et al., 2024, arXiv 2406.07524): every position sees every other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser, Reader
from armd.layers import self_attend
from armd.masks import EVERYTHING
from armd.model import ArmdConfig
from armd.orders import Order
from armd.prefix import PREFIXES


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


class PrefixMaskedDiffusion(MaskedDiffusion):
    """With ARMD's prefix layer (`query`) at its masks: what that layer gives a network without an order.

    A mask is what the layer calls a target, and sees all known tokens.
    """

    def __init__(self, config: ArmdConfig) -> None:
        super().__init__(config)
        slots = config.max_position_embeddings + 1  # slot 0, where BOS would be, holds zeros
        self.prefix = PREFIXES[config.query](config.hidden_size, slots, config.kernel_width)

    def compile_layers(self) -> None:
        super().compile_layers()
        self.prefix.compile()

    def _rows(self, tokens: Tensor, masked: Tensor, slots: Tensor) -> Tensor:
        rows = super()._rows(tokens, masked, slots)
        around = self.prefix(F.pad(rows, (0, 0, 1, 0)), F.pad(masked.long() + 1, (1, 0)))
        return torch.where(masked[..., None], rows + around, rows)
