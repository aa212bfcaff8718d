"""armd plan: what a run will need, before it is started."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from armd.cli.terminal import parse
from armd.cli.train import describe_presets, fitted, preset_or_file
from armd.errors import UserError
from armd.files import json_text
from armd.gpus import GPUS, get_accelerator
from armd.memory import Memory
from armd.plan import BUDGETS, BYTES, USABLE, VOCABULARIES, Machine, measured, plan
from armd.presets import PRESETS
from armd.quantities import count, duration
from armd.train import TrainConfig, load_config


@dataclass(frozen=True)
class PlanOptions:
    """Where the run is to be, and what is known of it."""

    gpus: int = 1
    """Devices."""
    gpu: str = "h100"
    """a100, h100, h200, or cpu: this machine, its peak measured on the spot."""
    utilisation: float = 0.4
    """Share of the peak that the devices reach."""
    price_per_hour: float | None = None
    """Price of one device for one hour."""
    vocab_size: int | None = None
    """Tokens of the vocabulary; default: the paper's for its presets, bytes for the others."""
    against: Path | None = None
    """A run of the same config on this device, whose measured speed is set beside the plan."""
    json: bool = False
    """Print the plan as one JSON object."""


@dataclass(frozen=True)
class Plan(PlanOptions):
    """Parameters, memory, days and cost of a run: armd plan PRESET|FILE.json --gpus 8 [--any.field VALUE]."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(kw_only=True)
    """The run; every field of the preset can be set."""


def run_plan(argv: Sequence[str]) -> None:
    wants_help = any(word in ("-h", "--help") for word in argv)
    if not argv or argv[0].startswith("-"):
        if not wants_help:
            raise UserError(f"armd plan: name a preset first: {', '.join(PRESETS)}")
        kinds = "|".join([*GPUS, "cpu"])
        print(
            f"usage: armd plan PRESET|FILE.json [--gpus N] [--gpu {kinds}] [--any.field VALUE]\n\n{describe_presets()}"
        )
        return
    name, prog = argv[0], f"armd plan {argv[0]}"
    preset = preset_or_file(name)
    if wants_help:
        parse(Plan, argv[1:], prog, Plan(config=preset(VOCABULARIES.get(name, BYTES), None)))
    options = parse(PlanOptions, argv[1:], prog, strict=False)
    size = VOCABULARIES.get(name, BYTES) if options.vocab_size is None else options.vocab_size
    base, _ = fitted(preset(size, None), argv[1:], prog)
    if options.vocab_size not in (None, base.model.vocab_size):
        raise UserError(f"vocab_size={options.vocab_size}: {name} has a vocabulary of {base.model.vocab_size:,}")
    defaults = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    config = parse(Plan, argv[1:], prog, Plan(**defaults, config=base)).config
    if options.against is not None and config.precision == "auto":
        config = dataclasses.replace(config, precision=load_config(options.against).precision)
    machine = Machine(get_accelerator(options.gpu), options.gpus, options.utilisation, options.price_per_hour)
    budgets = BUDGETS.get(name, (config.max_steps,))
    made = plan(config, machine, budgets if config.max_steps in budgets else (config.max_steps,))
    peak = machine.accelerator.peak(made["precision"])
    result: dict[str, Any] = {
        "preset": name,
        "architecture": config.architecture,
        "device": machine.accelerator.name,
        "peak_flops": peak,
        "devices": machine.devices,
        "utilisation": machine.utilisation,
        **made,
    }
    if options.against is not None:
        result["measured"] = measured(options.against, config, machine.devices * peak)
    if options.json:
        print(json_text(result))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in (_parts(result), _memory(result, config), _times(result), _words(result)):
        console.print(part, highlight=False)


def _parts(result: dict[str, Any]) -> Table:
    flops, parameters = result["flops_per_token"], result["parameters"]
    table = Table("part", "parameters", "MFLOP/token, forward", "backward", title=f"{result['preset']}: what it is")
    for name, many in parameters.items():
        table.add_row(name, f"{many:,}")
    table.add_row("together", f"{sum(parameters.values()):,}", end_section=True)
    for name, cost in flops["parts"].items():
        table.add_row(name, "", f"{cost['forward'] / 1e6:,.2f}", f"{cost['backward'] / 1e6:,.2f}")
    table.add_row("together, a step", "", f"{flops['total'] / 1e6:,.2f}")
    return table


def _memory(result: dict[str, Any], config: TrainConfig) -> Table:
    title = f"GB on each device, {result['texts_per_pass']} texts of {config.text_length} tokens in a pass"
    parts = [field.name for field in dataclasses.fields(Memory)]
    table = Table("shared", "activations", *parts, "total", "fits", title=f"{title}, {result['precision']}")
    for row in result["memory"]:
        numbers = (f"{row[part] / 1e9:.2f}" for part in (*parts, "total"))
        table.add_row(row["sharding"], row["activations_are"], *numbers, "yes" if row["fits"] else "no")
    return table


def _times(result: dict[str, Any]) -> Table:
    how = f"activations {result['taken']['activations_are']}"
    how += f", {result['taken']['sharding']}" * (result["devices"] > 1)
    title = f"{result['devices']} x {result['device']} at {result['utilisation']:.0%} of the peak, {how}"
    table = Table("steps", "tokens", "time", "device hours", "cost", title=title)
    for row in result["budgets"]:
        cost = "-" if row["cost"] is None else f"{row['cost']:,.2f}"
        seconds, hours = duration(row["seconds"]), f"{row['device_hours']:,.4g}"
        table.add_row(f"{row['steps']:,}", count(row["tokens"]), seconds, hours, cost)
    return table


def _words(result: dict[str, Any]) -> str:
    """What the tables do not say."""
    kept, again = (result["tokens_per_second"][name] for name in ("kept", "recomputed"))
    what = "two streams" if result["architecture"] == "armd" else result["architecture"]
    lines = [
        f"{what}: {result['flops_per_token']['against_ar']:.3f} times the operations of an autoregressive model",
        f"fits: below {result['fits_below_bytes'] / 1e9:.0f} GB, {USABLE:.0%} of the memory",
        f"speed: {kept:,.0f} tokens/s of all devices, {again:,.0f} with activations recomputed; "
        f"peak {result['peak_flops'] / 1e12:,.4g} TFLOP/s each in {result['precision']}",
    ]
    if "measured" in result:
        found = result["measured"]
        speed, share = found["tokens_per_second"], found["utilisation"]
        lines.append(f"measured: {speed:,.0f} tokens/s, {share:.1%} of the peak without what is computed twice")
    return "\n".join(lines)
