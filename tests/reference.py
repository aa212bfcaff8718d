"""The specification: ARMD with loops, in float64, without masks, caches or batches. Slow, and meant to be read.

Section and equation numbers are the paper's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from armd.model import Armd

Row = tuple[Tensor, int, int]  # embedding, slot, block


def log_probs(model: Armd, tokens: list[int], positions: list[int], blocks: list[int]) -> Tensor:
    """(N, V): log p(. | earlier blocks) at every text position, for one text and one order."""
    w = {name: value.double() for name, value in model.state_dict().items()}
    head = w.get("untied_head.weight", w["embed.weight"])
    known = [(w["bos"], 0, 0)]  # BOS: slot 0, block 0; text position p: slot p + 1
    known += [(w["embed.weight"][tokens[p]], p + 1, b + 1) for p, b in zip(positions, blocks, strict=True)]
    if model.config.learned_positions:
        known = [(x + w["places"][slot], slot, block) for x, slot, block in known]
    targets = [(p + 1, b + 1) for p, b in zip(positions, blocks, strict=True)]

    content = [row[0] for row in known]
    prediction = [query(model, w, known, slot, block) for slot, block in targets]
    two_stream = model.config.num_two_stream_layers
    for i in range(model.config.num_hidden_layers):
        layer = Layer(model, w, f"layers.{i}.")
        if i < two_stream:  # Eq. (7): both streams look at content
            rows = [(x, slot, block) for x, (_, slot, block) in zip(content, known, strict=True)]
            prediction = [
                layer(g, slot - 1, [r for r in rows if r[2] < block])  # strictly causal
                for g, (slot, block) in zip(prediction, targets, strict=True)
            ]
            content = [layer(x, slot, [r for r in rows if r[2] <= block]) for x, slot, block in rows]  # causal
        else:  # prediction looks at prediction; a row stands at the slot before the one it predicts
            rows = [(g, slot - 1, block) for g, (slot, block) in zip(prediction, targets, strict=True)]
            prediction = [layer(g, slot, [r for r in rows if r[2] <= block]) for g, slot, block in rows]

    result = torch.empty(len(tokens), model.config.vocab_size, dtype=torch.float64)
    for g, p in zip(prediction, positions, strict=True):
        result[p] = (head @ norm(model, w, "norm", g)).log_softmax(0)
    return result


class Layer:
    """One pre-norm layer: a row at a slot looks at some rows at their slots."""

    def __init__(self, model: Armd, w: dict[str, Tensor], name: str) -> None:
        self.model, self.w, self.name = model, w, name
        self.heads = model.config.num_attention_heads

    def __call__(self, row: Tensor, slot: int, seen: list[Row]) -> Tensor:
        q = self.split(self.w[self.name + "query.weight"] @ self.norm("attention_norm", row), slot, "query_norm")
        k, v = [], []
        for other, at, _ in seen:
            pair = self.w[self.name + "key_value.weight"] @ self.norm("attention_norm", other)
            k.append(self.split(pair[: len(row)], at, "key_norm"))
            v.append(pair[len(row) :].reshape(self.heads, -1))
        keys, values = torch.stack(k), torch.stack(v)  # (T, H, K)
        weight = (torch.einsum("hk,thk->ht", q, keys) / math.sqrt(q.shape[1])).softmax(1)
        row = row + self.w[self.name + "attention_out.weight"] @ torch.einsum("ht,thk->hk", weight, values).flatten()
        inner = self.w[self.name + "up.weight"] @ self.norm("mlp_norm", row)
        gelu, relu2 = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), inner.clamp(min=0) ** 2
        return row + self.w[self.name + "down.weight"] @ (relu2 if self.model.config.activation == "relu2" else gelu)

    def norm(self, name: str, row: Tensor) -> Tensor:
        return norm(self.model, self.w, self.name + name, row)

    def split(self, row: Tensor, slot: int, head_norm: str) -> Tensor:
        """Heads, normalised if the config says so, rotated by the slot (RoPE)."""
        x = row.reshape(self.heads, -1)
        if self.model.config.qk_norm:
            x = torch.stack([self.norm(head_norm, head) for head in x])
        half = x.shape[1] // 2
        angle = slot * self.model.config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((x[:, :half] * cos - x[:, half:] * sin, x[:, half:] * cos + x[:, :half] * sin), 1)


def norm(model: Armd, w: dict[str, Tensor], name: str, row: Tensor) -> Tensor:
    if model.config.norm == "rmsnorm":
        return row / (row.square().mean() + 1e-6).sqrt() * w[name + ".weight"]
    centred = row - row.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def rms(row: Tensor, weight: Tensor) -> Tensor:
    return row / (row.square().mean() + 1e-6).sqrt() * weight


def query(model: Armd, w: dict[str, Tensor], known: list[Row], slot: int, block: int) -> Tensor:
    """G^0 of a target from the set of known tokens."""
    seen = [(x, s, b) for x, s, b in known if b < block]
    return QUERIES[model.config.query](model, w, seen, slot, "prefix.")


def aggregate(model: Armd, w: dict[str, Tensor], seen: list[Row], slot: int, name: str) -> Tensor:
    """Eq. (6): sum of P_n . P_i x_i; P_n . P_i of sinusoids is a sum of cosines of the distance."""
    D = model.config.hidden_size
    frequency = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    total = sum(((slot - s) * frequency).cos().sum() / D * x for x, s, _ in seen)
    return rms(total, w[name + "norm.weight"])


def kernel(model: Armd, w: dict[str, Tensor], seen: list[Row], slot: int, name: str) -> Tensor:
    W = model.config.kernel_width
    offsets = [d for d in range(-W, W + 1) if d]
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for x, s, _ in seen:
        if slot - s in offsets:
            total = total + w[name + "kernel"][offsets.index(slot - s)] * x
    return rms(total, w[name + "norm.weight"])


def shift(model: Armd, w: dict[str, Tensor], seen: list[Row], slot: int, name: str) -> Tensor:
    return max(seen, key=lambda row: (row[2], row[1]))[0]


def anchor(model: Armd, w: dict[str, Tensor], seen: list[Row], slot: int, name: str) -> Tensor:
    x, nearest, _ = max((row for row in seen if row[1] < slot), key=lambda row: row[1])
    gap, table = slot - nearest, w[name + "gap"]
    return x if gap == 1 else x + table[min(gap - 2, len(table) - 1)]


def anchor_aggregate(model: Armd, w: dict[str, Tensor], seen: list[Row], slot: int, name: str) -> Tensor:
    both = (anchor(model, w, seen, slot, name + "anchor."), aggregate(model, w, seen, slot, name + "aggregate."))
    return both[0] + w[name + "gate"] * both[1]


def position(model: Armd, w: dict[str, Tensor], seen: list[Row], slot: int, name: str) -> Tensor:
    return w[name + "place"][slot]


QUERIES = {
    "aggregate": aggregate,
    "kernel": kernel,
    "shift": shift,
    "anchor": anchor,
    "anchor+aggregate": anchor_aggregate,
    "position": position,
}
