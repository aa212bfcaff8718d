"""What a run measures of itself between two records: losses by order family, speed, memory."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from armd.flops import total, training_flops
from armd.gpus import peak_of
from armd.train.config import TrainConfig

try:
    import resource
except ImportError:  # a system without it, such as Windows: memory is not recorded there
    resource = None  # type: ignore[assignment]


class Gauge:
    """Told of every step, read at every record. Only steps count for the speed, not validations and checkpoints."""

    def __init__(self, config: TrainConfig, device: torch.device, *, devices: int = 1, before: float = 0.0) -> None:
        """
        Args:
            device: where this process computes.
            devices: how many share a batch.
            before: seconds of earlier parts of a run that goes on.
        """
        self._device = device
        self._tokens = config.batch_size * config.text_length
        peak = peak_of(device, config.precision)
        flops = total(training_flops(config.model, config.text_length, config.architecture))
        self._share = flops / (devices * peak) if peak else None  # of the peak, at one token per second
        self._began = time.monotonic() - before
        self._clear()
        self.start()

    def _clear(self) -> None:
        self._losses: dict[str, list[float]] = {}
        self._steps, self._spent = 0, 0.0

    @property
    def seconds(self) -> float:
        """Since the run began, the time between its parts left out."""
        return round(time.monotonic() - self._began, 3)

    def start(self) -> None:
        """The next step begins; the first one has begun when the gauge is made."""
        self._step_began = time.monotonic()

    def stop(self, family: str, loss: float) -> None:
        """A step of this order family is done."""
        self._spent += time.monotonic() - self._step_began
        self._steps += 1
        self._losses.setdefault(family.partition(":")[0], []).append(loss)

    def read(self) -> dict[str, Any]:
        """The fields of a record, over the steps since the last reading.

        Returns:
            losses (nats per token, mean of each order family seen), tokens_per_second, mfu (share of the peak of the
            device, None if that is not known; nothing computed twice counts), memory_bytes (most that the GPU has held,
            or most that the process has on a CPU), seconds.
        """
        speed = self._steps * self._tokens / max(self._spent, 1e-9)
        losses = {family: sum(values) / len(values) for family, values in self._losses.items()}
        self._clear()
        mfu = None if self._share is None else speed * self._share
        memory = peak_memory(self._device)
        return {
            "losses": losses,
            "tokens_per_second": round(speed),
            "mfu": mfu,
            "memory_bytes": memory,
            "seconds": self.seconds,
        }


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held so far: of tensors on a GPU, of the whole process on a CPU; None where the system cannot say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
