"""armd evaluate zeroshot, armd evaluate lambada: texts of other data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from armd.cli.models import load_reader, orders_for
from armd.cli.terminal import say, show
from armd.errors import UserError
from armd.evals import (
    PACKINGS,
    SETS,
    Protocol,
    ZeroShot,
    draws_of,
    last_words,
    pack,
    parse_orders,
    read_set,
    zero_shot,
    zero_shot_protocol,
)
from armd.families import Family
from armd.files import json_text
from armd.sampling import check_seed

USUAL = "left_to_right"


@dataclass(frozen=True)
class EvaluateZeroShot:
    """Score other data sets in any generation orders, cut and cleaned as in the published tables."""

    model: Path
    """Run folder or published model folder."""
    sets: str = "lambada,wikitext2,ptb,wikitext103,lm1b"
    """Comma-separated: lambada, wikitext2, wikitext103, ptb, lm1b, ag_news, pubmed, arxiv."""
    protocol: Literal["mdlm", "mdlm-ar", "sedd"] = "mdlm"
    """How documents become chunks: mdlm, the same with the first token given, or sedd; see docs/evaluation.md."""
    data_dir: Path | None = None
    """Folder with the files of the sets, or with a folder for each; without it they load through `datasets`."""
    split: str | None = None
    """train, valid or test; default: the published one of each set."""
    orders: str | None = None
    """Comma-separated: left_to_right, uniform:K (mean over K orders), strided:S, reinsert:RHO, subset:RHO, infill,
    spans:SIZE, your own file.py:function; of masked and block diffusion also bound:K (K times a text). Default:
    left_to_right; of these bound:8, but in protocol mdlm-ar, whose first token is given, left_to_right as well."""
    texts: int | None = None
    """Chunks to score, at most; default: all."""
    length: int | None = None
    """Tokens in a chunk; default: the model's longest, or the 1,024 that were published if it is longer."""
    batch_size: int = 16
    """Chunks in a pass."""
    seed: int = 0
    """Seed of the random orders."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_zero_shot(args: EvaluateZeroShot) -> None:
    names = [name.strip() for name in args.sets.split(",") if name.strip()]
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        raise UserError(f"sets={args.sets!r} must name some of {', '.join(SETS)}")
    packing = PACKINGS[args.protocol]
    orders = parse_orders(USUAL if args.orders is None else args.orders)  # before anything is loaded
    check_seed(args.seed)
    for option, value in (("texts", args.texts), ("batch_size", args.batch_size), ("length", args.length)):
        if value is not None and value < 1:
            raise UserError(f"{option}={value} must be at least 1")
    model, tokenizer = load_reader(args.model, args.device)
    orders = orders if packing.scored_from else orders_for(model, args.orders, USUAL)  # a bound has no first token
    limit = model.config.max_position_embeddings
    length = args.length or min(limit, 1024)
    if length > limit:
        raise UserError(f"length={length} tokens exceed max_position_embeddings={limit}")
    for order in orders:
        if not draws_of(order):
            Family.parse(order).check(length)
    results: list[tuple[Protocol, dict[str, int], list[ZeroShot]]] = []
    faults: list[str] = []  # a set that cannot be had takes nothing from those that can
    for name in names:
        say(f"reading {name}")
        try:
            chunks = pack(read_set(name, args.split, args.data_dir), SETS[name][1], tokenizer, packing, length)
        except UserError as error:
            faults.append(str(error))
            continue
        protocol = zero_shot_protocol(name, args.split, args.protocol, tokenizer, chunks, args.texts)
        options = {"batch_size": args.batch_size, "seed": args.seed}
        scores = list(zero_shot(model, name, chunks, orders, texts=args.texts, **options))
        results.append((protocol, chunks.counts, scores))
    if results and args.json:
        print(json_text({"sets": [_fields(*result) for result in results]}))
    elif results:
        _show(args.protocol, results)
    if faults:
        raise UserError("; ".join(faults))


def _show(family: str, results: Sequence[tuple[Protocol, dict[str, int], list[ZeroShot]]]) -> None:
    columns = ("set", "order", "blocks", "nats/token", "± s.e.", "perplexity", "word perplexity", "bits/byte", "note")
    table = Table(*columns, title=f"zero-shot, protocol {family}")
    for _, _, scores in results:
        for score in scores:
            table.add_row(*_row(score))
    show(table, *(protocol.line for protocol, _, _ in results))


def _fields(protocol: Protocol, counts: dict[str, int], scores: list[ZeroShot]) -> dict[str, Any]:
    numbers = [{**dataclasses.asdict(each.score), "word_perplexity": each.word_perplexity} for each in scores]
    return {"set": scores[0].data, **counts, "scores": numbers, "protocol": protocol.fields}


def _row(result: ZeroShot) -> list[str]:
    s = result.score
    numbers = [f"{s.nats_per_token:.4f}", f"{s.stderr:.4f}", f"{s.perplexity:.2f}", f"{result.word_perplexity:.4g}"]
    return [result.data, s.order, s.blocks, *numbers, f"{s.bits_per_byte:.3f}", s.note]


@dataclass(frozen=True)
class EvaluateLambada:
    """Whether the model knows the last word of each LAMBADA passage."""

    model: Path
    """Run folder or published model folder."""
    data_dir: Path | None = None
    """Folder with lambada_test.jsonl, or with a folder lambada; without it the set loads through `datasets`."""
    texts: int | None = None
    """Passages to read, at most; default: all 5,153."""
    batch_size: int = 16
    """Passages in a pass."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_lambada(args: EvaluateLambada) -> None:
    for option, value in (("texts", args.texts), ("batch_size", args.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{option}={value} must be at least 1")
    model, tokenizer = load_reader(args.model, args.device)
    passages = list(read_set("lambada", None, args.data_dir))[: args.texts]
    result = last_words(model, tokenizer, passages, batch_size=args.batch_size)
    if args.json:
        print(json_text({**dataclasses.asdict(result), "protocol": result.protocol.fields}))
        return
    table = Table("passages", "accuracy", "± s.e.", "perplexity of the word", title="LAMBADA, last word")
    numbers = f"{result.accuracy:.4f}", f"{result.stderr:.4f}", f"{result.perplexity:.4g}"
    table.add_row(f"{result.passages:,}", *numbers)
    show(table, result.protocol.line)
