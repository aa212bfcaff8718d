"""G^0: where the prediction stream starts (paper section 2, Eq. 6; `query` in the config).

Every choice is one function of the *set* of known tokens: a table of embeddings by slot (slot 0 is BOS, slot p + 1 is
text position p), the rank at which each became known, and the slots asked for. A target of rank r sees the slots of
rank below r. So strict causality by block holds by construction, and training (`forward`: all targets at once)
and decoding (`at`: a few targets over the table so far) are the same rule in two renderings, tested equal.

    rank of slots      0  3  1  2        a target of rank 2 (slot 3) sees slots 0 and 2
                      BOS a  b  c
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from armd.layers import Float32Buffers, RMSNorm

Table = Float[Tensor, "B M D"]
Ranks = Int[Tensor, "B M"]
Slots = Int[Tensor, "B T"]


class Prefix(Float32Buffers):
    """Base class. Subclasses give `at`; `forward` may be a faster rendering of the same rule."""

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        """G^0 of some targets.

        Args:
            table: (B, M, D) embeddings by slot; unknown slots hold zeros or anything finite, and do not count.
            ranks: (B, M) the rank (block, BOS 0) at which each slot became known; unknown slots have a huge rank.
            slots: (B, T) the slots to predict, 1..M-1.
            slot_ranks: (B, T) their ranks: a target sees the slots of smaller rank.
        """
        raise NotImplementedError

    def forward(self, table: Table, ranks: Ranks) -> Float[Tensor, "B N D"]:
        """G^0 of every text position, in text order: (B, N, D) with N = M - 1."""
        slots = torch.arange(1, table.shape[1], device=table.device).expand(table.shape[0], -1)
        return self.at(table, ranks, slots, ranks[:, 1:])


class Aggregate(Prefix):
    """Eq. (6): G^0 = RMSNorm(((P P^T) * M^sc) X), a position-aware sum of all known tokens.

    P holds sinusoidal embeddings of the true positions, so nothing grows with the context and the weight of a token
    depends on its distance alone. Unnormalised sums grow with n, hence the norm. Costs O(N^2 D) in training.
    """

    P: Tensor

    def __init__(self, hidden_size: int, positions: int) -> None:
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, hidden_size, 2, dtype=torch.float64) / hidden_size)
        angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
        # Row p of P P^T is a sum of cosines of the distances, divided by D so that a token's weight on itself is 1/2.
        self.register_buffer("P", torch.cat((angle.sin(), angle.cos()), 1).float() / hidden_size**0.5, persistent=False)
        self.norm = RMSNorm(hidden_size, eps=1e-6)

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        table, ranks = table[:, : len(self.P)], ranks[:, : len(self.P)]  # a cache has padding rows behind the slots
        P = self.P.to(torch.promote_types(table.dtype, torch.float32))
        weight = P[slots] @ P[: table.shape[1]].T  # (B, T, M)
        seen = ranks[:, None, :] < slot_ranks[:, :, None]
        total = (weight * seen).to(table.dtype) @ table  # bf16 under autocast
        return self.norm(total.to(table.dtype))


IN_CACHE = 2**17
"""Numbers of a table that `_LocalSum` passes over at once: several tensors of this size fit the caches of two cores."""


class _LocalSum(Function):
    """sum over 0 < |d| <= W of k[d] * x[p - d] where seen, for all targets, and its gradient: a pass an offset.

    Autograd of the same loop would keep 4W tensors of the size of the table and run three times as long. On a CPU,
    distances at which nobody sees anything, as all to the right in left-to-right order, are left out.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, seen: Tensor, kernel: Tensor, W: int) -> Tensor:
        ctx.save_for_backward(table, seen, kernel)
        ctx.width = W
        ctx.taps = [tap for tap in _taps(W) if seen.is_cuda or seen[:, :, tap[1]].any()]
        total = torch.zeros_like(table[:, 1:])
        for x, own, out in _few_texts(F.pad(table, (0, 0, W, W)), seen, total):
            near = torch.empty_like(out)
            for row, i in ctx.taps:
                out.addcmul_(torch.mul(_at(x, i, out), own[:, :, i, None], out=near), kernel[row])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (table, seen, kernel), W = ctx.saved_tensors, ctx.width
        table = F.pad(table, (0, 0, W, W))
        to_x, to_kernel = torch.zeros_like(table), torch.zeros_like(kernel)
        for x, own, g, to in _few_texts(table, seen, grad, to_x):
            through, product, ones = torch.empty_like(g), torch.empty_like(g), g.new_ones(g[..., 0].numel())
            for row, i in ctx.taps:
                torch.mul(g, own[:, :, i, None], out=through)
                _at(to, i, g).addcmul_(through, kernel[row])
                torch.mul(through, _at(x, i, g), out=product)
                to_kernel[row].addmv_(product.flatten(0, 1).T, ones)  # their sum over all targets
        return to_x[:, W:-W], None, to_kernel, None


