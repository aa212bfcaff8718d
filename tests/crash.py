"""Kills `armd train` at random moments, resumes it, and compares the end with a run that was left alone.

make test-crash          the full number of kills; `make test` runs two
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from armd.bench.timing import provenance
from armd.files import write_json
from armd.train import state
from armd.train.log import read_metrics
from processes import make_data, start_training

STEPS_A_KILL = 60
"""A life lasts at most this many steps, so that a run of as many for each kill is not over before the last of them."""


@dataclass
class Tally:
    """What was done: processes killed, and how many of them while they wrote a checkpoint."""

    kills: int = 0
    during_a_save: int = 0


def kill_and_resume(folder: Path, kills: int, seed: int = 0) -> Tally:
    """Train `folder`/whole undisturbed and `folder`/parts with kills; raises where they differ."""
    draw, tally = random.Random(seed), Tally()
    data, whole, parts = make_data(folder / "data"), folder / "whole", folder / "parts"
    steps = ["--max-steps", str(STEPS_A_KILL * kills + 100), "--save-every", "5", "--eval-every", "50"]
    _finish(start_training(data, whole, *steps))
    while tally.kills < kills:
        how = ["--resume"] if (parts / "run.json").exists() else []
        process = start_training(data, parts, *steps, *how)
        _wait_for_the_moment(process, parts, draw)
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[0]}"
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        tally.kills += 1
        tally.during_a_save += bool(list((parts / "checkpoints").glob("partial-*")))
    _finish(start_training(data, parts, *steps, "--resume"))
    assert_same(whole, parts)
    return tally


def _wait_for_the_moment(process: subprocess.Popen[str], run: Path, draw: random.Random) -> None:
    """Every other time a random number of steps and milliseconds; else until a checkpoint is half written."""
    metrics, drafts = run / "metrics.jsonl", run / "checkpoints"
    before = len(read_metrics(run))
    goal = draw.randrange(1, STEPS_A_KILL // 2)
    while process.poll() is None and (not metrics.exists() or len(read_metrics(run)) < before + goal):
        time.sleep(0.001)
    if draw.random() < 0.5:
        time.sleep(draw.uniform(0, 0.02))
        return
    for _ in range(5000):
        if process.poll() is not None or any(drafts.glob("partial-*")):
            return
        time.sleep(0.0005)


def _finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate()[0]
    assert process.returncode == 0, said


def assert_same(whole: Path, parts: Path) -> None:
    """Byte for byte the same weights, averages and optimiser states, and the same losses at every step."""
    for run in (whole, parts):
        assert not [path for path in run.rglob("*") if "partial" in path.name]
    newest, other = state.checkpoints(whole)[-1], state.checkpoints(parts)[-1]
    assert newest.name == other.name
    pairs = [(newest / file.name, other / file.name) for file in sorted(newest.iterdir())]
    pairs.append((whole / "model.safetensors", parts / "model.safetensors"))
    assert len(pairs) == 5
    for mine, theirs in pairs:
        assert mine.read_bytes() == theirs.read_bytes(), f"{mine} and {theirs} differ"
    curves = [[(r["step"], r.get("loss"), r.get("valid")) for r in read_metrics(run)] for run in (whole, parts)]
    assert curves[0] == curves[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the record here")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        told = kill_and_resume(Path(scratch), options.kills, options.seed)
    print(f"{told.kills} kills, {told.during_a_save} of them in the middle of a checkpoint; the weights are the same")
    if options.out:
        record = provenance(f"python tests/crash.py {' '.join(sys.argv[1:])}", torch.device("cpu"))
        write_json(options.out, {**record, **asdict(told), "same": True, "seconds": round(time.monotonic() - began)})
    sys.exit(0)
