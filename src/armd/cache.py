"""What decoding remembers: keys and values of both streams, and the table of known tokens that G^0 reads.

A column is a rank of the generation order, so nothing is ever moved or cut off: a draft that was rejected is written
over when its rank comes again, and until then it lies beyond the limit of every row, where no mask lets it be seen.

    content       BOS  x_0  x_1  x_2 | d_3  d_4   .        column of rank r: r + 1      | drafts, then unused
    prediction    g_0  g_1  g_2  g_3 | g_4  g_5   .        column of rank r: r
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.layers import Keep
from armd.masks import HIDDEN, Visibility


class KeyValueStore:
    """Keys and values of some layers, in memory allocated once.

    Attributes:
        keys, values: (layers, B, H, columns + 1, K); the last column takes what padding rows write.
    """

    def __init__(self, layers: int, batch: int, heads: int, columns: int, head_size: int, like: Tensor) -> None:
        """Room for `columns` rows a text, on the device and in the dtype of `like`."""
        self.keys = like.new_zeros(layers, batch, heads, columns + 1, head_size)
        self.values = torch.zeros_like(self.keys)

    def write(self, layer: int, columns: Int[Tensor, "B R"], k: Tensor, v: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (B, H, R, K) at their columns; returns the first `width` columns."""
        keys, values = self.keys[layer], self.values[layer]
        if len(columns) == 1:  # the same, and faster
            keys.index_copy_(2, columns[0], k)
            values.index_copy_(2, columns[0], v)
        else:
            index = columns[:, None, :, None].expand_as(k)
            keys.scatter_(2, index, k)
            values.scatter_(2, index, v)
        return keys[:, :, :width], values[:, :, :width]

    def move(self, source: Int[Tensor, "B R"], target: Int[Tensor, "B R"]) -> None:
        """Copy rows of all layers from one column to another."""
        for store in (self.keys, self.values):
            size = store.shape[0], -1, store.shape[2], -1, store.shape[4]
            index, place = (columns[None, :, None, :, None].expand(size) for columns in (source, target))
            store.scatter_(3, place, store.gather(3, index))


class Cache:
    """The state of a batch being decoded.

    Attributes:
        content: keys and values of the content stream, layers 1..L2s.
        prediction: keys and values of the prediction stream, layers L2s+1..L.
        table: (B, slots + 1, D) embeddings of known tokens by slot; the last row takes what padding rows write.
        ranks: (B, slots + 1) long, the content column of each slot's token, `HIDDEN` before it is known.
        spare: the column of padding rows, in both stores.
    """

    def __init__(self, content: KeyValueStore, prediction: KeyValueStore, slots: int, hidden_size: int) -> None:
        batch, device, dtype = content.keys.shape[1], content.keys.device, content.keys.dtype
        self.content, self.prediction, self.spare = content, prediction, slots
        self.table = torch.zeros(batch, slots + 1, hidden_size, device=device, dtype=dtype)
        self.ranks = torch.full((batch, slots + 1), HIDDEN, device=device)

    def learn(self, slots: Int[Tensor, "B R"], embeddings: Float[Tensor, "B R D"], columns: Int[Tensor, "B R"]) -> None:
        """Write tokens into the table; padding rows are dropped."""
        padding = columns == self.spare
        slots = torch.where(padding, self.ranks.shape[1] - 1, slots)
        self.table.scatter_(1, slots[..., None].expand_as(embeddings), embeddings.to(self.table.dtype))
        self.ranks.scatter_(1, slots, torch.where(padding, HIDDEN, columns))

    def forget(self, rows: Int[Tensor, "R"]) -> None:
        """Make some rows of the batch new. Their keys and values need no clearing: no limit reaches them any more."""
        self.ranks[rows] = HIDDEN

    def fix_addresses(self) -> None:
        """Promise a compiler that these tensors stay where they are, so that a CUDA graph may write to them."""
        for store in (self.content, self.prediction):
            torch._dynamo.mark_static_address(store.keys)
            torch._dynamo.mark_static_address(store.values)
        torch._dynamo.mark_static_address(self.table)
        torch._dynamo.mark_static_address(self.ranks)

    def keep(self, rows: Int[Tensor, "R"]) -> None:
        """Keep these rows of the batch, in this order; a row may be repeated."""
        for store in (self.content, self.prediction):
            store.keys, store.values = store.keys[:, rows], store.values[:, rows]
        self.table, self.ranks = self.table[rows], self.ranks[rows]


@dataclass(frozen=True)
class Places:
    """Where the rows of one pass go in the cache, and how many columns of it are in use."""

    cache: Cache
    content_columns: Tensor
    prediction_columns: Tensor
    width: int

    @classmethod
    def of(cls, cache: Cache, content: Tensor, prediction: Tensor, see: Visibility) -> Places:
        """The places of rows whose masks range over the columns in use."""
        assert isinstance(see.strict.rendered, Tensor)
        return cls(cache, content, prediction, see.strict.rendered.shape[-1])

    def content(self, layer: int) -> Keep:
        """What puts content rows of a layer into that store."""
        return partial(self.cache.content.write, layer, self.content_columns, width=self.width)

    def prediction(self, layer: int) -> Keep:
        """What puts prediction rows of a layer, counted from the first that has them, into theirs."""
        return partial(self.cache.prediction.write, layer, self.prediction_columns, width=self.width)
