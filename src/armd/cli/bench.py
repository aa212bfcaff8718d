"""armd bench: speed of training and decoding."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from armd import bench
from armd.cli.terminal import say
from armd.files import json_text, read_json, write_json, write_text
from armd.model import Armd
from armd.presets import get_preset
from armd.request import make_request
from armd.train.loop import pick_device


@dataclass(frozen=True)
class Bench:
    """Time training steps and decoding on this machine, random weights; more: armd bench decode, armd bench train."""

    preset: str = "tiny"
    """Preset whose shape is timed."""
    streams: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of streams to decode with."""
    length: int = 128
    """Tokens to write."""
    repeats: int = 3
    """Times each measurement is taken, in turn, after one that warms up; the median counts."""
    device: str = "auto"
    """cpu, cuda or auto."""
    json: bool = False
    """Print one JSON object."""


def run_bench(args: Bench) -> None:
    model, device = get_preset(args.preset)(257, None).model, pick_device(args.device)
    steps = bench.TrainBench(args.preset, repeats=args.repeats, memory=False)
    writer, jobs = Armd(model).to(device), {}
    for s in args.streams:
        make_request(writer, length=args.length, streams=s)  # a mistake shows before anything is timed
        jobs[f"decode, exact, S = {s}"] = bench.writing(writer, "exact", s, args.length, 1, args.length, seed=0)
    with _status() as tell:
        (record,) = bench.training(steps, model, device, "armd bench", tell)
        times = bench.alternate(jobs, args.repeats, device, tell)
    rows = [{"what": f"train, {row['what']}", **_speed(row)} for row in record["rows"]]
    rows += [{"what": name, **t.fields(next(iter(times.values())))} for name, t in times.items()]
    machine = bench.machine(device)
    if args.json:
        print(json_text({"preset": args.preset, "machine": machine, "rows": rows}))
        return
    table = Table("what", "tokens/s", "against the first of its kind")
    table.title = f"{args.preset}, {bench.in_words(machine)}"
    for row in rows:
        table.add_row(row["what"], f"{row['tokens_per_second']['median']:,.0f}", f"{row['ratio']['median']:.2f}x")
    _print(table)


def _speed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("tokens", "seconds", "tokens_per_second", "ratio")}


def run_bench_train(args: bench.TrainBench) -> None:
    model, device = get_preset(args.preset)(args.vocab_size, None).model, pick_device(args.device)
    command = shlex.join(["armd", *sys.argv[1:]])
    with _status() as tell:
        for record in bench.training(args, model, device, command, tell):
            if args.out:
                write_json(args.out, record)
    for name, why in record["absent"].items():
        say(f"not compared: {name}: {why}")
    if args.json:
        print(json_text(record))
    else:
        _print(bench.training_table(record))


def run_bench_decode(args: bench.DecodeBench) -> None:
    model, device = get_preset(args.preset)(args.vocab_size, None).model, pick_device(args.device)
    plot = args.plot or (args.out.with_suffix(".svg") if args.out else None)
    command = shlex.join(["armd", *sys.argv[1:]])
    with _status() as tell:
        before = read_json(args.out) if args.resume and args.out and args.out.exists() else None
        for record in bench.decoding(args, model, device, command, tell, before):
            if args.out:
                write_json(args.out, record)
            if plot:
                write_text(plot, bench.plot(record))
    for why in record["absent"].values():
        say(f"not compared: {why}")
    if args.json:
        print(json_text(record))
        return
    _print(bench.table(record))


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What runs now, on standard error where that is a terminal."""
    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda text: status.update(text)
