"""Block diffusion (BD3-LM, Arriola et al., 2025, arXiv 2503.09573): masked diffusion within a block, blocks in turn.

Training doubles the rows: a noised and a clean copy of the text, and a mask that lets every noised block see itself and
the clean blocks before it (`masks.block_diffusion`). Writing keeps the keys and values of clean blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser, Sample, check_sampler, reveal, turns
from armd.cache import KeyValueStore
from armd.errors import UserError
from armd.layers import self_attend
from armd.masks import Mask, block_diffusion, dense
from armd.model import ArmdConfig
from armd.orders import Order
from armd.sampling import coin


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
        rows = torch.cat((self._rows(tokens, masked), self._rows(tokens, torch.zeros_like(masked))), dim=1)
        for layer in self.layers:
            rows = self.run_layer(self_attend, layer, rows, rotation, see)
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
        rows = torch.cat((self._rows(block, block < 0), self._rows(clean, clean < 0)), dim=1)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(rows, rotation)
            known = store.write(i, fresh, k[:, :, L:], v[:, :, L:], start)
            k, v = (torch.cat((new[:, :, :L], old), dim=2) for new, old in zip((k, v), known, strict=True))
            rows = layer(rows, q, k, v, see)
        return self.norm(rows[:, :L])


@torch.inference_mode()
def block_denoising(
    model: BlockDiffusion,
    length: int,
    *,
    prompt: Sequence[int] = (),
    steps: int | None = None,
    schedule: str = "even",
    skip_idle: bool = True,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 1,
) -> Iterator[Int[Tensor, "B N"]]:
    """Write block after block, each by the ancestral sampler: yields the texts, -1 at masks, after each pass.

    A pass runs over the rows of one block; its first also over those of the block before it, which is finished then and
    whose keys and values stay.

    Args:
        length: number of tokens after the prompt.
        prompt: tokens every text begins with; it may end within a block.
        steps: steps of the schedule in a block; default its number of tokens. A block that has fewer tokens left to
            write takes no more steps of the even schedule than these.
        schedule, skip_idle: as of `masked_diffusion.denoising`.
        seed, temperature, batch_size: as of `decode.generate`.
    """
    known, size = len(prompt), model.config.block_size
    steps = size if steps is None else steps
    check_sampler(model, size, known + length, steps, schedule, temperature, batch_size)
    if not all(0 <= token < model.config.vocab_size for token in prompt):
        raise UserError(f"prompt={list(prompt)} holds tokens that are not in 0..{model.config.vocab_size - 1}")
    if length < 1:
        raise UserError(f"length={length} must be at least 1")
    samples = torch.arange(batch_size, device=model.device)[:, None]
    tokens = F.pad(torch.tensor(prompt, dtype=torch.long, device=model.device), (0, length), value=-1)
    tokens = tokens.repeat(batch_size, 1)
    store, stored = model.new_store(batch_size, known + length), 0
    for start in range(known // size * size, known + length, size):
        end = min(start + size, known + length)
        at = torch.arange(max(start, known), end, device=model.device).expand(batch_size, -1)
        count = min(steps, at.shape[1]) if schedule == "even" else steps
        turn = turns(coin(seed, samples, at, draw=1), count, schedule)  # draw 0 is the noise of the tokens
        turn = F.pad(turn, (end - start - at.shape[1], 0), value=-1)  # the prompt's part of the block is never chosen
        for step in range(count):
            chosen = turn == step
            if skip_idle and not bool(chosen.any()):
                continue
            with model.evaluating():
                rows = model.predict_next(store, tokens[:, stored:start], tokens[:, start:end], start)
            stored = start
            block = reveal(model, rows, tokens[:, start:end], chosen, seed, temperature, start)
            tokens = torch.cat((tokens[:, :start], block, tokens[:, end:]), dim=1)
            yield tokens


def sample_block_diffusion(model: BlockDiffusion, length: int, **options: Any) -> Sample:
    """Write texts by `block_denoising`, whose options these are, to the end."""
    return Sample.collect(block_denoising(model, length, **options))
