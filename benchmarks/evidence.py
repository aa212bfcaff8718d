"""How evidence is read: one token a block in text order, or all of it as one block. NLL of the tokens in the hole.

python benchmarks/evidence.py --model RUN --data DATA
"""

from __future__ import annotations

import argparse

import torch

import armd
from armd.data import TokenDataset
from armd.orders import generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--texts", type=int, default=128)
    args = parser.parse_args()
    model, _ = armd.load(args.model)
    data = TokenDataset(args.data, "valid", model.config.max_position_embeddings)
    total = {"one token a block, text order": 0.0, "one block": 0.0}
    count = 0
    for start in range(0, min(args.texts, data.eval_windows()) - 15, 16):
        tokens = data.eval_batch(start, 16)
        order = armd.Order.infill(*tokens.shape, generator=generator(0, start))
        # The hole is the run of ranks after the last fall in position; evidence is what comes before it.
        falls = (order.positions.diff(dim=1) < 0).long()
        first = torch.where(falls.any(1), falls.argmax(1) + 1, order.length)[:, None]
        rank = torch.arange(order.length)
        one_block = armd.Order(order.positions, torch.where(rank < first, 0, rank - first + 1))
        hole = order.to_text((rank >= first).long()).bool()
        count += int(hole.sum())
        with torch.inference_mode():
            for name, each in zip(total, (order, one_block), strict=True):
                total[name] += armd.nll(model, tokens, each)[hole].double().sum().item()
    for name, nats in total.items():
        print(f"{name:32} {nats / count:.4f} nats per token in {count} tokens of holes")


if __name__ == "__main__":
    main()
