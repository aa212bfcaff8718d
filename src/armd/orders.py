"""Generation orders: which token is written when, and which tokens are written together.

One draw of the masking process of a masked diffusion model, read backwards, is a permutation of the text cut into
consecutive blocks (paper, section 2). That pair is an `Order`. Nothing here knows of a network: sizes and a
`torch.Generator` in, integers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.autograd import Function

from armd.errors import UserError


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a pure function of the integers in `key`, such as (seed, step)."""
    state = np.random.SeedSequence([k & 0xFFFFFFFF for k in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@dataclass(frozen=True, eq=False)
class Order:
    """A batch of generation orders, each cut into blocks.

        text            a  b  c  d  e  f  g  h        N = 8, strided with 2 streams
        positions       0  4  1  5  2  6  3  7        text position of the n-th generated token
        blocks          0  1  2  2  3  3  4  4        its block: the two stream heads, then groups of two

    Attributes:
        positions: (B, N) long, a permutation of 0..N-1 in every row.
        blocks: (B, N) long, starts at 0, rises by 0 or 1. Tokens of one block are independent given earlier blocks.

    Raises:
        UserError: a tensor has the wrong shape, is no permutation, or has blocks out of order (checked on the CPU
            only: on an accelerator the check would stall the queue).
    """

    positions: Int[Tensor, "B N"]
    blocks: Int[Tensor, "B N"]

    def __post_init__(self) -> None:
        for name in ("positions", "blocks"):
            _check_matrix(name, getattr(self, name))
            if getattr(self, name).dtype != torch.long:
                raise UserError(f"{name} are {getattr(self, name).dtype}; they must be torch.int64")
        if self.positions.shape != self.blocks.shape or self.positions.shape[1] == 0:
            shapes = f"{tuple(self.positions.shape)} and {tuple(self.blocks.shape)}"
            raise UserError(f"positions and blocks are {shapes}; both must be (batch, length) with length >= 1")
        if self.positions.device.type != "cpu":
            return
        if not _is_permutation(self.positions):
            raise UserError("positions: every row must be a permutation of 0..N-1")
        rise = self.blocks.diff(dim=1)
        if (self.blocks[:, 0] != 0).any() or (rise < 0).any() or (rise > 1).any():
            raise UserError("blocks: every row must start at 0 and rise by 0 or 1")

    # ---- shape and views -------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    @cached_property
    def is_sequential(self) -> bool:
        """Whether every block holds one token, so that all masks are the plain causal triangle."""
        return bool((self.blocks[:, -1] == self.length - 1).all())

    @cached_property
    def is_left_to_right(self) -> bool:
        """Whether this is the order of an autoregressive model, one token a block."""
        return self.is_sequential and bool((self.positions.diff(dim=1) == 1).all())

    @cached_property
    def inverse(self) -> Int[Tensor, "B N"]:
        """(B, N): the rank in the order of each text position."""
        return torch.empty_like(self.positions).scatter_(1, self.positions, _arange_like(self.positions))

    @cached_property
    def block_starts(self) -> Int[Tensor, "B N"]:
        """(B, N): the rank of the first token of each token's block."""
        return torch.searchsorted(self.blocks.contiguous(), self.blocks.contiguous())

    @cached_property
    def block_ends(self) -> Int[Tensor, "B N"]:
        """(B, N): one past the rank of the last token of each token's block."""
        return torch.searchsorted(self.blocks.contiguous(), self.blocks.contiguous(), right=True)

    @property
    def text_blocks(self) -> Int[Tensor, "B N"]:
        """(B, N): the block of each text position."""
        return self.to_text(self.blocks)

    def to_generation(self, values: Shaped[Tensor, "B N ..."]) -> Shaped[Tensor, "B N ..."]:
        """Rearrange (B, N, ...) from text order into generation order."""
        return take_rows(values, self.positions, self.inverse)

    def to_text(self, values: Shaped[Tensor, "B N ..."]) -> Shaped[Tensor, "B N ..."]:
        """Rearrange (B, N, ...) from generation order into text order."""
        return take_rows(values, self.inverse, self.positions)

    def sequential(self) -> Order:
        """The same positions, one token per block: the law that exact decoding keeps."""
        return Order(self.positions, _arange_like(self.positions).contiguous())

    def rows(self, index: Int[Tensor, "R"]) -> Order:
        """The orders of some rows of the batch."""
        return self._part(self.positions[index], self.blocks[index])

    def to(self, device: torch.device | str) -> Order:
        if self.positions.device == torch.device(device):
            return self
        return self._part(self.positions.to(device), self.blocks.to(device))

    def _part(self, positions: Tensor, blocks: Tensor) -> Order:
        """Rows of this order, here or elsewhere: checked with it, and its facts decided with it, so that no accelerator
        has to wait for them."""
        part = object.__new__(Order)
        facts = {"is_sequential": self.is_sequential, "is_left_to_right": self.is_left_to_right}
        part.__dict__.update(positions=positions, blocks=blocks, **facts)
        return part

    @classmethod
    def concatenate(cls, orders: Sequence[Order]) -> Order:
        """Orders of the same length as one batch."""
        return cls(torch.cat([order.positions for order in orders]), torch.cat([order.blocks for order in orders]))

    # ---- constructors ----------------------------------------------------------------------------------------------

    @classmethod
    def left_to_right(cls, batch: int, length: int) -> Order:
        """The order of an autoregressive model."""
        _check_size(batch, length)
        return cls(_arange(batch, length), _arange(batch, length))

    @classmethod
    def uniform(cls, batch: int, length: int, *, generator: torch.Generator | None = None) -> Order:
        """Every permutation equally likely, one token per block."""
        _check_size(batch, length)
        return cls(torch.rand(batch, length, generator=generator).argsort(dim=1), _arange(batch, length))

    @classmethod
    def reinsert(cls, batch: int, length: int, rho: int, *, generator: torch.Generator | None = None) -> Order:
        """Take `rho` random tokens out of left-to-right order and put them back at random ranks (section 4)."""
        _check_size(batch, length)
        _check_range("rho", rho, 0, length)
        taken, ranks = (_choose(batch, length, rho, generator) for _ in range(2))
        everywhere = torch.zeros(batch, length, dtype=torch.bool)
        stays, free = ~everywhere.scatter(1, taken, True), ~everywhere.scatter(1, ranks, True)
        text = _arange(batch, length)
        positions = text.masked_scatter(free, text.masked_select(stays))  # the rest keeps its order
        return cls(positions.scatter_(1, ranks, taken), text)

    @classmethod
    def subset(cls, batch: int, length: int, rho: int, *, generator: torch.Generator | None = None) -> Order:
        """Permute `rho` random tokens among their own ranks; the rest stays (the other reading of section 4)."""
        _check_size(batch, length)
        _check_range("rho", rho, 0, length)
        chosen = _choose(batch, length, rho, generator)
        return cls(_arange(batch, length).scatter(1, chosen.sort(dim=1).values, chosen), _arange(batch, length))

    @classmethod
    def strided(cls, batch: int, length: int, streams: int, *, prompt: int = 0) -> Order:
        """Strided block-parallel order (section 5): stream heads one by one, then one token of each stream a block.

        The first `prompt` tokens are evidence, read left to right; `streams` must divide the other length - prompt.
        """
        _check_size(batch, length)
        _check_range("prompt", prompt, 0, length - 1)
        _check_range("streams", streams, 1, length - prompt)
        new = length - prompt
        if new % streams:
            raise UserError(
                f"streams={streams} does not divide the {new} new tokens; use a length of {new - new % streams} "
                f"or {new + streams - new % streams}, or another number of streams"
            )
        stream = torch.arange(-prompt, new).div(new // streams, rounding_mode="floor").clamp(min=-1)
        return cls.from_streams(stream.expand(batch, length))

    @classmethod
    def template(cls, holes: Bool[Tensor, "*B N"]) -> Order:
        """Fill holes: known tokens first, left to right; then every run of holes is a stream, as in `strided`.

        Args:
            holes: (B, N) or (N,) bool, true where a token is to be written.
        """
        holes = holes.cpu().bool().reshape(-1, holes.shape[-1])
        starts = holes & ~F.pad(holes, (1, 0))[:, :-1]
        return cls.from_streams(torch.where(holes, starts.cumsum(dim=1) - 1, -1))

    @classmethod
    def from_streams(cls, streams: Int[Tensor, "B N"]) -> Order:
        """Streams of any lengths at any places.

        Args:
            streams: (B, N) long, the stream of each text position, -1 for evidence. Evidence comes first, one token per
                block in text order: so it is read as the left-to-right model reads it. Then the stream heads one by
                one, then, block by block, the next token of every stream that still has one.
        """
        _check_matrix("streams", streams)
        B, N = streams.shape
        stream = streams.cpu()
        text = _arange(B, N)
        by_stream = stream.argsort(dim=1, stable=True)
        sorted_stream = stream.gather(1, by_stream)
        opens = torch.ones_like(stream, dtype=torch.bool)
        opens[:, 1:] = sorted_stream[:, 1:] != sorted_stream[:, :-1]
        first = torch.where(opens, text, 0).cummax(dim=1).values
        step = torch.empty_like(stream).scatter_(1, by_stream, text - first)  # a token's place in its stream
        step = torch.where(stream < 0, -1, step)
        key = (step + 1) * N * (N + 1) + (stream + 1) * N + text
        positions = key.argsort(dim=1)
        step = step.gather(1, positions)
        opens = torch.ones_like(opens)
        opens[:, 1:] = (step[:, 1:] != step[:, :-1]) | (step[:, 1:] <= 0)
        return cls(positions, opens.cumsum(dim=1) - 1)

    @classmethod
    def from_masking_times(cls, tau: Shaped[Tensor, "B N"]) -> Order:
        """One draw of the masking process: later masked is earlier generated; equal times form a block (section 1).

        Args:
            tau: (B, N) integers or reals, the time at which each token of the text was masked.
        """
        _check_matrix("tau", tau)
        if tau.isnan().any():
            raise UserError("tau holds NaN: every token needs a time at which it was masked")
        tau = tau.cpu()
        positions = tau.argsort(dim=1, descending=True, stable=True)
        sorted_tau = tau.gather(1, positions)
        opens = torch.zeros_like(positions)
        opens[:, 1:] = (sorted_tau[:, 1:] != sorted_tau[:, :-1]).long()
        return cls(positions, opens.cumsum(dim=1))

    @classmethod
    def infill(cls, batch: int, length: int, *, generator: torch.Generator | None = None) -> Order:
        """Training order for templates: one span of up to half the text, anywhere, is written last, left to right."""
        _check_size(batch, length)
        size, place = torch.rand(2, batch, 1, generator=generator)
        size = (size * max(length // 2, 1)).long() + 1
        start = (place * (length - size + 1)).long()
        text = _arange(batch, length)
        return cls.template((text >= start) & (text < start + size)).sequential()

    @classmethod
    def spans(cls, batch: int, length: int, size: int, *, generator: torch.Generator | None = None) -> Order:
        """Training order for templates: many holes of 1..size tokens, half of the text, are written last (as in T5).

        So most tokens of holes have text on both sides nearby (Raffel et al., 2020), which in one long span few have.
        """
        _check_size(batch, length)
        _check_range("size", size, 1, length)
        pieces = torch.randint(1, size + 1, (batch, length), generator=generator)
        piece = torch.searchsorted(pieces.cumsum(dim=1), _arange(batch, length).contiguous(), right=True)
        kept = torch.randint(2, (batch, 1), generator=generator)  # whether the text begins with a hole
        return cls.template((piece + kept) % 2 == 0).sequential()


# ---- small helpers ---------------------------------------------------------------------------------------------------


def _arange(batch: int, length: int) -> Tensor:
    return torch.arange(length).expand(batch, length)


def _arange_like(positions: Tensor) -> Tensor:
    return torch.arange(positions.shape[1], device=positions.device).expand_as(positions)


class _Rows(Function):
    """`take_rows`, whose gradient is a lookup too: autograd, which cannot know that, would add up row by row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _look_up(values, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        left_out = inverse.shape[1] - grad.shape[1]
        if left_out:
            grad = F.pad(grad, (*[0, 0] * (grad.ndim - 2), 0, left_out))
        return _look_up(grad, inverse), None, None


def take_rows(values: Tensor, index: Int[Tensor, "B R"], inverse: Int[Tensor, "B M"]) -> Shaped[Tensor, "B R ..."]:
    """Rows of every text, none of them twice.

    Args:
        values: (B, M, ...) rows of any kind.
        index: (B, R) the rows to take, R <= M.
        inverse: (B, M) where in `index` each row stands; R or above, each once, for those left out.

    Raises:
        UserError: the values are not (B, M, ...).
    """
    if values.shape[:2] != inverse.shape:
        raise UserError(f"values are {tuple(values.shape)}; they must start with {tuple(inverse.shape)}, as the order")
    if values.requires_grad and torch.is_grad_enabled():
        return _Rows.apply(values, index, inverse)
    return _look_up(values, index)


def _look_up(values: Tensor, index: Tensor) -> Tensor:
    starts = torch.arange(len(values), device=index.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, (index + starts).flatten()).unflatten(0, index.shape)


def _choose(batch: int, length: int, many: int, generator: torch.Generator | None) -> Int[Tensor, "B R"]:
    """`many` of 0..length-1 in every row, each set and order of them equally likely."""
    return torch.rand(batch, length, generator=generator).topk(many, dim=1, largest=False).indices


def _is_permutation(rows: Int[Tensor, "B N"]) -> bool:
    """Whether every row holds 0..N-1; five times as fast as sorting it."""
    inside = bool(((rows >= 0) & (rows < rows.shape[1])).all())
    return inside and bool(torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, rows, True).all())


def _check_matrix(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim != 2:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise UserError(f"{name} must be a tensor of shape (batch, length), not {found}")


def _check_size(batch: int, length: int) -> None:
    _check_range("batch", batch, 1, None)
    _check_range("length", length, 1, None)


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        raise UserError(f"{name}={value} must be at least {low}" + (f" and at most {high}" if high is not None else ""))
