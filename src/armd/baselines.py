"""Baselines on the same layers and with the same call signature."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.cache import Cache, Places
from armd.errors import UserError
from armd.masks import Visibility
from armd.model import Transformer
from armd.orders import Order


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
            rows = layer(rows, rotation, *layer.keys_values(rows, rotation), see)
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
            rows = layer(rows, rotation, *places.content(i, *layer.keys_values(rows, rotation)), see.content)
        return self.norm(rows)
