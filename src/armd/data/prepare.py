"""Text to token shards: one deterministic pass, a manifest that says what is in them.

No more than about a megabyte of text is held at a time, however long a document is: it is cut into pieces where
tokenizers cut anyway, so that its ids are those of the whole.

OUT/manifest.json       documents, tokens, bytes and hashes of each split; the tokenizer; how the split was made
OUT/tokenizer.json
OUT/train-00000.bin     token ids end to end, an end-of-text token after each document (uint16 or uint32)
OUT/valid-00000.bin     the held-out documents
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from armd.data.sources import Document
from armd.data.tokenizers import get_tokenizer, sample
from armd.errors import UserError
from armd.fields import check_types
from armd.files import read_json

FORMAT = 1
SPLITS = ("train", "valid")
PIECE_CHARACTERS = 2**20
SHARD_TOKENS = 2**26
PARTIAL = ".partial"

Documents = Callable[[], Iterator[Document]]


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
            values = read_json(path)
        except UserError as error:
            raise UserError(f"{error}; prepare the data again") from None
        if values.get("format") != FORMAT:
            raise UserError(f"{path} has format {values.get('format')}, this version reads {FORMAT}; prepare it again")
        try:
            splits = {
                name: Split(**{**split, "shards": tuple(Shard(**shard) for shard in split["shards"])})
                for name, split in values["splits"].items()
            }
            manifest = cls(**{**values, "splits": splits})
            manifest._check()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); prepare the data again") from None
        return manifest

    def _check(self) -> None:
        """Raise a ValueError if types, names, sizes or totals are not those of a manifest."""
        check_types(self)
        for split in self.splits.values():
            for part in (split, *split.shards):
                check_types(part)
            if split.tokens != sum(shard.tokens for shard in split.shards) or min(split.documents, split.bytes) < 0:
                raise ValueError(f"{split.tokens} tokens are not those of its shards")
            for shard in split.shards:
                if shard.tokens < 1 or not shard.file or Path(shard.file).name != shard.file:
                    raise ValueError(f"shard {shard.file!r} of {shard.tokens} tokens")
        if self.vocab_size < 1 or (self.eos_id is not None and not 0 <= self.eos_id < self.vocab_size):
            raise ValueError(f"eos_id={self.eos_id} of vocab_size={self.vocab_size}")
        if self.dtype not in ("uint16", "uint32"):
            raise ValueError(f"dtype={self.dtype!r}")


# ---- pieces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A document, or some of a long one: its number, its place in characters, and whether it is the last."""

    document: int
    name: str
    text: str
    start: int
    last: bool


Assign = Callable[[Piece], list[tuple[str, str, bool]]]  # -> (split, text, whether it ends a document there) parts


def pieces(documents: Iterable[Document]) -> Iterator[Piece]:
    """Cut documents, which may come in parts, into pieces. Where they are cut depends on the text alone."""
    number, start, rest = 0, 0, ""
    for document in documents:
        for i in range(0, len(document.text), PIECE_CHARACTERS):
            rest += document.text[i : i + PIECE_CHARACTERS]
            while len(rest) > PIECE_CHARACTERS:
                at = _cut(rest)
                yield Piece(number, document.name, rest[:at], start, last=False)
                start, rest = start + at, rest[at:]
        if document.last:
            yield Piece(number, document.name, rest, start, last=True)
            number, start, rest = number + 1, 0, ""


