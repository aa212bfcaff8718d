"""Left to right: the plain transformer, and the same with the prefix layer of ARMD in front."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.cache import Cache, Places
from armd.errors import UserError
from armd.layers import self_attend
from armd.masks import Visibility
from armd.model import Armd, Transformer
from armd.orders import Order


def check_left_to_right(order: Order) -> None:
    if not order.is_left_to_right:
        raise UserError("an autoregressive model has one order only: left_to_right")


class Autoregressive(Transformer):
    """A plain left-to-right transformer: one stream, no prefix layer. Its only order is left to right."""

    any_order = False

    @property
    def content_layers(self) -> int:
        return self.config.num_hidden_layers

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        check_left_to_right(order)
        slots = order.positions.to(tokens.device)  # row n holds token n - 1, BOS first
        rotation, see = self.rotary(slots), Visibility.sequential().content
        rows = self._with_bos(tokens)[:, :-1]
        for layer in self.layers:
            rows = self.run_layer(layer, self_attend, rows, rotation, see)
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
        rows = self._at_slots(torch.where((slots == 0)[..., None], self.bos, self.embed(tokens)), slots)
        rotation, places = self.rotary(slots), Places.of(cache, columns, target_columns, see)
        for i, layer in enumerate(self.layers):
            rows = self.run_layer(layer, self_attend, rows, rotation, see.content, places.content(i))
        return self.norm(rows)


class PrefixAutoregressive(Armd):
    """ARMD held to left to right: what its prefix layer (`query`) gives a transformer that knows no other order.

    With `num_two_stream_layers` = 1 it costs what `Autoregressive` costs, and the prefix layer.
    """

    any_order = False

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        check_left_to_right(order)
        return super().hidden(tokens, order)
