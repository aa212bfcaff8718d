"""Writing text. `stream` yields an event a forward pass; every consumer reads that one generator.

The passes themselves are in `writer`; `docs/decoding.md` says why mode `exact` is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from armd.errors import UserError
from armd.model import Transformer
from armd.request import Request, make_request
from armd.writer import Event, Writer


@dataclass(frozen=True)
class Generation:
    """Finished texts.

    Attributes:
        tokens: (B, N) long, in text order, the given tokens included.
        lengths: (B,) long, tokens up to and including the first stop token after the prompt; N without one.
        steps: (B, N) long, the pass that wrote each token; 0 for given tokens, and for those after a stop token.
        log_probs: (B, N) float64, nats: log p of each written token under the model in the order and blocks it was
            written, one token a block unless the mode is `parallel`; 0 where steps is 0. In a text of several streams
            that met a stop token they are given all that was written then, also what the end has since replaced.
        forward_passes: passes of the network, the one that reads the prompt included.
        passes: (B,) long, those in which a text took part.
        tested, accepted: (B,) long, drafts checked, and found right.
        ties: (B,) long, tokens whose choice rounding could have changed (see `checks.TIE`); None where that was not
            looked for (rejection, adaptive orders).
        bound: (B,) float64, the total variation to the sequential law that `tolerance` spent on each text.
    """

    tokens: Int[Tensor, "B N"]
    lengths: Int[Tensor, "B"]
    steps: Int[Tensor, "B N"]
    log_probs: Float[Tensor, "B N"]
    forward_passes: int
    passes: Int[Tensor, "B"]
    tested: Int[Tensor, "B"]
    accepted: Int[Tensor, "B"]
    ties: Int[Tensor, "B"] | None
    bound: Float[Tensor, "B"]

    @property
    def acceptance(self) -> float | None:
        """Share of the checked drafts that were right; None if nothing was drafted."""
        tested = int(self.tested.sum())
        return int(self.accepted.sum()) / tested if tested else None

    @property
    def tokens_per_pass(self) -> float:
        """Tokens a text gains in a pass, all passes counted."""
        return int((self.steps > 0).sum()) / max(int(self.passes.sum()), 1)

    def row(self, index: int) -> Generation:
        """One of the texts."""
        values: dict[str, Any] = {k: v[[index]] if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Generation(**values)


def generate(
    model: Transformer,
    *,
    length: int | None = None,
    prompt: Sequence[int] | Tensor | None = None,
    template: Sequence[int] | Tensor | None = None,
    streams: int = 1,
    mode: str = "exact",
    drafts: int | None = None,
    check: str = "noise",
    tolerance: float = 0.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    stop: bool | Sequence[int] = True,
    rows: int | None = None,
    compiled: bool = False,
) -> Generation:
    """Write text.

    Args:
        length: number of new tokens after the prompt.
        prompt: (P,) or (B, P) token ids to go on from.
        template: (N,) or (B, N) token ids with -1 at the holes, instead of length and prompt; each hole is a stream.
        streams: number S of equal streams the new tokens are cut into; 1 is left to right.
        mode: `sequential` writes one token a pass. `exact` drafts and checks: the law of `sequential` in fewer passes.
            `parallel` writes one token of every stream in a pass, as if they were independent (the paper's SBP).
        drafts: tokens guessed beyond the next one in an exact pass; default 2 S - 2, the two ends of S streams.
        check: how drafts are checked: `noise` (the text itself is that of `sequential`) or `rejection` (the law is).
        tolerance: with `rejection`, accept a draft this much more readily: at most this total variation a token.
        temperature, top_k, top_p: the sampled law, see `sampling.warp`; temperature 0 is greedy.
        seed: same seed, same text.
        batch_size: number of texts; a text does not depend on the others.
        stop: end a text at the end-of-text token, or at these tokens: it is over once all before one is written, and
            the rest is filled with it. Templates are always written whole.
        rows: texts written at once, default all; a text that is finished makes room for the next.
        compiled: compile the pass (torch.compile; on a GPU a CUDA graph). The first call takes about a minute.

    Raises:
        UserError: an argument is impossible; the message names it, its value and what is allowed.
    """
    request = make_request(
        model,
        length=length,
        prompt=prompt,
        template=template,
        streams=streams,
        mode=mode,
        drafts=drafts,
        check=check,
        tolerance=tolerance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        stop=stop,
    )
    return collect(request, stream(model, request, rows, compiled))


def stream(model: Transformer, request: Request, rows: int | None = None, compiled: bool = False) -> Iterator[Event]:
    """Write the texts of a request, at most `rows` at once, yielding an event a forward pass."""
    if rows is not None and rows < 1:
        raise UserError(f"rows={rows} must be at least 1")
    writer = Writer(model, request, min(rows or len(request), len(request)), compiled)
    try:
        while writer.make_room():
            yield writer.step()
    finally:
        writer.close()


def collect(request: Request, events: Iterator[Event]) -> Generation:
    """Put the events of a request together."""
    tokens = request.tokens.clone()
    B = len(tokens)
    steps, logs = torch.zeros_like(tokens), torch.zeros(tokens.shape, dtype=torch.float64)
    passes, tested, accepted = torch.zeros(3, B, dtype=torch.long)
    ties: Tensor | None = torch.zeros(B, dtype=torch.long)
    bound, forward_passes = torch.zeros(B, dtype=torch.float64), 0
    for event in events:
        forward_passes, texts = event.step, event.texts.cpu()
        row, column = event.valid.cpu().nonzero(as_tuple=True)
        at = texts[row], event.positions.cpu()[row, column]
        tokens[at] = event.tokens.cpu()[row, column]
        logs[at] = event.log_probs.cpu()[row, column]
        steps[at] = event.step
        passes[texts] += event.active.cpu().long()
        for total, value in ((tested, event.tested), (accepted, event.accepted), (bound, event.bound)):
            total[texts] += value.cpu()
        if ties is None or event.ties is None:
            ties = None
        else:
            ties[texts] += event.ties.cpu()
    lengths = torch.full((B,), tokens.shape[1])
    if request.stop:
        stops = torch.isin(tokens, torch.tensor(request.stop)) & (request.tokens < 0)
        first = stops.long().argmax(dim=1, keepdim=True)
        after = stops.any(dim=1, keepdim=True) & (torch.arange(tokens.shape[1]) > first)
        lengths = torch.where(stops.any(dim=1), first[:, 0] + 1, lengths)
        tokens = torch.where(after, tokens.gather(1, first), tokens)
        steps, logs = steps.masked_fill(after, 0), logs.masked_fill(after, 0)
    return Generation(tokens, lengths, steps, logs, forward_passes, passes, tested, accepted, ties, bound)
