"""Which recipe learns fastest, and which network, trained on which orders, writes best: two tables of small models.

    python benchmarks/ablation.py --data DATA --out RUNS --record benchmarks/ablation.json

`recipes`: AdamW against Muon and the options that go with it, at the same and at fewer tokens, each with a whole
learning-rate schedule. Tokens needed: the budget at which a recipe has the held-out loss of AdamW at the full budget.

`grid`: two-stream layers x query x training orders x length. Held-out loss by order, training speed, and tokens a pass
when writing four streams exactly.

A cell is one trained model with its figures, kept in RUNS under the hash of its config and data. So the command can be
stopped at any moment and started again; --cells stops it after so many new ones. Record, table and plot hold the cells
that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import armd
from armd.bench.timing import commit, machine
from armd.chart import Series, drawing, safe
from armd.data import Manifest
from armd.files import json_text, read_json, write_json, write_text
from armd.model import ArmdConfig
from armd.orders import OrderSchedule
from armd.presets import tiny
from armd.train import OptimConfig, TrainConfig, TrainingStopped, train
from armd.train.config import to_json
from armd.train.log import read_metrics

ORDERS = ("left_to_right", "uniform", "strided:4")
BUDGETS = (1.0, 0.7, 0.5)
ADAMW, EVERYTHING = "AdamW", "Muon + all"


@dataclass(frozen=True)
class Cell:
    """One model to train; `key` says where it stands in its table."""

    key: dict[str, Any]
    config: TrainConfig

    def name(self, digest: str) -> str:
        text = json.dumps([to_json(self.config), digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- what is trained -------------------------------------------------------------------------------------------------


def base(model: ArmdConfig, steps: int, orders: OrderSchedule, seed: int) -> TrainConfig:
    """What all cells share: the optimiser of `tiny`, 2,048 tokens a step, everything validated and saved at the end."""
    return replace(
        tiny(model.vocab_size, model.eos_token_id), model=model, orders=orders, max_steps=steps, seed=seed,
        batch_size=max(2048 // model.max_position_embeddings, 1), eval_orders=ORDERS, eval_texts=256,
        eval_every=max(steps // 10, 1), save_every=max(steps // 4, 1), log_every=max(steps // 20, 1), keep_last=1,
    )  # fmt: skip


def progressive(steps: int, sbp: bool = False) -> OrderSchedule:
    last = {"sbp_steps": steps // 5, "sbp_streams": (1, 2, 4, 8)} if sbp else {}
    return OrderSchedule(ar_steps=steps // 5, perm_steps=3 * steps // 5, rho=8, **last)


def recipes(model: ArmdConfig, steps: int, seed: int) -> Iterator[Cell]:
    """Optimiser and options, by budget."""
    muon = OptimConfig(name="muon", lr=2e-3, warmup_steps=50)
    wsd = replace(muon, schedule="wsd")
    options: dict[str, tuple[OptimConfig, dict[str, Any]]] = {
        ADAMW: (OptimConfig(lr=2e-3, warmup_steps=50), {}),
        "Muon": (muon, {}),
        "Muon + WSD": (wsd, {}),
        "Muon + QK-norm": (muon, {"qk_norm": True}),
        "Muon + relu2": (muon, {"activation": "relu2"}),
        "Muon + zero init": (muon, {"zero_init_residual": True}),
        EVERYTHING: (wsd, {"qk_norm": True, "activation": "relu2", "zero_init_residual": True}),
    }
    for budget in BUDGETS:
        count = max(round(budget * steps), 1)
        for name, (optim, changes) in options.items():
            if name == ADAMW and budget < 1:
                continue
            config = replace(base(replace(model, **changes), count, progressive(count), seed), optim=optim)
            yield Cell({"part": "recipes", "recipe": name, "budget": budget, "seed": seed}, config)


def grid(model: ArmdConfig, steps: int, seed: int, lengths: list[int]) -> Iterator[Cell]:
    """Two-stream layers x query x orders x length."""
    layers = model.num_hidden_layers
    orders = {
        "progressive": progressive(steps),
        "sbp": progressive(steps, sbp=True),
        "uniform": OrderSchedule(floors={"uniform": 1.0}),
    }
    for length in lengths:
        for two_stream in sorted({1, 2, layers // 2, layers}):
            for query in ("kernel", "aggregate"):
                for family, schedule in orders.items():
                    key = {"part": "grid", "L2s": two_stream, "query": query, "orders": family, "length": length}
                    shape = replace(
                        model, num_two_stream_layers=two_stream, query=query, max_position_embeddings=length
                    )
                    yield Cell({**key, "seed": seed}, base(shape, steps, schedule, seed))


# ---- training and measuring one --------------------------------------------------------------------------------------


def measure(cell: Cell, data: Path, run: Path) -> dict[str, Any]:
    """Train a cell, going on where it was stopped, and measure it."""
    result = train(cell.config, data, run, resume=(run / "run.json").exists(), quiet=True)
    records = read_metrics(run)
    tokens = cell.config.batch_size * cell.config.text_length
    rate = statistics.median(r["tokens_per_second"] for r in records if "loss" in r)
    with torch.inference_mode():
        out = armd.generate(
            result.model, length=cell.config.text_length, streams=4, mode="exact", batch_size=4, seed=0, stop=False
        )
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # the model stays, what resuming needs may go
    return {
        **cell.key,
        "steps": cell.config.max_steps,
        "tokens": cell.config.max_steps * tokens,
        "valid": result.valid,
        "curve": [[r["step"] * tokens, r["valid"]["left_to_right"]] for r in records if "valid" in r],
        "tokens_per_second": rate,
        "seconds": cell.config.max_steps * tokens / rate,  # by the rate: it may have been stopped in between
        "tokens_per_pass": out.tokens_per_pass,
        "parameters": result.model.num_parameters(),
    }


# ---- tables ----------------------------------------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {(max(values) - min(values)) / 2:.4f}"


def grouped(cells: list[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Cells that differ only by their seed, by the values of the given names."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in names), []).append(cell)
    return groups


def needed(losses: dict[float, float], target: float) -> float | None:
    """The smallest budget with a loss of at most `target`, between the trained ones on a straight line."""
    points = sorted(losses.items())
    for (low, high_loss), (high, low_loss) in itertools.pairwise(points):
        if high_loss <= target:
            return low
        if low_loss <= target:
            return low + (high - low) * (high_loss - target) / (high_loss - low_loss)
    return None


def recipe_table(cells: list[dict[str, Any]]) -> list[str]:
    groups = grouped(cells, "recipe", "budget")
    mean = {key: statistics.mean(c["valid"]["left_to_right"] for c in group) for key, group in groups.items()}
    target = mean.get((ADAMW, 1.0))
    lines = [
        "| recipe | budget | left to right | uniform | tokens/s | seconds | tokens needed |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, budget), group in groups.items():
        losses = {b: loss for (other, b), loss in mean.items() if other == name}
        share = needed(losses, target) if target and budget == 1.0 and name != ADAMW else None
        nats = (spread([c["valid"][order] for c in group]) for order in ("left_to_right", "uniform"))
        speed = (f"{statistics.median(c[what] for c in group):,.0f}" for what in ("tokens_per_second", "seconds"))
        found = f"{share:.2f}" if share else ""
        lines.append(f"| {' | '.join([name, f'{budget:g}', *nats, *speed, found])} |")
    return lines


def grid_table(cells: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| N | L2s | query | orders | left to right | uniform | strided:4 | tokens/s | tokens a pass, S = 4 |",
        "|" + "---|" * 9,
    ]
    for key, group in grouped(cells, "length", "L2s", "query", "orders").items():
        nats = [spread([c["valid"][order] for c in group]) for order in ORDERS]
        rate = f"{statistics.median(c['tokens_per_second'] for c in group):,.0f}"
        lines.append(f"| {' | '.join(map(str, [*key, *nats, rate, spread([c['tokens_per_pass'] for c in group])]))} |")
    return lines


# ---- plot ------------------------------------------------------------------------------------------------------------

COLOURS = ("#888", "#1f6feb", "#d1570a", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
STYLE = "".join(f".s{i} {{ color: {colour} }}" for i, colour in enumerate(COLOURS)) + (
    "text { font: 12px system-ui, sans-serif; fill: #555 } .grid { stroke: #ddd; fill: none }"
    ".line { fill: none; stroke: currentColor; stroke-width: 2 } .marks { fill: currentColor }"
)


def curves(cells: list[dict[str, Any]]) -> list[Series]:
    """Held-out loss left to right by tokens, mean over the seeds, full budget."""
    lines = []
    groups = grouped([c for c in cells if c["budget"] == 1.0], "recipe")
    for i, ((name,), group) in enumerate(groups.items()):
        points = [
            (at[0][0] / 1e6, statistics.mean(loss for _, loss in at))
            for at in zip(*(c["curve"] for c in group), strict=True)
        ]
        lines.append(Series(name, points[2:], f"s{i}"))
    return lines


def by_layers(cells: list[dict[str, Any]], length: int) -> list[Series]:
    """Held-out loss left to right by number of two-stream layers."""
    lines = []
    groups = grouped([c for c in cells if c["length"] == length], "query", "orders")
    for i, ((query, orders), group) in enumerate(groups.items()):
        by = grouped(group, "L2s")
        points = [
            (float(n), statistics.mean(c["valid"]["left_to_right"] for c in same)) for (n,), same in sorted(by.items())
        ]
        lines.append(Series(f"{query}, {orders}", points, f"s{i}", "circle"))
    return lines


def plot(cells: list[dict[str, Any]]) -> str:
    """A chart of the recipes and one of the grid for each length, as a whole SVG file."""
    parts = {part: [c for c in cells if c["part"] == part] for part in ("recipes", "grid")}
    charts = [("Recipes", curves(parts["recipes"]), ("million tokens", "nats, left to right"), False)]
    for length in sorted({c["length"] for c in parts["grid"]}):
        axes = ("two-stream layers", "nats, left to right")
        charts.append((f"N = {length}", by_layers(parts["grid"], length), axes, True))
    out, x = [], 10
    for title, series, axes, log_x in charts:
        drawn = drawing(title, ", ".join(s.label for s in series), series, axes, log_x=log_x)
        out.append(f'<text x="{x}" y="16">{safe(title)}</text>')
        out.append(f'<svg x="{x}" y="24" width="310" height="208" viewBox="0 0 310 208">{drawn}</svg>')
        for row, s in enumerate(series):
            out.append(f'<g class="{s.style}" transform="translate({x + 10} {246 + 16 * row})">')
            out.append(
                f'<path class="line" d="M0 0h24"/></g><text x="{x + 42}" y="{250 + 16 * row}">{safe(s.label)}</text>'
            )
        x += 330
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} 370" width="{x}"><style>{STYLE}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *out, "</svg>"]) + "\n"


# ---- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by armd prepare")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and cells")
    parser.add_argument("--record", type=Path, required=True, help="JSON record to write, with a plot beside it")
    parser.add_argument("--parts", nargs="+", default=["recipes", "grid"], choices=["recipes", "grid"])
    parser.add_argument("--steps", type=int, default=800, help="steps of 2,048 tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024], help="of the grid; recipes: the first")
    parser.add_argument("--cells", type=int, default=10**9, help="stop after so many new cells")
    args = parser.parse_args()

    manifest = Manifest.load(args.data)
    model = replace(
        tiny(manifest.vocab_size, manifest.eos_id).model, hidden_size=args.hidden_size, num_hidden_layers=args.layers,
        max_position_embeddings=args.lengths[0],
    )  # fmt: skip
    makers = {
        "recipes": lambda seed: recipes(model, args.steps, seed),
        "grid": lambda seed: grid(model, args.steps, seed, args.lengths),
    }
    wanted = [cell for part in args.parts for seed in args.seeds for cell in makers[part](seed)]
    done, new = [], 0
    for cell in wanted:
        path = args.out / "cells" / f"{cell.name(manifest.digest)}.json"
        if not path.exists() and new < args.cells:
            try:
                write_json(path, measure(cell, args.data, args.out / "runs" / path.stem))
            except TrainingStopped as stopped:
                print(f"stopped in {cell.key}: {stopped}")
                break
            new += 1
            print(json_text(cell.key), f"{read_json(path)['seconds']:.0f} s", flush=True)
        if path.exists():
            done.append(read_json(path))
    print(f"{len(done)} of {len(wanted)} cells")
    write_json(args.record, {
        "command": f"python benchmarks/ablation.py --parts {' '.join(args.parts)} --steps {args.steps} "
        f"--seeds {' '.join(map(str, args.seeds))} --hidden-size {args.hidden_size} --layers {args.layers} "
        f"--lengths {' '.join(map(str, args.lengths))}",
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "data": {"vocab_size": manifest.vocab_size, "digest": manifest.digest},
        "unit": "held-out nats per token",
        "cells": done,
    })  # fmt: skip
    write_text(args.record.with_suffix(".svg"), plot(done))
    for part, table in (("recipes", recipe_table), ("grid", grid_table)):
        print("\n" + "\n".join(table([c for c in done if c["part"] == part])))


if __name__ == "__main__":
    main()
