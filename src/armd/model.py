"""ARMD: a strictly causal, permutation-equivariant two-stream transformer (paper, sections 2 and 3).

                 tokens ──► table of embeddings by slot (BOS first)
                              │                        │
                content X^0 = rows in order     prediction G^0 = prefix(table)
                              │                        │
      layers 1..L2s     X sees X (M^c)  ──k,v──►  G sees X (M^sc)         same weights, Eq. (7)
      layers L2s+1..L                             G sees G (M^c)
                                                       │
                                                  norm, head ──► logits of every token given earlier blocks

Slot 0 is BOS, slot p + 1 is text position p. Rows are rotated by their slot, but a prediction row by the slot before
the one it predicts: in left-to-right order that is exactly where an autoregressive transformer stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armd.cache import Cache, KeyValueStore, Places
from armd.errors import UserError
from armd.fields import check_types
from armd.layers import (
    ACTIVATIONS,
    NORMS,
    Layer,
    Result,
    Rotary,
    both_attend,
    cross_attend,
    drop,
    initialise,
    self_attend,
)
from armd.masks import Visibility, causal, dense, strictly_causal
from armd.orders import Order, take_rows
from armd.prefix import PREFIXES

# Far above any real network: a size of a damaged file is refused before anything of that size is made.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**10,
    "intermediate_size": 2**18,
    "max_position_embeddings": 2**20,
    "kernel_width": 2**12,
    "block_size": 2**20,
}


@dataclass(frozen=True)
class ArmdConfig:
    """Shape of the network. Every field is checked; a bad one is a ValueError naming field, value and range."""

    vocab_size: int
    """Number of tokens (the end-of-text token included, BOS not: it is a vector of its own)."""
    hidden_size: int = 256
    """Width D of a row."""
    num_hidden_layers: int = 6
    """Number of layers L."""
    num_two_stream_layers: int = 1
    """Number of layers with two streams, L2s: 1..L. The paper uses L/2."""
    num_attention_heads: int = 4
    """Attention heads; must divide hidden_size into an even head size."""
    intermediate_size: int = 0
    """Width of the MLP; 0 means 4 x hidden_size."""
    max_position_embeddings: int = 256
    """Longest text, in tokens."""
    query: str = "kernel"
    """Where G^0 comes from: aggregate (the paper, Eq. 6), kernel, shift, anchor, anchor+aggregate, position."""
    kernel_width: int = 8
    """Reach W of the kernel, in tokens to each side."""
    block_size: int = 16
    """Tokens in a block of block diffusion (architecture bd3lm); the others do without."""
    norm: str = "rmsnorm"
    """rmsnorm or layernorm."""
    qk_norm: bool = False
    """Normalise queries and keys per head."""
    activation: str = "gelu"
    """Of the MLP: gelu or relu2 (the square of relu)."""
    zero_init_residual: bool = False
    """Start the projections that write to the residual stream at zero."""
    dropout: float = 0.0
    """Dropout rate of embeddings, attention and residual branches. Above 0, blocks train with dense masks."""
    tie_word_embeddings: bool = True
    """Share the output head with the token embedding."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    learned_positions: bool = False
    """Add an embedding of its slot to every token: for texts of one shape, whose places have meanings of their own."""
    eos_token_id: int | None = None
    """End-of-text token, at which generation stops; none: it never stops early."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, most in LARGEST.items():
            least = 0 if name == "intermediate_size" else 1
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least} and at most {most}")
        if not 1 <= self.num_two_stream_layers <= self.num_hidden_layers:
            raise UserError(
                f"num_two_stream_layers={self.num_two_stream_layers} must be between 1 and "
                f"num_hidden_layers={self.num_hidden_layers}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size} "
                "into heads of even size"
            )
        if self.query not in PREFIXES:
            raise UserError(f"query={self.query!r} is unknown; choose one of {', '.join(PREFIXES)}")
        if self.norm not in NORMS:
            raise UserError(f"norm={self.norm!r} is unknown; choose one of {', '.join(NORMS)}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation={self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.rope_theta <= 0:
            raise UserError(f"rope_theta={self.rope_theta} must be above 0")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise UserError(f"eos_token_id={self.eos_token_id} must be a token below vocab_size={self.vocab_size}")


class Transformer(nn.Module):
    """What ARMD and its baselines share: embedding, layers, final norm, head, and the call signature."""

    any_order = True
    """Whether the model knows other orders than left to right."""

    def __init__(self, config: ArmdConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = self.compiled = False
        c = config
        self.embed = nn.Embedding(c.vocab_size, c.hidden_size)
        self.bos = nn.Parameter(torch.randn(c.hidden_size) * 0.02)
        slots = c.max_position_embeddings + 1
        self.places = nn.Parameter(torch.randn(slots, c.hidden_size) * 0.02) if c.learned_positions else None
        self.rotary = Rotary(c.hidden_size // c.num_attention_heads, c.max_position_embeddings + 1, c.rope_theta)
        width = c.intermediate_size or 4 * c.hidden_size
        shape = c.hidden_size, c.num_attention_heads, width, c.norm, c.qk_norm, c.dropout, c.activation
        self.layers: Sequence[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(*shape) for _ in range(c.num_hidden_layers)
        )
        self.norm = NORMS[c.norm](c.hidden_size)
        self.untied_head = None if c.tie_word_embeddings else nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.packed_head: nn.Module | None = None  # a faster copy for decoding, made by `precision.cast`
        initialise(self, c.num_hidden_layers, c.zero_init_residual)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output head: (V, D)."""
        return self.embed.weight if self.untied_head is None else self.untied_head.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def content_layers(self) -> int:
        """Layers, from the first on, whose keys and values come from content rows."""
        raise NotImplementedError

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the context dropout is off; afterwards the model is in the mode it was in."""
        if not self.training:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        """The last hidden row of every token, in generation order."""
        raise NotImplementedError

    def forward(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N V"]:
        """Logits of every token given the tokens of earlier blocks.

        Args:
            tokens: (B, N) long in text order.
            order: the generation order and blocks.

        Returns:
            (B, N, V) in text order; row n depends only on tokens of blocks before n's.
        """
        self.check(tokens, order)
        return self.head(order.to(tokens.device).to_text(self.hidden(tokens, order)))

    def head(self, rows: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Logits of hidden rows."""
        return F.linear(rows, self.head_weight) if self.packed_head is None else self.packed_head(rows)

    def check(self, tokens: Tensor, order: Order) -> None:
        if tokens.shape != order.positions.shape:
            raise UserError(f"tokens are {tuple(tokens.shape)} but the order is {tuple(order.positions.shape)}")
        if tokens.shape[1] > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise UserError(f"{tokens.shape[1]} tokens exceed max_position_embeddings={limit}")

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for texts of at most `length` tokens."""
        c = self.config
        shape = batch, c.num_attention_heads, length + 1, c.hidden_size // c.num_attention_heads
        content = KeyValueStore(self.content_layers, *shape, self.bos)
        prediction = KeyValueStore(c.num_hidden_layers - self.content_layers, *shape, self.bos)
        return Cache(content, prediction, length + 1, c.hidden_size)

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
        """One decoding pass: take in tokens, predict slots.

        Args:
            cache: what earlier passes left; the new rows are written to their columns.
            tokens, slots, columns: (B, C) known or drafted tokens, their slots (position + 1; slot 0 is BOS, whatever
                its token) and their content columns (BOS 0, rank r at r + 1); column `cache.spare` takes padding.
            target_slots, target_columns: (B, T) what to predict, and its prediction columns (rank r at r).
            limits: (B, T) content columns a target may see, counted from BOS: those below its limit.
            see: the same limits, and those of the other two masks, rendered over all columns of the cache in use.

        Returns:
            (B, T, D) hidden rows of the targets, ready for the head.
        """
        raise NotImplementedError

    def compile_layers(self) -> None:
        """Compile layers and prefix; layers of one kind share a compilation. Parameters keep their names."""
        self.compiled = True
        # Kinds of layer x with and without gradient x masks x a smaller last batch: torch would give up after 8.
        torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 64)
        # On a CPU dropout costs the compiler's own random numbers more time than torch's.
        slow_random = self.device.type == "cpu"
        for layer in self.layers:
            layer.forward = torch.compile(layer.forward, options={"fallback_random": slow_random})  # type: ignore[method-assign]

    def run_layer(self, layer: Layer, body: Callable[..., Result], *args: Any) -> Result:
        """Call a layer; with `checkpoint_activations` set, only its inputs are kept for the gradient."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(layer, body, *args, use_reentrant=False)
        return layer(body, *args)

    def _at_slots(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Embedded tokens with what the network has learned about their slots."""
        return rows if self.places is None else rows + self.places[slots]

    def _with_bos(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B M D"]:
        bos = self.bos.expand(len(tokens), 1, -1)
        table = torch.cat((bos, self.embed(tokens)), dim=1)  # (B, N, D) -> (B, N + 1, D)
        table = self._at_slots(table, torch.arange(table.shape[1], device=tokens.device))
        return drop(table, self.config.dropout) if self.training else table


class Armd(Transformer):
    """The two-stream model. `forward` scores whole texts; `advance` continues a cache during decoding."""

    def __init__(self, config: ArmdConfig) -> None:
        super().__init__(config)
        self.prefix = PREFIXES[config.query](
            config.hidden_size, config.max_position_embeddings + 1, config.kernel_width
        )

    @property
    def content_layers(self) -> int:
        return self.config.num_two_stream_layers

    def compile_layers(self) -> None:
        super().compile_layers()
        self.prefix.compile()

    # ---- training and scoring: all blocks in one pass --------------------------------------------------------------

    def hidden(self, tokens: Int[Tensor, "B N"], order: Order) -> Float[Tensor, "B N D"]:
        """G^L of every token, in generation order: Eq. (7) for all blocks at once."""
        order = order.to(tokens.device)
        table = self._with_bos(tokens)
        x, slots = self._content(table, order)
        blocks = F.pad(order.blocks + 1, (1, 0))  # generation order, BOS is block 0: (B, N + 1)
        see = self._visibility(order, blocks[:, :-1], blocks[:, 1:])
        return self._two_streams(x, self._queries(table, order), slots[:, :-1], slots[:, 1:], see, None)

    def draft_rows(self, tokens: Int[Tensor, "B N"], order: Order) -> tuple[Tensor, Tensor]:
        """The rows of exact decoding on a known text, in one pass: checked rows, and rows as they are first drafted.

        Args:
            tokens: (B, N) long in text order.
            order: its blocks say which ranks are guessed by one pass, all earlier ranks being right.

        Returns:
            (B, N, D) each, in generation order: `hidden` of `order.sequential()`, and the rows of the drafts.
        """
        order = order.to(tokens.device)
        table = self._with_bos(tokens)
        x, slots = self._content(table, order)
        g = torch.cat((self._queries(table, order.sequential()), self._queries(table, order)), dim=1)
        see = Visibility.of_drafts(order.block_starts)
        hidden = self._two_streams(x, g, slots[:, :-1], slots[:, 1:].repeat(1, 2), see, None)
        checked, drafted = hidden.chunk(2, dim=1)
        return checked, drafted

    def _content(self, table: Tensor, order: Order) -> tuple[Tensor, Tensor]:
        """X^0 in generation order, BOS first and without the last token, which is evidence for none: (B, N, D).

        And the slots of all N + 1 tokens.
        """
        slots, columns = (F.pad(places + 1, (1, 0)) for places in (order.positions, order.inverse))
        return take_rows(table, slots[:, :-1], columns), slots

    def _queries(self, table: Tensor, order: Order) -> Tensor:
        """G^0 in generation order, (B, N, D)."""
        return order.to_generation(self.prefix(table, F.pad(order.text_blocks + 1, (1, 0))))

    def _visibility(self, order: Order, content: Tensor, prediction: Tensor) -> Visibility:
        if order.is_sequential:
            return Visibility.sequential()
        if self.training and self.config.dropout:  # FlexAttention cannot drop attention weights, dense masks can
            masks = (causal, content, content), (strictly_causal, prediction, content), (causal, prediction, prediction)
            return Visibility.of_masks(*(dense(*mask) for mask in masks))
        return Visibility.of_blocks(content, prediction)

    # ---- decoding: a few rows on top of the caches -----------------------------------------------------------------

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
        """One decoding pass: content rows for the tokens, prediction rows for the targets."""
        x = self._at_slots(torch.where((slots == 0)[..., None], self.bos, self.embed(tokens)), slots)
        cache.learn(slots, x, columns)
        g = self.prefix.at(cache.table, cache.ranks, target_slots, limits)
        places = Places.of(cache, columns, target_columns, see)
        return self._two_streams(x, g, slots, target_slots, see, places)

    # ---- Eq. (7) ---------------------------------------------------------------------------------------------------

    def _two_streams(
        self, x: Tensor, g: Tensor, slots: Tensor, target_slots: Tensor, see: Visibility, places: Places | None
    ) -> Tensor:
        at_x, at_g = self.rotary(slots), self.rotary(target_slots - 1)
        last = self.config.num_two_stream_layers - 1
        for i, layer in enumerate(self.layers):
            if i > last:
                keep = [places.prediction(i - last - 1)] if places else []
                g = self.run_layer(layer, self_attend, g, at_g, see.prediction, *keep)
                continue
            keep = [places.content(i)] if places else []
            if i == last:  # nobody reads the last X
                g = self.run_layer(layer, cross_attend, x, g, at_x, at_g, see.strict, *keep)
            else:
                x, g = self.run_layer(layer, both_attend, x, g, at_x, at_g, (see.content, see.strict), *keep)
        return self.norm(g)
