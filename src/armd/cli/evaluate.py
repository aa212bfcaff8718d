"""armd evaluate: score held-out text in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from armd import checkpoint, decode
from armd.cli.models import as_armd, held_out, orders_for
from armd.cli.terminal import show
from armd.data import Spread
from armd.errors import UserError
from armd.evals import draws_of, evaluate, held_out_protocol, parse_orders, read_meter
from armd.families import Family
from armd.files import json_text
from armd.model import Armd, Transformer
from armd.sampling import check_seed
from armd.train.loop import pick_device

USUAL = "left_to_right,uniform:8,strided:4"


@dataclass(frozen=True)
class Evaluate:
    """Score held-out text in any generation orders, and predict how fast its strided orders decode."""

    model: Path
    """Run folder or published model folder."""
    data: Path
    """Folder made by armd prepare."""
    orders: str | None = None
    """Comma-separated: left_to_right, uniform:K (mean over K orders), strided:S, reinsert:RHO, subset:RHO, infill,
    spans:SIZE, your own file.py:function; of masked and block diffusion also bound:K (K times a text). Default:
    left_to_right,uniform:8,strided:4; of ar and ar+prefix left_to_right, of masked and block diffusion bound:8."""
    texts: int = 256
    """Held-out texts to score, at most."""
    length: int | None = None
    """Tokens in a text; default: the model's longest."""
    batch_size: int = 16
    """Texts in a pass."""
    measure: int = 0
    """Texts to write in mode exact for every strided order, to set what is measured beside what is predicted."""
    seed: int = 0
    """Seed of the random orders, and of the noise that texts are written with."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_evaluate(args: Evaluate) -> None:
    asked = parse_orders(USUAL if args.orders is None else args.orders)  # before anything is loaded
    check_seed(args.seed)
    if args.texts < 1 or args.batch_size < 1 or args.measure < 0:
        sizes = f"texts={args.texts} and batch_size={args.batch_size}"
        raise UserError(f"{sizes} must be at least 1, measure={args.measure} at least 0")
    if args.measure and not any(order.startswith("strided:") for order in asked):
        raise UserError(f"measure={args.measure} writes texts in strided orders: put strided:S among --orders")
    model, tokenizer = checkpoint.load(args.model, pick_device(args.device))
    orders = orders_for(model, args.orders, USUAL)
    if args.measure:
        as_armd(model, args.model, f"measure={args.measure}")
    length = model.config.max_position_embeddings if args.length is None else args.length
    dataset = held_out(args.data, args.model, model, tokenizer, length).spread(args.texts)
    for order in orders:
        if not draws_of(order):
            Family.parse(order).check(length)
    scores = list(evaluate(model, dataset, orders, texts=args.texts, batch_size=args.batch_size, seed=args.seed))
    meters = _meters(args, model, dataset, orders)
    protocol = held_out_protocol(args.data, dataset, args.seed, tokenizer)
    if args.json:
        fields = {"scores": [dataclasses.asdict(score) for score in scores], "meter": meters}
        print(json_text({**fields, "protocol": protocol.fields}))
        return
    columns = ("order", "blocks", "nats/token", "± s.e.", "perplexity", "bits/byte", "note")
    table = Table(*columns, title=f"{scores[0].texts} held-out texts of {dataset.length} tokens")
    for s in scores:
        numbers = f"{s.nats_per_token:.4f}", f"{s.stderr:.4f}", f"{s.perplexity:.2f}", f"{s.bits_per_byte:.3f}"
        table.add_row(s.order, s.blocks, *numbers, s.note)
    show(table, protocol.line)
    if meters:
        show(_meter_table(meters))


def _meters(args: Evaluate, model: Transformer, dataset: Spread, orders: Sequence[str]) -> list[dict[str, Any]]:
    """The likelihood meter of every strided order, with what decoding measured if texts were asked for."""
    meters = []
    for streams in (Family.parse(name).argument for name in orders if name.startswith("strided:")):
        if not isinstance(model, Armd):
            continue
        read = read_meter(model, dataset, streams, texts=args.texts, batch_size=args.batch_size, seed=args.seed)
        measured = None
        if args.measure:
            out = decode.generate(
                model, length=dataset.length, streams=streams, seed=args.seed, batch_size=args.measure, stop=False
            )
            measured = {"texts": args.measure, "acceptance": out.acceptance, "tokens_per_pass": out.tokens_per_pass}
        meters.append({**dataclasses.asdict(read), "measured": measured})
    return meters


def _meter_table(meters: list[dict[str, Any]]) -> Table:
    measured = meters[0]["measured"] is not None
    columns = ["streams", "sequential", "parallel", "penalty", "TV", "acceptance", "tokens/pass"]
    more = ["acceptance, measured", "tokens/pass, measured"] if measured else []
    table = Table(*columns, *more, title="decoding, predicted: nats/token, and mode exact")
    for m in meters:
        numbers = [f"{m[name]:.4f}" for name in ("sequential", "parallel", "penalty", "variation")]
        for part in (m, m["measured"])[: 2 if measured else 1]:
            accepted = "-" if part["acceptance"] is None else f"{part['acceptance']:.3f}"
            numbers += [accepted, f"{part['tokens_per_pass']:.2f}"]
        table.add_row(str(m["streams"]), *numbers)
    return table
