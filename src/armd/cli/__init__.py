"""The command line: armd prepare | plan | train | watch | plot | generate | evaluate | laboratory | bench | demo |
reproduce.

Exit status: 0 done, 2 the user's mistake (one line on standard error), 1 our failure or a run that stopped early.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import armd
from armd.bench import DecodeBench, TrainBench
from armd.cli.bench import Bench, run_bench, run_bench_decode, run_bench_train
from armd.cli.demo import Demo, run_demo
from armd.cli.evaluate import Evaluate, run_evaluate
from armd.cli.generate import Generate, run_generate
from armd.cli.infilling import EvaluateCode, EvaluateStories, run_code, run_stories
from armd.cli.laboratory import Laboratory, run_laboratory
from armd.cli.plan import Plan, run_plan
from armd.cli.plot import Plot, run_plot
from armd.cli.prepare import Prepare, run_prepare
from armd.cli.quality import EvaluateGeneration, run_quality
from armd.cli.reproduce import Reproduce, run_reproduce
from armd.cli.terminal import parse, say
from armd.cli.train import Train, run_train
from armd.cli.watch import Watch, run_watch
from armd.cli.zeroshot import EvaluateLambada, EvaluateZeroShot, run_lambada, run_zero_shot
from armd.errors import TrainingStopped, UserError
from armd.train.parallel import leave, tells

# A command of no kind parses its own words: its options depend on the preset.
COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "prepare": (Prepare, run_prepare),
    "plan": (None, run_plan),
    "train": (None, run_train),
    "watch": (Watch, run_watch),
    "plot": (Plot, run_plot),
    "generate": (Generate, run_generate),
    "evaluate": (Evaluate, run_evaluate),
    "evaluate zeroshot": (EvaluateZeroShot, run_zero_shot),
    "evaluate lambada": (EvaluateLambada, run_lambada),
    "evaluate generation": (EvaluateGeneration, run_quality),
    "evaluate stories": (EvaluateStories, run_stories),
    "evaluate code": (EvaluateCode, run_code),
    "laboratory": (Laboratory, run_laboratory),
    "bench": (Bench, run_bench),
    "bench decode": (DecodeBench, run_bench_decode),
    "bench train": (TrainBench, run_bench_train),
    "demo": (Demo, run_demo),
    "reproduce": (Reproduce, run_reproduce),
}


def usage() -> str:
    kinds = {name: kind or {"plan": Plan, "train": Train}[name] for name, (kind, _) in COMMANDS.items()}
    lines = [f"  {name:<21}{(kind.__doc__ or '').splitlines()[0]}" for name, kind in kinds.items()]
    head = [f"armd {armd.__version__}: auto-regressive masked diffusion", "", "usage: armd COMMAND [options]", ""]
    return "\n".join([*head, *lines, "", "armd COMMAND --help lists the options."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(usage())
            return 0 if argv else 2
        if argv[0] == "--version":
            print(armd.__version__)
            return 0
        if argv[0] not in COMMANDS:
            raise UserError(f"armd: command {argv[0]!r} is unknown; choose one of {', '.join(COMMANDS)}")
        words = 2 if " ".join(argv[:2]) in COMMANDS else 1
        name, rest = " ".join(argv[:words]), argv[words:]
        kind, run = COMMANDS[name]
        run(parse(kind, rest, f"armd {name}") if kind else rest)
    except UserError as error:
        if tells(error):
            say(f"error: {error}")
        return leave(2)
    except TrainingStopped as stopped:
        if tells(stopped):
            say(f"stopped: {stopped}")
        return leave(1)
    except KeyboardInterrupt:
        say("stopped: interrupted")
        return 1
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # --help of a command
        return int(stop.code or 0)
    return leave(0)
