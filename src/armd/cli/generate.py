"""armd generate: write text, fill holes."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from armd import decode
from armd.cli.models import held_out, load_writer
from armd.cli.terminal import say
from armd.data import Tokenizer
from armd.errors import UserError
from armd.evals import CANDIDATES, choose_streams
from armd.files import json_text
from armd.model import Armd
from armd.request import Request, make_request


@dataclass(frozen=True)
class Generate:
    """Write text: go on from a prompt, or fill the holes of a template."""

    model: Path
    """Run folder or published model folder."""
    prompt: str = ""
    """Text to go on from."""
    template: str | None = None
    """Text with holes instead of a prompt: "def add(a, b): <16> c" has a hole of 16 tokens."""
    length: int | None = None
    """New tokens after the prompt; default: as many as fit, rounded down to a multiple of streams."""
    streams: int | Literal["auto"] = 1
    """Number of equal streams the new tokens are cut into; auto: the fastest within --budget on the texts of --data."""
    data: Path | None = None
    """Folder made by armd prepare, for --streams auto."""
    budget: float = 0.02
    """Nats per token that --streams auto may cost over left-to-right order."""
    mode: Literal["exact", "sequential", "parallel"] = "exact"
    """parallel: one token of every stream a pass; sequential and exact: the law of one token at a time."""
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
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_generate(args: Generate) -> None:
    model, tokenizer = load_writer(args.model, args.device)
    request = make_request(
        model,
        **_what_to_write(args, model, tokenizer),
        mode=args.mode,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        batch_size=args.samples,
    )
    began = time.perf_counter()
    with _live(args, request, tokenizer) as show:
        out = decode.collect(request, show(decode.stream(model, request)))
    seconds = time.perf_counter() - began
    texts = [tokenizer.decode(row[:n].tolist()) for row, n in zip(out.tokens, out.lengths.tolist(), strict=True)]
    new = int((request.tokens < 0).sum())
    if args.json:
        fields = {
            "texts": texts,
            "tokens": out.tokens.tolist(),
            "new_tokens": new,
            "forward_passes": out.forward_passes,
            "acceptance": out.acceptance,
            "log_probs": out.log_probs.sum(dim=1).tolist(),
            "seconds": seconds,
        }
        print(json_text(fields))
        return
    for text in texts:
        print(text)
        if len(texts) > 1:
            print("-" * 40)
    say(f"{new} tokens in {out.forward_passes} passes, {seconds:.2f} s, {new / seconds:.0f} tokens/s")


def _what_to_write(args: Generate, model: Armd, tokenizer: Tokenizer) -> dict[str, Any]:
    if args.template is not None:
        if args.prompt or args.length is not None or args.streams != 1:
            raise UserError("--template cannot be combined with --prompt, --length or --streams: its holes say it all")
        return {"template": parse_template(args.template, tokenizer)}
    prompt = tokenizer.encode(args.prompt) if args.prompt else []
    room = model.config.max_position_embeddings - len(prompt)
    if args.data is not None and args.streams != "auto":
        raise UserError("--data is for --streams auto only")
    step = max(CANDIDATES) if args.streams == "auto" else max(args.streams, 1)
    length = args.length if args.length is not None else room - room % step or room
    streams = _choose(args, model, tokenizer, length) if args.streams == "auto" else args.streams
    return {"prompt": prompt, "length": length, "streams": streams}


def _choose(args: Generate, model: Armd, tokenizer: Tokenizer, length: int) -> int:
    """The number of streams for `--streams auto`; says what there was to choose from."""
    if args.data is None:
        raise UserError("--streams auto measures what streams cost on held-out text: give it with --data DIR")
    dataset = held_out(args.data, args.model, model, tokenizer, length)
    streams, offers = choose_streams(model, dataset, args.budget, mode=args.mode, seed=args.seed)
    table = Table("streams", "nats/token", "cost", "tokens/pass", title=f"mode {args.mode}, texts of {length} tokens")
    for o in offers:
        table.add_row(f"{o.streams}", f"{o.nats:.4f}", f"{o.cost:+.4f}", f"{o.tokens_per_pass:.2f}")
    Console(stderr=True).print(table)
    say(f"streams={streams}: most tokens a pass for at most {args.budget} nats per token")
    return streams


def parse_template(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a text in which `<16>` stands for a hole of 16 tokens, -1 each."""
    ids: list[int] = []
    for i, part in enumerate(re.split(r"<(\d+)>", text)):
        ids += [-1] * int(part) if i % 2 else tokenizer.encode(part) if part else []
    if -1 not in ids:
        raise UserError("template has no hole; write <N> for a hole of N tokens, N at least 1")
    return ids


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
