"""Who may see whom. A mask is a predicate on blocks, written once, rendered dense or as a FlexAttention `BlockMask`.

Rows are in generation order. Content row 0 is BOS (block 0) and content row n is the n-th generated token; prediction
row n is the slot where token n is to be written and carries that token's block. `#` = visible, two blocks of two:

        causal (M^c)                  strictly causal (M^sc)
        content row on content        prediction row on content

          BOS  1  1  2                      BOS  1  1  2
     BOS   #   .  .  .                  1    #   .  .  .
      1    #   #  #  .                  1    #   .  .  .
      1    #   #  #  .                  2    #   #  #  .
      2    #   #  #  #                  2    #   #  #  .

With one token per block both are the same lower triangle, and no mask tensor is made at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Predicate = Callable[[Tensor, Tensor], Tensor]

HIDDEN = 2**30
"""The block of a padding row: later than every real block, so no real row sees it."""


def causal(query_block: Tensor, key_block: Tensor) -> Tensor:
    """M^c: a row sees its own block and earlier ones."""
    return key_block <= query_block


def strictly_causal(query_block: Tensor, key_block: Tensor) -> Tensor:
    """M^sc: a row sees earlier blocks only."""
    return key_block < query_block


def block_diffusion(query: Tensor, key: Tensor) -> Tensor:
    """Block diffusion (Arriola et al., 2025): noised rows beside clean ones; block b is 2b if clean, 2b + 1 if noised.

    A row sees its own half of its own block, and the clean rows of earlier blocks. Two blocks of two:

                  noised         clean
                 0  0  1  1   0  0  1  1
          0      #  #  .  .   .  .  .  .
     n.   0      #  #  .  .   .  .  .  .
          1      .  .  #  #   #  #  .  .      block-diagonal, offset block-causal
          1      .  .  #  #   #  #  .  .

          0      .  .  .  .   #  #  .  .
     c.   0      .  .  .  .   #  #  .  .
          1      .  .  .  .   #  #  #  #      nothing, block-causal
          1      .  .  .  .   #  #  #  #
    """
    return (key == query) | ((key % 2 == 0) & (key < query - 1))


def before(limit: Tensor, column: Tensor) -> Tensor:
    """Decoding: a row sees the cache columns below its limit. Columns are in generation order, so limits say it all."""
    return column < limit


def dense(see: Predicate, queries: Int[Tensor, "B Q"], keys: Int[Tensor, "B K"]) -> Bool[Tensor, "B 1 Q K"]:
    """The predicate as a bool tensor that broadcasts over heads; true where the query row sees the key row."""
    return see(queries[:, None, :, None], keys[:, None, None, :])


def flex(see: Predicate, queries: Int[Tensor, "B Q"], keys: Int[Tensor, "B K"]) -> BlockMask:
    """The same predicate as a FlexAttention block mask; rows of a batch of one serve every text."""

    B, Q = queries.shape

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return see(queries[b % B, q], keys[b % B, k])

    return create_block_mask(visible, B if B > 1 else None, None, Q, keys.shape[1], device=str(queries.device))


@dataclass(frozen=True)
class Mask:
    """What one attention call gets: the plain lower triangle, everything, or a rendered predicate."""

    triangle: bool = False
    rendered: Tensor | BlockMask | None = None

    @classmethod
    def of(cls, see: Predicate, queries: Int[Tensor, "B Q"], keys: Int[Tensor, "B K"]) -> Mask:
        """A predicate rendered for a training pass: a block mask where FlexAttention pays, else dense."""
        render = flex if keys.device.type == "cuda" and keys.shape[1] >= 128 else dense
        return cls(rendered=render(see, queries, keys))


TRIANGLE = Mask(triangle=True)
EVERYTHING = Mask()


@dataclass(frozen=True)
class Visibility:
    """The three masks of a pass.

    Attributes:
        content: content rows on content rows, M^c.
        strict: prediction rows on content rows, M^sc.
        prediction: prediction rows on prediction rows, M^c (layers after the two-stream ones).
    """

    content: Mask
    strict: Mask
    prediction: Mask

    @classmethod
    def sequential(cls) -> Visibility:
        """One token per block: three plain triangles."""
        return cls(TRIANGLE, TRIANGLE, TRIANGLE)

    @classmethod
    def of_blocks(cls, content: Int[Tensor, "B C"], prediction: Int[Tensor, "B P"]) -> Visibility:
        """Masks of a training pass: the rows, with these blocks, are also the keys."""
        return cls(
            Mask.of(causal, content, content),
            Mask.of(strictly_causal, prediction, content),
            Mask.of(causal, prediction, prediction),
        )

    @classmethod
    def of_drafts(cls, starts: Int[Tensor, "B N"]) -> Visibility:
        """Checked rows q and draft rows r of the same ranks; a pass drafts the ranks of one start, knowing those below.

        Two ranks a pass, starts 0 0 2 2. A draft row stands where decoding has it: earlier ranks are checked rows.

                 content          prediction
               BOS  0  1  2      q0 q1 q2 q3  r0 r1 r2 r3
           q0   #   .  .  .      #  .  .  .   .  .  .  .
           q1   #   #  .  .      #  #  .  .   .  .  .  .
           q2   #   #  #  .      #  #  #  .   .  .  .  .
           q3   #   #  #  #      #  #  #  #   .  .  .  .
           r0   #   .  .  .      .  .  .  .   #  .  .  .
           r1   #   .  .  .      .  .  .  .   #  #  .  .
           r2   #   #  #  .      #  #  .  .   .  .  #  .
           r3   #   #  #  .      #  #  .  .   .  .  #  #
        """
        if bool((starts == starts[:1]).all()):
            starts = starts[:1]  # one mask for all texts
        ranks = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
        checked, drafted = dense(causal, ranks, ranks), dense(strictly_causal, starts, ranks)
        same_pass = dense(causal, ranks, ranks) & dense(torch.eq, starts, starts)
        none = torch.zeros_like(checked)
        return cls(
            TRIANGLE,
            Mask(rendered=dense(strictly_causal, torch.cat((ranks, starts), dim=1) + 1, ranks)),
            Mask(rendered=torch.cat((torch.cat((checked, none), -1), torch.cat((drafted, same_pass), -1)), -2)),
        )

    @classmethod
    def of_masks(cls, content: Tensor, strict: Tensor, prediction: Tensor) -> Visibility:
        """Masks of a decoding pass, dense and ready: its rows over the columns of the cache."""
        return cls(Mask(rendered=content), Mask(rendered=strict), Mask(rendered=prediction))
