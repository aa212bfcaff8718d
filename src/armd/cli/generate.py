"""armd generate: write text, fill holes."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from armd import decode
from armd.adaptive import generate_adaptive
from armd.baselines import Denoiser, denoising
from armd.cli.models import as_armd, check_fits, held_out, load_reader
from armd.cli.terminal import say
from armd.data import Tokenizer
from armd.decode import Generation
from armd.errors import UserError
from armd.evals import CANDIDATES, choose_streams
from armd.files import json_text
from armd.infill import Part, fill, only_template
from armd.model import Armd, Transformer
from armd.precision import cast
from armd.request import Request, make_request
from armd.sampling import check_seed
from armd.writer import Event

CHOOSING_TEXTS = 8
"""Held-out texts that `--streams auto` measures on."""


@dataclass(frozen=True)
class Generate:
    """Write text: go on from a prompt, or fill the holes of a template."""

    model: Path
    """Run folder or published model folder."""
    prompt: str = ""
    """Text to go on from."""
    template: str | None = None
    """Text with holes instead of a prompt: <16> is a hole of 16 tokens, <4-12> one of 4 to 12, the likeliest length."""
    length: int | None = None
    """New tokens after the prompt; default: as many as fit, rounded down to a multiple of streams."""
    steps: int | None = None
    """Of masked and block diffusion: steps a text, or a block, is written in; default: a token a step."""
    schedule: Literal["even", "ancestral"] = "even"
    """Of masked and block diffusion: as many tokens in every step (even), or each token's step drawn on its own."""
    streams: int | Literal["auto"] = 1
    """Number of equal streams the new tokens are cut into; auto: the fastest within --budget on the texts of --data."""
    data: Path | None = None
    """Folder made by armd prepare, for --streams auto."""
    budget: float = 0.02
    """Nats per token that --streams auto may cost over left-to-right order."""
    mode: Literal["exact", "sequential", "parallel"] = "exact"
    """parallel: one token of every stream a pass; sequential and exact: the law of one token at a time."""
    drafts: int | None = None
    """Tokens that mode exact guesses beyond the next one; default: both ends of the streams, 2 S - 2."""
    check: Literal["noise", "rejection"] = "noise"
    """How drafts are checked: noise keeps the text of mode sequential, rejection its law."""
    tolerance: float = 0.0
    """With --check rejection: accept drafts this much more readily, at most this total variation a token."""
    adaptive: Literal["margin", "confidence", "entropy"] | None = None
    """Write the surest hole of a template first instead of all holes side by side."""
    dependence: float = 0.0
    """With --adaptive entropy: nats that tokens written together may depend on each other."""
    best_of: int = 1
    """Fillings of a template to choose the most likely from."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this mass; 1 is off."""
    seed: int = 0
    """Same seed, same text."""
    samples: int = 1
    """Number of texts."""
    rows: int | None = None
    """Texts written at once, default all; a finished text makes room for the next."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Numbers to compute in; auto: bfloat16 where the processor has it."""
    compiled: bool = False
    """Compile the pass first: about a minute, for long jobs."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


BY_ORDER = (
    "streams", "data", "budget", "mode", "drafts", "check", "tolerance", "adaptive", "dependence", "best_of", "compiled"
)  # fmt: skip
"""Options that a model of noise, which is told no order, does without."""


def _check_options(args: Generate) -> None:
    """Refuse options that would do nothing: a line is an option, if it was given, what it needs, if that is."""
    template = args.template is not None
    for option, given, needed, there in (
        ("--adaptive", args.adaptive is not None, "--template", template),
        ("--best-of", args.best_of != 1, "--template", template),
        ("--best-of", args.best_of != 1, "no --adaptive and --samples 1", args.adaptive is None and args.samples == 1),
        ("--dependence", args.dependence != 0, "--adaptive entropy", args.adaptive == "entropy"),
        ("--data", args.data is not None, "--streams auto", args.streams == "auto"),
        ("--budget", args.budget != Generate.budget, "--streams auto", args.streams == "auto"),
        ("--streams auto", args.streams == "auto", "--data DIR, held-out text to measure on", args.data is not None),
        ("--rows, --compiled", args.rows is not None or args.compiled, "no --adaptive", args.adaptive is None),
        ("--mode, --drafts, --check", (args.mode, args.drafts, args.check) != ("exact", None, "noise"),
         "no --adaptive", args.adaptive is None),
        ("--prompt, --length, --streams", bool(args.prompt) or args.length is not None or args.streams != 1,
         "no --template, whose holes say it all", not template),
    ):  # fmt: skip
        if given and not there:
            raise UserError(f"{option} needs {needed}")
    check_seed(args.seed)


def run_generate(args: Generate) -> None:
    _check_options(args)
    model, tokenizer = load_reader(args.model, args.device)
    check_fits(args, model, BY_ORDER)
    cast(model, args.dtype)
    parts = parse_template(args.template, tokenizer) if args.template is not None else []
    if args.best_of != 1 or any(isinstance(part, tuple) and part[0] < part[1] for part in parts):
        out, seconds, more = _best(args, as_armd(model, args.model, "filling by --best-of or <4-12>"), parts)
    else:
        out, seconds, more = _write(args, model, tokenizer, parts)
    texts = [tokenizer.decode(row[:n].tolist()) for row, n in zip(out.tokens, out.lengths.tolist(), strict=True)]
    new = int((out.steps > 0).sum())
    if args.json:
        fields = {
            "texts": texts,
            "tokens": out.tokens.tolist(),
            "new_tokens": new,
            "forward_passes": out.forward_passes,
            "tokens_per_pass": out.tokens_per_pass,
            "acceptance": out.acceptance,
            "log_probs": out.log_probs.sum(dim=1).tolist(),
            "ties": None if out.ties is None else out.ties.tolist(),
            "total_variation": out.bound.tolist(),
            "seconds": seconds,
            **more,
        }
        print(json_text(fields))
        return
    for text in texts:
        print(text)
        if len(texts) > 1:
            print("-" * 40)
    drafted = "" if out.acceptance is None else f", {out.acceptance:.1%} of the drafts right"
    pace = f"{out.tokens_per_pass:.2f} a text and pass{drafted}"
    say(f"{new} tokens in {out.forward_passes} passes ({pace}), {seconds:.2f} s, {new / seconds:.0f} tokens/s")


def _sampling(args: Generate) -> dict[str, Any]:
    names = "mode", "drafts", "check", "tolerance", "temperature", "top_k", "top_p", "seed"
    return {name: getattr(args, name) for name in names}


Written = tuple[Generation, float, dict[str, Any]]  # the texts, seconds, and more to tell


def _write(args: Generate, model: Transformer, tokenizer: Tokenizer, parts: list[Part]) -> Written:
    """A prompt continued, or a template of known lengths filled."""
    what = _what_to_write(args, model, tokenizer, parts)
    request = make_request(model, **what, **_sampling(args), batch_size=args.samples)
    began = time.perf_counter()
    if args.adaptive is not None:
        written = generate_adaptive(as_armd(model, args.model, "--adaptive"), request, args.adaptive, args.dependence)
        return written.generation, time.perf_counter() - began, {"order": written.order.positions.tolist()}
    with _live(args, request, tokenizer) as show:
        out = decode.collect(request, show(_passes(args, model, request)))
    return out, time.perf_counter() - began, {}


def _passes(args: Generate, model: Transformer, request: Request) -> Iterator[Event]:
    if isinstance(model, Denoiser):
        return denoising(model, request, args.steps, args.schedule, rows=args.rows)
    return decode.stream(model, request, args.rows, args.compiled)


def _best(args: Generate, model: Armd, parts: list[Part]) -> Written:
    """The most likely of several fillings, and of several lengths."""
    if args.adaptive is not None or args.samples != 1:
        raise UserError("holes like <4-12> need no --adaptive and --samples 1")
    began = time.perf_counter()
    best = fill(model, parts, best_of=args.best_of, rows=args.rows, compiled=args.compiled, **_sampling(args))
    lengths = [len(hole) for hole in best.holes]
    if best.evidence is not None:
        say(f"hole lengths {lengths}: estimated log p of what follows {best.evidence:.2f} nats, the largest of all")
    more = {"holes": lengths, "hole_log_probs": best.log_probs, "evidence": best.evidence}
    return best.generation.row(best.row), time.perf_counter() - began, more


def _what_to_write(args: Generate, model: Transformer, tokenizer: Tokenizer, parts: list[Part]) -> dict[str, Any]:
    limit = model.config.max_position_embeddings
    if parts:
        return {"template": only_template(parts, limit)}
    prompt = tokenizer.encode(args.prompt) if args.prompt else []
    room = limit - len(prompt)
    if room < 1:
        raise UserError(f"the prompt has {len(prompt)} tokens; the model holds {limit}, and at least one must be left")
    step = max(CANDIDATES) if args.streams == "auto" else max(args.streams, 1)
    length = args.length if args.length is not None else room - room % step or room
    streams = _choose(args, model, tokenizer, length) if args.streams == "auto" else args.streams
    return {"prompt": prompt, "length": length, "streams": streams}


def _choose(args: Generate, model: Transformer, tokenizer: Tokenizer, length: int) -> int:
    """The number of streams for `--streams auto`; says what there was to choose from."""
    assert args.data is not None  # checked with the other options
    dataset = held_out(args.data, args.model, model, tokenizer, length).spread(CHOOSING_TEXTS)
    able = as_armd(model, args.model, "--streams auto")
    streams, offers = choose_streams(able, dataset, args.budget, mode=args.mode, texts=CHOOSING_TEXTS, seed=args.seed)
    table = Table("streams", "nats/token", "cost", "tokens/pass", title=f"mode {args.mode}, texts of {length} tokens")
    for o in offers:
        table.add_row(f"{o.streams}", f"{o.nats:.4f}", f"{o.cost:+.4f}", f"{o.tokens_per_pass:.2f}")
    Console(stderr=True).print(table)
    say(f"streams={streams}: most tokens a pass for at most {args.budget} nats per token")
    return streams


def parse_template(text: str, tokenizer: Tokenizer) -> list[Part]:
    """Known token ids and holes: `<16>` stands for a hole of 16 tokens, `<4-12>` for one of 4 to 12."""
    parts: list[Part] = []
    for i, piece in enumerate(re.split(r"<(\d+(?:-\d+)?)>", text)):
        if i % 2:
            low, _, high = piece.partition("-")
            parts.append((int(low), int(high or low)))
        elif piece:
            parts.append(tokenizer.encode(piece))
    if not any(isinstance(part, tuple) for part in parts):
        raise UserError("template has no hole; write <N> for a hole of N tokens, or <4-12> for one of 4 to 12")
    return parts


@contextlib.contextmanager
def _live(args: Generate, request: Request, tokenizer: Tokenizer) -> Any:
    """On a terminal, show the first text while it is written; elsewhere do nothing."""
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    if args.json or not console.is_terminal:
        yield lambda events: events
        return
    tokens = request.tokens[0].clone()
    with Live(console=console, transient=True, refresh_per_second=20) as live:

        def show(events: Any) -> Any:
            for event in events:
                written = event.valid & (event.texts == 0)[:, None]
                tokens[event.positions[written].cpu()] = event.tokens[written].cpu()
                live.update(Text("".join("·" if t < 0 else tokenizer.decode([t]) for t in tokens.tolist())))
                yield event

        yield show
