"""Baselines on the same layers and with the same call signature."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from armd.errors import UserError
from armd.masks import Visibility
from armd.model import Transformer
from armd.orders import Order


class Autoregressive(Transformer):
    """A plain left-to-right transformer: one stream, no prefix layer. Its only order is left to right."""

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        if not bool((order.positions.diff(dim=1) == 1).all()) or not order.is_sequential:
            raise UserError("an autoregressive model has one order only: left_to_right")
        slots = order.positions.to(tokens.device)  # row n holds token n - 1, BOS first
        rotation, see = self.rotary(slots), Visibility.sequential().content
        rows = self._with_bos(tokens)[:, :-1]
        for layer in self.layers:
            rows = layer(rows, rotation, *layer.keys_values(rows, rotation), see)
        return self.norm(rows)
