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
import shutil
import tempfile
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
Assign = Callable[[Document], list[tuple[str, str]]]  # document -> (split, text) parts


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
            return cls(**{**values, "splits": splits})
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); prepare the data again") from None


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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        rule, assign = f"{held_out:g} of the documents, by hash", _by_hash(held_out)
        if valid is not None:
            rule, assign = "given apart", lambda document: [("train", document.text)]
        source = documents, valid, tokenizer, tokenizer_dir
        manifest, seen = _write(*source, partial, assign, rule, shard_tokens, progress)
        if any(manifest.splits[name].documents == 0 for name in SPLITS):
            rule, assign = _second_choice(seen, held_out)
            manifest, _ = _write(*source, partial, assign, rule, shard_tokens, progress)
        partial.chmod(0o755)
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
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """One pass; returns the manifest and the hashes of the two documents with the smallest ones."""
    training = (text for document in documents() for split, text in assign(document) if split == "train")
    tokenizer = get_tokenizer(spec, sample(training), tokenizer_dir)
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    writers = {name: _Writer(folder, name, np.dtype(dtype), shard_tokens) for name in SPLITS}
    smallest: list[str] = []

    def parts() -> Iterator[tuple[str, str]]:
        for document in documents():
            smallest[:] = sorted([*smallest, _hash(document)])[:2]
            yield from assign(document)
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
    manifest = Manifest(FORMAT, spec, tokenizer.sha256, tokenizer.vocab_size, tokenizer.eos_id, dtype, rule, splits)
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
        self._buffer: list[int] = []
        self._shards: list[Shard] = []

    def add(self, ids: list[int], text: str, eos: int | None) -> None:
        self.documents += 1
        self.tokens += len(ids) + (eos is not None)
        self.bytes += len(text.encode())
        self._buffer.extend(ids)
        if eos is not None:
            self._buffer.append(eos)
        while len(self._buffer) >= self._size:
            self._flush()

    def close(self) -> Split:
        if self._buffer:
            self._flush()
        return Split(self.documents, self.tokens, self.bytes, tuple(self._shards))

    def _flush(self) -> None:
        ids = np.array(self._buffer[: self._size], dtype=self._dtype)
        del self._buffer[: self._size]
        name = f"{self._split}-{len(self._shards):05d}.bin"
        (self._folder / name).write_bytes(ids.tobytes())
        self._shards.append(Shard(name, len(ids), hashlib.sha256(ids.tobytes()).hexdigest()))


# ---- which documents are held out ------------------------------------------------------------------------------------


def _hash(document: Document) -> str:
    return hashlib.sha256(f"{document.name}\0{document.text}".encode()).hexdigest()


def _by_hash(share: float) -> Assign:
    return lambda document: [("valid" if int(_hash(document)[:13], 16) < share * 16**13 else "train", document.text)]


def _second_choice(smallest: list[str], share: float) -> tuple[str, Assign]:
    """The rule for small corpora, where a share of the documents can be none or all."""
    if not smallest:
        raise UserError("the corpus is empty: there is no document to train on")
    if len(smallest) > 1:
        chosen = smallest[0]
        return "the document with the smallest hash", lambda d: [("valid" if _hash(d) == chosen else "train", d.text)]

    def cut(document: Document) -> list[tuple[str, str]]:
        text = document.text
        at = text.rfind("\n", 0, int(len(text) * (1 - share))) + 1 or int(len(text) * (1 - share))
        if not 0 < at < len(text):
            raise UserError(f"{document.name} is too short to hold a part of it out: {len(text)} characters")
        return [("train", text[:at]), ("valid", text[at:])]

    return f"the last {share:g} of the only document", cut
