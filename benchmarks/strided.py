"""What a strided order costs against left to right, by number of streams S and length N, and where the cost lies.

    python benchmarks/strided.py --model RUN --data DATA --record benchmarks/strided.json

Also one attempt to lower it: *staggered* streams. Stream s begins d steps after stream s - 1, so that its first tokens
see more of the text, at the price of (S - 1) d more passes. Everything is exact NLL of the sequential law of an order.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

import armd
from armd.data import TokenDataset

STREAMS = (2, 4, 8, 16)


def staggered(batch: int, length: int, streams: int, delay: int) -> armd.Order:
    """Token t of stream s is written at step t + s * delay; delay 0 is the strided order with its heads in step 0."""
    text = torch.arange(length)
    stream, offset = text // (length // streams), text % (length // streams)
    positions = ((offset + stream * delay) * streams + stream).argsort()
    return armd.Order(positions.expand(batch, -1), torch.arange(length).expand(batch, -1))


@torch.inference_mode()
def score(model: armd.Armd, data: TokenDataset, order: armd.Order, texts: int) -> torch.Tensor:
    """Mean NLL of every text position, (N,) nats."""
    total = torch.zeros(data.length, dtype=torch.float64)
    for start in range(0, texts, order.batch):
        total += armd.nll(model, data.eval_batch(start, order.batch), order).double().sum(dim=0)
    return total / texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32768, help="held-out tokens scored, the same for every length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    args = parser.parse_args()
    model, _ = armd.load(args.model)
    rows = []
    for length in args.lengths:
        data, texts = TokenDataset(args.data, "valid", length), args.tokens // length
        base = score(model, data, armd.Order.left_to_right(4, length), texts)
        print(f"N = {length}: left to right {base.mean():.4f} nats per token, {texts} texts")
        rows.append({"length": length, "order": "left_to_right", "nats": base.mean().item()})
        for streams in STREAMS:
            for delay in (0, 4, 16):
                if delay * (streams - 1) >= length // streams:
                    continue
                nats = score(model, data, staggered(4, length, streams, delay), texts)
                cost = (nats - base).view(streams, -1)  # (stream, place in the stream)
                places = {f"{a}-{b - 1}": cost[1:, a:b].sum().item() / length for a, b in ((0, 4), (4, 16), (16, 9999))}
                row = {"length": length, "order": f"strided:{streams}", "delay": delay, "nats": nats.mean().item(),
                       "cost": cost.mean().item(), "first_stream": cost[0].sum().item() / length,
                       "other_streams_by_place": places}  # fmt: skip
                rows.append(row)
                shown = {"stream 1": row["first_stream"], **{f"places {name}": value for name, value in places.items()}}
                parts = ", ".join(f"{name} {value:+.4f}" for name, value in shown.items())
                print(f"  S = {streams:2}, delay {delay:2}: {row['cost']:+.4f}, of which {parts}")
    record = {
        "command": f"python benchmarks/strided.py --tokens {args.tokens}",
        "unit": "held-out nats per token; costs are differences to left to right",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "rows": rows,
    }
    args.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
