"""The transformer layer both streams share: norm, rotary positions, attention, MLP, initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from armd.masks import Mask

Result = TypeVar("Result")
Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the rows' angles, see `Rotary`."""


class _RMSNorm(Function):
    """RMSNorm with its gradient by hand: on a CPU autograd would take it apart into some twenty small operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # which autocast leaves in float32
        scale = (size.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, scale, weight)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, weight = ctx.saved_tensors
        unit = x * scale
        product = grad * unit
        with torch.autocast(x.device.type, enabled=False):
            along = (product @ weight)[..., None] / -x.shape[-1]
        inward = (grad * weight).addcmul_(unit, along).mul_(scale)
        return inward.to(x.dtype), product.flatten(0, -2).sum(0), None


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the rows: under autocast they may be bfloat16 and the weight float32."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rmsnorm": lambda size: RMSNorm(size, eps=1e-6),
    "layernorm": lambda size: nn.LayerNorm(size, eps=1e-5),
}


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),  # So et al., 2021
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
        self.register_buffer("cos", angle.cos().float().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, slots: Int[Tensor, "B R"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rows' slots: (B, 1, R, head_size), the same for both halves, and half of that."""
        return self.cos[slots][:, None], self.sin[slots][:, None]


class _Rotation(Function):
    """Its gradient is the rotation back: two thirds fewer operations than autograd takes, and no halves kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        wide = x.to(torch.promote_types(x.dtype, cos.dtype))
        turned = wide * cos
        for half, sign, other in zip(turned.chunk(2, dim=-1), (-1, 1), wide.chunk(2, dim=-1)[::-1], strict=True):
            half.addcmul_(other, sin, value=sign)
        return turned.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotation.apply(grad, cos, -sin), None, None


def rotate(x: Float[Tensor, "B H R K"], rotation: Rotation) -> Float[Tensor, "B H R K"]:
    """Turn the pairs (x[i], x[i + K/2]) by the angles of their rows."""
    if not torch.compiler.is_compiling():
        return _Rotation.apply(x, *rotation)
    cos, sin = rotation  # the compiler fuses this, and its gradient, into one loop each
    near = cos[..., : sin.shape[-1]]
    left, right = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    turned = torch.cat((left * near - right * sin, right * near + left * sin), dim=-1)
    return turned.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """Scaled dot-product attention of (B, H, Q, K) queries over (B, H, T, K) keys."""
    if isinstance(mask.rendered, BlockMask):
        run = _compiled_flex_attention() if q.is_cuda else flex_attention
        return run(q, k, v, block_mask=mask.rendered)  # type: ignore[operator]
    if dropout and q.device.type == "cpu":
        return _attend_and_drop(q, k, v, mask, dropout)
    rows = q.shape[2]
    if rows == 1 and q.dtype == torch.bfloat16 and q.device.type == "cpu" and not mask.triangle:
        q = q.expand(-1, -1, 2, -1)  # torch's kernel for one such row is three times as slow as that for two
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.rendered, is_causal=mask.triangle, dropout_p=dropout)
    return out[:, :, :rows]


def drop(x: Tensor, dropout: float) -> Tensor:
    """Zeros in place of a share of the values, the others scaled up so that the mean stays.

    On a CPU, where drawing random numbers takes most of torch's dropout, 16 bits a value decide: the share is that of
    the nearest 65536th.
    """
    if not dropout:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, dropout)
    values = 2**16
    dropped = min(round(dropout * values), values - 1)
    words = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 4 + 1,), device=x.device)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - values // 2
    return x * kept.to(x.dtype).mul_(values / (values - dropped))


ROWS_AT_ONCE = 128
"""Query rows of which `_attend_and_drop` has all weights at once."""


def _attend_and_drop(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float) -> Tensor:
    """`attend` for training with dropout on a CPU; every row sees a key.

    torch has no fused kernel for this: it would compute and drop the weights of all keys, those after the row too, and
    in float32 whatever the type. A few rows at a time need keys up to their last one only.
    """
    q, k = q * q.shape[-1] ** -0.5, k.transpose(-2, -1)
    seen = []
    for start in range(0, q.shape[2], ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, q.shape[2]))
        keys = slice(0, rows.stop if mask.triangle else k.shape[3])
        scores = q[:, :, rows] @ k[..., keys]
        if mask.triangle:
            after = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(start + 1)
            scores.masked_fill_(after, -torch.inf)
        elif mask.rendered is not None:
            assert isinstance(mask.rendered, Tensor)
            scores.masked_fill_(~mask.rendered[:, :, rows], -torch.inf)
        seen.append(drop(scores.softmax(dim=-1), dropout) @ v[:, :, keys])
    return torch.cat(seen, dim=2)


def _to_autocast(x: Tensor) -> Tensor:
    """Rows in the type that autocast would give each of their projections: cast once for all."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Layer(nn.Module):
    """A pre-norm transformer layer whose queries and whose keys may come from different rows.

    Both streams of Eq. (7) run through the same layer: `keys_values` reads the rows to be seen, `queries` the rows that
    look, `project` rows that do both; `update` changes the rows that look. `self_attend`, `cross_attend` and
    `both_attend` are whole layers, called through `forward`, so that FSDP and torch.compile find one way in.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        intermediate_size: int,
        norm: str,
        qk_norm: bool,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
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

    def queries(self, rows: Float[Tensor, "B R D"], rotation: Rotation) -> Tensor:
        """Rotated queries of (B, R, D) rows: (B, heads, R, head_size)."""
        return self._queries(self.attention_norm(rows), rotation)

    def keys_values(self, rows: Float[Tensor, "B R D"], rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys and values of (B, R, D) rows, each (B, heads, R, head_size); the keys are rotated."""
        return self._keys_values(self.attention_norm(rows), rotation)

    def project(self, rows: Float[Tensor, "B R D"], rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the same rows."""
        normal = _to_autocast(self.attention_norm(rows))
        return self._queries(normal, rotation), *self._keys_values(normal, rotation)

    def forward(self, body: Callable[..., Result], *args: Any) -> Result:
        """A whole layer: `body`, such as `self_attend`, with this layer's weights."""
        return body(self, *args)

    def update(self, rows: Float[Tensor, "B R D"], q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Update (B, R, D) rows by attention of their queries over the given keys and values, then by the MLP."""
        seen = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        rows = rows + self._drop(self.attention_out(seen.transpose(1, 2).flatten(2)))
        return rows + self._drop(self.down(self.activation(self.up(self.mlp_norm(rows)))))

    def _queries(self, normal: Tensor, rotation: Rotation) -> Tensor:
        return rotate(self.query_norm(self._split(self.query(normal))), rotation)

    def _keys_values(self, normal: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        k, v = self.key_value(normal).chunk(2, dim=-1)
        return rotate(self.key_norm(self._split(k)), rotation), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)  # (B, R, D) -> (B, H, R, K)

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self.dropout) if self.training else x


Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts the keys and values of a pass into a cache; returns all that are to be seen."""


def _only_these(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


def self_attend(layer: Layer, rows: Tensor, rotation: Rotation, mask: Mask, keep: Keep = _only_these) -> Tensor:
    """Rows that look at each other."""
    q, k, v = layer.project(rows, rotation)
    return layer.update(rows, q, *keep(k, v), mask)


def cross_attend(
    layer: Layer, x: Tensor, g: Tensor, at_x: Rotation, at_g: Rotation, mask: Mask, keep: Keep = _only_these
) -> Tensor:
    """Rows g that look at rows x, when nobody will read x any more."""
    k, v = keep(*layer.keys_values(x, at_x))
    return layer.update(g, layer.queries(g, at_g), k, v, mask)


def both_attend(
    layer: Layer,
    x: Tensor,
    g: Tensor,
    at_x: Rotation,
    at_g: Rotation,
    masks: tuple[Mask, Mask],
    keep: Keep = _only_these,
) -> tuple[Tensor, Tensor]:
    """Rows x that look at each other, and rows g that look at them; a mask for each."""
    q, k, v = layer.project(x, at_x)
    k, v = keep(k, v)
    g = layer.update(g, layer.queries(g, at_g), k, v, masks[1])
    return layer.update(x, q, k, v, masks[0]), g


def initialise(model: nn.Module, layers: int, zero_init_residual: bool = False, std: float = 0.02) -> None:
    """GPT-2 initialisation: normal weights, the two projections that write to the residual stream scaled by depth.

    With `zero_init_residual` these projections start at zero, so that every layer starts as the identity.
    """
    small = 0.0 if zero_init_residual else std / math.sqrt(2 * layers)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            residual = name.endswith(("attention_out", "down"))
            nn.init.normal_(module.weight, std=small if residual else std)
