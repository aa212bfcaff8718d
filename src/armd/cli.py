"""The command line: armd prepare | train | generate | evaluate | bench | demo.

Exit status: 0 done, 2 the user's mistake (one line on standard error), 1 our failure or a run that stopped early.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

import armd
from armd import bench as benchmark
from armd import checkpoint, decode
from armd import demo as demonstration
from armd.data import Manifest, TokenDataset, Tokenizer, documents, named_documents, prepare
from armd.errors import UserError
from armd.evals import evaluate, parse_orders
from armd.files import json_text, read_json
from armd.model import Armd
from armd.orders import Family
from armd.presets import PRESETS, get_preset, with_steps
from armd.request import Request, make_request
from armd.train import TrainConfig, TrainingStopped, train
from armd.train.loop import pick_device

T = TypeVar("T")


# ---- prepare ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepare:
    """Turn text into token shards with a manifest."""

    out: Path
    """Folder to make."""
    tokenizer: str
    """byte, bpe:4096 (trained on the spot), gpt2, bert-base-uncased, or a tokenizer.json."""
    input: tuple[str, ...] = ()
    """Files, folders or globs: text, .jsonl, .parquet, .tar, also .gz or .xz."""
    dataset: str | None = None
    """A data set by name instead of input: openwebtext, lm1b, wikitext (= 103), wikitext2, ptb, lambada, text8."""
    split: str = "train"
    """Split of the named data set."""
    data_dir: Path | None = None
    """Folder with the files of the named data set; without it they come from the hub."""
    tokenizer_dir: Path | None = None
    """Folder with the vocabulary files of gpt2 or bert-base-uncased; without it they come from the hub."""
    valid: tuple[str, ...] = ()
    """Held-out files, folders or globs, instead of a share of the input."""
    held_out: float = 0.01
    """Share of the documents to hold out."""
    json: bool = False
    """Print the manifest as JSON."""


def run_prepare(args: Prepare) -> None:
    if bool(args.input) == bool(args.dataset):
        raise UserError("give either --input FILES or --dataset NAME")
    manifest = prepare(
        lambda: named_documents(args.dataset, args.split, args.data_dir) if args.dataset else documents(args.input),
        args.tokenizer,
        args.out,
        held_out=args.held_out,
        valid=(lambda: documents(args.valid)) if args.valid else None,
        tokenizer_dir=args.tokenizer_dir,
    )
    if args.json:
        print(json_text(dataclasses.asdict(manifest)))
        return
    for name, split in manifest.splits.items():
        say(f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes")
    say(f"held out: {manifest.held_out}. Next: armd train tiny --data {args.out} --out RUN")


# ---- train -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainPaths:
    """Where a run reads and writes."""

    data: Path
    """Folder made by armd prepare."""
    out: Path
    """Run folder."""
    resume: bool = False
    """Go on with the run in --out, bit for bit as if it had never stopped."""
    json: bool = False
    """Print what came out as one JSON object."""


@dataclass(frozen=True)
class Train(TrainPaths):
    """Train a preset on prepared data: armd train PRESET --data DIR --out RUN [--any.field VALUE]."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(kw_only=True)
    """The run; every field of the preset can be set."""


@dataclass(frozen=True)
class Steps:
    """The one field of a preset that others depend on."""

    max_steps: int | None = None


