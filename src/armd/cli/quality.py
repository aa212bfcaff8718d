"""armd evaluate generation: how good and how varied texts are, temperature by temperature."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from armd.cli.models import check_fits, held_out, load_reader
from armd.cli.terminal import say, show
from armd.errors import UserError
from armd.evals import (
    Human,
    Writing,
    check_mauve,
    check_temperatures,
    frontier,
    held_out_texts,
    load_judge,
    plot,
    quality_protocol,
)
from armd.files import json_text, write_text


@dataclass(frozen=True)
class EvaluateGeneration:
    """Write texts at several temperatures; generative perplexity under another model, entropy, repetition."""

    model: Path
    """Run folder or published model folder."""
    evaluator: str
    """Causal model that reads the texts: a folder of ours, or a folder or name that transformers knows."""
    temperatures: tuple[float, ...] = (1.0,)
    """A row each."""
    length: int | None = None
    """Tokens in a text; default: the model's longest, rounded down to a multiple of streams."""
    samples: int = 64
    """Texts at each temperature."""
    streams: int = 1
    """Number of equal streams; 1 is left to right."""
    mode: Literal["exact", "sequential", "parallel"] = "exact"
    """parallel: one token of every stream a pass; sequential and exact: the law of one token at a time."""
    steps: int | None = None
    """Of masked and block diffusion: steps a text, or a block, is written in; default: a token a step."""
    schedule: Literal["even", "ancestral"] = "even"
    """Of masked and block diffusion: as many tokens in every step (even), or each token's step drawn on its own."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this mass; 1 is off."""
    seed: int = 0
    """Same seed, same texts."""
    rows: int = 16
    """Texts written at once."""
    mauve: bool = False
    """Compare with the held-out texts of --data, as many and as long (armd[evals])."""
    data: Path | None = None
    """Folder made by armd prepare, for --mauve."""
    plot: Path | None = None
    """Write the frontier here, as .svg."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object, with the texts."""


def run_quality(args: EvaluateGeneration) -> None:
    check_temperatures(args.temperatures)
    if args.rows < 1 or args.samples < 1:
        raise UserError(f"rows={args.rows} and samples={args.samples} must be at least 1")
    if args.mauve != (args.data is not None):
        raise UserError(
            "--mauve needs --data DIR, held-out texts to compare with" if args.mauve else "--data needs --mauve"
        )
    if args.mauve:
        check_mauve()
    model, tokenizer = load_reader(args.model, args.device)
    check_fits(args, model, ("streams", "mode"))
    limit = model.config.max_position_embeddings
    length = args.length if args.length is not None else limit - limit % max(args.streams, 1)
    names = "streams", "mode", "steps", "schedule", "top_k", "top_p", "seed", "samples", "rows"
    writing = Writing(length, **{name: getattr(args, name) for name in names})
    writing.start(model, args.temperatures[0])  # a mistake shows before the evaluator is loaded
    texts = []
    if args.data is not None:
        texts = held_out_texts(held_out(args.data, args.model, model, tokenizer, length), tokenizer, args.samples)
    judge = load_judge(args.evaluator, model.device)
    human = Human(str(args.data), judge.points(texts)) if args.mauve else None
    protocol, results = quality_protocol(model, tokenizer, judge, writing, human), []
    for result in frontier(model, tokenizer, judge, writing, args.temperatures, human):
        say(f"temperature {result.temperature:g}: done")
        results.append(result)
    if args.plot:
        write_text(args.plot, plot({args.model.name: results}, protocol))
    if args.json:
        print(json_text({"rows": [dataclasses.asdict(r) for r in results], "protocol": protocol.fields}))
        return
    columns = ("temperature", "gen. perplexity", "by text", "entropy", "repeated 4-grams", "distinct 1 / 2 / 3")
    more = [*["MAUVE"] * args.mauve, "tokens", "passes", "tokens/pass"]
    table = Table(*columns, *more, title=f"{args.samples} texts of {length} tokens")
    for r in results:
        perplexities = f"{r.generative_perplexity:.2f}", f"{r.perplexity_by_text:.2f}"
        variety = f"{r.entropy:.3f}", f"{r.repetition:.4f}", " / ".join(f"{share:.3f}" for share in r.distinct)
        closeness = [] if r.mauve is None else [f"{r.mauve:.3f}"]
        pace = f"{r.tokens:,}", f"{r.passes:,.1f}", f"{r.tokens_per_pass:.2f}"
        table.add_row(f"{r.temperature:g}", *perplexities, *variety, *closeness, *pace)
    show(table, protocol.line)
