"""The transformer layer both streams share: norm, rotary positions, attention, MLP, initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from armd.masks import Mask


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the rows: under autocast they may be bfloat16 and the weight float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rmsnorm": lambda size: RMSNorm(size, eps=1e-6),
    "layernorm": lambda size: nn.LayerNorm(size, eps=1e-5),
}


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention)  # here, because loading the compiler takes seconds that only a GPU run needs


class Float32Buffers(nn.Module):
    """A module whose own buffers stay float32 when the model is cast: angles need more than the 8 bits of bfloat16."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, table in kept.items():
            moved = self._buffers[name]
            if table is not None and moved is not None and moved.dtype != table.dtype:
                self._buffers[name] = table.to(moved.device)
        return self


class Rotary(Float32Buffers):
    """Rotary position embedding (Su et al., 2021) with positions given as data, so that rows may come in any order."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, positions: int, theta: float) -> None:
        super().__init__()
        frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, slots: Int[Tensor, "B R"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rows' slots, each (B, 1, R, head_size / 2)."""
        return self.cos[slots][:, None], self.sin[slots][:, None]


def rotate(x: Float[Tensor, "B H R K"], rotation: tuple[Tensor, Tensor]) -> Float[Tensor, "B H R K"]:
    cos, sin = rotation
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """Scaled dot-product attention of (B, H, Q, K) queries over (B, H, T, K) keys."""
    if isinstance(mask.rendered, BlockMask):
        run = _compiled_flex_attention() if q.is_cuda else flex_attention
        return run(q, k, v, block_mask=mask.rendered)  # type: ignore[operator]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.rendered, is_causal=mask.triangle, dropout_p=dropout)


class Layer(nn.Module):
    """A pre-norm transformer layer whose queries and whose keys may come from different rows.

    Both streams of Eq. (7) run through the same layer: `keys_values` reads the rows to be seen, `forward` updates the
    rows that look.
    """

    def __init__(
        self, hidden_size: int, heads: int, intermediate_size: int, norm: str, qk_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.dropout = heads, hidden_size // heads, dropout
        self.attention_norm = NORMS[norm](hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.attention_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.query_norm = NORMS[norm](self.head_size) if qk_norm else nn.Identity()
        self.key_norm = NORMS[norm](self.head_size) if qk_norm else nn.Identity()
        self.mlp_norm = NORMS[norm](hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def keys_values(self, rows: Float[Tensor, "B R D"], rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values of (B, R, D) rows, each (B, heads, R, head_size); the keys are rotated."""
        k, v = self.key_value(self.attention_norm(rows)).chunk(2, dim=-1)
        return rotate(self.key_norm(self._split(k)), rotation), self._split(v)

    def forward(
        self, rows: Float[Tensor, "B R D"], rotation: tuple[Tensor, Tensor], k: Tensor, v: Tensor, mask: Mask
    ) -> Float[Tensor, "B R D"]:
        """Update (B, R, D) rows by attention over the given keys and values, then by the MLP."""
        q = rotate(self.query_norm(self._split(self.query(self.attention_norm(rows)))), rotation)
        seen = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        rows = rows + self._drop(self.attention_out(seen.transpose(1, 2).flatten(2)))
        return rows + self._drop(self.down(F.gelu(self.up(self.mlp_norm(rows)))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)  # (B, R, D) -> (B, H, R, K)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def initialise(model: nn.Module, layers: int, std: float = 0.02) -> None:
    """GPT-2 initialisation: normal weights, the two projections that write to the residual stream scaled by depth."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            residual = name.endswith(("attention_out", "down"))
            nn.init.normal_(module.weight, std=std / math.sqrt(2 * layers) if residual else std)
