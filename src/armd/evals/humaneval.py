"""HumanEval infilling (Bavarian et al., 2022): lines or a span are cut out of a function, tests say if it works again.

Data: .jsonl or .jsonl.gz, a problem a line, with the strings

    task_id, entry_point      which problem, and the name of the function
    prompt, suffix            the text before and after the hole
    canonical_solution        what stood there; says how long the hole is unless a range is given
    test                      source that defines check(candidate)
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from armd.data import Tokenizer
from armd.errors import UserError
from armd.evals.protocol import Protocol, vocabulary
from armd.evals.sandbox import Limits, check_sandbox, run
from armd.evals.stories import Hole
from armd.infill import Part, fill
from armd.model import Armd

FIELDS = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")


@dataclass(frozen=True)
class Problem:
    """A problem; its fields are those of the file."""

    task_id: str
    entry_point: str
    prompt: str
    suffix: str
    canonical_solution: str
    test: str

    def program(self, middle: str) -> str:
        """The whole program: it ends without an exception if and only if the tests pass."""
        return f"{self.prompt}{middle}{self.suffix}\n{self.test}\ncheck({self.entry_point})\n"

    def widened(self) -> Problem:
        """The same problem, the white space on both sides of the hole being part of it.

        A tokenizer that merges a line's end with the indentation after it has tokens for neither alone where code goes
        on: cut there, the known text ends and begins with tokens that stand at the end of code in training.
        """
        before, after = self.prompt.rstrip(), self.suffix.lstrip()
        around = self.prompt[len(before) :], self.suffix[: len(self.suffix) - len(after)]
        return replace(self, prompt=before, suffix=after, canonical_solution=self.canonical_solution.join(around))


@dataclass(frozen=True)
class Attempt:
    """Fillings of one problem, and why those that failed did; an empty reason is a pass."""

    task_id: str
    middles: list[str]
    reasons: list[str]

    @property
    def pass_rate(self) -> float:
        return self.reasons.count("") / len(self.reasons) if self.reasons else 0.0


@dataclass(frozen=True)
class Code:
    """Infilled programs.

    Attributes:
        pass_at_1: share of the fillings of a problem that pass its tests, mean over problems: pass@1 without bias.
        too_long: problems that do not fit into the model; they count as failed.
    """

    problems: int
    pass_at_1: float
    too_long: int
    attempts: list[Attempt]
    protocol: Protocol


def read_problems(path: str | Path) -> list[Problem]:
    """The problems of a file, in its order."""
    path = Path(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            lines = [line for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    problems = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            values = {name: record[name] for name in FIELDS}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} line {number} is no problem with {', '.join(FIELDS)}: {error!r}") from None
        if not all(isinstance(value, str) for value in values.values()) or not values["entry_point"].isidentifier():
            raise UserError(f"{path} line {number}: {', '.join(FIELDS)} must be strings, entry_point a name")
        problems.append(Problem(**values))
    if not problems:
        raise UserError(f"{path} holds no problem")
    return problems


def infill_code(
    model: Armd,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    hole: Hole = None,
    samples: int = 1,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    temperature: float = 0.0,
    top_p: float = 1.0,
    mode: str = "exact",
    seed: int = 0,
    widen: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Code:
    """Fill the hole of every problem `samples` times, and run its tests on each program in the sandbox.

    With `widen` the holes are those of `Problem.widened`.
    """
    check_sandbox()
    attempts = []
    if widen:
        problems = [problem.widened() for problem in problems]
    for number, problem in enumerate(problems, 1):
        tell(f"problem {number} of {len(problems)}")
        before, after = tokenizer.encode(problem.prompt), tokenizer.encode(problem.suffix)
        size = max(len(tokenizer.encode(problem.canonical_solution)), 1)
        low, high = hole if hole and after else (size, size)
        parts: list[Part] = [part for part in (before, (low, high), after) if part]
        if len(before) + high + len(after) > model.config.max_position_embeddings:
            attempts.append(Attempt(problem.task_id, [], []))
            continue
        filled = fill(model, parts, best_of=samples, temperature=temperature, top_p=top_p, mode=mode, seed=seed)
        at = torch.tensor(list(filled.holes[0]))
        middles = [tokenizer.decode(row[at].tolist()) for row in filled.generation.tokens]
        attempts.append(Attempt(problem.task_id, middles, reasons(problem, middles, limits)))
    too_long = sum(not attempt.middles for attempt in attempts)
    size_said = (
        f"{hole[0]} to {hole[1]} tokens, the likeliest number where text follows"
        if hole
        else "as many tokens as the reference"
    )
    protocol = Protocol(
        task="HumanEval infilling",
        data=f"{len(problems):,} problems ({problems[0].task_id.split('/')[0]}), {samples} fillings each",
        text=f"{vocabulary(tokenizer)}; holes of {size_said}; mode {mode}, temperature {temperature:g}, "
        f"top-p {top_p:g}, seed {seed}",
        scoring=f"pass@1: share of fillings whose tests pass, mean over problems; in a sandbox without network, "
        f"processes or writing, {limits.seconds} s and {limits.megabytes} MiB a program",
        departures=(
            *[f"{too_long:,} problems longer than the model counted as failed"] * bool(too_long),
            *["the white space beside a hole is part of it"] * widen,
        ),
    )
    rate = sum(attempt.pass_rate for attempt in attempts) / len(attempts)
    return Code(len(problems), rate, too_long, attempts, protocol)


def reasons(problem: Problem, middles: Iterable[str], limits: Limits) -> list[str]:
    """For every filling: empty if the tests of the problem pass, else why not. Equal fillings are run once."""
    known: dict[str, str] = {}
    for middle in (middles := list(middles)):
        if middle not in known:
            verdict = run(problem.program(middle), limits)
            known[middle] = "" if verdict.passed else verdict.reason or "failed"
    return [known[middle] for middle in middles]
