"""Block diffusion (BD3-LM, Arriola et al., 2025, arXiv 2503.09573): masked diffusion within a block, blocks in turn.

Training doubles the rows: a noised and a clean copy of the text, and a mask that lets every noised block see itself and
the clean blocks before it (`masks.block_diffusion`). Writing keeps the keys and values of clean blocks.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser, Reader
from armd.cache import KeyValueStore
from armd.errors import UserError
from armd.layers import self_attend
from armd.masks import Mask, block_diffusion, dense
from armd.model import ArmdConfig
from armd.orders import Order


class BlockDiffusion(Denoiser):
    """Blocks of `config.block_size` tokens, the last one possibly shorter. Blocks of one token make an AR model."""

    @classmethod
    def noise_block(cls, config: ArmdConfig) -> int:
        return config.block_size

    def predict(self, tokens: Int[Tensor, "B N"], masked: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """All blocks in one pass, each from what is left of it and from the whole of those before it."""
        N = tokens.shape[1]
        slots = torch.arange(N, device=tokens.device)[None]
        labels = slots // self.config.block_size * 2
        labels = torch.cat((labels + 1, labels), dim=1)  # (1, 2N): noised, clean
        if self.training and self.config.dropout:  # FlexAttention cannot drop attention weights, dense masks can
            see = Mask(rendered=dense(block_diffusion, labels, labels))
        else:
            see = Mask.of(block_diffusion, labels, labels)
        rotation = self.rotary(torch.cat((slots, slots), dim=1))
        clean = torch.zeros_like(masked)
        rows = torch.cat((self._rows(tokens, masked, slots), self._rows(tokens, clean, slots)), dim=1)
        for layer in self.layers:
            rows = self.run_layer(layer, self_attend, rows, rotation, see)
        return self.norm(rows[:, :N])

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        """The last hidden row of every token, in generation order, all blocks of the text side by side.

        A pass for every step within a block: at most `block_size`.

        Raises:
            UserError: the order does not write the blocks of the text one after another.
        """
        order, size = order.to(tokens.device), self.config.block_size
        text_block, rank = order.positions // size, torch.arange(tokens.shape[1], device=tokens.device)
        if bool((text_block != rank // size).any()) or bool((text_block.diff(dim=1) > order.blocks.diff(dim=1)).any()):
            raise UserError(f"block diffusion with block_size={size} writes blocks of {size} tokens from left to right")
        step = order.to_text(order.blocks - order.blocks[:, rank // size * size])  # 0, 1 .. within each block
        rows = torch.zeros(*tokens.shape, self.config.hidden_size, device=tokens.device, dtype=self.mask.dtype)
        for now in range(int(step.max()) + 1):
            rows = torch.where((step == now)[..., None], self.predict(tokens, step >= now), rows)
        return order.to_generation(rows)

    def new_store(self, batch: int, length: int) -> KeyValueStore:
        """Room for the clean rows of texts of `length` tokens."""
        heads = self.config.num_attention_heads
        return KeyValueStore(len(self.layers), batch, heads, length, self.config.hidden_size // heads, self.mask)

    def predict_next(
        self, store: KeyValueStore, clean: Int[Tensor, "B C"], block: Int[Tensor, "B L"], start: int
    ) -> Float[Tensor, "B L D"]:
        """The rows of one block, in a pass that also takes in the tokens before it that are not in the store yet.

        Args:
            store: the clean rows of positions below start - C; those of `clean` are added.
            clean: the tokens of whole blocks just before `start`; often none.
            block: the tokens of the block, -1 at its masks.
            start: the position of its first token.
        """
        L, size = block.shape[1], self.config.block_size
        seen = torch.arange(start, device=block.device)[None]
        fresh = seen[:, start - clean.shape[1] :]
        slots = torch.arange(start, start + L, device=block.device)[None]
        noised = slots // size * 2 + 1
        queries, keys = torch.cat((noised, fresh // size * 2), dim=1), torch.cat((noised, seen // size * 2), dim=1)
        see = Mask(rendered=dense(block_diffusion, queries, keys))
        rotation = self.rotary(torch.cat((slots, fresh), dim=1))
        rows = torch.cat((self._rows(block, block < 0, slots), self._rows(clean, clean < 0, fresh)), dim=1)

        def keep(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            """The clean rows go to the store; those of the block, which come first, are forgotten."""
            old_k, old_v = store.write(layer, fresh, k[:, :, L:], v[:, :, L:], start)
            return torch.cat((k[:, :, :L], old_k), dim=2), torch.cat((v[:, :, :L], old_v), dim=2)

        for i, layer in enumerate(self.layers):
            rows = layer(self_attend, rows, rotation, see, partial(keep, i))
        return self.norm(rows[:, :L])

    def reader(self, batch: int, length: int) -> Reader:
        """A pass over the rows of one block; its first one also takes in the tokens before it and keeps their rows."""
        store, stored = self.new_store(batch, length), 0

        def read(tokens: Tensor, start: int, end: int) -> Tensor:
            nonlocal stored
            rows = self.predict_next(store, tokens[:, stored:start], tokens[:, start:end], start)
            stored = start
            return rows

        return read