def _cut(text: str) -> int:
    """The last line end, else space, of the first megabyte that is right before something that is not white space.

    There the pre-tokenizers of byte, GPT-2 and BERT vocabularies begin a new word, so no token goes across. Text that
    has no such place within half a megabyte is cut anywhere.
    """
    for mark in ("\n", " "):
        at = text.rfind(mark, PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
        while at > 0 and text[at + 1].isspace():
            at = text.rfind(mark, PIECE_CHARACTERS // 2, at)
        if at > 0:
            return at
    return PIECE_CHARACTERS


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
        held_out: share of the documents to hold out, chosen by a hash of name and first megabyte, so that the choice
            does not depend on the other documents. If that leaves a split empty, the document with the smallest hash
            is held out; a corpus of one document gives its last part.
        valid: held-out documents given apart; then all of `documents` are for training.
        tokenizer_dir: folder of known vocabularies.
        shard_tokens: tokens in a shard.
        progress: show what is happening on standard error.

    Raises:
        UserError: `out` is not empty, the disk is full, the corpus or tokenizer is unusable.
    """
    out = Path(out)
    if not 0 < held_out < 1:
        raise UserError(f"held_out={held_out} must be a share above 0 and below 1")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens={shard_tokens} must be at least 1")
    made, partial = _is_new(out), out / PARTIAL
    source = documents, valid, tokenizer, tokenizer_dir
    try:
        rule, assign = f"{held_out:g} of the documents, by hash", _by_hash(held_out)
        if valid is not None:
            rule, assign = "given apart", lambda piece: [("train", piece.text, piece.last)]
        manifest, smallest, characters = _write(*source, partial, assign, rule, shard_tokens, progress)
        if valid is not None and manifest.splits["valid"].documents == 0:
            raise UserError("valid is empty: there is no document to hold out")
        if any(manifest.splits[name].documents == 0 for name in SPLITS):
            rule, assign = _second_choice(smallest, characters, held_out)
            manifest, _, _ = _write(*source, partial, assign, rule, shard_tokens, progress)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "manifest.json"):
            path.replace(out / path.name)  # the manifest last: with it the folder is whole
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error
        raise UserError(f"cannot write {out}: {reason}; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not empty: done
                out.rmdir()
    return manifest


def _is_new(out: Path) -> bool:
    """Whether the folder is yet to be made; one that holds anything is refused."""
    try:
        if not out.exists():
            return True
        if out.is_dir() and all(path.name == PARTIAL for path in out.iterdir()):  # left by a killed process
            return False
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    raise UserError(f"out folder {out} is not empty; name a new one, or delete it first")


def _write(
    documents: Documents, valid: Documents | None, spec: str, tokenizer_dir: str | Path | None, folder: Path,
    assign: Assign, rule: str, shard_tokens: int, progress: bool,
) -> tuple[Manifest, list[tuple[str, int]], int]:  # fmt: skip
    """One pass; returns the manifest, hash and number of the two documents of the smallest hashes, and characters."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    training = (text for piece in pieces(documents()) for split, text, _ in assign(piece) if split == "train")
    tokenizer = get_tokenizer(spec, sample(training), tokenizer_dir)
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    smallest: list[tuple[str, int]] = []
    characters = 0

    def parts() -> Iterator[tuple[str, str, bool]]:
        nonlocal smallest, characters
        for piece in pieces(documents()):
            characters += len(piece.text)
            if piece.start == 0:
                smallest = sorted([*smallest, (_hash(piece), piece.document)])[:2]
            yield from assign(piece)
        for piece in pieces(valid()) if valid is not None else ():
            yield "valid", piece.text, piece.last

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with contextlib.ExitStack() as stack:
        writers = {n: stack.enter_context(_Writer(folder, n, np.dtype(dtype), shard_tokens)) for n in SPLITS}
        console = Console(stderr=True)
        bar = stack.enter_context(Progress(*columns, console=console, disable=not progress, transient=True))
        task = bar.add_task("reading")
        for batch in _batches(parts()):
            ids = tokenizer.encode_batch([text for _, text, _ in batch])
            for (split, text, last), tokens in zip(batch, ids, strict=True):
                writers[split].add(tokens, text, tokenizer.eos_id, last)
            train, held = (writers[name] for name in SPLITS)
            bar.update(task, description=f"{train.tokens:,} tokens of {train.documents + held.documents:,} documents")
    tokenizer.save(folder / "tokenizer.json")
    splits = {name: writer.split() for name, writer in writers.items()}
    manifest = Manifest(
        FORMAT, tokenizer.spec, tokenizer.sha256, tokenizer.vocab_size, tokenizer.eos_id, dtype, rule, splits
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest, smallest, characters


def _batches(parts: Iterator[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    """Parts to encode at once: many short ones, or one of a megabyte."""
    batch: list[tuple[str, str, bool]] = []
    size = 0
    for part in parts:
        if batch and size + len(part[1]) > PIECE_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += len(part[1])
    if batch:
        yield batch


class _Writer:
    """Appends documents of one split to its shards."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.documents = self.tokens = self.bytes = 0
        self._folder, self._split, self._dtype, self._size = folder, split, dtype, shard_tokens
        self._shards: list[Shard] = []
        self._file: IO[bytes] | None = None  # the shard being written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, ids: list[int], text: str, eos: int | None, last: bool) -> None:
        tokens = np.array([*ids, eos] if last and eos is not None else ids, dtype=self._dtype)
        self.documents += last
        self.tokens += len(tokens)
        self.bytes += len(text.encode())
        while len(tokens):
            if self._file is None:
                self._open()
            head, tokens = np.split(tokens, [self._size - self._held])
            self._append(head.tobytes(), len(head))

    def split(self) -> Split:
        return Split(self.documents, self.tokens, self.bytes, tuple(self._shards))

    def _open(self) -> None:
        self._name, self._held, self._hash = f"{self._split}-{len(self._shards):05d}.bin", 0, hashlib.sha256()
        self._file = (self._folder / self._name).open("wb")

    def _append(self, raw: bytes, tokens: int) -> None:
        assert self._file is not None
        self._file.write(raw)
        self._hash.update(raw)
        self._held += tokens
        if self._held == self._size:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
            self._shards.append(Shard(self._name, self._held, self._hash.hexdigest()))


# ---- which documents are held out ------------------------------------------------------------------------------------


def _hash(first: Piece) -> str:
    return hashlib.sha256(f"{first.name}\0{first.text}".encode()).hexdigest()


def _by_hash(share: float) -> Assign:
    split = "train"

    def assign(piece: Piece) -> list[tuple[str, str, bool]]:
        nonlocal split
        if piece.start == 0:  # the other pieces follow the first
            split = "valid" if int(_hash(piece)[:13], 16) < share * 16**13 else "train"
        return [(split, piece.text, piece.last)]

    return assign


def _second_choice(smallest: list[tuple[str, int]], characters: int, share: float) -> tuple[str, Assign]:
    """The rule for small corpora, where a share of the documents can be none or all."""
    if not smallest:
        raise UserError("the corpus is empty: there is no document to train on")
    if len(smallest) > 1:
        chosen = smallest[0][1]
        rule: Assign = lambda p: [("valid" if p.document == chosen else "train", p.text, p.last)]  # noqa: E731
        return "the document with the smallest hash", rule
    earliest, wanted = int(characters * (1 - 2 * share)), int(characters * (1 - share))
    if not 0 < wanted < characters:
        raise UserError(f"the only document is too short to hold a part of it out: {characters} characters")

    def cut(piece: Piece) -> list[tuple[str, str, bool]]:
        place = wanted - piece.start
        if place <= 0:
            return [("valid", piece.text, piece.last)]
        if place >= len(piece.text):
            return [("train", piece.text, place == len(piece.text))]
        at = piece.text.rfind("\n", max(earliest - piece.start, 0), place) + 1 or place  # at a line end, if one is near
        return [("train", piece.text[:at], True), ("valid", piece.text[at:], piece.last)]

    return f"the last {share:g} of the only document", cut
