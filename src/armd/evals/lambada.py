"""LAMBADA: is the last word of a passage the one the model would have written?

The word is right if every one of its tokens is the likeliest, left to right, given the passage before it (Radford et
al., 2019, without a stop-word filter). The test set is the OpenAI version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armd.baselines import Denoiser
from armd.data import Tokenizer
from armd.errors import UserError
from armd.evals.detokenize import DETOKENIZERS
from armd.evals.protocol import Protocol, is_gpt2, vocabulary
from armd.model import Transformer
from armd.orders import Order

PASSAGES = 5153
"""Of the published test set."""


@dataclass(frozen=True)
class LastWord:
    """Last words of passages.

    Attributes:
        accuracy, stderr: share of the words that are right, and its standard error.
        perplexity: exp of the mean nats of a last word, all of its tokens together.
        cut: passages that were longer than the model reads, and lost their beginning.
    """

    passages: int
    accuracy: float
    stderr: float
    perplexity: float
    cut: int
    protocol: Protocol


@torch.inference_mode()
def last_words(model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], *, batch_size: int = 16) -> LastWord:
    """Read every passage but for its last word, and compare that word with the likeliest tokens."""
    limit = model.config.max_position_embeddings
    passages = [_passage(text, tokenizer) for text in texts]
    if not passages:
        raise UserError("LAMBADA has no passage")
    right, nats = [], []
    batch_size = 1 if isinstance(model, Denoiser) else batch_size  # whose rows see padding too
    with model.evaluating():
        for first in range(0, len(passages), batch_size):
            batch = [(ids[-limit:], min(n, limit)) for ids, n in passages[first : first + batch_size]]
            for scores, (ids, n) in zip(_word_log_probs(model, batch), batch, strict=True):
                goal = torch.tensor(ids[-n:], device=scores.device)
                right.append(bool((scores.argmax(dim=-1) == goal).all()))
                nats.append(-scores.gather(1, goal[:, None]).sum().item())
    share, cut = sum(right) / len(right), sum(len(ids) > limit for ids, _ in passages)
    return LastWord(
        passages=len(right),
        accuracy=share,
        stderr=math.sqrt(share * (1 - share) / len(right)),
        perplexity=math.exp(min(sum(nats) / len(nats), 700.0)),
        cut=cut,
        protocol=Protocol(
            task="LAMBADA, last word",
            data=f"lambada test, {len(right):,} passages",
            text=f"quotes made straight, a line end before the passage, {vocabulary(tokenizer)}",
            scoring="right if all tokens of the last word are the likeliest, left to right, given those before; "
            "no stop-word filter; perplexity per word",
            departures=tuple(
                [f"{PASSAGES - len(right):,} of {PASSAGES:,} passages left out"] * (len(right) < PASSAGES)
                + ["another tokenizer"] * (not is_gpt2(tokenizer))
                + [f"{cut:,} passages cut to their last {limit:,} tokens"] * bool(cut)
            ),
        ),
    )


def _passage(text: str, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The tokens of a passage, and how many of them at its end are the last word with the space before it."""
    before, space, word = DETOKENIZERS["lambada"](text).rpartition(" ")
    tail = tokenizer.encode(space + word)
    return tokenizer.encode(before) + tail, len(tail)


def _word_log_probs(model: Transformer, batch: Sequence[tuple[list[int], int]]) -> list[Tensor]:
    """(tokens of the word, V) float64 for each passage: log p left to right, padded on the right."""
    N = max(len(ids) for ids, _ in batch)
    tokens = torch.tensor([ids + [0] * (N - len(ids)) for ids, _ in batch], device=model.device)
    hidden = model.hidden(tokens, Order.left_to_right(*tokens.shape).to(model.device))  # in text order as well
    rows = [hidden[i, len(ids) - n : len(ids)] for i, (ids, n) in enumerate(batch)]
    return [model.head(row).double().log_softmax(dim=-1) for row in rows]
