"""The run folder: who may write into it, what it says, and when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from armd.checkpoint import WEIGHTS
from armd.errors import TrainingStopped, UserError
from armd.files import hold, read_json
from armd.train import state
from armd.train.config import EXECUTION, load_config, to_json
from armd.train.log import read_metrics
from armd.train.parallel import Ranks

DONE = "done.json"
"""What the folder holds when all of the run is done and published."""

BEST = "best"
"""Where it holds the model with the lowest held-out loss so far, if `keep_best` is set."""


@contextmanager
def alone(run: Path, ranks: Ranks) -> Iterator[None]:
    """Nobody else trains this run within the context: two would delete each other's checkpoints."""
    held: list[BinaryIO] = []
    ranks.on_first(lambda: held.append(hold(run / "run.json", f"run {run} is being trained")))
    try:
        yield
    finally:
        for file in held:
            file.close()


@contextmanager
def naming_last_good(run: Path) -> Iterator[None]:
    """Whatever ends a run says where it can go on."""
    try:
        yield
    except (UserError, TrainingStopped) as error:
        newest = next(iter(state.checkpoints(run)[::-1]), "none yet")
        error.args = (f"{error}; last good checkpoint: {newest}",)
        raise


def last_validation(run: Path) -> dict[str, float]:
    """The newest validation in metrics.jsonl."""
    return next((record["valid"] for record in reversed(read_metrics(run)) if "valid" in record), {})


def check_run(run: Path, identity: dict[str, Any], resume: bool) -> None:
    """A new run needs a new or empty folder, a resumed one the folder of the same run."""
    if resume:
        _check_same_run(run / "run.json", identity)
        published = (run / DONE).exists() or (run / WEIGHTS).exists()
        if published and not state.checkpoints(run):  # it would start over, and publish over the model
            raise UserError(f"the checkpoints of {run} are gone; a new run with --init {run} starts from its weights")
    elif run.exists() and (not run.is_dir() or any(not path.name.startswith(".") for path in run.iterdir())):
        raise UserError(f"run folder {run} is not empty; use --resume to go on with it, or another --out")


def _check_same_run(path: Path, identity: dict[str, Any]) -> None:
    before = read_json(path)
    if not isinstance(before.get("config"), dict):
        raise UserError(f"{path} is damaged: it holds no config")
    if before.get("data") != identity["data"]:
        raise UserError(f"{path.parent} was trained on other data; --resume needs the same prepared folder")
    own = before.get("plugins", {}), identity["plugins"]
    other = sorted(name for name in own[1] if own[0].get(name, own[1][name]) != own[1][name])
    if other:
        raise UserError(f"{path.parent} was trained with another text of {', '.join(other)}; --resume needs the same")
    old, new = to_json(load_config(path.parent)), identity["config"]
    free = {*EXECUTION, *["init"] * bool(state.checkpoints(path.parent))}  # what it started from is in its weights now
    changed = sorted(name for name in new.keys() - free if old.get(name) != new[name])
    if changed:
        raise UserError(f"{path.parent} was started with other values of {', '.join(changed)}; --resume needs the same")
