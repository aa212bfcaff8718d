"""Speed of decoding: ARMD by mode and number of streams, beside Hugging Face's GPT-2 and masked diffusion.

All networks have the shape of a preset and random weights. Random weights make nearly flat conditionals, and drafts
that are right more often than those of a trained model: `tokens_per_pass` of exact mode is not a promise. Seconds a
pass are: they hold for any weights of the shape.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from armd.baselines import Autoregressive, MaskedDiffusion, denoising
from armd.bench.timing import Job, Timing, Work, alternate, bandwidth, provenance
from armd.decode import collect, stream
from armd.errors import UserError
from armd.model import Armd, ArmdConfig, Transformer
from armd.precision import pack
from armd.request import make_request
from armd.writer import Event

HUGGING_FACE, AUTOREGRESSIVE = "hugging face gpt-2", "autoregressive"
WARM_UP = 32  # tokens of a text written before anything is timed
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class DecodeBench:
    """Time decoding beside Hugging Face's GPT-2 and masked diffusion: same shape, random weights, all in turn."""

    preset: str = "paper-small"
    """Preset whose shape is timed; query and two-stream layers are those of --query and one layer."""
    vocab_size: int = 50257
    """Tokens in the vocabulary."""
    query: str = "kernel"
    """Where G^0 comes from."""
    dtype: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    """Of weights, activations and caches."""
    batch: tuple[int, ...] = (1, 8)
    """Texts written at once."""
    length: tuple[int, ...] = (256, 1024)
    """Tokens N of a text."""
    streams: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of streams S; each must divide every length."""
    modes: tuple[Literal["sequential", "exact", "parallel"], ...] = ("sequential", "exact", "parallel")
    """Modes of ARMD; S = 1 is timed in the first of them only, sequential at the least and the greatest S."""
    tokens: int | Literal["full"] = "full"
    """Tokens written of each text; full: all N. Fewer are for a quick look: the caches stay short."""
    diffusion_passes: int = 2
    """Passes of masked diffusion that are timed; all cost the same, so whole texts are extrapolated."""
    repeats: int = 3
    """Rounds, after one of 32 tokens a text that warms up."""
    seed: int = 0
    """Of weights and texts."""
    device: str = "auto"
    """cpu, cuda or auto."""
    quick: bool = False
    """Texts of 32 tokens, one round, to see that it works."""
    out: Path | None = None
    """Write the record here, after every group of (dtype, batch, length)."""
    resume: bool = False
    """Keep the groups that the record in --out holds, each with its commit and date, and time the others."""
    plot: Path | None = None
    """Write the plot here; default: beside the record, as .svg."""
    json: bool = False
    """Print the record as one JSON object."""

    def __post_init__(self) -> None:
        for name in ("dtype", "batch", "length", "streams", "modes"):
            if not getattr(self, name):
                raise UserError(f"{name} needs at least one value")
        if self.quick:
            for name, value in (("length", (32,)), ("repeats", 1)):
                if getattr(self, name) == getattr(DecodeBench, name):  # what is asked for by name stays
                    object.__setattr__(self, name, value)
        for name in ("vocab_size", "batch", "length", "streams", "diffusion_passes", "repeats"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise UserError(f"{name}={value} must be at least 1")
        for s, n in itertools.product(self.streams, self.length):
            if n % s:
                raise UserError(f"streams={s} does not divide length={n}")
        if self.tokens != "full" and not 1 <= self.tokens <= min(self.length):
            raise UserError(f"tokens={self.tokens} must be full or in 1..{min(self.length)}, the shortest length")
        if min(self.length) < 4:
            raise UserError(f"length={min(self.length)} must be at least 4: masked diffusion is timed at N/4 steps")


# ---- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """One job and what its row of the record says; `weights` are the bytes that a pass reads at least."""

    what: str
    mode: str
    streams: int | None
    weights: int
    job: Job
    extrapolated_from_passes: int | None = None

    @property
    def name(self) -> str:
        return f"{self.what}, {self.mode}" + (f", S = {self.streams}" if self.streams else "")


def writing(model: Transformer, mode: str, streams: int, length: int, batch: int, tokens: int, seed: int) -> Job:
    """`armd.generate`, stopped after `tokens` tokens of every text."""

    def until(events: Iterator[Event]) -> Iterator[Event]:
        written = 0
        for event in events:
            yield event
            written += int(event.valid.sum())
            if written >= tokens * batch:
                return

    def job() -> Work:
        request = make_request(
            model, length=length, streams=streams, mode=mode, seed=seed, batch_size=batch, stop=False
        )
        out = collect(request, until(stream(model, request)))
        return Work(int((out.steps > 0).sum()), out.forward_passes, out.acceptance)

    return job


def denoising_passes(model: MaskedDiffusion, steps: int, passes: int, length: int, batch: int, seed: int) -> Job:
    """The first `passes` of the `steps` passes of a text."""

    def job() -> Work:
        request = make_request(model, length=length, seed=seed, batch_size=batch, stop=False)
        for _ in itertools.islice(denoising(model, request, steps), passes):
            pass
        return Work(length * batch, steps, share=passes / steps)

    return job


def hugging_face(config: ArmdConfig) -> nn.Module:
    """GPT-2 of the same shape, which never stops early."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: the weights are random
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_position_embeddings + 1,  # the prompt is one token
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_inner=config.intermediate_size or None,
        bos_token_id=0,
        eos_token_id=None,
    )
    model: nn.Module = GPT2LMHeadModel(shape).eval()
    return model


