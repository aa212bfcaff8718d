"""armd train: a preset on prepared data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from armd.cli.terminal import parse, say
from armd.data import Manifest
from armd.errors import UserError
from armd.files import json_text
from armd.presets import PRESETS, Preset, for_architecture, get_preset, with_steps
from armd.train import TrainConfig, load_config, train
from armd.train.parallel import Ranks, joined


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
    """Train a preset on prepared data: armd train PRESET|FILE.json --data DIR --out RUN [--any.field VALUE]."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(kw_only=True)
    """The run; every field of the preset can be set."""


@dataclass(frozen=True)
class Steps:
    """The field of a preset that its phases depend on."""

    max_steps: int | None = None


@dataclass(frozen=True)
class Architecture:
    """The field of a preset that its orders depend on."""

    architecture: str | None = None


def run_train(argv: Sequence[str]) -> None:
    with joined() as ranks:  # the processes that torchrun started, if it did
        _train(argv, ranks)


def _train(argv: Sequence[str], ranks: Ranks) -> None:
    wants_help = any(word in ("-h", "--help") for word in argv)
    if not argv or argv[0].startswith("-"):
        if not wants_help:
            raise UserError(f"armd train: name a preset first: {', '.join(PRESETS)}")
        print("usage: armd train PRESET|FILE.json --data DIR --out RUN [--resume] [--any.field VALUE]\n")
        print(describe_presets())
        return
    preset, prog = preset_or_file(argv[0]), f"armd train {argv[0]}"
    if wants_help:
        parse(Train, argv[1:], prog, Train(tyro.MISSING, tyro.MISSING, config=preset(257, 256)))
    paths = parse(TrainPaths, argv[1:], prog, strict=False)
    manifest = Manifest.load(paths.data)
    base, full = fitted(preset(manifest.vocab_size, manifest.eos_id), argv[1:], prog)
    config = parse(Train, argv[1:], prog, Train(paths.data, paths.out, config=base)).config
    if config.max_steps < full and ranks.first and not config.orders.schedule:
        o = config.orders
        phases = f"ar_steps={o.ar_steps}, perm_steps={o.perm_steps}, sbp_steps={o.sbp_steps}"
        say(f"{config.max_steps} steps instead of {full}: the phases of the orders shrink with them: {phases}")
    result = train(config, paths.data, paths.out, resume=paths.resume)
    if not ranks.first:
        return
    if paths.json:
        fields = {"run": str(result.run), "steps": config.max_steps, "parameters": result.model.num_parameters()}
        print(json_text({**fields, "valid": result.valid, "seconds": result.seconds}))
        return
    valid = ", ".join(f"{order} {nats:.4f}" for order, nats in result.valid.items())
    say(f"done in {result.seconds:.0f} s. Held-out nats per token: {valid}")
    orders = ",".join(config.eval_orders)
    say(
        f'Next: armd generate --model {paths.out} --prompt "..." --streams 4'
        if config.architecture == "armd"
        else f"Next: armd evaluate --model {paths.out} --data {paths.data} --orders {orders}"
    )


def fitted(base: TrainConfig, argv: Sequence[str], prog: str) -> tuple[TrainConfig, int]:
    """A run with what its architecture and its number of steps change in other fields; and its steps before that."""
    full, steps = base.max_steps, parse(Steps, argv, prog, strict=False).max_steps
    architecture = parse(Architecture, argv, prog, strict=False).architecture
    if architecture is not None:
        base = for_architecture(base, architecture)
    if steps is not None and steps < full:  # a longer run keeps the phases, as the paper's longer runs do
        base = with_steps(base, steps)
    return base, full


def preset_or_file(name: str) -> Preset:
    """The preset of a name; of a .json, the run that it holds, whatever the data."""
    return (lambda vocab_size, eos_id: load_config(Path(name))) if name.endswith(".json") else get_preset(name)


def describe_presets() -> str:
    lines = [f"  {name:<14}{(preset.__doc__ or '').splitlines()[0]}" for name, preset in PRESETS.items()]
    notes = (
        "Every field of a preset is an option: armd train tiny --help lists them.",
        "A run.json is that run again.",
    )
    return "\n".join(["presets:", *lines, "", *notes])
