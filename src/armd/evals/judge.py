"""Evaluators: how likely one language model finds the texts of another.

A judge reads text, not tokens: what the writer wrote is decoded and tokenized anew with the judge's own vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armd import checkpoint
from armd.data import Tokenizer
from armd.errors import UserError
from armd.model import Transformer
from armd.objective import nll
from armd.orders import Order

PROBE = "It was the best of times, it was the worst of times."
"""What an evaluator has to read before it is trusted."""
SAME = 1e-3
"""Nats by which the rows of two texts may differ that are equal so far."""
GPT2_LARGE = 774_030_080
"""Parameters of gpt2-large."""


@dataclass(frozen=True)
class Judge:
    """A causal language model that scores texts.

    Attributes:
        name: what it is.
        encode: text -> token ids.
        score: (B, N) ids -> (B, N - first) nats, left to right; a row may be padded on its right.
        window: most tokens it reads at once; longer texts are cut into windows that do not overlap.
        first: tokens at the start of a window that are given, not scored: 0 if it has a beginning of text of its own.
        last_rows: (B, N) ids padded on their right, (B,) long numbers of tokens -> (B, D) the last hidden row of each.
        network: what it reads with.
    """

    name: str
    encode: Callable[[str], list[int]]
    score: Callable[[Tensor], Tensor]
    window: int
    first: int
    last_rows: Callable[[Tensor, Tensor], Tensor]
    network: nn.Module | None = None

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the network's parameters, and of how its tokenizer reads a sentence."""
        found = hashlib.sha256(repr(self.encode(PROBE)).encode())
        for weight in [] if self.network is None else self.network.parameters():
            found.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @property
    def is_gpt2_large(self) -> bool:
        """Whether it is, by its size, the evaluator of published numbers."""
        network = self.network
        return network is not None and sum(p.numel() for p in network.parameters()) == GPT2_LARGE

    @torch.inference_mode()
    def nats(self, texts: Sequence[str], batch_size: int = 8) -> list[Tensor]:
        """Nats of the scored tokens of every text, float64; empty for a text with none."""
        windows = [(i, ids) for i, text in enumerate(texts) for ids in self._windows(self.encode(text))]
        found: list[list[Tensor]] = [[torch.empty(0, dtype=torch.float64)] for _ in texts]
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            N = max(len(ids) for _, ids in batch)
            padded = torch.tensor([ids + [0] * (N - len(ids)) for _, ids in batch])
            for row, (i, ids) in zip(self.score(padded).double().cpu(), batch, strict=True):
                found[i].append(row[: len(ids) - self.first])
        return [torch.cat(parts) for parts in found]

    @torch.inference_mode()
    def points(self, texts: Sequence[str], batch_size: int = 8) -> Tensor:
        """(T, D) float32: the last hidden row of the first window of every text; texts of no token are left out."""
        found = []
        rows = [ids[: self.window] for ids in map(self.encode, texts) if ids]
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            sizes = torch.tensor([len(ids) for ids in batch])
            padded = torch.tensor([ids + [0] * (int(sizes.max()) - len(ids)) for ids in batch])
            found.append(self.last_rows(padded, sizes).float().cpu())
        return torch.cat(found) if found else torch.empty(0, 1)

    def _windows(self, ids: list[int]) -> Iterator[list[int]]:
        for start in range(0, len(ids), self.window):
            part = ids[start : start + self.window]
            if len(part) > self.first:
                yield part


def load_judge(path: str, device: torch.device) -> Judge:
    """A judge from a folder of ours, or from a folder or name that `transformers` knows, such as gpt2-large.

    Raises:
        UserError: there is no such model, it cannot read text or sees what comes after a token, or `transformers` is
            needed and not installed.
    """
    config = Path(path) / "config.json"
    try:
        ours = "architecture" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        return _probed(_hugging_face(path, device))
    model, tokenizer = checkpoint.load(path, device)
    if tokenizer is None:
        raise UserError(f"evaluator {path} has no tokenizer.json, so it cannot read text")
    return _probed(own_judge(model, tokenizer, judge_name(path)))


def judge_name(path: str) -> str:
    """What records call an evaluator: the name of its folder, which is the same on all machines, or that of a hub."""
    return Path(path).resolve().name if Path(path).exists() else path


@torch.inference_mode()
def _probed(judge: Judge) -> Judge:
    """The judge, unless it cannot read a sentence, or what it thinks of a token depends on what comes after it."""
    ids = judge.encode(PROBE)[: judge.window]
    if len(ids) < judge.first + 2:
        raise UserError(f"evaluator {judge.name} reads {len(ids)} tokens in {PROBE!r}: its tokenizer is not there")
    try:
        other = next(token for token in (*ids, 0, 1) if token != ids[-1])
        nats = judge.score(torch.tensor([ids, [*ids[:-1], other]]))[:, :-1]
        alone = judge.score(torch.tensor([ids[:-1]]))[0]  # masked diffusion counts what is still masked behind
    except IndexError:
        raise UserError(f"evaluator {judge.name} has no embedding of some tokens of its tokenizer") from None
    if not (nats - alone).abs().max() < SAME:
        raise UserError(f"evaluator {judge.name} is no causal model: its nats of a token depend on later ones")
    return judge


def own_judge(model: Transformer, tokenizer: Tokenizer, name: str) -> Judge:
    """A model of ours as judge, left to right: every token is scored, as it has a beginning of text of its own.

    Its row of a text is the one that predicts what comes next, so that a text of a whole window loses its last token.
    """
    window = model.config.max_position_embeddings

    def score(tokens: Tensor) -> Tensor:
        with model.evaluating():
            return nll(model, tokens.to(model.device), Order.left_to_right(*tokens.shape))

    def last_rows(tokens: Tensor, sizes: Tensor) -> Tensor:
        tokens = F.pad(tokens, (0, 1))[:, :window].to(model.device)  # one more: its row has read all those before
        with model.evaluating():
            hidden = model.hidden(tokens, Order.left_to_right(*tokens.shape))
        return hidden[torch.arange(len(sizes)), sizes.clamp(max=window - 1)]

    return Judge(name, tokenizer.encode, score, window, 0, last_rows, model)


def _hugging_face(path: str, device: torch.device) -> Judge:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise UserError(f"evaluator {path} needs transformers; pip install 'armd[evals]'") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path)
        model.to(device).eval()
    except Exception as error:  # the hub client raises whatever its transport raised
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"evaluator {path} could not be loaded ({reason}); give the folder of a causal model") from None

    def score(tokens: Tensor) -> Tensor:
        tokens = tokens.to(device)
        logits = model(tokens).logits[:, :-1].float()
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def last_rows(tokens: Tensor, sizes: Tensor) -> Tensor:
        hidden = model(tokens.to(device), output_hidden_states=True).hidden_states[-1]
        return hidden[torch.arange(len(sizes)), sizes - 1]

    window = getattr(model.config, "max_position_embeddings", None) or 1024
    return Judge(judge_name(path), encode, score, window, 1, last_rows, model)
