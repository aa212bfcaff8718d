"""Windows over token shards. A window is a stateless function of (seed, step): nothing to save, nothing to replay."""

from __future__ import annotations

import hashlib
import os
import typing
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from armd.data.prepare import Manifest
from armd.errors import UserError

VERIFY_TOKENS = 2**28
"""Splits up to this size are hashed when a run starts: seconds. Of larger ones only the sizes are checked."""


class TokenDataset:
    """Texts of `length` tokens, cut from one split of a prepared folder.

    Attributes:
        tokens, bytes: size of the split; bytes are those of its text.
        vocab_size, eos_id: of the tokenizer.

    Raises:
        UserError: a shard is missing or has the wrong size, or the split is shorter than one text.
    """

    def __init__(self, folder: str | Path, split: str, length: int) -> None:
        self.folder, self.split, self.length = Path(folder), split, length
        manifest = Manifest.load(folder)
        if split not in manifest.splits:
            raise UserError(f"split {split!r} is unknown; {folder} has {', '.join(manifest.splits)}")
        part = manifest.splits[split]
        self.tokens, self.bytes, self._manifest = part.tokens, part.bytes, part
        self.vocab_size, self.eos_id = manifest.vocab_size, manifest.eos_id
        if length < 1:
            raise UserError(f"length={length} must be at least 1")
        if self.tokens < length:
            raise UserError(
                f"{folder} {split} holds {self.tokens} tokens, too few for one text of {length}; "
                "give more text or a shorter length"
            )
        self._shards = [_Shard(self.folder / shard.file, shard.tokens, manifest.dtype) for shard in part.shards]
        self._ends = np.cumsum([shard.tokens for shard in part.shards])

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    def batch(self, step: int, batch_size: int, seed: int, rows: Sequence[int] | None = None) -> Int[Tensor, "B N"]:
        """The texts of a training step: (batch_size, length) long, or only some rows of it.

        The split is a ring. An epoch starts it at a random phase, cuts it into windows, and visits each once, in an
        order drawn for the epoch; fewer than `length` tokens are left over. Where there are as many documents as
        windows and nothing is left over, as with texts of one length, the phase is 0: each window is a document.
        """
        windows = self.tokens // self.length
        texts = []
        for row in range(batch_size) if rows is None else rows:
            index = step * batch_size + row
            epoch, place = divmod(index, windows)
            phase, permutation = _epoch(seed, epoch, windows, self.tokens)
            if self._manifest.documents * self.length == self.tokens:
                phase = 0
            texts.append(self._read(phase + int(permutation[place]) * self.length))
        return torch.from_numpy(np.stack(texts))

    def eval_windows(self) -> int:
        """Number of non-overlapping texts in the split."""
        return self.tokens // self.length

    def eval_batch(self, start: int, count: int) -> Int[Tensor, "B N"]:
        """Texts start..start+count-1 of the split, in its order: (count, length) long."""
        if start < 0 or count < 1 or start + count > self.eval_windows():
            raise UserError(
                f"texts {start}..{start + count - 1} are not among the {self.eval_windows()} of {self.split}"
            )
        return torch.from_numpy(np.stack([self._read(i * self.length) for i in range(start, start + count)]))

    def spread(self, texts: int) -> Spread:
        """So many of its texts, at equal distances."""
        return Spread(self, texts)

    def verify(self, most: int = VERIFY_TOKENS) -> None:
        """Compare every shard with its hash in the manifest; a split of more than `most` tokens would take too long."""
        for shard in self._manifest.shards if self.tokens <= most else ():
            path = self.folder / shard.file
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"shard {path} cannot be read: {error.strerror}") from None
            if digest != shard.sha256:
                raise UserError(f"shard {path} was changed since it was made; prepare the data again")

    def _read(self, start: int) -> np.ndarray:
        """`length` tokens of the ring from `start`."""
        parts, missing = [], self.length
        while missing:
            start %= self.tokens
            shard = int(np.searchsorted(self._ends, start, side="right"))
            parts.append(self._shards[shard].read(start - int(self._ends[shard]), missing))
            start, missing = start + len(parts[-1]), missing - len(parts[-1])
        ids = np.concatenate(parts).astype(np.int64)
        if ids.max() >= self.vocab_size:
            ring = f"tokens {start - self.length}..{start - 1} of {self.folder} {self.split}"
            raise UserError(f"{ring} hold id {ids.max()}, above the vocabulary of {self.vocab_size}: prepare it again")
        return ids


class _Shard:
    """A file of tokens, kept open. It is not mapped: to read what was cut off a mapped file kills the process."""

    def __init__(self, path: Path, tokens: int, dtype: str) -> None:
        self.path, self.tokens, self.dtype = path, tokens, np.dtype(dtype)
        size, wanted = path.stat().st_size if path.is_file() else None, tokens * self.dtype.itemsize
        if size != wanted:
            state = "is missing" if size is None else f"has {size} bytes, not {wanted}"
            raise UserError(f"shard {path} {state}; prepare the data again")
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"shard {path} cannot be read: {error.strerror}") from None
        weakref.finalize(self, os.close, self._file)
        self._changed = os.fstat(self._file).st_mtime_ns

    def __reduce__(self) -> tuple[type, tuple[Path, int, str]]:
        return _Shard, (self.path, self.tokens, self.dtype.name)  # opened anew: a descriptor is not to be copied

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to `count` tokens; `start` counts from the end of the file, below 0."""
        try:
            unchanged = self.path.stat().st_mtime_ns == self._changed
            found = os.pread(self._file, count * self.dtype.itemsize, (self.tokens + start) * self.dtype.itemsize)
        except FileNotFoundError as error:
            raise UserError(f"shard {self.path} vanished during the run: {error.strerror}") from None
        except OSError as error:
            raise UserError(f"shard {self.path} cannot be read: {error.strerror}") from None
        if not unchanged or len(found) < min(count, -start) * self.dtype.itemsize:
            raise UserError(f"shard {self.path} was changed during the run; prepare the data again")
        return np.frombuffer(found, dtype=self.dtype)


@typing.runtime_checkable
class Texts(typing.Protocol):
    """Texts of `length` tokens to score, as of `TokenDataset`."""

    @property
    def length(self) -> int:
        """Tokens N of a text."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token that is scored."""

    def eval_windows(self) -> int:
        """Number of texts."""

    def eval_batch(self, start: int, count: int) -> Tensor:
        """Texts start..start+count-1: (count, length) long."""


@dataclass(frozen=True)
class Spread:
    """Texts at equal distances: the first ones may all be of one document. All of them, if there are fewer.

    Attributes:
        whole: what they are among, a split for example.
        texts: how many.
    """

    whole: Texts
    texts: int

    @property
    def length(self) -> int:
        return self.whole.length

    @property
    def bytes_per_token(self) -> float:
        return self.whole.bytes_per_token

    def eval_windows(self) -> int:
        return min(self.texts, self.whole.eval_windows())

    def eval_batch(self, start: int, count: int) -> Int[Tensor, "B N"]:
        """Texts start..start+count-1 of these: (count, length) long."""
        places = (i * self.whole.eval_windows() // self.eval_windows() for i in range(start, start + count))
        return torch.cat([self.whole.eval_batch(place, 1) for place in places])


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, windows: int, tokens: int) -> tuple[int, np.ndarray]:
    """The phase and the window order of an epoch."""
    random = np.random.default_rng([seed & 0xFFFFFFFF, epoch])
    return int(random.integers(tokens)), random.permutation(windows)
