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
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

import armd
from armd import bench, checkpoint, decode
from armd import demo as demonstration
from armd.data import Manifest, TokenDataset, Tokenizer, documents, named_documents, prepare
from armd.errors import UserError
from armd.evals import CANDIDATES, choose_streams, evaluate, parse_orders, read_meter
from armd.model import Armd, Transformer
from armd.orders import Family
from armd.presets import PRESETS, get_preset
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
    """A data set by name instead of input: openwebtext, lm1b, wikitext2, wikitext103, ptb, lambada, text8."""
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
        print(json.dumps(dataclasses.asdict(manifest)))
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


@dataclass(frozen=True)
class Train(TrainPaths):
    """Train a preset on prepared data: armd train PRESET --data DIR --out RUN [--any.field VALUE]."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(kw_only=True)
    """The run; every field of the preset can be set."""


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
    base = Train(paths.data, paths.out, config=preset(manifest.vocab_size, manifest.eos_id))
    config = parse(Train, argv[1:], prog, base).config
    if config.model.vocab_size < manifest.vocab_size:
        sizes = f"{config.model.vocab_size} is below the {manifest.vocab_size} tokens of {paths.data}"
        raise UserError(f"model.vocab_size={sizes}: the vocabulary does not fit")
    result = train(config, paths.data, paths.out, resume=paths.resume)
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
    dataset = _held_out(args.data, args.model, tokenizer, length)
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


# ---- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluate:
    """Score held-out text in any generation orders, and predict how fast its strided orders decode."""

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
    measure: int = 0
    """Texts to write in mode exact for every strided order, to set what is measured beside what is predicted."""
    seed: int = 0
    """Seed of the random orders, and of the noise that texts are written with."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_evaluate(args: Evaluate) -> None:
    orders = parse_orders(args.orders)
    if args.texts < 1 or args.batch_size < 1 or args.measure < 0:
        sizes = f"texts={args.texts} and batch_size={args.batch_size}"
        raise UserError(f"{sizes} must be at least 1, measure={args.measure} at least 0")
    model, tokenizer = checkpoint.load(args.model, pick_device(args.device))
    dataset = _held_out(args.data, args.model, tokenizer, args.length or model.config.max_position_embeddings)
    scores = list(evaluate(model, dataset, orders, texts=args.texts, batch_size=args.batch_size, seed=args.seed))
    meters = _meters(args, model, dataset, orders)
    if args.json:
        print(json.dumps({"scores": [dataclasses.asdict(score) for score in scores], "meter": meters}))
        return
    columns = ("order", "blocks", "nats/token", "± s.e.", "perplexity", "bits/byte", "note")
    table = Table(*columns, title=f"{scores[0].texts} held-out texts of {dataset.length} tokens")
    for s in scores:
        numbers = f"{s.nats_per_token:.4f}", f"{s.stderr:.4f}", f"{s.perplexity:.2f}", f"{s.bits_per_byte:.3f}"
        table.add_row(s.order, s.blocks, *numbers, s.note)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    if meters:
        console.print(_meter_table(meters))


def _meters(args: Evaluate, model: Transformer, dataset: TokenDataset, orders: Sequence[str]) -> list[dict[str, Any]]:
    """The likelihood meter of every strided order, with what decoding measured if texts were asked for."""
    meters = []
    for streams in (Family.parse(name).argument for name in orders if name.startswith("strided:")):
        if not isinstance(model, Armd):
            continue
        read = read_meter(model, dataset, streams, texts=args.texts, batch_size=args.batch_size, seed=args.seed)
        measured = None
        if args.measure:
            out = decode.generate(
                model, length=dataset.length, streams=streams, seed=args.seed, batch_size=args.measure, stop=False
            )
            measured = {"texts": args.measure, "acceptance": out.acceptance, "tokens_per_pass": out.tokens_per_pass}
        meters.append({**dataclasses.asdict(read), "measured": measured})
    return meters


def _meter_table(meters: list[dict[str, Any]]) -> Table:
    measured = meters[0]["measured"] is not None
    columns = ["streams", "sequential", "parallel", "penalty", "TV", "acceptance", "tokens/pass"]
    more = ["acceptance, measured", "tokens/pass, measured"] if measured else []
    table = Table(*columns, *more, title="decoding, predicted: nats/token, and mode exact")
    for m in meters:
        numbers = [f"{m[name]:.4f}" for name in ("sequential", "parallel", "penalty", "variation")]
        for part in (m, m["measured"])[: 2 if measured else 1]:
            accepted = "-" if part["acceptance"] is None else f"{part['acceptance']:.3f}"
            numbers += [accepted, f"{part['tokens_per_pass']:.2f}"]
        table.add_row(str(m["streams"]), *numbers)
    return table


