"""Steps that must not reach the weights: a loss or gradient that is not finite, or a loss far above the usual."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from armd.errors import TrainingStopped
from armd.train.config import TrainConfig

WINDOW = 64
"""Steps whose losses make the median a spike is measured by."""
LEAST = 16
"""Steps before a spike can be told."""


class Guard:
    """Judges every step. What it remembers is part of a checkpoint, so that a resumed run judges alike.

    Attributes:
        skipped: steps skipped so far.
        in_a_row: those since the last step that was used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.skipped = self.in_a_row = 0

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step of this loss and gradient norm; None: it is good, and remembered."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        factor = self._config.spike_factor
        if factor and len(self._recent) >= LEAST:
            median = statistics.median(self._recent)
            if loss > factor * median:
                return f"loss is {loss:.4g}, above spike_factor={factor:g} times the usual {median:.4g},"
        self._recent.append(loss)
        self.in_a_row = 0
        return None

    def skip(self, fault: str, step: int) -> None:
        """Count a bad step.

        Raises:
            TrainingStopped: `on_bad_step` is stop, or too many were skipped in a row.
        """
        if self._config.on_bad_step == "stop":
            raise TrainingStopped(f"{fault} at step {step}")
        if self.in_a_row == self._config.max_skipped:
            raise TrainingStopped(f"{fault} at step {step}, after max_skipped={self.in_a_row} skipped in a row")
        self.skipped += 1
        self.in_a_row += 1

    def state(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
