"""What decoding remembers: keys and values of both streams, and the table of known tokens that G^0 reads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.masks import HIDDEN


class KeyValueStore:
    """Keys and values of some layers in memory allocated once; rows are appended, and can be cut off again.

    Attributes:
        keys, values: (layers, B, H, capacity, K).
        blocks: (B, capacity) long, the block of each row; `HIDDEN` marks padding that no real row may see.
        length: rows in use.
    """

    def __init__(self, layers: int, batch: int, heads: int, capacity: int, head_size: int, like: Tensor) -> None:
        """Room for `capacity` rows, on the device and in the dtype of `like`."""
        self.keys = like.new_zeros(layers, batch, heads, capacity, head_size)
        self.values = torch.zeros_like(self.keys)
        self.blocks = torch.full((batch, capacity), HIDDEN, device=like.device)
        self.length = 0

    def reserve(self, blocks: Int[Tensor, "B R"]) -> Int[Tensor, "B T"]:
        """Open R rows with these blocks for the pass to come; returns the blocks of all rows in use."""
        self._opened = self.length
        self.length += blocks.shape[1]
        if self.length > self.blocks.shape[1]:
            raise RuntimeError(f"the cache holds {self.blocks.shape[1]} rows, {self.length} are needed")
        self.blocks[:, self._opened : self.length] = blocks
        return self.blocks[:, : self.length]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (B, H, R, K) of the open rows; returns those of all rows in use."""
        self.keys[layer, :, :, self._opened : self.length] = k
        self.values[layer, :, :, self._opened : self.length] = v
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self.blocks[:, length : self.length] = HIDDEN
        self.length = length


class Cache:
    """The state of a batch being decoded.

    Attributes:
        content: keys and values of the content stream, layers 1..L2s.
        prediction: keys and values of the prediction stream, layers L2s+1..L.
        table: (B, slots + 1, D) embeddings of known tokens by slot; the last row takes what padding rows write.
        ranks: (B, slots + 1) long, the block at which each slot became known, `HIDDEN` before.
    """

    def __init__(self, content: KeyValueStore, prediction: KeyValueStore, slots: int, hidden_size: int) -> None:
        batch, device, dtype = len(content.blocks), content.keys.device, content.keys.dtype
        self.content, self.prediction = content, prediction
        self.table = torch.zeros(batch, slots + 1, hidden_size, device=device, dtype=dtype)
        self.ranks = torch.full((batch, slots + 1), HIDDEN, device=device)

    def learn(self, slots: Int[Tensor, "B R"], embeddings: Float[Tensor, "B R D"], blocks: Int[Tensor, "B R"]) -> None:
        """Write tokens that have become known into the table; rows of block `HIDDEN` are padding and are dropped."""
        slots = torch.where(blocks == HIDDEN, self.ranks.shape[1] - 1, slots)
        self.table.scatter_(1, slots[..., None].expand_as(embeddings), embeddings.to(self.table.dtype))
        self.ranks.scatter_(1, slots, blocks)
