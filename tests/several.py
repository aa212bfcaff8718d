"""Trains several runs one after another in this process, each given as DATA, OUT and options of `armd train tiny`."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from unittest import mock

import torch

from armd.cli.train import run_train
from armd.errors import TrainingStopped
from armd.train import loop, muon
from armd.train.parallel import joined, leave
from processes import TINY


def main(runs: list[list[str]]) -> None:
    """`--stop-after K` interrupts a run in step K + 1, as when all its processes are killed at once.

    `--spoil-after K` makes the loss of the last process in step K + 1 not a number. Muon is in float64: in bfloat16 it
    turns the last bit of a gradient, which is another on several processes, into the third digit of an update.
    """
    with joined() as ranks, mock.patch.object(muon, "PRECISION", torch.float64):
        for data, out, *more in runs:
            words, stop = take(["tiny", "--data", data, "--out", out, *TINY, *more], "--stop-after")
            words, spoil = take(words, "--spoil-after")
            with contextlib.ExitStack() as stack:
                if stop is not None:
                    stack.enter_context(contextlib.suppress(TrainingStopped))
                    stack.enter_context(stopping_after(stop))
                if spoil is not None and ranks.rank == ranks.size - 1:
                    stack.enter_context(spoiling_after(spoil))
                run_train(words)


def take(words: list[str], option: str) -> tuple[list[str], int | None]:
    """The other words, and the value of an option if it is there."""
    if option not in words:
        return words, None
    at = words.index(option)
    return words[:at] + words[at + 2 :], int(words[at + 1])


def spoiling_after(spoil: int):
    step = loop.train_step

    def train_step(replica, *args):
        factor = math.nan if args[2] == spoil else 1.0
        return step(Spoilt(replica, factor), *args)

    return mock.patch.object(loop, "train_step", train_step)


class Spoilt:
    """A replica whose losses are multiplied."""

    def __init__(self, replica, factor: float) -> None:
        self._replica, self._factor = replica, factor

    def __call__(self, *args):
        return self._replica(*args) * self._factor

    def __getattr__(self, name: str):
        return getattr(self._replica, name)


def stopping_after(stop: int):
    step = loop.train_step

    def train_step(*args):
        if args[3] == stop:
            raise TrainingStopped(f"after step {stop}")
        return step(*args)

    return mock.patch.object(loop, "train_step", train_step)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    leave(0)
