"""armd demo: all of it, on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from armd import demo as demonstration
from armd.files import json_text, read_json


@dataclass(frozen=True)
class Demo:
    """Train, score, write and fill on the text every Python carries, and report it on one page."""

    out: Path = Path("demo")
    """Folder for data, run and report.html."""
    max_steps: int | None = None
    """Training steps, fewer than the demo's own for a quick look."""
    seed: int = 0
    """Seed of the run."""
    json: bool = False
    """Print the figures of the report as one JSON object."""


def run_demo(args: Demo) -> None:
    page = demonstration.run(args.out, max_steps=args.max_steps, seed=args.seed)
    if args.json:
        results = read_json(args.out / "results.json")
        print(json_text({"report": str(page), **{name: results[name] for name in ("summary", "scores", "speed")}}))
