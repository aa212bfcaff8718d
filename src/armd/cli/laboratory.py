"""armd laboratory: what orders, evidence and streams do to a model's likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from armd import checkpoint
from armd.cli.models import held_out
from armd.cli.terminal import say, show
from armd.errors import UserError
from armd.evals import held_out_protocol, laboratory, notebook, parse_orders
from armd.files import json_text, read_json
from armd.model import Armd
from armd.sampling import check_seed
from armd.train.loop import pick_device


@dataclass(frozen=True)
class Laboratory:
    """Look at orders: loss by rank, sensitivity to the order of evidence, and what S ranks at a time cost and save."""

    model: Path
    """Run folder or published model folder."""
    data: Path
    """Folder made by armd prepare."""
    out: Path
    """Folder to write record.json, laboratory.md and its charts to."""
    orders: str = "left_to_right,reinsert:8,strided:4,uniform"
    """Comma-separated, as of armd evaluate; file.py:function is an order of your own."""
    streams: str = "2,4,8"
    """Comma-separated numbers S of ranks written at a time, which divide the length."""
    evidence: str | None = None
    """Comma-separated numbers of evidence tokens; default: from a 32nd of a text to three quarters of it."""
    shuffles: int = 8
    """Random orders that the same evidence is read in."""
    targets: int = 16
    """Tokens predicted after the evidence."""
    bins: int = 16
    """Parts that the ranks of an order are put into."""
    measure: int = 0
    """Texts to write in mode exact in every order with every S, to set what is measured beside what is predicted."""
    texts: int = 64
    """Held-out texts to look at, at most."""
    length: int | None = None
    """Tokens in a text; default: the model's longest."""
    batch_size: int = 16
    """Texts in a pass."""
    seed: int = 0
    """Seed of the random orders and evidence, and of the noise that texts are written with."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print the record as one JSON object."""


def run_laboratory(args: Laboratory) -> None:
    check_seed(args.seed)
    if (args.out / notebook.RECORD).exists() and read_json(args.out / notebook.RECORD).get("complete", True):
        raise UserError(f"out={args.out} holds the record of an earlier study; choose another folder")
    model, tokenizer = checkpoint.load(args.model, pick_device(args.device))
    if not isinstance(model, Armd) or not model.any_order:
        raise UserError(f"{args.model} is a {type(model).__name__}; the laboratory needs a model of any order, armd")
    limit = model.config.max_position_embeddings
    length = limit if args.length is None else args.length
    if length > limit:
        raise UserError(f"length={length} tokens exceed max_position_embeddings={limit}")
    dataset = held_out(args.data, args.model, model, tokenizer, length).spread(args.texts)
    study = laboratory.Study(
        orders=tuple(parse_orders(args.orders)),
        streams=integers("streams", args.streams),
        evidence=laboratory.default_evidence(length) if args.evidence is None else integers("evidence", args.evidence),
        shuffles=args.shuffles, targets=args.targets, bins=args.bins, measure=args.measure,
        texts=args.texts, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    study.check(length)
    terms = notebook.protocols(held_out_protocol(args.data, dataset, args.seed, tokenizer), study)
    results = []
    with _progress() as progress:
        task = progress.add_task("", total=len(study))
        for result in laboratory.explore(model, dataset, study):
            results.append(result)
            progress.update(task, advance=1, description=str(result))
            if len(results) in study.ends:  # what is whole stays if the rest is interrupted
                found = notebook.Findings.of(results)
                values = notebook.record(str(args.model), study, found, terms)
                values["complete"] = len(results) == len(study)
                parts = notebook.sections(study, found, terms)
                notebook.write(args.out, values, parts)
    say(f"written: {args.out / notebook.PAGE}")
    if args.json:
        print(json_text(values))
        return
    for part in parts:
        table = Table(*part.columns, title=part.title)
        for row in part.rows:
            table.add_row(*row)
        show(table, part.finding, part.protocol.line, "")


def integers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of `2,4,8`, without repetitions."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"{name}={text!r} must be integers with commas between them, as in 2,4,8")
    return tuple(sorted({int(word) for word in words}))


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)
