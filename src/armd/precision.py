"""The numbers that decoding computes in: what a trained model is cast to before it writes.

A pass of few rows takes as long as it takes to read the weights. So they are made few bytes, and on a CPU they are laid
out once in the blocks that the matrix kernels read, instead of in every pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armd.errors import UserError
from armd.model import Transformer

DTYPES = ("auto", "float32", "bfloat16", "int8")


def cast(model: Transformer, dtype: str) -> Transformer:
    """Cast a model for decoding, in place.

    Args:
        dtype: float32, bfloat16, int8 (weights of the layers, one scale a row; the rest is bfloat16), or auto: bfloat16
            where the processor multiplies in it, float32 elsewhere.

    Returns:
        The model, for decoding and scoring only: its packed and its int8 weights are no parameters any more.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "bfloat16" if _has_bfloat16(model.device) else "float32"
    if dtype == "int8":
        for layer in model.layers:
            for name, module in list(layer.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(layer, name, Int8Linear(module))
    return pack(model.float() if dtype == "float32" else model.bfloat16())


def pack(model: Transformer) -> Transformer:
    """Lay out all matrices of a model for decoding on a CPU, in place; the numbers stay. Elsewhere: nothing to do."""
    if not _packs(model.head_weight):
        return model
    for layer in model.layers:
        for name, module in list(layer.named_children()):
            if isinstance(module, nn.Linear):
                setattr(layer, name, PackedLinear(module.weight))
    model.packed_head = PackedLinear(model.head_weight)
    return model


class PackedLinear(nn.Module):
    """A linear layer without bias whose weight is in the blocked layout of oneDNN: about twice as fast for few rows."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        # In a tuple, because `nn.Module.to` cannot move what has no strides. 8 is the number of rows it is tuned for.
        self.blocked = (torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 8),)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.blocked[0], None, "none", [], "")
        return rows


class Int8Linear(nn.Module):
    """A linear layer without bias whose weight is int8 with one scale an output: weight[o] * scale[o]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        dense = linear.weight.detach().float()
        scale = dense.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (dense / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.dtype)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            rows = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2), self.weight, scale)
            return rows.unflatten(0, x.shape[:-1])
        return F.linear(x, self.weight.to(x.dtype)) * scale


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _has_bfloat16(weight.device))


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