def hugging_face_writing(model: Any, batch: int, tokens: int, seed: int) -> Job:
    """`generate` with its cache, from one token, sampling from the whole vocabulary."""
    prompt = torch.zeros(batch, 1, dtype=torch.long, device=model.device)

    def job() -> Work:
        torch.manual_seed(seed)
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out.shape == (batch, tokens + 1), "generate stopped early"
        return Work(tokens * batch, tokens)

    return job


def weight_bytes(model: nn.Module) -> int:
    """Bytes of weights, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


# ---- the run ---------------------------------------------------------------------------------------------------------


def decoding(
    options: DecodeBench,
    config: ArmdConfig,
    device: torch.device,
    command: str,
    tell: Callable[[str], object] = lambda text: None,
    before: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Time all jobs; yields the record so far after every group of (dtype, batch, length).

    Args:
        config: the shape; its query kind, two-stream layers and longest text follow the options.
        command: what the record says it was made with.
        tell: gets a line before each job.
        before: a record whose groups stay as they are.

    Raises:
        UserError: `before` is of another shape, seed or processor.
    """
    config = dataclasses.replace(
        config,
        query=options.query,
        num_two_stream_layers=1,
        max_position_embeddings=max(options.length),
        eos_token_id=None,
    )
    record: dict[str, Any] = {
        **provenance(command, device),
        "seed": options.seed,
        "shape": dataclasses.asdict(config),
        "reference": HUGGING_FACE,
        "absent": {},
        "note": "random weights: the acceptance is not that of a trained model, seconds a pass are",
        "bandwidth_bytes_per_second": bandwidth(device),
        "rows": [],
    }
    kept = _keep(before, record) if before else {}
    for dtype in options.dtype:
        models: dict[str, nn.Module] = {}
        for batch, length in itertools.product(options.batch, options.length):
            if (dtype, batch, length) in kept:
                record["rows"] += kept[dtype, batch, length]
                yield record
                continue
            models = models or _models(config, DTYPES[dtype], device, options.seed, record)
            made = {name: provenance(command, device)[name] for name in ("commit", "date")}
            group = {"dtype": dtype, "batch": batch, "length": length, **made}
            where = f"{dtype}, batch {batch}, N = {length}: "
            tokens = length if options.tokens == "full" else options.tokens
            entries, short = (
                {c.name: c for c in _contestants(models, record["weight_bytes"], options, batch, length, count)}
                for count in (tokens, min(tokens, WARM_UP))
            )
            times = alternate(
                {name: c.job for name, c in entries.items()},
                options.repeats,
                device,
                lambda name, where=where: tell(where + name),  # type: ignore[misc]
                warm_up={name: c.job for name, c in short.items()},
            )
            reference = next(times[c.name] for c in entries.values() if c.what == record["reference"])
            record["rows"] += [_row(c, group, times[name], reference) for name, c in entries.items()]
            record["bandwidth_bytes_per_second"] = max(record["bandwidth_bytes_per_second"], bandwidth(device))
            record["machine"]["load_average_after"] = list(os.getloadavg())
            for row in record["rows"]:
                _add_floor(row, record["bandwidth_bytes_per_second"])
            yield record


