"""Steps that must not reach the weights: a loss or gradient that is not finite, or a loss far above the usual."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from armd.errors import TrainingStopped, UserError
from armd.train.config import TrainConfig

WINDOW = 64
"""Steps of an order family whose losses make the median that a spike in it is measured by."""
LEAST = 16
"""Steps of the family before a spike can be told."""


class Guard:
    """Judges every step. What it remembers is part of a checkpoint, so that a resumed run judges alike.

    Attributes:
        skipped: steps skipped so far.
        in_a_row: those since the last step that was used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._recent: dict[str, deque[float]] = {}
        self.skipped = self.in_a_row = 0

    def fault(self, family: str, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step of this family, loss and gradient norm; None: it is good, and remembered.

        Families differ in their losses by more than a factor may be set to, so each is measured by itself.
        """
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        factor, kind = self._config.spike_factor, family.partition(":")[0]
        recent = self._recent.setdefault(kind, deque(maxlen=WINDOW))
        if factor and len(recent) >= LEAST:
            median = statistics.median(recent)
            if loss > factor * median:
                return f"loss is {loss:.4g}, above spike_factor={factor:g} times the usual {median:.4g},"
        recent.append(loss)
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
        recent = {kind: list(losses) for kind, losses in self._recent.items()}
        return {"recent": recent, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: another version of armd made it.
        """
        try:
            self._recent = {kind: deque(losses, maxlen=WINDOW) for kind, losses in state["recent"].items()}
            self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        except (AttributeError, KeyError, TypeError):
            raise UserError(
                "another version of armd saved this run's checkpoint; go on with that version, or start a new run of "
                "its config from its weights: armd train RUN/run.json --data DATA --init RUN --out NEW"
            ) from None
