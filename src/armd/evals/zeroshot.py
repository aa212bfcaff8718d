"""Zero-shot perplexity: texts of other data sets, cut into chunks as the published numbers were.

A corpus becomes one row of tokens, and the row becomes chunks that do not overlap; no token is seen by two chunks, and
what is left at the end is dropped. The families differ in what stands between documents and at the ends of a chunk:

    sedd      doc  doc EOS  doc doc  doc    N tokens of text, an end of text after every document
    mdlm      EOS doc doc doc doc doc EOS   N - 2 tokens of text, nothing between documents
    mdlm-ar   the same chunks, the first token given: how autoregressive rows of those tables are scored
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from armd.data import Spread, Tokenizer, named_documents
from armd.errors import UserError
from armd.evals.detokenize import DETOKENIZERS
from armd.evals.likelihood import Score, evaluate
from armd.evals.protocol import Protocol, is_gpt2, vocabulary
from armd.model import Transformer

PUBLISHED_LENGTH = 1024


@dataclass(frozen=True)
class Packing:
    """How documents become chunks.

    Attributes:
        eos_between: an end-of-text token after every document.
        ends: an end-of-text token at both ends of a chunk.
        scored_from: tokens at the start of a chunk that are given, not scored.
    """

    eos_between: bool
    ends: bool
    scored_from: int = 0


PACKINGS = {
    "mdlm": Packing(eos_between=False, ends=True),
    "mdlm-ar": Packing(eos_between=False, ends=True, scored_from=1),
    "sedd": Packing(eos_between=True, ends=False),
}

SETS = {  # name -> the split that was published, and its detokenizer
    "wikitext2": ("valid", "wikitext"),
    "wikitext103": ("valid", "wikitext"),
    "ptb": ("valid", "ptb"),
    "lm1b": ("test", "lm1b"),
    "lambada": ("test", "lambada"),
    "ag_news": ("test", "none"),
    "pubmed": ("valid", "scientific"),
    "arxiv": ("valid", "scientific"),
}


@dataclass(frozen=True)
class Chunks:
    """A corpus in chunks of equal length.

    Attributes:
        ids: (C, N) the chunks.
        documents, words, bytes: of the whole corpus. Words are those between white space before detokenizing, bytes
            are UTF-8 after it.
        tokens: of the whole corpus, ends of documents included, ends of chunks not.
        dropped: tokens at the end of the corpus that are in no chunk.
    """

    ids: Int[Tensor, "C N"]
    packing: Packing
    documents: int
    words: int
    bytes: int
    tokens: int
    dropped: int

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each scored token; those of the dropped tokens are taken to be average."""
        return self.bytes * self._share

    @property
    def words_per_token(self) -> float:
        return self.words * self._share

    @property
    def counts(self) -> dict[str, int]:
        """What the corpus holds, and how it was cut."""
        names = ("documents", "words", "bytes", "tokens", "dropped")
        return {name: getattr(self, name) for name in names} | {"chunks": len(self.ids), "length": self.length}

    @property
    def _share(self) -> float:
        """The share of the corpus that goes with one scored token."""
        content = self.length - 2 * self.packing.ends
        return content / self.tokens / (self.length - self.packing.scored_from)

    def eval_windows(self) -> int:
        return len(self.ids)

    def eval_batch(self, start: int, count: int) -> Int[Tensor, "B N"]:
        return self.ids[start : start + count].long()


@dataclass(frozen=True)
class ZeroShot:
    """The likelihood of one data set under one order.

    Attributes:
        score: nats and perplexity per token, bits per byte; see `likelihood.Score`.
        word_perplexity: exp of the nats per word of the original text; compares across tokenizers.
    """

    data: str
    score: Score
    word_perplexity: float


# ---- text to chunks --------------------------------------------------------------------------------------------------


def read_set(name: str, split: str | None = None, data_dir: str | Path | None = None) -> Iterator[str]:
    """The documents of a zero-shot set as its files spell them: sentences, passages, articles, lines of WikiText.

    With `data_dir` they come from files there, or in its folder NAME; else through `datasets`.
    """
    if name not in SETS:
        raise UserError(f"set {name!r} is unknown; choose one of {', '.join(SETS)}")
    for document in named_documents(name, split or SETS[name][0], _folder(name, data_dir)):
        if name.startswith("wikitext"):  # an article; published are its lines, empty ones included
            yield from (line if line.strip() else "" for line in document.text.splitlines(keepends=True))
        else:
            yield document.text


