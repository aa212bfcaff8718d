"""Fair timing: what is compared is run in turn, in one process, and every round is compared with itself."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Work:
    """What a job did.

    Attributes:
        tokens: tokens written or trained on, over the whole batch.
        passes: forward passes of the network.
        acceptance: share of the checked drafts that were right.
        share: the part of the job that was really run; seconds are divided by it.
    """

    tokens: int
    passes: int | None = None
    acceptance: float | None = None
    share: float = 1.0


Job = Callable[[], Work]


@dataclass(frozen=True)
class Timing:
    """A job's work, the same in every round, and its seconds."""

    work: Work
    seconds: list[float]

    @property
    def rates(self) -> list[float]:
        return [self.work.tokens / s for s in self.seconds]

    def fields(self, reference: Timing) -> dict[str, Any]:
        """The record of this job; `ratio` is its speed over that of the reference in the same round."""
        pairs = zip(self.rates, reference.rates, strict=True)
        return {
            "tokens": self.work.tokens,
            "seconds": self.seconds,
            "tokens_per_second": spread(self.rates),
            "ratio": spread([own / other for own, other in pairs]),
        }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def alternate(
    jobs: Mapping[str, Job],
    repeats: int,
    device: torch.device,
    tell: Callable[[str], object] = lambda name: None,
    warm_up: Mapping[str, Job] | None = None,
) -> dict[str, Timing]:
    """Run all jobs in turn, `repeats` + 1 times; the first round warms up and is not counted.

    The first round is `warm_up` where it is given: shorter jobs of the same names, for jobs that take minutes. Every
    second round runs backwards, so that a load that comes and goes meets no job at the same place each time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    work: dict[str, Work] = {}
    for repeat in range(repeats + 1):
        for name in reversed(list(jobs)) if repeat % 2 else jobs:
            tell(name)
            _wait(device)
            began = time.perf_counter()
            work[name] = (warm_up or jobs)[name]() if repeat == 0 else jobs[name]()
            _wait(device)
            if repeat:
                seconds[name].append((time.perf_counter() - began) / work[name].share)
    return {name: Timing(work[name], seconds[name]) for name in jobs}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- the machine -----------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure needs beside it: hardware, threads, versions, and how busy the machine was."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def provenance(command: str, device: torch.device) -> dict[str, Any]:
    """What every record begins with: how, from which source, when and where it was made."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"command": command, "commit": commit(), "date": now, "machine": machine(device)}


def in_words(machine: Mapping[str, Any]) -> str:
    """One line for people."""
    name = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    return f"{name}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str | None:
    """The commit of the source that runs, with a plus where files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + "+" * bool(changed)


def bandwidth(device: torch.device, mebibytes: int = 512) -> float:
    """Bytes per second that all threads read from memory, the best of several readings of one large buffer."""
    buffer = torch.ones(mebibytes * 2**18, device=device)  # float32
    fastest = float("inf")
    for _ in range(8):
        _wait(device)
        began = time.perf_counter()
        buffer.sum()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - began)
    return buffer.nbytes / fastest