def _keep(before: Mapping[str, Any], record: dict[str, Any]) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """The rows of an earlier record by group, if it is one of the same things on the same processor."""
    shape, cpu = before["shape"], before["machine"]["cpu"]
    other = any(record["shape"].get(name) != value for name, value in shape.items())
    if other or before["seed"] != record["seed"] or cpu != record["machine"]["cpu"]:
        raise UserError("the record to go on with is of another shape, seed or processor: give another --out")
    record |= {name: before[name] for name in ("reference", "absent", "parameters", "weight_bytes")}
    speeds = before["bandwidth_bytes_per_second"], record["bandwidth_bytes_per_second"]
    record["bandwidth_bytes_per_second"] = max(speeds)
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in before["rows"]:
        made = {name: row.get(name, before[name]) for name in ("commit", "date")}
        groups.setdefault((row["dtype"], row["batch"], row["length"]), []).append({**row, **made})
    return groups


def _models(
    config: ArmdConfig, dtype: torch.dtype, device: torch.device, seed: int, record: dict[str, Any]
) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    models: dict[str, nn.Module] = {}
    try:
        models[HUGGING_FACE] = hugging_face(config)
        from transformers import __version__

        record["machine"]["transformers"] = __version__
    except ImportError as error:
        record["absent"][HUGGING_FACE] = f"transformers cannot be imported ({error}); pip install 'armd[bench]'"
        record["reference"] = AUTOREGRESSIVE
    models[AUTOREGRESSIVE] = Autoregressive(config)
    models["armd"] = Armd(config)
    models["masked diffusion"] = MaskedDiffusion(config)
    record["parameters"] = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    models = {name: model.to(device, dtype).eval() for name, model in models.items()}
    record["weight_bytes"] = {name: weight_bytes(model) for name, model in models.items()}
    return {name: pack(model) if isinstance(model, Transformer) else model for name, model in models.items()}


def _contestants(
    models: dict[str, Any], weights: dict[str, int], options: DecodeBench, batch: int, length: int, tokens: int
) -> Iterator[Contestant]:
    seed = options.seed
    if HUGGING_FACE in models:
        job = hugging_face_writing(models[HUGGING_FACE], batch, tokens, seed)
        yield Contestant(HUGGING_FACE, "sequential", None, weights[HUGGING_FACE], job)
    job = writing(models[AUTOREGRESSIVE], "sequential", 1, length, batch, tokens, seed)
    yield Contestant(AUTOREGRESSIVE, "sequential", None, weights[AUTOREGRESSIVE], job)
    for mode, streams in _modes(options):
        job = writing(models["armd"], mode, streams, length, batch, tokens, seed)
        yield Contestant("armd", mode, streams, weights["armd"], job)
    what = "masked diffusion"
    for name, steps in (("N steps", length), ("N/4 steps", length // 4)):
        passes = min(options.diffusion_passes, steps)
        job = denoising_passes(models[what], steps, passes, length, batch, seed)
        yield Contestant(what, name, None, weights[what], job, passes)


def _modes(options: DecodeBench) -> Iterator[tuple[str, int]]:
    """Modes and streams, without what would be timed twice.

    S = 1 is the same in all modes. One token at a time takes a pass for each, whatever S is: it is timed at the ends.
    """
    ends = min(options.streams), max(options.streams)
    for mode, streams in itertools.product(options.modes, options.streams):
        again = streams == 1 and mode != options.modes[0]
        between = mode == "sequential" and streams not in ends
        if not again and not between:
            yield mode, streams


def _row(c: Contestant, group: dict[str, Any], timing: Timing, reference: Timing) -> dict[str, Any]:
    work, fields = timing.work, timing.fields(reference)
    assert work.passes is not None
    return {
        "what": c.what,
        "mode": c.mode,
        "streams": c.streams,
        **group,
        **fields,
        "passes": work.passes,
        "tokens_per_pass": work.tokens / work.passes / group["batch"],
        "seconds_per_pass": statistics.median(timing.seconds) / work.passes,
        "acceptance": work.acceptance,
        "weight_bytes": c.weights,
        "extrapolated_from_passes": c.extrapolated_from_passes,
    }


def _add_floor(row: dict[str, Any], bytes_per_second: float) -> None:
    """What reading every weight once a pass would allow, and the share of it that was reached."""
    floor = row["tokens"] / row["passes"] / (row["weight_bytes"] / bytes_per_second)
    row["floor_tokens_per_second"] = floor
    row["of_floor"] = row["tokens_per_second"]["median"] / floor
