"""What a run will need before it is started: parameters, operations, memory, days and money, from the config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from armd.errors import UserError
from armd.fields import is_number
from armd.flops import LAYERS, parameters_by_part, total, training_flops
from armd.gpus import GPUS, Accelerator
from armd.memory import SHARDINGS, training_memory
from armd.train import TrainConfig, load_config
from armd.train.log import read_metrics

BUDGETS = {"paper-small": (180_000, 400_000), "paper-medium": (120_000, 300_000), "paper-lm1b": (300_000, 1_000_000)}
"""Steps of the paper's runs; all other presets have one budget, their own."""

VOCABULARIES = {"paper-small": 50_257, "paper-medium": 50_257, "paper-lm1b": 30_522}
"""Tokens of the paper's tokenizers, GPT-2's and BERT's; other presets are planned for bytes and end-of-text."""

BYTES = 257
USABLE = 0.9
"""Share of the memory a plan may fill: CUDA's context, kernels' workspaces and the allocator's gaps need the rest."""


@dataclass(frozen=True)
class Machine:
    """What the run is planned for.

    Attributes:
        accelerator: each device.
        devices: how many.
        utilisation: share of the peak that the devices reach, in what they compute, whatever it is for.
        price: of a device and hour.
    """

    accelerator: Accelerator
    devices: int = 1
    utilisation: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UserError(f"gpus={self.devices} must be at least 1")
        if not 0 < self.utilisation <= 1:
            raise UserError(f"utilisation={self.utilisation} must be above 0 and at most 1")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UserError(f"price_per_hour={self.price} must be at least 0 and finite")


def plan(config: TrainConfig, machine: Machine, budgets: Sequence[int]) -> dict[str, Any]:
    """The plan of a run as plain JSON values.

    Args:
        config: the run; its batch is divided among the devices.
        machine: where.
        budgets: numbers of steps to count days for.

    Returns:
        parameters, flops_per_token (parts, total, against_ar), precision, memory (bytes on one device; a row for each
        way to share it and to keep activations), the row that the run would take, tokens_per_second by what becomes of
        activations, and budgets at the speed of that row.
    """
    if config.precision == "auto":
        config = replace(config, precision=machine.accelerator.faster)
    if config.batch_size % machine.devices:
        raise UserError(f"gpus={machine.devices} must divide batch_size={config.batch_size}")
    own = config.batch_size // machine.devices
    texts = min(config.micro_batch_size or own, own)
    if own % texts:
        raise UserError(f"micro_batch_size={texts} must divide the {own} texts of a device")
    parts = training_flops(config.model, config.text_length, config.architecture)
    flops = total(parts)
    speeds = {name: _speed(config, machine, flops, name == "recomputed") for name in ("kept", "recomputed")}
    ratio = flops / total(training_flops(config.model, config.text_length, "ar"))
    memory = _memory(config, machine, texts)
    taken = _taken(config, memory)
    return {
        "parameters": parameters_by_part(config.model, config.architecture),
        "flops_per_token": {"parts": {n: asdict(p) for n, p in parts.items()}, "total": flops, "against_ar": ratio},
        "texts_per_pass": texts,
        "precision": config.precision,
        "memory": memory,
        "taken": taken,
        "fits_below_bytes": USABLE * machine.accelerator.memory,
        "tokens_per_second": speeds,
        "budgets": [_budget(config, machine, steps, speeds[taken["activations_are"]]) for steps in budgets],
    }


def _memory(config: TrainConfig, machine: Machine, texts: int) -> list[dict[str, Any]]:
    rows, gpu = [], machine.accelerator in GPUS.values()
    passes = config.batch_size // (machine.devices * texts)
    for sharding in SHARDINGS if machine.devices > 1 else SHARDINGS[:1]:
        for recompute in (False, True):
            memory = training_memory(
                config, texts, sharding, machine.devices, passes=passes, recompute=recompute, gpu=gpu
            )
            fits = memory.total <= USABLE * machine.accelerator.memory
            how = {"sharding": sharding, "activations_are": "recomputed" if recompute else "kept"}
            rows.append({**how, **asdict(memory), "total": memory.total, "fits": fits})
    return rows


def _taken(config: TrainConfig, memory: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row that fits of those that the config allows; the first of these if none does."""
    several = [row for row in memory if row["sharding"] != "none"] or memory
    allowed = [row for row in several if config.parallel in ("auto", row["sharding"])] or several
    allowed = [row for row in allowed if row["activations_are"] == "recomputed" or not config.checkpoint_activations]
    return next((row for row in allowed if row["fits"]), allowed[0])


def _speed(config: TrainConfig, machine: Machine, flops: float, recompute: bool) -> float:
    """Tokens per second of all devices; what is computed a second time takes its share."""
    parts = training_flops(config.model, config.text_length, config.architecture)
    again = sum(parts[name].forward for name in LAYERS) * recompute
    return machine.devices * machine.utilisation * machine.accelerator.peak(config.precision) / (flops + again)


def _budget(config: TrainConfig, machine: Machine, steps: int, speed: float) -> dict[str, Any]:
    tokens = steps * config.batch_size * config.text_length
    seconds = tokens / speed
    hours = seconds / 3600 * machine.devices
    cost = None if machine.price is None else hours * machine.price
    return {"steps": steps, "tokens": tokens, "seconds": seconds, "device_hours": hours, "cost": cost}


def measured(run: Path, config: TrainConfig, peak: float) -> dict[str, float]:
    """The speed of a run of this network, the median of its records, and the share of the peak that it is.

    Raises:
        UserError: the run is of another network, or has no record of its speed.
    """
    own = load_config(run)
    theirs, ours = (total(training_flops(c.model, c.text_length, c.architecture)) for c in (own, config))
    if theirs != ours:
        sizes = f"{theirs / 1e6:.3f} MFLOP a token, the plan {ours / 1e6:.3f}"
        raise UserError(
            f"{run} is of another network: {sizes}; give its fields and --vocab-size {own.model.vocab_size}"
        )
    rates = [r["tokens_per_second"] for r in read_metrics(run) if is_number(r.get("tokens_per_second"))]
    if not rates:
        raise UserError(f"{run / 'metrics.jsonl'} holds no record of a speed yet")
    speed = median(rates)
    return {"tokens_per_second": speed, "utilisation": speed * ours / peak}
