"""Exact decoding of a trained model: tokens a pass, texts against one token at a time, and what cheaper numbers cost.

python benchmarks/exact.py --model RUN --data DATA --record benchmarks/exact.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import armd
from armd.bench.timing import machine
from armd.data import TokenDataset


def decode(model: armd.Armd, streams: int, mode: str, texts: int, **options: object) -> tuple[armd.Generation, float]:
    began = time.perf_counter()
    length = model.config.max_position_embeddings
    out = armd.generate(model, length=length, streams=streams, mode=mode, batch_size=texts, stop=False, **options)
    return out, time.perf_counter() - began


@torch.inference_mode()
def held_out(model: armd.Armd, data: TokenDataset, order: armd.Order, texts: int) -> float:
    batches = range(0, texts, order.batch)
    return sum(armd.nll(model, data.eval_batch(b, order.batch), order).double().mean().item() for b in batches) / len(
        batches
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, _ = armd.load(args.model)
    N, rows = model.config.max_position_embeddings, []
    for streams in (2, 4, 8, 16, 32):
        sequential, slow = decode(model, streams, "sequential", args.texts, seed=args.seed)
        for what in ({}, {"check": "rejection"}, {"check": "rejection", "tolerance": 0.02}, {"drafts": streams - 1}):
            out, seconds = decode(model, streams, "exact", args.texts, seed=args.seed, **what)
            row = {"streams": streams, **what, "tokens_per_pass": out.tokens_per_pass, "acceptance": out.acceptance,
                   "passes": out.passes.tolist(), "seconds": seconds, "sequential_seconds": slow,
                   "bound": out.bound.mean().item()}  # fmt: skip
            if "check" not in what:
                row["texts_equal"] = int((out.tokens == sequential.tokens).all(dim=1).sum())
                row["ties"] = int(out.ties.sum())
            rows.append(row)
            print(json.dumps(row), flush=True)

    data = TokenDataset(args.data, "valid", N)
    precision = {}
    for dtype in ("float32", "bfloat16", "int8"):
        model, _ = armd.load(args.model)
        armd.cast(model, dtype)
        orders = armd.Order.left_to_right(4, N), armd.Order.strided(4, N, 8).sequential()
        precision[dtype] = dict(
            zip(("left_to_right", "strided:8"), (held_out(model, data, o, 32) for o in orders), strict=True)
        )
        print(dtype, precision[dtype], flush=True)
    parameters = armd.load(args.model)[0].num_parameters()  # packed weights are none
    record = {
        "command": f"python benchmarks/exact.py --texts {args.texts} --seed {args.seed}",
        "model": {"parameters": parameters, "length": N, "temperature": 1.0, "dtype": "float32"},
        "machine": machine(torch.device("cpu")),
        "rows": rows,
        "held_out_nats_per_token": precision,
    }
    args.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