def _folder(name: str, data_dir: str | Path | None) -> str | Path | None:
    """The folder of a set inside `data_dir`, hyphens and underscores aside; `data_dir` itself without one."""
    if data_dir is None or not Path(data_dir).is_dir():
        return data_dir
    plain = {re.sub("[-_]", "", path.name.lower()): path for path in Path(data_dir).iterdir() if path.is_dir()}
    return plain.get(name.replace("_", ""), data_dir)


def pack(texts: Iterable[str], detokenizer: str, tokenizer: Tokenizer, packing: Packing, length: int) -> Chunks:
    """Detokenize and tokenize documents, and cut the row of them into chunks of `length` tokens.

    Raises:
        UserError: the tokenizer has no end of text, or the corpus is shorter than one chunk.
    """
    eos = tokenizer.eos_id
    if eos is None:
        raise UserError(f"tokenizer {tokenizer.spec} has no end-of-text token, which the protocol needs")
    content = length - 2 * packing.ends
    if content < 1:
        raise UserError(f"length={length} must be at least {1 + 2 * packing.ends}: a chunk has to hold some text")
    rows: list[np.ndarray] = []
    documents = words = size = 0
    for batch in _batched(texts, 1000):
        clean = [DETOKENIZERS[detokenizer](text) for text in batch]
        ids = tokenizer.encode_batch(clean)
        rows += [np.array([*row, eos] if packing.eos_between else row, dtype=np.int32) for row in ids]
        documents += len(batch)
        words += sum(len(text.split()) for text in batch)
        size += sum(len(text.encode()) for text in clean)
    row = torch.from_numpy(np.concatenate([np.empty(0, np.int32), *rows]))
    count = len(row) // content
    if not count:
        raise UserError(f"the corpus has {len(row)} tokens, too few for one chunk of {length}; give a shorter length")
    chunks = row[: count * content].view(count, content)
    if packing.ends:
        end = torch.full((count, 1), eos, dtype=chunks.dtype)
        chunks = torch.cat((end, chunks, end), dim=1)
    return Chunks(chunks, packing, documents, words, size, len(row), len(row) - count * content)


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


# ---- chunks to numbers -----------------------------------------------------------------------------------------------


def zero_shot(
    model: Transformer,
    name: str,
    chunks: Chunks,
    orders: Sequence[str],
    *,
    texts: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[ZeroShot]:
    """Score `texts` chunks at equal distances, default all, in every order."""
    texts = chunks.eval_windows() if texts is None else texts
    options = {"texts": texts, "batch_size": batch_size, "seed": seed, "scored_from": chunks.packing.scored_from}
    for score in evaluate(model, Spread(chunks, texts), orders, **options):
        yield ZeroShot(name, score, math.exp(min(score.nats_per_token / chunks.words_per_token, 700.0)))


def zero_shot_protocol(
    name: str, split: str | None, family: str, tokenizer: Tokenizer, chunks: Chunks, texts: int | None = None
) -> Protocol:
    """The terms of a zero-shot number, and where they are not the published ones."""
    published, detokenizer = SETS[name]
    split, count, packing = split or published, chunks.eval_windows(), chunks.packing
    used = min(texts or count, count)
    between = "an end of text after every document" if packing.eos_between else "nothing between documents"
    inside = f"end of text + {chunks.length - 2:,} + end of text" if packing.ends else "text only"
    departures = (
        [f"split {split} instead of {published}"] * (split != published)
        + ["another tokenizer"] * (not is_gpt2(tokenizer))
        + [f"chunks of {chunks.length:,} tokens instead of {PUBLISHED_LENGTH:,}"] * (chunks.length != PUBLISHED_LENGTH)
        + [f"{used:,} chunks of {count:,}, at equal distances"] * (used < count)
    )
    return Protocol(
        task=f"zero-shot perplexity, protocol {family}",
        data=f"{name} {split}, {chunks.documents:,} documents, {chunks.words:,} words, {chunks.bytes:,} bytes",
        text=f"detokenizer {detokenizer}, {vocabulary(tokenizer)}: {chunks.tokens:,} tokens, {between}",
        scoring=f"{used:,} chunks of {chunks.length:,} ({inside}) without overlap, {chunks.dropped:,} tokens dropped, "
        + ("all but the first token" if packing.scored_from else "every token")
        + " scored, mean over tokens",
        departures=tuple(departures),
    )
