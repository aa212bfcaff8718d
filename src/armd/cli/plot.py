"""armd plot: curves of runs as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from armd import plots
from armd.cli.terminal import say
from armd.errors import UserError
from armd.files import json_text, write_text


@dataclass(frozen=True)
class Plot:
    """Draw losses, held-out losses, speed and more of one run or several: armd plot RUN... --out FILE.svg."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path = Path("plot.svg")
    """Picture to write: .svg, or .html."""
    key: tuple[str, ...] = ("loss", "valid")
    """What to draw: loss, losses (by order family), valid, grad_norm, lr, tokens_per_second, mfu, memory_bytes."""
    x: str = "tokens"
    """Against what: tokens, steps or seconds."""
    json: bool = False
    """Print what was drawn as one JSON object."""


def run_plot(args: Plot) -> None:
    if not args.runs:
        raise UserError("armd plot: name a run folder first")
    if args.out.suffix not in (".svg", ".html"):
        raise UserError(f"out={args.out} must end in .svg or .html")
    runs = plots.read_runs(args.runs)
    picture = plots.plot(runs, args.key, args.x)
    write_text(args.out, plots.page(picture, runs) if args.out.suffix == ".html" else picture)
    if args.json:
        print(json_text({"out": str(args.out), "runs": [run.name for run in runs], "keys": args.key, "x": args.x}))
    else:
        say(f"drawn: {args.out}")