def _few_texts(table: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few texts after the other: on a CPU as many as stay in its caches while they are passed over."""
    texts = max(IN_CACHE // table[0].numel(), 1) if table.device.type == "cpu" else len(table)
    return zip(*(tensor.split(texts) for tensor in (table, *more)), strict=True)


def _taps(W: int) -> Iterator[tuple[int, int]]:
    """Rows of the kernel, distance d from -W to W, with the place W - d of the neighbour in a window of 2W + 1."""
    return enumerate([*range(2 * W, W, -1), *range(W - 1, -1, -1)])


def _at(padded: Tensor, place: int, targets: Tensor) -> Tensor:
    """The neighbours of all targets at one place of their windows."""
    return padded[:, place + 1 : place + 1 + targets.shape[1]]


class Kernel(Prefix):
    """Eq. (6) with a learned local kernel: G^0[p] = RMSNorm(sum over 0 < |d| <= W of k[d] * x[p - d]), channel-wise.

    Only known neighbours count. 2 W D parameters whatever the context; O(N W D). The kernel starts as sharp delays: a
    quarter of the channels reads the left neighbour, a quarter the token before it (W > 1). The others start empty:
    with all channels filled, random orders were learned much later (docs/log.md).
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.offsets = [d for d in range(-width, width + 1) if d]  # d > 0 reads to the left of the target
        quarter = torch.arange(hidden_size) * 4 // hidden_size + 1
        starts = [(quarter == d) & (d <= 2) for d in self.offsets]
        self.kernel = nn.Parameter(torch.stack(starts).float())  # (2W, D)
        self.norm = RMSNorm(hidden_size, eps=1e-6)

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        offsets = torch.tensor(self.offsets, device=slots.device)
        near = slots[:, :, None] - offsets  # (B, T, 2W)
        inside = (near >= 0) & (near < table.shape[1])
        near = torch.where(inside, near, 0)
        rows = torch.arange(len(slots), device=slots.device)[:, None, None]
        seen = inside & (ranks[rows, near] < slot_ranks[:, :, None])
        neighbours = torch.where(seen[..., None], table[rows, near], 0)  # (B, T, 2W, D)
        return self.norm((neighbours * self.kernel.to(table.dtype)).sum(dim=2))

    def forward(self, table: Table, ranks: Ranks) -> Float[Tensor, "B N D"]:
        W = self.width
        windows = F.pad(ranks, (W, W), value=torch.iinfo(ranks.dtype).max).unfold(1, 2 * W + 1, 1)[:, 1:]
        seen = (windows < ranks[:, 1:, None]).to(table.dtype)  # (B, N, 2W + 1), from left to right
        kernel = self.kernel.to(table.dtype)
        if torch.compiler.is_compiling():  # which fuses the loop, and its gradient
            x = F.pad(table, (0, 0, W, W))
            total: Tensor = sum(_at(x, i, seen) * seen[:, :, i, None] * kernel[row] for row, i in _taps(W))  # type: ignore[assignment]
            return self.norm(total)
        return self.norm(_LocalSum.apply(table, seen, kernel, W))


class Shift(Prefix):
    """G^0 is the embedding of the token generated just before: the bridge to AR models, and a baseline.

    In left-to-right order the network is then an ordinary transformer. It depends on the order of the evidence, so it
    is not permutation-equivariant. Of an earlier block of several tokens the rightmost counts as the last.
    """

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        M = table.shape[1]
        by_rank = (ranks * M + torch.arange(M, device=ranks.device)).argsort(dim=1)
        seen = torch.searchsorted(ranks.gather(1, by_rank), slot_ranks.contiguous())  # how many slots are of lower rank
        return _take(table, by_rank.gather(1, seen - 1))


class Anchor(Prefix):
    """G^0 is the nearest known token to the left (BOS if none) plus an embedding of the gap between them.

    A function of the set of known tokens, and in left-to-right order, where the gap is always 1 and has no embedding,
    the network equals an autoregressive transformer with the same weights. Costs O(N^2) integers in training.
    """

    def __init__(self, hidden_size: int, gaps: int = 64) -> None:
        super().__init__()
        self.gap = nn.Parameter(torch.zeros(gaps, hidden_size))  # row 0 is gap 2; all longer gaps share the last row

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        every = torch.arange(table.shape[1], device=slots.device)
        left = (every < slots[:, :, None]) & (ranks[:, None, :] < slot_ranks[:, :, None])
        nearest = torch.where(left, every, 0).amax(dim=2)
        gap = (slots - nearest).clamp(max=len(self.gap) + 1)
        extra = torch.where((gap > 1)[..., None], self.gap[(gap - 2).clamp(min=0)], 0.0)
        return _take(table, nearest) + extra.to(table.dtype)


class AnchorAggregate(Prefix):
    """anchor + gate * aggregate; the gate starts at zero, so training starts from `anchor`."""

    def __init__(self, hidden_size: int, positions: int) -> None:
        super().__init__()
        self.anchor = Anchor(hidden_size)
        self.aggregate = Aggregate(hidden_size, positions)
        self.gate = nn.Parameter(torch.zeros(hidden_size))

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        aggregate = self.aggregate.at(table, ranks, slots, slot_ranks)
        return self.anchor.at(table, ranks, slots, slot_ranks) + self.gate.to(table.dtype) * aggregate


class Position(Prefix):
    """G^0 is an embedding of the target's own position, whatever is known: for texts of one shape, such as boards.

    Attention sees tokens by their distance alone; with this it learns where rows and boxes of a board begin.
    """

    def __init__(self, hidden_size: int, positions: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(positions, hidden_size) * 0.02)

    def at(self, table: Table, ranks: Ranks, slots: Slots, slot_ranks: Slots) -> Float[Tensor, "B T D"]:
        return self.place[slots].to(table.dtype)


# The plug-in point: name -> (hidden size, number of slots, kernel width) -> module. `Aggregate` gets a row of P more,
# because the table of a cache ends in a row for padding, which no target ever sees.
PREFIXES: dict[str, Callable[[int, int, int], Prefix]] = {
    "aggregate": lambda size, slots, width: Aggregate(size, slots),
    "kernel": lambda size, slots, width: Kernel(size, width),
    "shift": lambda size, slots, width: Shift(),
    "anchor": lambda size, slots, width: Anchor(size),
    "anchor+aggregate": lambda size, slots, width: AnchorAggregate(size, slots),
    "position": lambda size, slots, width: Position(size, slots),
}


def _take(table: Tensor, slots: Tensor) -> Tensor:
    return table.gather(1, slots[..., None].expand(-1, -1, table.shape[2]))
