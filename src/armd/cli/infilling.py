"""armd evaluate stories, armd evaluate code: holes filled, and compared or run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from armd.cli.models import load_writer
from armd.cli.terminal import show
from armd.errors import UserError
from armd.evals import Limits, check_missing, infill_code, infill_stories, read_problems, read_stories
from armd.evals.stories import Hole
from armd.files import json_text
from armd.sampling import check_sampling, check_seed


@dataclass(frozen=True)
class Filling:
    """How holes are filled."""

    model: Path
    """Run folder or published model folder."""
    data: Path
    """File of the tasks; docs/evaluation.md has its format."""
    hole: str = "reference"
    """Tokens of a hole: reference (as many as what stood there), or LOW-HIGH, the likeliest number of these."""
    texts: int | None = None
    """Tasks to do, at most; default: all."""
    mode: Literal["exact", "sequential", "parallel"] = "exact"
    """parallel: one token of every hole a pass; sequential and exact: the law of one token at a time."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this mass; 1 is off."""
    seed: int = 0
    """Same seed, same fillings."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object, with the fillings."""


@dataclass(frozen=True)
class EvaluateStories(Filling):
    """Fill in missing sentences of ROCStories; ROUGE against the ones that were there."""

    missing: tuple[int, ...] = (3,)
    """Sentences to take out, of 1 to 5."""


@dataclass(frozen=True)
class EvaluateCode(Filling):
    """Fill in missing code of HumanEval; pass@1 by running the tests in a sandbox (Linux on x86-64)."""

    samples: int = 1
    """Fillings of each problem."""
    seconds: int = 5
    """Time a program may take."""
    megabytes: int = 512
    """Memory a program may take."""
    widen: bool = False
    """Make the white space on both sides of a hole part of it: for tokenizers that merge it with a line's end (BPE)."""


def run_stories(args: EvaluateStories) -> None:
    hole = _check(args)
    check_missing(args.missing)
    stories = read_stories(args.data)[: args.texts]
    model, tokenizer = load_writer(args.model, args.device, "evaluate stories")
    result = infill_stories(
        model, tokenizer, stories, missing=args.missing, hole=hole, temperature=args.temperature, top_p=args.top_p,
        mode=args.mode, seed=args.seed,
    )  # fmt: skip
    if args.json:
        print(json_text({**dataclasses.asdict(result), "protocol": result.protocol.fields}))
        return
    table = Table("stories", "ROUGE-1", "ROUGE-2", "ROUGE-L", title="ROCStories infilling")
    table.add_row(
        f"{result.stories:,}", *(f"{value:.2f}" for value in (result.rouge_1, result.rouge_2, result.rouge_l))
    )
    show(table, result.protocol.line)


def run_code(args: EvaluateCode) -> None:
    hole, limits = _check(args), Limits(args.seconds, args.megabytes)
    if args.samples < 1:
        raise UserError(f"samples={args.samples} must be at least 1")
    if args.samples > 1 and args.temperature == 0:
        raise UserError(f"samples={args.samples} at temperature 0 would all be the same; give --temperature")
    problems = read_problems(args.data)[: args.texts]
    model, tokenizer = load_writer(args.model, args.device, "evaluate code")
    with _progress() as tell:
        result = infill_code(
            model, tokenizer, problems, hole=hole, samples=args.samples, limits=limits, temperature=args.temperature,
            top_p=args.top_p, mode=args.mode, seed=args.seed, widen=args.widen, tell=tell,
        )  # fmt: skip
    if args.json:
        print(json_text({**dataclasses.asdict(result), "protocol": result.protocol.fields}))
        return
    table = Table("problems", "pass@1", "too long", title="HumanEval infilling")
    table.add_row(f"{result.problems:,}", f"{result.pass_at_1:.4f}", f"{result.too_long:,}")
    show(table, result.protocol.line)


def _check(args: Filling) -> Hole:
    """Refuse impossible options; the hole as least and most tokens."""
    check_seed(args.seed)
    check_sampling(args.temperature, 0, args.top_p)
    if args.texts is not None and args.texts < 1:
        raise UserError(f"texts={args.texts} must be at least 1")
    if args.hole == "reference":
        return None
    match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", args.hole)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"hole={args.hole!r} must be reference, or LOW-HIGH with 1 <= LOW <= HIGH, such as 4-12")
    return int(match[1]), int(match[2])


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is done now, on standard error where that is a terminal."""
    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)
