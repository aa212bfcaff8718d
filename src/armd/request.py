"""What to write: the arguments of `generate`, checked and laid out as tokens and an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from armd.errors import UserError
from armd.model import Transformer
from armd.orders import Order
from armd.sampling import check_sampling, check_seed

MODES = ("exact", "sequential", "parallel")
CHECKS = ("noise", "rejection")


@dataclass(frozen=True)
class Request:
    """Checked arguments of `generate`.

    Attributes:
        tokens: (B, N) long in text order, -1 at the holes.
        order: known tokens first, one a block; then the holes, in blocks of at most one token a stream.
        samples: (B,) long, the number of each text: its coins depend on seed and number alone.
        drafts: tokens guessed beyond the next one in a pass of mode `exact`.
        stop: tokens that end a text; empty: it is written whole.
    """

    tokens: Int[Tensor, "B N"]
    order: Order
    samples: Int[Tensor, "B"]
    mode: str = "exact"
    drafts: int = 0
    check: str = "noise"
    tolerance: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


def make_request(
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
) -> Request:
    """Check the arguments of `decode.generate`, which explains them, and lay out tokens and order."""
    for name, value in (
        ("length", length), ("streams", streams), ("drafts", drafts), ("top_k", top_k), ("seed", seed),
        ("batch_size", batch_size),
    ):  # fmt: skip
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{name}={value!r} must be an integer")
    for name, number in (("tolerance", tolerance), ("temperature", temperature), ("top_p", top_p)):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise UserError(f"{name}={number!r} must be a number")
    check_sampling(temperature, top_k, top_p)
    check_seed(seed)
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
    if check not in CHECKS:
        raise UserError(f"check={check!r} is unknown; choose one of {', '.join(CHECKS)}")
    if check != "noise" and mode != "exact":
        raise UserError(f"check={check!r} is a way to check drafts: it needs mode='exact'")
    if not 0 <= tolerance <= 1 or (tolerance > 0 and (mode, check) != ("exact", "rejection")):
        raise UserError(
            f"tolerance={tolerance} must be between 0 and 1, and above 0 only with mode='exact', check='rejection'"
        )
    if drafts is not None and (drafts < 0 or mode != "exact"):
        raise UserError(f"drafts={drafts} must be >= 0, and needs mode='exact'")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    limit = model.config.max_position_embeddings
    if template is not None:
        if length is not None or prompt is not None or streams != 1:
            raise UserError("template cannot be combined with length, prompt or streams: its holes say it all")
        tokens = _tokens("template", template, batch_size, model, lowest=-1)
        _check_room(f"template of {tokens.shape[1]}", tokens.shape[1], limit)
        holes = tokens < 0
        if not holes.any():
            raise UserError("template has no hole: mark at least one position with -1")
        order = Order.template(holes)
        streams = int((holes & ~F.pad(holes, (1, 0))[:, :-1]).sum(dim=1).max())
    else:
        if length is None or length < 1:
            raise UserError(f"length={length} must be at least 1 new token")
        known = _tokens("prompt", [] if prompt is None else prompt, batch_size, model, lowest=0)
        _check_room(f"prompt {known.shape[1]} + length {length}", known.shape[1] + length, limit)
        tokens = F.pad(known, (0, length), value=-1)
        order = Order.strided(len(tokens), tokens.shape[1], streams, prompt=known.shape[1])
    if not model.any_order and (template is not None or streams != 1 or drafts):
        raise UserError("an autoregressive model writes left to right only: no template, streams=1, no drafts")
    if drafts is None:
        drafts = 2 * streams - 2
    return Request(
        tokens,
        order if mode == "parallel" else order.sequential(),
        torch.arange(len(tokens)),
        mode,
        min(drafts, tokens.shape[1] - 1) if mode == "exact" else 0,
        check,
        tolerance,
        temperature,
        top_k,
        top_p,
        seed,
        () if template is not None else _stop(stop, model),
    )


def _check_room(parts: str, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise UserError(f"{parts} tokens exceed max_position_embeddings={limit}")


def _stop(stop: bool | Sequence[int], model: Transformer) -> tuple[int, ...]:
    eos = model.config.eos_token_id
    ids = ((eos,) if stop and eos is not None else ()) if isinstance(stop, bool) else tuple(stop)
    for token in ids:
        if not 0 <= token < model.config.vocab_size:
            raise UserError(f"stop={token} must be a token below vocab_size={model.config.vocab_size}")
    return ids


def _tokens(name: str, value: Sequence[int] | Tensor, batch_size: int, model: Transformer, lowest: int) -> Tensor:
    """Token ids as (B, N) long on the CPU, checked."""
    try:
        tokens = torch.as_tensor(value).cpu()
        if tokens.numel() and (tokens.is_floating_point() or tokens.is_complex()):
            raise TypeError
        tokens = tokens.long()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} must be token ids, (N,) or (batch, N)") from None
    if tokens.ndim == 1:
        tokens = tokens.expand(batch_size, -1)
    if tokens.ndim != 2 or not len(tokens) or (len(tokens) not in (1, batch_size) and batch_size != 1):
        raise UserError(f"{name} is {tuple(tokens.shape)}; it must be (N,) or (batch_size={batch_size}, N)")
    if len(tokens) < batch_size:
        tokens = tokens.expand(batch_size, -1)
    vocab = model.config.vocab_size
    if tokens.numel() and not (lowest <= int(tokens.min()) and int(tokens.max()) < vocab):
        raise UserError(
            f"{name} holds token {int(tokens.max())} or {int(tokens.min())}; allowed: {lowest}..{vocab - 1}"
        )
    return tokens.clone()
