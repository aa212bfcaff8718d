"""armd watch: a run, live."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.live import Live

from armd import watch
from armd.errors import UserError
from armd.files import json_text
from armd.train import load_config


@dataclass(frozen=True)
class Watch:
    """Watch a run in the terminal until it is done or Ctrl-C: step, time to go, losses, speed, last checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    once: bool = False
    """Show it as it is now, once."""
    every: float = 2.0
    """Seconds between looks."""
    json: bool = False
    """Print it as it is now as one JSON object."""


def run_watch(args: Watch) -> None:
    if not 0 < args.every < 1e6:
        raise UserError(f"every={args.every} must be above 0 seconds")
    if not args.run.is_dir():
        raise UserError(f"run folder {args.run} does not exist")
    config = load_config(args.run)

    def see() -> dict[str, Any]:
        return watch.look(args.run, config, time.time())

    if args.once or args.json:
        seen = see()
        if not seen["records"]:
            raise UserError(f"{args.run / 'metrics.jsonl'} holds no record yet")
        if args.json:
            print(json_text(seen))
        else:
            _console().print(watch.panel(seen))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=_console(), auto_refresh=False) as live:
        watch.follow(see, lambda drawn: live.update(drawn, refresh=True), args.every)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
