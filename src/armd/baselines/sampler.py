"""Writing with masked and block diffusion: a step reveals some of the masked tokens, and what is written stays.

One sampler serves both. Masked diffusion has one block, the whole text; block diffusion writes its blocks in turn and
keeps the keys and values of those before. The events are those of `decode.stream`, so every consumer of texts reads
either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armd.baselines.denoiser import Denoiser
from armd.decode import Generation, collect
from armd.errors import UserError
from armd.request import Request, make_request
from armd.sampling import coin, gumbel, log_probs, warp
from armd.writer import Event

SCHEDULES = ("even", "ancestral")


def denoise(
    model: Denoiser,
    *,
    length: int | None = None,
    prompt: Sequence[int] | Tensor | None = None,
    template: Sequence[int] | Tensor | None = None,
    steps: int | None = None,
    schedule: str = "even",
    skip_idle: bool = True,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    stop: bool | Sequence[int] = True,
    rows: int | None = None,
) -> Generation:
    """Write text. Arguments that `decode.generate` has too are as there; a prompt is tokens that are not masked.

    Args:
        template: of block diffusion, with all its holes at the end, as it writes from left to right.
        steps, schedule, skip_idle: as of `denoising`.

    Returns:
        The texts. `log_probs` are those of the law that was followed: tokens of one step do not look at each other.
        `passes` counts for each text the passes that wrote a token of it, `forward_passes` those really made.
    """
    request = make_request(
        model,
        length=length,
        prompt=prompt,
        template=template,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        stop=stop,
    )
    return collect(request, denoising(model, request, steps, schedule, skip_idle=skip_idle, rows=rows))


def denoising(
    model: Denoiser,
    request: Request,
    steps: int | None = None,
    schedule: str = "even",
    *,
    skip_idle: bool = True,
    rows: int | None = None,
) -> Iterator[Event]:
    """The ancestral sampler of masked diffusion, linear schedule, block after block: yields an event a forward pass.

    A pass runs over all positions of the block and reveals some: of the masked ones any are equally likely. The head is
    applied only where a token is revealed. Block diffusion ends when every text has met a stop token.

    Args:
        request: from `make_request`; its order, mode and drafts do not count.
        steps: steps of the schedule in a block; default: a token a step, as many as the fullest block has masks.
        schedule: `ancestral`, as of MDLM: each token's step is drawn on its own. `even`: every step reveals its share
            of them, the mean of that draw; a block with fewer masks than steps takes a step for each.
        skip_idle: make no pass for a step that reveals nothing. As the network is told no time, its rows would be those
            of the step before, which MDLM's cached sampler keeps. The texts are the same, in fewer passes.
        rows: texts written at once, default all.

    Raises:
        UserError: a setting is impossible, or block diffusion is given text behind a hole.
    """
    masks = request.tokens < 0
    if rows is not None and rows < 1:
        raise UserError(f"rows={rows} must be at least 1")
    if schedule not in SCHEDULES:
        raise UserError(f"schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
    size = model.noise_block(model.config)
    if size and bool((masks[:, :-1] & ~masks[:, 1:]).any()):
        raise UserError("block diffusion writes from left to right: a template may have no text behind a hole")
    blocks = [part for part in torch.arange(masks.shape[1]).split(size or masks.shape[1]) if bool(masks[:, part].any())]
    most = max(int(masks[:, part].sum(dim=1).max()) for part in blocks)
    steps = most if steps is None else steps
    if steps < 1 or (schedule == "even" and steps > most):
        limit = f" and at most {most}, as no step of the even schedule may be idle" if schedule == "even" else ""
        raise UserError(f"steps={steps} must be at least 1{limit}")
    return _events(model, request, blocks, steps, schedule, skip_idle, rows or len(request))


@torch.inference_mode()
def _events(
    model: Denoiser, request: Request, blocks: list[Tensor], steps: int, schedule: str, skip_idle: bool, rows: int
) -> Iterator[Event]:
    passes, stop = 0, torch.tensor(request.stop, dtype=torch.long, device=model.device)
    for texts in torch.arange(len(request), device=model.device).split(rows):
        tokens, samples = (values.to(model.device)[texts] for values in (request.tokens, request.samples[:, None]))
        read, masks, finished = model.reader(*tokens.shape), tokens < 0, torch.zeros_like(texts, dtype=torch.bool)
        for part in blocks:
            start, end = int(part[0]), int(part[-1]) + 1
            positions = part.to(model.device).expand(len(texts), -1)
            chance = coin(request.seed, samples, positions, draw=1)  # draw 0 is the noise of the tokens
            turn = turns(chance, masks[:, start:end], steps, schedule)
            for step in turn[turn >= 0].unique().tolist() if skip_idle else range(steps):
                chosen = (turn == step) & ~finished[:, None]
                active = chosen.any(dim=1) if skip_idle else ~finished
                if not bool(active.any()):
                    continue
                with model.evaluating():
                    hidden = read(tokens, start, end)
                block, logs = reveal(model, hidden, tokens[:, start:end], chosen, request, samples, positions)
                tokens = torch.cat((tokens[:, :start], block, tokens[:, end:]), dim=1)
                passes, none = passes + 1, torch.zeros_like(texts)
                yield Event(passes, texts, positions, block, logs, chosen, active, none, none, None, none.double())
            finished = (torch.isin(tokens, stop) & masks).any(dim=1)
            if bool(finished.all()):
                break


def turns(chance: Float[Tensor, "B N"], masks: Bool[Tensor, "B N"], steps: int, schedule: str) -> Int[Tensor, "B N"]:
    """The step, 0 .. steps - 1, at which each masked position is revealed; -1 at the others.

    Args:
        chance: (B, N) independent and uniform in (0, 1).
        masks: (B, N) true where there is a token to write.
        schedule: `ancestral`: of the linear schedule, a masked token is revealed from t to s with probability
            (t - s) / t, so its step is uniform whatever the others do. `even`: every step reveals its share of the
            masks of a text, rounded; which tokens these are is as random as before.
    """
    if schedule == "ancestral":
        return (chance * steps).long().clamp(max=steps - 1).masked_fill(~masks, -1)
    count = masks.sum(dim=1, keepdim=True)
    rank = chance.masked_fill(~masks, torch.inf).argsort(dim=1).argsort(dim=1)
    turn = ((rank + 1) * count.clamp(max=steps) - 1) // count.clamp(min=1)
    return turn.masked_fill(~masks, -1)


def reveal(
    model: Denoiser,
    hidden: Float[Tensor, "B N D"],
    tokens: Int[Tensor, "B N"],
    chosen: Bool[Tensor, "B N"],
    request: Request,
    samples: Int[Tensor, "B 1"],
    positions: Int[Tensor, "B N"],
) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Draw the chosen tokens by the law of the request from their hidden rows, the head applied to these only.

    Returns:
        The tokens with the chosen ones in place, and their log-probabilities under the model (temperature 1, nothing
        cut off), 0 elsewhere.
    """
    logits = model.head(hidden[chosen])
    scores = warp(logits, request.temperature, request.top_k, request.top_p)
    if request.temperature > 0:
        text = chosen.nonzero()[:, 0]
        scores = scores + gumbel(request.seed, samples[text], positions[chosen][:, None], scores.shape[-1])[:, 0]
    new = scores.argmax(dim=-1)
    logs = log_probs(logits).gather(-1, new[:, None])[:, 0]
    return tokens.masked_scatter(chosen, new), torch.zeros_like(tokens, dtype=logs.dtype).masked_scatter(chosen, logs)
