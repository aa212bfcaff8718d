"""A run as it is now: what its folder says, for a program as plain values, for people as a panel in the terminal."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from armd.fields import is_number
from armd.quantities import duration
from armd.train import TrainConfig
from armd.train.folder import DONE
from armd.train.log import read_metrics
from armd.train.state import checkpoints

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48
RECENT = 10
"""Records whose mean pace says when the run will be done."""
NEWEST = ("loss", "grad_norm", "lr", "tokens_per_second", "mfu", "memory_bytes")
QUIET = 60.0
"""Seconds of silence that mean nothing: a validation, or a checkpoint on a slow disk."""


def look(run: Path, config: TrainConfig, now: float) -> dict[str, Any]:
    """What a run folder says.

    Args:
        run: the run folder.
        config: what the run was started with.
        now: seconds since 1970.

    Returns:
        state (waiting: no record yet; running; silent: no record for five times the usual while, the run may have been
        stopped; done: all of it, published), records (how many), step, max_steps, skipped (steps so far that were not
        used), seconds, eta_seconds, silent_seconds, the fields of the newest record, valid, checkpoint (its step, or
        None) and curves: lists of values, oldest first.

    Raises:
        UserError: metrics.jsonl is damaged.
    """
    records = read_metrics(run)
    steps = [record for record in records if "loss" in record]
    newest: dict[str, Any] = steps[-1] if steps else {}
    step = max((record["step"] for record in records), default=0)
    saved = [int(found[0]) for path in checkpoints(run) if (found := re.findall(r"\d+$", path.name))]
    pace = _seconds_per_step(steps, config)
    silent = max(now - (run / "metrics.jsonl").stat().st_mtime, 0.0) if records else None
    state = "running" if records else "waiting"
    if silent is not None and silent > max(QUIET, 5 * (pace or 0.0) * config.log_every):
        state = "silent"
    if (run / DONE).exists():
        state = "done"
    families = dict.fromkeys(name for record in steps for name in record.get("losses", {}))
    valid: dict[str, Any] = next((record["valid"] for record in reversed(records) if "valid" in record), {})
    return {
        "run": str(run),
        "state": state,
        "records": len(records),
        "step": step,
        "max_steps": config.max_steps,
        "skipped": sum("skipped" in record for record in records),
        "seconds": max((r["seconds"] for r in records if is_number(r.get("seconds"))), default=None),
        "eta_seconds": None if pace is None else pace * (config.max_steps - step),
        "silent_seconds": silent,
        "family": newest.get("family"),
        **{name: newest[name] if is_number(newest.get(name)) else None for name in NEWEST},
        "valid": {name: value for name, value in valid.items() if is_number(value)},
        "checkpoint": saved[-1] if saved else None,
        "curves": {
            "loss": _numbers(record["loss"] for record in steps),
            "tokens_per_second": _numbers(record.get("tokens_per_second") for record in steps),
            "grad_norm": _numbers(record.get("grad_norm") for record in steps),
            "losses": {name: _numbers(r.get("losses", {}).get(name) for r in steps) for name in families},
        },
    }


def _numbers(values: Iterable[Any]) -> list[float]:
    return [value for value in values if is_number(value)]


def _seconds_per_step(steps: Sequence[dict[str, Any]], config: TrainConfig) -> float | None:
    """Over the newest records, validations and checkpoints included where they were."""
    timed = [record for record in steps if is_number(record.get("seconds"))][-RECENT:]
    if len(timed) > 1 and timed[-1]["step"] > timed[0]["step"]:
        return max(timed[-1]["seconds"] - timed[0]["seconds"], 0.0) / (timed[-1]["step"] - timed[0]["step"])
    if timed and is_number(timed[-1].get("tokens_per_second")) and timed[-1]["tokens_per_second"] > 0:
        return config.batch_size * config.text_length / timed[-1]["tokens_per_second"]
    return None


# ---- for people ------------------------------------------------------------------------------------------------------


def spark(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in one line of text, `width` means of neighbours at most."""
    size = max(math.ceil(len(values) / width), 1)
    means = [fmean(values[i : i + size]) for i in range(0, len(values), size)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (mean - low) / ((high - low) or 1.0))] for mean in means)


def panel(seen: dict[str, Any]) -> RenderableType:
    """What `look` returned, for a terminal."""
    done, total = seen["step"], seen["max_steps"]
    head = f"step {done:,} of {total:,}, {done / total:.0%}"
    if seen["skipped"]:
        head += f"   {seen['skipped']:,} skipped"
    if seen["seconds"] is not None:
        head += f"   {duration(seen['seconds'])} so far"
    if seen["eta_seconds"] is not None and done < total:
        head += f"   {duration(seen['eta_seconds'])} to go"
    parts: list[RenderableType] = [head, ProgressBar(total, done, width=WIDTH + 24)]
    if seen["loss"] is not None:
        parts += ["", _curves(seen), "", _families(seen)]
    saved = "no checkpoint yet" if seen["checkpoint"] is None else f"last checkpoint: step {seen['checkpoint']:,}"
    parts += ["", f"{saved}   {_state(seen)}"]
    return Panel(Group(*parts), title=Text(seen["run"]), expand=False)


def _state(seen: dict[str, Any]) -> str:
    if seen["state"] == "waiting":
        return "waiting for the first record"
    if seen["state"] == "done":
        return "done"
    words = f"last record {duration(seen['silent_seconds'])} ago"
    return words + (", longer than usual: has it been stopped?" if seen["state"] == "silent" else ": running")


def _curves(seen: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    curves = seen["curves"]
    speed = f"{seen['tokens_per_second'] or 0:,.0f}"
    share = "" if seen["mfu"] is None else f", {seen['mfu']:.0%} of the peak"
    memory = "" if seen["memory_bytes"] is None else f"   memory {seen['memory_bytes'] / 1e9:.2f} GB"
    norm = "-" if seen["grad_norm"] is None else f"{seen['grad_norm']:.3g}"
    rate = "" if seen["lr"] is None else f"   learning rate {seen['lr']:.3g}"
    table.add_row("loss", spark(curves["loss"]), f"{seen['loss']:.4f} ({seen['family']})")
    table.add_row("tokens/s", spark(curves["tokens_per_second"]), speed + share + memory)
    table.add_row("gradient", spark(curves["grad_norm"]), norm + rate)
    return table


def _families(seen: dict[str, Any]) -> Table:
    """Training and held-out loss by order family; a validation may have families that training has not."""
    table = Table("nats per token", "training", "", "held out", box=None, padding=(0, 2), pad_edge=False)
    curves, valid = seen["curves"]["losses"], dict(seen["valid"])
    for name, values in curves.items():
        held = ", ".join(f"{v:.4f}" + f" ({k})" * (k != name) for k, v in valid.items() if k.partition(":")[0] == name)
        table.add_row(name, f"{values[-1]:.4f}" if values else "-", spark(values, WIDTH // 2), held or "-")
    for name, value in valid.items():
        if name.partition(":")[0] not in curves:
            table.add_row(name, "-", "", f"{value:.4f}")
    return table


def follow(see: Callable[[], dict[str, Any]], show: Callable[[RenderableType], object], every: float) -> dict[str, Any]:
    """Look again and again until the run is done; returns the last look."""
    while True:
        seen = see()
        show(panel(seen))
        if seen["state"] == "done":
            return seen
        time.sleep(every)
