"""Curves of training runs as one SVG picture: losses, speed, whatever their records hold, against tokens or time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armd.chart import Point, Series, drawing, finite_points, look, picture, safe
from armd.errors import UserError
from armd.fields import is_number
from armd.train import TrainConfig, load_config
from armd.train.log import read_metrics

AXES = {"tokens": "tokens", "steps": "steps", "seconds": "seconds"}


@dataclass(frozen=True)
class Key:
    """A quantity of the records.

    Attributes:
        name, unit: what stands at its chart.
        size: what the unit is in that of the records.
        steep: whether its start is, and would squeeze the rest.
        by_family: whether records hold a value for each order family.
    """

    name: str
    unit: str
    size: float = 1.0
    steep: bool = False
    by_family: bool = False


KEYS = {
    "loss": Key("Training loss", "nats per token", steep=True),
    "losses": Key("Training loss", "nats per token", steep=True, by_family=True),
    "valid": Key("Held out", "nats per token", steep=True, by_family=True),
    "grad_norm": Key("Gradient norm", "norm", steep=True),
    "lr": Key("Learning rate", "rate"),
    "tokens_per_second": Key("Speed", "tokens/s"),
    "mfu": Key("Share of the device's peak", "%", 0.01),
    "memory_bytes": Key("Memory", "GB", 1e9),
}


@dataclass(frozen=True)
class Run:
    """A run and its records."""

    name: str
    config: TrainConfig
    records: list[dict[str, Any]]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of some folders, named by them, in full where two share a name.

    Raises:
        UserError: a folder is no run, or is given twice; records are damaged, or there are none in any of them.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"run folder {folder} does not exist")
        if folders.count(folder) > 1:
            raise UserError(f"run folder {folder} is given twice")
        config, records = load_config(folder), read_metrics(folder)
        alone = [other.resolve().name for other in folders].count(folder.resolve().name) == 1
        runs.append(Run(folder.resolve().name if alone else str(folder), config, records))
    if not any(run.records for run in runs):
        raise UserError(f"{', '.join(str(folder / 'metrics.jsonl') for folder in folders)} holds no record yet")
    return runs


def plot(runs: Sequence[Run], keys: Sequence[str], x: str = "tokens") -> str:
    """A chart for each key and order family, a line for each run, as a whole SVG file.

    Args:
        runs: what `read_runs` returned.
        keys: of `KEYS`; losses and valid draw a chart for each order family.
        x: tokens, steps or seconds.

    Raises:
        UserError: a key is unknown, or no run has a record of it.
    """
    charts = [chart for key in keys for chart in _charts(runs, key, x)]
    return picture(charts, [(run.name, look(i), "circle") for i, run in enumerate(runs)])


def page(picture: str, runs: Sequence[Run]) -> str:
    """The picture as a web page that needs nothing but a browser."""
    title = safe(", ".join(run.name for run in runs))
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
    return f"{head}\n<body>\n{picture}</body></html>\n"


def _charts(runs: Sequence[Run], name: str, x: str) -> list[tuple[str, str]]:
    """Titles and drawings of one key."""
    if name not in KEYS:
        raise UserError(f"key={name!r} is unknown; choose one of {', '.join(KEYS)}")
    if x not in AXES:
        raise UserError(f"x={x!r} is unknown; choose one of {', '.join(AXES)}")
    key, found = KEYS[name], []
    for family in _families(runs, name) if key.by_family else [""]:
        lines = [
            Series(run.name, _points(run, name, family, x), look(i), "circle" * (name == "valid"))
            for i, run in enumerate(runs)
        ]
        title = key.name + f", {family.replace('_', ' ')}" * bool(family)
        told = "; ".join(f"{s.label} ends at {s.points[-1][1]:.4g}" for s in lines if s.points)
        frame = [y for s in lines for y in _settled(s.points)] if key.steep else None
        drawn = drawing(title, told, lines, (AXES[x], key.unit), frame=frame)
        found += [(title, drawn)] if drawn else []
    if not found:
        raise UserError(f"key={name!r}: no record of it in {', '.join(run.name for run in runs)}")
    return found


def _families(runs: Sequence[Run], name: str) -> list[str]:
    return list(dict.fromkeys(family for run in runs for record in run.records for family in record.get(name, {})))


def _points(run: Run, name: str, family: str, x: str) -> list[Point]:
    each = {"steps": 1, "tokens": run.config.batch_size * run.config.text_length}
    points = []
    for record in run.records:
        at = record.get("seconds") if x == "seconds" else record["step"] * each[x]
        y: Any = record.get(name, {}).get(family) if family else record.get(name)
        if is_number(at) and is_number(y):
            points.append((at, y / KEYS[name].size))
    return finite_points(points)


def _settled(points: list[Point]) -> list[float]:
    """Values after the first tenth of the way: the steep start would squeeze the rest, and is cut off."""
    if len(points) < 4:
        return [y for _, y in points]
    (first, _), (last, _) = points[0], points[-1]
    return [y for x, y in points if x >= first + (last - first) / 10]
