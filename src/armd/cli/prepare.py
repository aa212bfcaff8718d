"""armd prepare: text to token shards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from armd.cli.terminal import say
from armd.data import documents, named_documents, prepare
from armd.errors import UserError
from armd.files import json_text


@dataclass(frozen=True)
class Prepare:
    """Turn text into token shards with a manifest."""

    out: Path
    """Folder to make."""
    tokenizer: str
    """byte, chars:ABC (each a token), bpe:4096 (trained on the spot), gpt2, bert-base-uncased, or a tokenizer.json."""
    input: tuple[str, ...] = ()
    """Files, folders or globs: text, .jsonl, .parquet, .tar, also .gz or .xz."""
    dataset: str | None = None
    """A data set by name instead of input: openwebtext, lm1b, wikitext (= 103), wikitext2, ptb, lambada,
    ag_news, pubmed, arxiv, text8."""
    split: str = "train"
    """Split of the named data set."""
    data_dir: Path | None = None
    """Folder with the files of the named data set; without it they come from the hub."""
    tokenizer_dir: Path | None = None
    """Folder with the vocabulary files of gpt2 or bert-base-uncased; without it they come from the hub."""
    valid: tuple[str, ...] = ()
    """Held-out files, folders or globs, instead of a share of the input."""
    held_out: float = 0.01
    """Share of the documents to hold out."""
    json: bool = False
    """Print the manifest as JSON."""


def run_prepare(args: Prepare) -> None:
    if bool(args.input) == bool(args.dataset):
        raise UserError("give either --input FILES or --dataset NAME")
    manifest = prepare(
        lambda: named_documents(args.dataset, args.split, args.data_dir) if args.dataset else documents(args.input),
        args.tokenizer,
        args.out,
        held_out=args.held_out,
        valid=(lambda: documents(args.valid)) if args.valid else None,
        tokenizer_dir=args.tokenizer_dir,
    )
    if args.json:
        print(json_text(dataclasses.asdict(manifest)))
        return
    for name, split in manifest.splits.items():
        say(f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes")
    say(f"held out: {manifest.held_out}. Next: armd train tiny --data {args.out} --out RUN")
