"""Ctrl-C and SIGTERM end a run between two steps, not in the middle of one."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Flag:
    """Set by the first signal; another one, a second later, ends the process at once.

    Not sooner: the terminal sends Ctrl-C to every process, and torchrun sends it to its own once more.
    """

    def __init__(self) -> None:
        self._raised = math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() > self._raised + 1:
            raise KeyboardInterrupt
        self._raised = min(self._raised, time.monotonic())

    def __bool__(self) -> bool:
        return math.isfinite(self._raised)


@contextmanager
def interruptible() -> Iterator[Flag]:
    """Turn SIGINT, SIGTERM and SIGHUP (a terminal that closes; not under nohup) into a flag the loop looks at."""
    flag, before = Flag(), {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, flag)
    except ValueError:  # not the main thread: leave the signals alone
        pass
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