# ---- bench and demo --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BenchTrain:
    """Time training steps of a preset on this machine, random weights: AR against ARMD."""

    preset: str = "tiny"
    """Preset whose shape is timed."""
    repeats: int = 3
    """Times each measurement is taken, in turn, after one that warms up; the median counts."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Bench(BenchTrain):
    """Time training steps and decoding on this machine, random weights; more: armd bench decode, armd bench train."""

    streams: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of streams to decode with."""
    length: int = 128
    """Tokens to write."""


def run_bench(args: BenchTrain) -> None:
    config, device = get_preset(args.preset)(257, None), pick_device(args.device)
    if args.repeats < 1:
        raise UserError(f"repeats={args.repeats} must be at least 1")
    jobs = {}
    if isinstance(args, Bench):
        model = Armd(config.model).to(device)
        for s in args.streams:
            make_request(model, length=args.length, streams=s)  # a mistake shows before anything is timed
            jobs[f"decode, S = {s}"] = bench.writing(model, "parallel", s, args.length, 1, args.length, seed=0)
    with _status() as tell:
        rows = bench.training(config, args.repeats, device, tell)
        times = bench.alternate(jobs, args.repeats, device, tell)
    rows += [{"what": name, **t.fields(next(iter(times.values())))} for name, t in times.items()]
    machine = bench.machine(device)
    if args.json:
        print(json.dumps({"preset": args.preset, "machine": machine, "rows": rows}))
        return
    table = Table("what", "tokens/s", "against the first of its kind")
    table.title = f"{args.preset}, {bench.in_words(machine)}"
    for row in rows:
        table.add_row(row["what"], f"{row['tokens_per_second']['median']:,.0f}", f"{row['ratio']['median']:.2f}x")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def run_bench_decode(args: bench.DecodeBench) -> None:
    model, device = get_preset(args.preset)(args.vocab_size, None).model, pick_device(args.device)
    plot = args.plot or (args.out.with_suffix(".svg") if args.out else None)
    command = shlex.join(["armd", *sys.argv[1:]])
    with _status() as tell:
        for record in bench.decoding(args, model, device, command, tell):
            if args.out:
                checkpoint.write_json(args.out, record)
            if plot:
                checkpoint.write_text(plot, bench.plot(record))
    for why in record["absent"].values():
        say(f"not compared: {why}")
    if args.json:
        print(json.dumps(record))
        return
    Console(width=None if sys.stdout.isatty() else 160).print(bench.table(record))


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What runs now, on standard error where that is a terminal."""
    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda text: status.update(text)


@dataclass(frozen=True)
class Demo:
    """Train, score, write and fill on the text every Python carries, and report it on one page."""

    out: Path = Path("demo")
    """Folder for data, run and report.html."""
    max_steps: int | None = None
    """Training steps, fewer than the demo's own for a quick look."""
    seed: int = 0
    """Seed of the run."""


def run_demo(args: Demo) -> None:
    demonstration.run(args.out, max_steps=args.max_steps, seed=args.seed)


# ---- parsing, dispatch and errors ------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "prepare": (Prepare, run_prepare),
    "train": (None, run_train),  # parses its own words: the options depend on the preset
    "generate": (Generate, run_generate),
    "evaluate": (Evaluate, run_evaluate),
    "bench": (Bench, run_bench),
    "bench decode": (bench.DecodeBench, run_bench_decode),
    "bench train": (BenchTrain, run_bench),
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


def _held_out(folder: Path, model: Path, tokenizer: Tokenizer | None, length: int) -> TokenDataset:
    """Held-out texts for a model, made with its tokenizer."""
    dataset = TokenDataset(folder, "valid", length)
    if tokenizer is not None and tokenizer.sha256 != Manifest.load(folder).tokenizer_sha256:
        raise UserError(f"{folder} was made with another tokenizer than {model}: the vocabulary does not match")
    return dataset


def say(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def usage() -> str:
    lines = [f"  {name:<14}{((kind or Train).__doc__ or '').splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
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
        words = 2 if " ".join(argv[:2]) in COMMANDS else 1
        name, rest = " ".join(argv[:words]), argv[words:]
        kind, run = COMMANDS[name]
        run(parse(kind, rest, f"armd {name}") if kind else rest)
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
