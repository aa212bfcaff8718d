"""Baselines on the same layers and with the same call signature."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from armd.cache import Cache, Places
from armd.errors import UserError
from armd.layers import Layer
from armd.masks import EVERYTHING, Mask, Visibility
from armd.model import ArmdConfig, Transformer
from armd.orders import Order
from armd.sampling import check_sampling, coin, gumbel, warp


def _update(layer: Layer, rows: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
    """Rows look at each other."""
    return layer(rows, *layer.project(rows, rotation), mask)


class Autoregressive(Transformer):
    """A plain left-to-right transformer: one stream, no prefix layer. Its only order is left to right."""

    any_order = False

    @property
    def content_layers(self) -> int:
        return self.config.num_hidden_layers

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        if not bool((order.positions.diff(dim=1) == 1).all()) or not order.is_sequential:
            raise UserError("an autoregressive model has one order only: left_to_right")
        slots = order.positions.to(tokens.device)  # row n holds token n - 1, BOS first
        rotation, see = self.rotary(slots), Visibility.sequential().content
        rows = self._with_bos(tokens)[:, :-1]
        for layer in self.layers:
            rows = self.run_layer(_update, layer, rows, rotation, see)
        return self.norm(rows)

    def advance(
        self,
        cache: Cache,
        tokens: Int[Tensor, "B C"],
        slots: Int[Tensor, "B C"],
        columns: Int[Tensor, "B C"],
        target_slots: Int[Tensor, "B T"],
        target_columns: Int[Tensor, "B T"],
        limits: Int[Tensor, "B T"],
        see: Visibility,
    ) -> Float[Tensor, "B T D"]:
        """One decoding pass, as of `Armd`: left to right, the row of a token predicts the slot after its own."""
        rows = torch.where((slots == 0)[..., None], self.bos, self.embed(tokens))
        rotation, places = self.rotary(slots), Places.of(cache, columns, target_columns, see)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(rows, rotation)
            rows = layer(rows, q, *places.content(i, k, v), see.content)
        return self.norm(rows)


# ---- masked diffusion ------------------------------------------------------------------------------------------------


class MaskedDiffusion(Transformer):
    """Masked diffusion (MDLM, Sahoo et al., 2024): every position sees every other, masks are a vector of their own.

    No time embedding, as the number of masks says it, and no cache: whatever is written changes every row.
    """

    def __init__(self, config: ArmdConfig) -> None:
        super().__init__(config)
        del self.bos  # all positions have a row from the start
        self.mask = nn.Parameter(torch.randn(config.hidden_size) * 0.02)

    def denoise(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """The last hidden row of every position, in text order; tokens are -1 at the masks."""
        rows = torch.where((tokens < 0)[..., None], self.mask, self.embed(tokens.clamp(min=0)))
        rows = F.dropout(rows, self.config.dropout, self.training)
        rotation = self.rotary(torch.arange(tokens.shape[1], device=tokens.device)[None])
        for layer in self.layers:
            rows = self.run_layer(_update, layer, rows, rotation, EVERYTHING)
        return self.norm(rows)

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        """The last hidden row of every token, in generation order: a pass a block, with all later tokens masked."""
        order = order.to(tokens.device)
        rows = torch.zeros(*tokens.shape, self.config.hidden_size, device=tokens.device, dtype=self.mask.dtype)
        for block in range(int(order.blocks.max()) + 1):
            seen = self.denoise(tokens.where(order.text_blocks < block, -1))
            rows = torch.where((order.text_blocks == block)[..., None], seen, rows)
        return order.to_generation(rows)

    def new_cache(self, batch: int, length: int) -> Cache:
        raise UserError("masked diffusion keeps no cache: write with sample_masked_diffusion instead of generate")


def sample_masked_diffusion(
    model: MaskedDiffusion,
    length: int,
    *,
    steps: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 1,
) -> Int[Tensor, "B N"]:
    """Write `batch_size` texts by `denoising`, to the end."""
    *_, tokens = denoising(model, length, steps=steps, seed=seed, temperature=temperature, batch_size=batch_size)
    return tokens


@torch.inference_mode()
def denoising(
    model: MaskedDiffusion,
    length: int,
    *,
    steps: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 1,
) -> Iterator[Int[Tensor, "B N"]]:
    """The ancestral sampler of masked diffusion, linear schedule: yields the texts, -1 at masks, after each pass.

    A pass runs over all positions and reveals its share of them: of the masked positions, any are equally likely, and
    what is written stays. The number revealed is the schedule's mean, rounded, in place of a binomial draw: no pass
    reveals nothing. The head is applied only where a token is revealed.

    Args:
        length: number N of tokens.
        steps: passes; default N, one token a pass.
        seed, temperature, batch_size: as of `decode.generate`.
    """
    check_sampling(temperature, 0, 1.0)
    steps = length if steps is None else steps
    if not 1 <= length <= model.config.max_position_embeddings:
        raise UserError(f"length={length} must be in 1..max_position_embeddings={model.config.max_position_embeddings}")
    if not 1 <= steps <= length or batch_size < 1:
        raise UserError(f"steps={steps} must be in 1..length={length} and batch_size={batch_size} at least 1")
    samples = torch.arange(batch_size, device=model.device)[:, None]
    positions = torch.arange(length, device=model.device).expand(batch_size, -1)
    tokens = torch.full_like(positions, -1)
    turns = coin(seed, samples, positions, draw=1).argsort(dim=1)  # a uniform order; draw 0 is the noise of the tokens
    for step in range(steps):
        at = turns[:, length * step // steps : length * (step + 1) // steps]  # positions to reveal: (B, T)
        with model.evaluating():
            rows = model.denoise(tokens)
        rows = rows.gather(1, at[..., None].expand(-1, -1, model.config.hidden_size))
        scores = warp(model.head(rows), temperature)
        if temperature > 0:
            scores = scores + gumbel(seed, samples, at, scores.shape[-1])
        tokens = tokens.scatter(1, at, scores.argmax(dim=-1))
        yield tokens
