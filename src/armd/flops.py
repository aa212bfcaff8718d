"""What a model is made of and what a training step costs: parameters by part, floating-point operations term by term.

A multiply-add counts as two operations. Norms, activations, rotations and softmax are left out, as is usual (Kaplan et
al., 2020; Chowdhery et al., 2022): they are O(D) a token where the rest is O(D^2). With L layers, L2s of them with two
streams, one token of a text of N costs, forward:

    rows of G       L (query, output, MLP)            4 D^2 + 4 D F each
    rows of X       (L2s - 1) of the same             nobody reads the last X
    keys, values    L, of X up to layer L2s, then G   4 D^2 each
    attention       L + L2s - 1 triangles             2 D (N + 1) each: (N + 1) / 2 keys in the mean, two products
    G^0             by the kind of query              Eq. (6): 4 D (N + 1); kernel: 4 D W
    head            one                               2 D V

The autoregressive baseline is the same sum with L2s = 1 and no G^0: at L2s = 1 a step of ARMD costs a step of AR.
Masked diffusion (mdlm) attends to whole squares, 2 N keys for N + 1. Block diffusion (bd3lm) takes the clean copy of a
text, here X, through all L layers, keys and values too; with blocks of M a row of either copy sees (N + M) / 2 keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from armd.baselines import PrefixMaskedDiffusion
from armd.checkpoint import ARCHITECTURES
from armd.model import Armd, ArmdConfig, Transformer

LAYERS = ("rows of G", "rows of X", "keys, values", "attention of G", "attention of X")
"""The parts that lie in the layers: what activation checkpointing computes a second time."""


@dataclass(frozen=True)
class Flops:
    """Operations per token of a part, forward and backward."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def training_flops(model: ArmdConfig, length: int, architecture: str = "armd") -> dict[str, Flops]:
    """Operations per token of a training step, by part; nothing computed twice is counted twice.

    Args:
        model: shape of the network.
        length: tokens N of a text.
        architecture: one of `ARCHITECTURES`.

    Returns:
        part -> operations per token. Backward is twice forward: one product for the input, one for the weights; but of
        Eq. (6) only the embeddings have a gradient. Triangles count half of their square; a kernel that computes the
        whole square (dense masks) does up to twice the attention.
    """
    D, L, F = model.hidden_size, model.num_hidden_layers, model.intermediate_size or 4 * model.hidden_size
    kind = ARCHITECTURES[architecture]
    ours, prefixed = issubclass(kind, Armd), issubclass(kind, Armd | PrefixMaskedDiffusion)
    copies = 2 if architecture == "bd3lm" else 1
    twice = model.num_two_stream_layers - 1 if ours else (copies - 1) * L  # layers that update X as well
    seen = {"mdlm": 2 * length, "mdlm+prefix": 2 * length, "bd3lm": length + model.block_size}
    keys = seen.get(architecture, length + 1)
    rows, keys_values, attention = 4 * D * D + 4 * D * F, copies * 4 * D * D, 2 * D * keys
    forward = {
        "rows of G": L * rows,
        "rows of X": twice * rows,
        "keys, values": L * keys_values,
        "attention of G": L * attention,
        "attention of X": twice * attention,
        "head": 2 * D * model.vocab_size,
    }
    parts = {name: Flops(cost, 2 * cost) for name, cost in forward.items()}
    return {**parts, "G^0": _prefix(model, length) if prefixed else Flops(0, 0)}


def _prefix(model: ArmdConfig, length: int) -> Flops:
    product = 2 * model.hidden_size * (length + 1)  # of one row with the slots of all tokens
    if model.query in ("aggregate", "anchor+aggregate"):
        return Flops(2 * product, product)  # P P^T has no gradient, and neither have its entries
    if model.query == "kernel":
        terms = 2 * 2 * model.kernel_width * model.hidden_size
        return Flops(terms, 2 * terms)
    return Flops(0, 0)


def total(parts: Mapping[str, Flops]) -> float:
    """Operations per token of a whole training step."""
    return sum(part.total for part in parts.values())


def two_stream_ratio(model: ArmdConfig, length: int) -> float:
    """Operations of ARMD over those of the autoregressive baseline: how much slower it is where arithmetic is all."""
    return total(training_flops(model, length)) / total(training_flops(model, length, "ar"))


# ---- parameters ------------------------------------------------------------------------------------------------------


def shapes_only(model: ArmdConfig, architecture: str = "armd") -> Transformer:
    """The network without memory for its weights, on the meta device."""
    with torch.device("meta"):
        return ARCHITECTURES[architecture](model)


def parameters_by_part(model: ArmdConfig, architecture: str = "armd") -> dict[str, int]:
    """Parameters of embedding, layers, G^0, norms and head; a tied head is the embedding and counts there."""
    names = {"layers": "layers", "prefix": "G^0", "norm": "last norm"}
    names |= dict.fromkeys(("embed", "bos", "mask", "places"), "embedding")
    parts: dict[str, int] = {}
    for name, weight in shapes_only(model, architecture).named_parameters():
        part = names.get(name.partition(".")[0], "head")
        parts[part] = parts.get(part, 0) + weight.numel()
    return parts
