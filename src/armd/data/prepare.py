"""Text to token shards: one deterministic pass, a manifest that says what is in them.

OUT/manifest.json       documents, tokens, bytes and hashes of each split; the tokenizer; how the split was made
OUT/tokenizer.json
OUT/train-00000.bin     token ids end to end, an end-of-text token after each document (uint16 or uint32)
OUT/valid-00000.bin     the held-out documents
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from armd.data.sources import Document
from armd.data.tokenizers import get_tokenizer, sample
from armd.errors import UserError

FORMAT = 1
SPLITS = ("train", "valid")
BATCH_CHARACTERS = 2**20
SHARD_TOKENS = 2**26

Documents = Callable[[], Iterator[Document]]
Assign = Callable[[int, Document], list[tuple[str, str]]]  # number, document -> (split, text) parts


# ---- the manifest ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A file of token ids."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """Counts of one split; `bytes` are UTF-8 bytes of its text."""

    documents: int
    tokens: int
    bytes: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds."""

    format: int
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int | None
    dtype: str
    held_out: str
    splits: dict[str, Split]

    @property
    def digest(self) -> str:
        """Identity of the data: a hash of everything above, shard hashes included."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        path = Path(folder) / "manifest.json"
        if not path.is_file():
            raise UserError(f"data folder {folder} holds no manifest.json; make it with armd prepare")
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            if values["format"] != FORMAT:
                raise UserError(f"{path} has format {values['format']}, this version reads {FORMAT}; prepare it again")
            splits = {
                name: Split(**{**split, "shards": tuple(Shard(**shard) for shard in split["shards"])})
                for name, split in values["splits"].items()
            }
            manifest = cls(**{**values, "splits": splits})
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); prepare the data again") from None
        files = [shard.file for split in manifest.splits.values() for shard in split.shards]
        if manifest.dtype not in ("uint16", "uint32") or any(Path(file).name != file for file in files):
            raise UserError(f"{path} is damaged (dtype or shard names); prepare the data again")
        return manifest


# ---- the pass --------------------------------------------------------------------------------------------------------


def prepare(
    documents: Documents,
    tokenizer: str,
    out: str | Path,
    *,
    held_out: float = 0.01,
    valid: Documents | None = None,
    tokenizer_dir: str | Path | None = None,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
) -> Manifest:
    """Tokenise documents into a new folder. Nothing is left at `out` unless all of it is.

    Args:
        documents: called for an iterator over the corpus; more than once if a vocabulary is trained on it.
        tokenizer: see `get_tokenizer`.
        out: the folder; must not exist or be empty.
        held_out: share of the documents to hold out, chosen by a hash of name and text, so that the choice does not
            depend on the other documents. If that leaves a split empty, the document with the smallest hash is held
            out; a corpus of one document gives its last part.
        valid: held-out documents given apart; then all of `documents` are for training.
        tokenizer_dir: folder of known vocabularies.
        shard_tokens: tokens in a shard.
        progress: show what is happening on standard error.

    Raises:
        UserError: `out` is not empty, the disk is full, the corpus or tokenizer is unusable.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out folder {out} is not empty; name a new one, or delete it first")
    if not 0 < held_out < 1:
        raise UserError(f"held_out={held_out} must be a share above 0 and below 1")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens={shard_tokens} must be at least 1")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    source = documents, valid, tokenizer, tokenizer_dir
    try:
        rule, assign = f"{held_out:g} of the documents, by hash", _by_hash(held_out)
        if valid is not None:
            rule, assign = "given apart", lambda number, document: [("train", document.text)]
        manifest, smallest = _write(*source, partial, assign, rule, shard_tokens, progress)
        if valid is not None and manifest.splits["valid"].documents == 0:
            raise UserError("valid is empty: there is no document to hold out")
        if any(manifest.splits[name].documents == 0 for name in SPLITS):
            rule, assign = _second_choice(smallest, held_out)
            manifest, _ = _write(*source, partial, assign, rule, shard_tokens, progress)
        partial.replace(out)  # an empty folder at `out` gives way
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error
        raise UserError(f"cannot write {out}: {reason}; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write(
    documents: Documents, valid: Documents | None, spec: str, tokenizer_dir: str | Path | None, folder: Path,
    assign: Assign, rule: str, shard_tokens: int, progress: bool,
) -> tuple[Manifest, list[tuple[str, int]]]:  # fmt: skip
    """One pass; returns the manifest, and hash and number of the two documents with the smallest hashes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    training = (
        text
        for number, document in enumerate(documents())
        for split, text in assign(number, document)
        if split == "train"
    )
    tokenizer = get_tokenizer(spec, sample(training), tokenizer_dir)
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    writers = {name: _Writer(folder, name, np.dtype(dtype), shard_tokens) for name in SPLITS}
    smallest: list[tuple[str, int]] = []

    def parts() -> Iterator[tuple[str, str]]:
        for number, document in enumerate(documents()):
            smallest[:] = sorted([*smallest, (_hash(document), number)])[:2]
            yield from assign(number, document)
        for document in valid() if valid is not None else ():
            yield "valid", document.text

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("reading")
        for batch in _batches(parts()):
            ids = tokenizer.encode_batch([text for _, text in batch])
            for (split, text), tokens in zip(batch, ids, strict=True):
                writers[split].add(tokens, text, tokenizer.eos_id)
            train, held = (writers[name] for name in SPLITS)
            bar.update(task, description=f"{train.tokens:,} tokens of {train.documents + held.documents:,} documents")
    tokenizer.save(folder / "tokenizer.json")
    splits = {name: writer.close() for name, writer in writers.items()}
    manifest = Manifest(
        FORMAT, tokenizer.spec, tokenizer.sha256, tokenizer.vocab_size, tokenizer.eos_id, dtype, rule, splits
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest, smallest


def _batches(parts: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part[1])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends documents of one split to its shards."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.documents = self.tokens = self.bytes = 0
        self._folder, self._split, self._dtype, self._size = folder, split, dtype, shard_tokens
        self._parts: list[np.ndarray] = []
        self._held = 0  # tokens in _parts, below the size of a shard
        self._shards: list[Shard] = []

    def add(self, ids: list[int], text: str, eos: int | None) -> None:
        tokens = np.array(ids if eos is None else [*ids, eos], dtype=self._dtype)
        self.documents += 1
        self.tokens += len(tokens)
        self.bytes += len(text.encode())
        while self._held + len(tokens) >= self._size:
            head, tokens = np.split(tokens, [self._size - self._held])
            self._parts.append(head)
            self._flush()
        self._parts.append(tokens)
        self._held += len(tokens)

    def close(self) -> Split:
        if self._held:
            self._flush()
        return Split(self.documents, self.tokens, self.bytes, tuple(self._shards))

    def _flush(self) -> None:
        ids = np.concatenate(self._parts)
        name = f"{self._split}-{len(self._shards):05d}.bin"
        (self._folder / name).write_bytes(ids.tobytes())
        self._shards.append(Shard(name, len(ids), hashlib.sha256(ids.tobytes()).hexdigest()))
        self._parts, self._held = [], 0


# ---- which documents are held out ------------------------------------------------------------------------------------


def _hash(document: Document) -> str:
    return hashlib.sha256(f"{document.name}\0{document.text}".encode()).hexdigest()


def _by_hash(share: float) -> Assign:
    return lambda _, document: [("valid" if int(_hash(document)[:13], 16) < share * 16**13 else "train", document.text)]


def _second_choice(smallest: list[tuple[str, int]], share: float) -> tuple[str, Assign]:
    """The rule for small corpora, where a share of the documents can be none or all."""
    if not smallest:
        raise UserError("the corpus is empty: there is no document to train on")
    if len(smallest) > 1:
        chosen = smallest[0][1]
        rule: Assign = lambda number, d: [("valid" if number == chosen else "train", d.text)]  # noqa: E731
        return "the document with the smallest hash", rule

    def cut(_: int, document: Document) -> list[tuple[str, str]]:
        text = document.text
        wanted = int(len(text) * (1 - share))
        at = text.rfind("\n", int(len(text) * (1 - 2 * share)), wanted) + 1 or wanted  # at a line end, if one is near
        if not 0 < at < len(text):
            raise UserError(f"{document.name} is too short to hold a part of it out: {len(text)} characters")
        return [("train", text[:at]), ("valid", text[at:])]

    return f"the last {share:g} of the only document", cut