def run_train(argv: Sequence[str]) -> None:
    wants_help = any(word in ("-h", "--help") for word in argv)
    if not argv or argv[0].startswith("-"):
        if not wants_help:
            raise UserError(f"armd train: name a preset first: {', '.join(PRESETS)}")
        print(f"usage: armd train PRESET --data DIR --out RUN [--resume] [--any.field VALUE]\n\n{describe_presets()}")
        return
    preset, prog = get_preset(argv[0]), f"armd train {argv[0]}"
    if wants_help:
        parse(Train, argv[1:], prog, Train(tyro.MISSING, tyro.MISSING, config=preset(257, 256)))
    paths = parse(TrainPaths, argv[1:], prog, strict=False)
    manifest = Manifest.load(paths.data)
    base = preset(manifest.vocab_size, manifest.eos_id)
    full, steps = base.max_steps, parse(Steps, argv[1:], prog, strict=False).max_steps
    if steps is not None and steps < full:  # a longer run keeps the phases, as the paper's longer runs do
        base = with_steps(base, steps)
    config = parse(Train, argv[1:], prog, Train(paths.data, paths.out, config=base)).config
    if config.max_steps < full:
        o = config.orders
        phases = f"ar_steps={o.ar_steps}, perm_steps={o.perm_steps}, sbp_steps={o.sbp_steps}"
        say(f"{config.max_steps} steps instead of {full}: the phases of the orders shrink with them: {phases}")
    result = train(config, paths.data, paths.out, resume=paths.resume)
    if paths.json:
        fields = {"run": str(result.run), "steps": config.max_steps, "parameters": result.model.num_parameters()}
        print(json_text({**fields, "valid": result.valid, "seconds": result.seconds}))
        return
    valid = ", ".join(f"{order} {nats:.4f}" for order, nats in result.valid.items())
    say(f"done in {result.seconds:.0f} s. Held-out nats per token: {valid}")
    say(f'Next: armd generate --model {paths.out} --prompt "..." --streams 4')


def describe_presets() -> str:
    lines = [f"  {name:<14}{(preset.__doc__ or '').splitlines()[0]}" for name, preset in PRESETS.items()]
    return "\n".join(
        ["presets:", *lines, "", "Every field of a preset is an option: armd train tiny --help lists them."]
    )


# ---- generate --------------------------------------------------------------------------------------------------------


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
    streams: int = 1
    """Number of equal streams the new tokens are cut into."""
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
    model, tokenizer = _load(args.model, args.device)
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
        print(json.dumps(fields))
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
    length = args.length if args.length is not None else room - room % max(args.streams, 1) or room
    return {"prompt": prompt, "length": length, "streams": args.streams}


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


# ---- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluate:
    """Score held-out text in any generation orders."""

    model: Path
    """Run folder or published model folder."""
    data: Path
    """Folder made by armd prepare."""
    orders: str = "left_to_right,uniform:8,strided:4"
    """Comma-separated: left_to_right, uniform:K (mean over K orders), strided:S, reinsert:RHO, subset:RHO, infill."""
    texts: int = 256
    """Held-out texts to score, at most."""
    length: int | None = None
    """Tokens in a text; default: the model's longest."""
    batch_size: int = 16
    """Texts in a pass."""
    seed: int = 0
    """Seed of the random orders."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_evaluate(args: Evaluate) -> None:
    orders = parse_orders(args.orders)
    if args.texts < 1 or args.batch_size < 1:
        raise UserError(f"texts={args.texts} and batch_size={args.batch_size} must be at least 1")
    model, tokenizer = checkpoint.load(args.model, pick_device(args.device))
    length = model.config.max_position_embeddings if args.length is None else args.length
    dataset = TokenDataset(args.data, "valid", length)
    for order in orders:
        if not order.startswith("uniform"):
            Family.parse(order).check(length)
    mine, theirs = tokenizer.sha256 if tokenizer else None, Manifest.load(args.data).tokenizer_sha256
    if mine is not None and mine != theirs:
        raise UserError(f"{args.data} was made with another tokenizer than {args.model}: the vocabulary does not match")
    if dataset.vocab_size > model.config.vocab_size:
        sizes = f"{dataset.vocab_size} tokens, above vocab_size={model.config.vocab_size} of {args.model}"
        raise UserError(f"{args.data} has {sizes}: the vocabulary does not match")
    dataset.verify()
    scores = list(evaluate(model, dataset, orders, texts=args.texts, batch_size=args.batch_size, seed=args.seed))
    if args.json:
        print(json_text({"scores": [dataclasses.asdict(score) for score in scores]}))
        return
    columns = ("order", "blocks", "nats/token", "± s.e.", "perplexity", "bits/byte", "note")
    table = Table(*columns, title=f"{scores[0].texts} held-out texts of {dataset.length} tokens")
    for s in scores:
        numbers = f"{s.nats_per_token:.4f}", f"{s.stderr:.4f}", f"{s.perplexity:.2f}", f"{s.bits_per_byte:.3f}"
        table.add_row(s.order, s.blocks, *numbers, s.note)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


# ---- bench and demo --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Time training steps and decoding of a preset on this machine, random weights."""

    preset: str = "tiny"
    """Preset whose shape is timed."""
    streams: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of streams to decode with."""
    length: int = 128
    """Tokens to write."""
    repeats: int = 3
    """Times each measurement is taken, in turn; the median counts."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_bench(args: Bench) -> None:
    config = get_preset(args.preset)(257, None)
    rows = benchmark.run(config, args.streams, args.length, args.repeats, pick_device(args.device))
    if args.json:
        print(json.dumps({"preset": args.preset, "machine": benchmark.machine(), "rows": rows}))
        return
    table = Table("what", "tokens/s", "against the first of its kind", title=f"{args.preset}, {benchmark.machine()}")
    for row in rows:
        table.add_row(row["what"], f"{row['tokens_per_second']:,.0f}", f"{row['ratio']:.2f}x")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


