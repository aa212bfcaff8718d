"""Held-out likelihood by generation order. A perplexity is never given without its order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from armd.baselines import Denoiser, estimate_bound
from armd.data import Spread, Texts, Tokenizer
from armd.errors import UserError
from armd.evals.protocol import Protocol, vocabulary
from armd.families import Family
from armd.model import Transformer
from armd.objective import any_order_nll, nll
from armd.orders import Order, generator


@dataclass(frozen=True)
class Score:
    """The likelihood of held-out texts under one order.

    Attributes:
        order: the order, as given.
        blocks: sequential (one token a block) or parallel (tokens of a block independent given earlier blocks); - for a
            bound, which has no order.
        nats_per_token, stderr: mean over texts and its standard error.
        perplexity: exp(nats_per_token), per token of this tokenizer.
        bits_per_byte: with the bytes per token of the whole held-out split.
        note: what the number is.
    """

    order: str
    blocks: str
    nats_per_token: float
    stderr: float
    perplexity: float
    bits_per_byte: float
    texts: int
    tokens: int
    note: str


def parse_orders(text: str) -> list[str]:
    """Split `left_to_right,uniform:8,strided:4` and check every part.

    `uniform:K` means the mean over K orders; `bound:K` that of the bound of masked or block diffusion over K times.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("orders is empty; give for example left_to_right,uniform:8,strided:4")
    for name in names:
        draws_of(name) or Family.parse(name)
    return names


def evaluate(
    model: Transformer,
    dataset: Texts,
    orders: Sequence[str],
    *,
    texts: int = 256,
    batch_size: int = 16,
    seed: int = 0,
    scored_from: int = 0,
) -> Iterator[Score]:
    """Score the first `texts` texts of a data set in every order, yielding a score as soon as it is there.

    `strided:S` yields two scores, sequential and parallel blocks; their difference is the parallel penalty.
    With `scored_from` the first tokens of every text are given, not scored: left to right only.

    Raises:
        UserError: `bound` of a model that has none, or an order the model does not know.
    """
    if scored_from and any(name != "left_to_right" for name in orders):
        raise UserError(f"orders {', '.join(orders)}: where the first token is given, the order must be left_to_right")
    texts = min(texts, dataset.eval_windows())
    model.eval()
    for name in orders:
        draws = draws_of(name)
        if draws and name.partition(":")[0] == "bound":
            if not isinstance(model, Denoiser):
                raise UserError(f"order {name!r} is for masked and block diffusion, not for {type(model).__name__}")
            nats = [_bound(model, tokens, draws, start, seed) for start, tokens in _batches(dataset, texts, batch_size)]
            note = f"bound, {draws} time{'s' if draws > 1 else ''} a text"
            yield _score(name, "-", torch.cat(nats), dataset, note)
            continue
        if draws:
            both = [
                _uniform(model, tokens, draws, start, seed) for start, tokens in _batches(dataset, texts, batch_size)
            ]
            notes = (f"mean over {draws} uniform orders: a bound", f"importance-weighted bound over {draws} orders")
            for i, note in enumerate(notes[: 2 if draws > 1 else 1]):
                yield _score(name, "sequential", torch.cat([b[i] for b in both]), dataset, note)
            continue
        family = Family.parse(name)
        for sequential in (True, False) if _has_blocks(family, dataset.length, texts, seed) else (True,):
            nats = [
                _fixed(model, tokens, name, sequential, start, seed)[:, scored_from:].sum(dim=1)
                for start, tokens in _batches(dataset, texts, batch_size)
            ]
            note = "exact for this order" if sequential else "exact for this order and these blocks"
            yield _score(name, "sequential" if sequential else "parallel", torch.cat(nats), dataset, note, scored_from)


def held_out_protocol(folder: Path, texts: Spread, seed: int, tokenizer: Tokenizer | None) -> Protocol:
    """The terms of the scores of held-out texts."""
    whole = texts.whole
    vocabulary_said = vocabulary(tokenizer) if tokenizer else "no tokenizer.json"
    return Protocol(
        task="held-out likelihood",
        data=f"{folder} valid, {texts.eval_windows():,} of {whole.eval_windows():,} texts of {whole.length:,} tokens, "
        "at equal distances",
        text=f"as prepared, an end of text after every document, {vocabulary_said}",
        scoring=f"windows without overlap, every token scored, random orders of seed {seed}; bits per byte with the "
        "bytes per token of the whole split",
    )


def draws_of(name: str) -> int:
    """K of `uniform:K` and `bound:K`, 1 without it; 0 for the orders of which one is scored."""
    head, colon, count = name.partition(":")
    if head not in ("uniform", "bound"):
        return 0
    if colon and not (count.isdecimal() and int(count) >= 1):
        raise UserError(f"order {name!r}: the number of draws after the colon must be an integer >= 1")
    return int(count or 1)


def orders_of(name: str, length: int, texts: range, seed: int) -> Iterator[Order]:
    """The orders that some texts of the split are scored in, (len(texts), length) each: K of `uniform:K`, else one.

    They depend on seed and place among the texts, not on the batch.
    """
    family = Family("uniform") if draws_of(name) else Family.parse(name)
    generators = [generator(seed, text) for text in texts]
    for _ in range(draws_of(name) or 1):
        yield family.orders(length, generators)


def _batches(dataset: Texts, texts: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, texts, batch_size):
        yield start, dataset.eval_batch(start, min(batch_size, texts - start))


def _draws(tokens: Tensor, start: int, seed: int) -> list[torch.Generator]:
    """One generator a text: that of `orders_of`."""
    return [generator(seed, text) for text in range(start, start + len(tokens))]


def _has_blocks(family: Family, length: int, texts: int, seed: int) -> bool:
    """Whether an order writes several tokens at once, so that its two laws differ."""
    if not family.own:
        return family.name == "strided"
    return any(not family.order(1, length, generator(seed, text)).is_sequential for text in range(texts))


@torch.inference_mode()
def _uniform(model: Transformer, tokens: Tensor, draws: int, start: int, seed: int) -> tuple[Tensor, Tensor]:
    average = any_order_nll(model, tokens.to(model.device), draws, generator=_draws(tokens, start, seed))
    return average.mean.cpu(), average.iwae.cpu()


@torch.inference_mode()
def _bound(model: Denoiser, tokens: Tensor, draws: int, start: int, seed: int) -> Tensor:
    return estimate_bound(model, tokens.to(model.device), draws, generator=_draws(tokens, start, seed)).mean.cpu()


@torch.inference_mode()
def _fixed(model: Transformer, tokens: Tensor, name: str, sequential: bool, start: int, seed: int) -> Tensor:
    [order] = orders_of(name, tokens.shape[1], range(start, start + len(tokens)), seed)
    return nll(model, tokens.to(model.device), order.sequential() if sequential else order).double().cpu()


def _score(name: str, blocks: str, nats: Tensor, dataset: Texts, note: str, scored_from: int = 0) -> Score:
    scored = dataset.length - scored_from
    per_token = nats / scored
    mean = per_token.mean().item()
    return Score(
        order=name,
        blocks=blocks,
        nats_per_token=mean,
        stderr=(per_token.std() / math.sqrt(len(nats))).item() if len(nats) > 1 else math.nan,
        perplexity=math.exp(min(mean, 700.0)),
        bits_per_byte=mean / math.log(2) / dataset.bytes_per_token,
        texts=len(nats),
        tokens=len(nats) * scored,
        note=note,
    )
