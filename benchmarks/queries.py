"""Compare the query initialisations with each other and with autoregressive models, on equal terms.

    python benchmarks/queries.py --data DATA --out RUNS --record benchmarks/queries.json

Every row trains on the same windows with the same seed, steps and optimiser; only the network's first rows and the
order schedule differ. Finished runs are kept, so that the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from armd.data import Manifest
from armd.families import OrderSchedule
from armd.presets import tiny
from armd.train import OptimConfig, TrainConfig, load_config, train
from armd.train.config import to_json
from armd.train.folder import last_validation

ORDERS = ("left_to_right", "reinsert:8", "uniform")
SIZES = {  # name -> (hidden size, layers); `tiny` is the preset of that name
    "mini": (128, 4),
    "tiny": (192, 6),
}


def variants(size: str, vocab_size: int, eos: int | None, steps: int) -> dict[str, TrainConfig]:
    """The rows of the table."""
    hidden, layers = SIZES[size]
    base = tiny(vocab_size, eos)
    shape = replace(base.model, hidden_size=hidden, num_hidden_layers=layers)
    progressive = OrderSchedule(ar_steps=steps // 5, perm_steps=3 * steps // 5, rho=8)
    base = replace(
        base, model=shape, orders=progressive, batch_size=8, max_steps=steps, eval_orders=ORDERS, eval_texts=256,
        eval_every=steps, save_every=steps, precision="bf16", optim=OptimConfig(lr=2e-3, warmup_steps=50),
    )  # fmt: skip

    def armd(query: str, two_stream: int, orders: OrderSchedule = progressive) -> TrainConfig:
        return replace(base, orders=orders, model=replace(shape, query=query, num_two_stream_layers=two_stream))

    half, l2r = layers // 2, OrderSchedule()
    return {
        "AR": replace(base, architecture="ar", orders=l2r, eval_orders=ORDERS[:1]),
        "AR + kernel": armd("kernel", 1, l2r),
        "aggregate": armd("aggregate", half),
        "shift": armd("shift", half),
        "anchor": armd("anchor", half),
        "anchor+aggregate": armd("anchor+aggregate", half),
        "kernel": armd("kernel", half),
        "kernel, L2s=1": armd("kernel", 1),
    }


def finished(run: Path, config: TrainConfig) -> bool:
    return (run / "model.safetensors").exists() and to_json(load_config(run)) == to_json(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by armd prepare")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--record", type=Path, required=True, help="JSON record to write")
    parser.add_argument("--steps", type=int, default=800, help="steps of 8 x 256 tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    args = parser.parse_args()

    manifest = Manifest.load(args.data)
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for size in args.sizes:
        rows = variants(size, manifest.vocab_size, manifest.eos_id, args.steps)
        for seed in args.seeds:
            for name, config in rows.items():
                config = replace(config, seed=seed)
                run = args.out / f"{size}-{name.replace(' ', '').replace(',', '-')}-{seed}"
                if not (run.exists() and finished(run, config)):
                    started = time.time()
                    train(config, args.data, run, resume=run.exists(), quiet=True)
                    print(f"{run.name}: {time.time() - started:.0f} s", flush=True)
                for order, value in last_validation(run).items():
                    table.setdefault(size, {}).setdefault(name, {}).setdefault(order, []).append(value)

    record = {
        "command": f"python benchmarks/queries.py --steps {args.steps} --seeds {' '.join(map(str, args.seeds))}",
        "unit": "held-out nats per token",
        "data": {"vocab_size": manifest.vocab_size, "digest": manifest.digest},
        "tokens": args.steps * 8 * 256,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "table": table,
    }
    args.record.write_text(json.dumps(record, indent=2) + "\n")
    for size, rows_of in table.items():
        print(f"\n| {size} | " + " | ".join(ORDERS) + " |\n|---|" + "---|" * len(ORDERS))
        for name, orders in rows_of.items():
            cells = [orders.get(order) for order in ORDERS]
            shown = [f"{statistics.mean(c):.4f} ± {(max(c) - min(c)) / 2:.4f}" if c else "-" for c in cells]
            print(f"| {name} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