@dataclass(frozen=True)
class Demo:
    """Train, score, write and fill on the text every Python carries, and report it on one page."""

    out: Path = Path("demo")
    """Folder for data, run and report.html."""
    max_steps: int | None = None
    """Training steps, fewer than the demo's own for a quick look."""
    seed: int = 0
    """Seed of the run."""
    json: bool = False
    """Print the figures of the report as one JSON object."""


def run_demo(args: Demo) -> None:
    page = demonstration.run(args.out, max_steps=args.max_steps, seed=args.seed)
    if args.json:
        results = read_json(args.out / "results.json")
        print(json_text({"report": str(page), **{name: results[name] for name in ("summary", "scores", "speed")}}))


# ---- parsing, dispatch and errors ------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "prepare": (Prepare, run_prepare),
    "train": (None, run_train),  # parses its own words: the options depend on the preset
    "generate": (Generate, run_generate),
    "evaluate": (Evaluate, run_evaluate),
    "bench": (Bench, run_bench),
    "demo": (Demo, run_demo),
}


def parse(kind: type[T], argv: Sequence[str], prog: str, default: T | None = None, strict: bool = True) -> T:
    """Parse the options of a command, or without `strict` those among them that belong to `kind`.

    The parser's box of several lines becomes one line.
    """
    shown = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(shown):
            result, unknown = tyro.cli(kind, args=list(argv), prog=prog, return_unknown_args=True, **extra)
    except SystemExit as stop:
        if stop.code:
            raise UserError(f"{prog}: {_one_line(shown.getvalue())}; see {prog} --help") from None
        raise
    if strict and unknown:
        raise UserError(f"{prog}: unknown option {' '.join(unknown)}; see {prog} --help")
    return result


def _one_line(box: str) -> str:
    """The message of the parser's error box: title, a rule in ASCII only, message, rule, advice."""
    lines = [line.strip("│| ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if line.strip("─-╰╯"):
            message.append(line)
        elif message:
            break
    return " ".join(message)


def _load(folder: Path, device: str) -> tuple[Armd, Tokenizer]:
    model, tokenizer = checkpoint.load(folder, pick_device(device))
    if not isinstance(model, Armd):
        raise UserError(f"{folder} is an autoregressive baseline; generate needs an armd model")
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.json, so text cannot be read or written")
    return model, tokenizer


def say(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def usage() -> str:
    lines = [f"  {name:<10}{((kind or Train).__doc__ or '').splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
    head = [f"armd {armd.__version__}: auto-regressive masked diffusion", "", "usage: armd COMMAND [options]", ""]
    return "\n".join([*head, *lines, "", "armd COMMAND --help lists the options."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(usage())
            return 0 if argv else 2
        if argv[0] == "--version":
            print(armd.__version__)
            return 0
        if argv[0] not in COMMANDS:
            raise UserError(f"armd: command {argv[0]!r} is unknown; choose one of {', '.join(COMMANDS)}")
        kind, run = COMMANDS[argv[0]]
        run(parse(kind, argv[1:], f"armd {argv[0]}") if kind else argv[1:])
    except UserError as error:
        say(f"error: {error}")
        return 2
    except TrainingStopped as stopped:
        say(f"stopped: {stopped}")
        return 1
    except KeyboardInterrupt:
        say("stopped: interrupted")
        return 1
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # --help of a command
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
