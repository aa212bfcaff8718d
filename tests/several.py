"""Trains several runs one after another in this process, each given as DATA, OUT and options of `armd train tiny`."""

from __future__ import annotations

import contextlib
import json
import sys
from unittest import mock

from armd.cli.train import run_train
from armd.errors import TrainingStopped
from armd.train import loop
from armd.train.parallel import joined, leave
from processes import TINY


def main(runs: list[list[str]]) -> None:
    """`--stop-after K` interrupts a run in step K + 1, as when all its processes are killed at once."""
    with joined():
        for data, out, *more in runs:
            words = ["tiny", "--data", data, "--out", out, *TINY, *more]
            if "--stop-after" not in more:
                run_train(words)
                continue
            at = words.index("--stop-after")
            with stopping_after(int(words[at + 1])), contextlib.suppress(TrainingStopped):
                run_train(words[:at] + words[at + 2 :])


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
