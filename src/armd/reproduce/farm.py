"""Trains the models of a study, several at once, each by the command that would train it anywhere: `armd train`."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from armd.bench.timing import commit, machine
from armd.errors import TrainingStopped
from armd.files import read_json, write_json
from armd.reproduce.study import Run
from armd.train.config import to_json
from armd.train.folder import DONE
from armd.train.log import read_metrics
from armd.train.loop import pick_device
from armd.train.signals import interruptible

POLL = 1.0  # seconds


@dataclass(frozen=True)
class Worker:
    """A training process, where it tells what it does, and its line on the screen."""

    run: Run
    process: subprocess.Popen[bytes]
    log: Path
    task: TaskID


def command(run: Run, data: Path, at_once: int = 1) -> list[str]:
    """The words after `armd` that train a run, or go on with it; its config lies beside its folder, with its origin."""
    path = run.folder.with_suffix(".json")
    before = read_json(path)["commits"] if path.exists() else []
    made = {"commits": sorted({*before, str(commit())}), "machine": machine(pick_device("auto")), "at_once": at_once}
    write_json(path, {"name": run.name, "seed": run.seed, **made, "config": to_json(run.config)})
    words = ["train", str(path), "--data", str(data), "--out", str(run.folder)]
    return words + ["--resume"] * (run.folder / "run.json").exists()


def line(run: Run, data: Path, gpus: int) -> str:
    """The same as a line for a shell, through torchrun."""
    return shlex.join(["torchrun", f"--nproc-per-node={gpus}", "-m", "armd.cli", *command(run, data)])


def distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs that are not there yet, each once, under the first of its names."""
    found: dict[str, Run] = {}
    for run in runs:
        if not run.finished:
            found.setdefault(run.key, run)
    return list(found.values())


def train_all(runs: Sequence[Run], data: Path, jobs: int) -> list[str]:
    """Train what is not there yet, `jobs` at a time, the cores divided among them.

    Returns:
        What went wrong: a line for each run that ended early, and for those that would have started from it.

    Raises:
        TrainingStopped: it was interrupted; all that ran have saved where they are.
    """
    waiting, working, faults = distinct(runs), list[Worker](), list[str]()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress, interruptible() as interrupted:
        whole = progress.add_task("models", total=len(waiting), told="")
        try:
            while waiting or working:
                for run in [run for run in waiting if not run.config.init or _there(run.config.init)]:
                    if len(working) < jobs:
                        waiting.remove(run)
                        working.append(_start(run, data, jobs, progress))
                if not working:
                    return faults + [f"{run.name}, seed {run.seed}, has no model to start from" for run in waiting]
                time.sleep(POLL)
                for worker in list(working):
                    _show(worker, progress)
                    if worker.process.poll() is not None:
                        working.remove(worker)
                        faults += _finish(worker)
                        progress.remove_task(worker.task)
                        progress.advance(whole)
                if interrupted:
                    raise TrainingStopped("interrupted; every run is saved, the same command goes on")
        finally:
            for worker in working:
                worker.process.terminate()
            for worker in working:
                worker.process.wait()
    return faults


def _there(folder: str) -> bool:
    return (Path(folder) / DONE).exists()


def _start(run: Run, data: Path, jobs: int, progress: Progress) -> Worker:
    words, log = command(run, data, jobs), run.folder.with_suffix(".log")
    threads = max((os.cpu_count() or 1) // jobs, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "armd.cli", *words],
            stdin=subprocess.DEVNULL, stdout=told, stderr=told, env=environment,
            start_new_session=True,  # Ctrl-C is for us alone; we pass it on once
        )  # fmt: skip
    task = progress.add_task(f"{run.name}, seed {run.seed}", total=run.config.max_steps, told="")
    return Worker(run, process, log, task)


def _show(worker: Worker, progress: Progress) -> None:
    records = [record for record in read_metrics(worker.run.folder) if "loss" in record]
    if records:
        told = f"step {records[-1]['step']:,}, loss {records[-1]['loss']:.3f}"
        progress.update(worker.task, completed=records[-1]["step"], told=told)


def _finish(worker: Worker) -> list[str]:
    """Clear up after a process that ended; what it died of, if it did."""
    run, code = worker.run, worker.process.returncode
    if code < 0:
        return [f"{run.name}, seed {run.seed}, was killed by {signal.Signals(-code).name} (its log: {worker.log})"]
    if code:
        lines = worker.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        return [f"{run.name}, seed {run.seed}, ended early: {lines[-1]} (all of it: {worker.log})"]
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # the model stays, what resuming needs may go
    return []
