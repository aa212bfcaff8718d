"""The training loop. One loop for every model: batch, order, loss, backward, step, log."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from armd import checkpoint
from armd.data import Manifest, TokenDataset, Tokenizer
from armd.errors import UserError
from armd.files import read_json, write_json
from armd.model import Transformer
from armd.objective import loss, nll
from armd.orders import Family, generator
from armd.train import optim, state
from armd.train.board import load_writer
from armd.train.config import TrainConfig, from_json, to_json
from armd.train.gauge import Gauge
from armd.train.log import Log, read_metrics


class TrainingStopped(RuntimeError):
    """The run stopped early; the message says why, and from where it can go on."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its folder, model, and the last validation (order family -> nats per token)."""

    run: Path
    model: Transformer
    valid: dict[str, float]
    seconds: float


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name!r} is unknown; use cpu, cuda or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name!r}: this machine has {torch.cuda.device_count()} usable GPUs; use --device cpu")
    return device


def train(
    config: TrainConfig, data: str | Path, run: str | Path, *, resume: bool = False, quiet: bool = False
) -> TrainResult:
    """Train a model on prepared data and leave a run folder (see `state`).

    Args:
        config: the run.
        data: a folder made by `armd.data.prepare`.
        run: the run folder; it must be new unless `resume`.
        resume: go on from the newest checkpoint; the result equals that of a run never stopped, bit for bit.

    Raises:
        UserError: config, data and run folder do not fit each other or are damaged, or the disk is full.
        TrainingStopped: a loss, a gradient or a weight was not finite, or the run was interrupted. What is not finite
            is never saved.
    """
    run = Path(run)
    train_set, valid_set = (TokenDataset(data, split, config.text_length) for split in ("train", "valid"))
    if config.model.vocab_size < train_set.vocab_size:
        sizes = f"{config.model.vocab_size} is below the {train_set.vocab_size} tokens of {data}"
        raise UserError(f"model.vocab_size={sizes}: the vocabulary does not fit")
    tokenizer = Tokenizer.load(Path(data) / "tokenizer.json")
    device = pick_device(config.device)
    if config.tensorboard:
        load_writer()  # absent, it is missed now and not after the run is made
    identity = {"config": to_json(config), "data": Manifest.load(data).digest}
    _check_run(run, identity, resume)
    for part in (train_set, valid_set):
        part.verify()

    torch.manual_seed(config.seed)
    model = checkpoint.ARCHITECTURES[config.architecture](config.model).to(device)
    optimiser = optim.build(model, config.optim)
    average = [p.detach().clone() for p in model.parameters()] if config.optim.ema else []
    if not resume:
        write_json(run / "run.json", identity)
    start, damaged = state.restore_newest(run, model, average, optimiser) if resume else (0, [])

    valid: dict[str, float] = {}
    began = time.monotonic()
    with Log(run, start, config.max_steps, quiet, config.tensorboard) as log, _interruptible() as interrupted:
        for what in damaged:
            log.say(f"{what}; going on from step {start}")
        log.say(f"training {model.num_parameters():,} parameters on {train_set.tokens:,} tokens, {device}, into {run}")
        gauge = Gauge(config, device, before=log.seconds)
        for step in range(start, config.max_steps):
            tokens = train_set.batch(step, config.batch_size, config.seed).to(device)
            family, value, norm = train_step(model, optimiser, tokens, step, config)
            done = step + 1
            _check_finite(run, done, {"loss": value, "gradient norm": norm})
            if average:
                optim.update_average(average, model.parameters(), config.optim.ema, step)
            gauge.stop(family, value)

            if done % config.log_every == 0 or done == config.max_steps:
                lr, measured = optim.learning_rate(step, config.max_steps, config.optim), gauge.read()
                log.step(done, f"loss {value:.3f} nats ({family})  {measured['tokens_per_second']:,} tokens/s")
                log.record(step=done, family=family, loss=value, grad_norm=norm, lr=lr, **measured)
            if done % config.eval_every == 0 or done == config.max_steps:
                with _averaged(model, average):
                    valid = validate(model, valid_set, config)
                _check_finite(run, done, {f"held-out loss of {name}": value for name, value in valid.items()})
                log.record(step=done, valid=valid, seconds=gauge.seconds)
                log.say(f"step {done}: held-out nats/token " + ", ".join(f"{k} {v:.4f}" for k, v in valid.items()))
            if done % config.save_every == 0 or done == config.max_steps or interrupted:
                _check_finite(run, done, {"largest weight": _largest([*model.parameters(), *average])})
                state.save(run, done, model, average, optimiser, config.keep_last)
                with _averaged(model, average):
                    checkpoint.save(model, run, tokenizer)
            if interrupted:
                raise TrainingStopped(f"interrupted after step {done}, which is saved; go on with --resume")
            gauge.start()
    if average:
        _copy(average, model.parameters())
    if start == config.max_steps:  # it may have been killed between its last checkpoint and publishing that
        checkpoint.save(model, run, tokenizer)
    return TrainResult(run, model.eval(), valid or last_validation(run), time.monotonic() - began)


def train_step(
    model: Transformer, optimiser: torch.optim.Optimizer, tokens: Tensor, step: int, config: TrainConfig
) -> tuple[str, float, float]:
    """One optimiser step; returns the order family, the loss in nats per token, and the gradient norm."""
    torch.manual_seed(int(generator(config.seed, step, 2).initial_seed()))  # dropout
    model.train()
    family = config.orders.family(step, config.seed, config.max_steps)
    order = config.orders.order(step, config.seed, config.max_steps, len(tokens), tokens.shape[1])
    micro = config.micro_batch_size or config.batch_size
    for group in optimiser.param_groups:
        group["lr"] = optim.learning_rate(step, config.max_steps, config.optim)
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for rows in torch.arange(config.batch_size).split(micro):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            part = loss(model, tokens[rows], order.rows(rows), config.weighting) * (len(rows) / config.batch_size)
        part.backward()
        total += part.item()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip))
    if math.isfinite(total) and math.isfinite(norm):  # a broken step never reaches the weights
        optimiser.step()
    return str(family), total, norm


@torch.no_grad()
def validate(model: Transformer, dataset: TokenDataset, config: TrainConfig) -> dict[str, float]:
    """Held-out nats per token of each order family, always on the same texts and orders."""
    model.eval()
    texts = min(config.eval_texts, dataset.eval_windows())
    result = {}
    for name in config.eval_orders:
        total = 0.0
        for start in range(0, texts, config.batch_size):
            tokens = dataset.eval_batch(start, min(config.batch_size, texts - start)).to(model.device)
            draws = (generator(0, text) for text in range(start, start + len(tokens)))
            order = Family.parse(name).orders(tokens.shape[1], draws)
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                total += nll(model, tokens, order).double().mean(dim=1).sum().item()
        result[name] = total / texts
    return result


def _check_finite(run: Path, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            good = next(iter(state.checkpoints(run)[::-1]), "none yet")
            raise TrainingStopped(f"{name} is {value} at step {step}; last good checkpoint: {good}")


@torch.no_grad()
def _largest(tensors: list[Tensor]) -> float:
    return torch.stack([tensor.abs().max() for tensor in tensors]).max().item()


def last_validation(run: Path) -> dict[str, float]:
    """The newest validation in metrics.jsonl."""
    return next((record["valid"] for record in reversed(read_metrics(run)) if "valid" in record), {})


# ---- the run folder --------------------------------------------------------------------------------------------------


def _check_run(run: Path, identity: dict[str, Any], resume: bool) -> None:
    """A new run needs a new or empty folder, a resumed one the folder of the same run."""
    if resume:
        _check_same_run(run / "run.json", identity)
    elif run.exists() and (not run.is_dir() or any(not path.name.startswith(".") for path in run.iterdir())):
        raise UserError(f"run folder {run} is not empty; use --resume to go on with it, or another --out")


def _check_same_run(path: Path, identity: dict[str, Any]) -> None:
    before = read_json(path)
    if not isinstance(before.get("config"), dict):
        raise UserError(f"{path} is damaged: it holds no config")
    if before.get("data") != identity["data"]:
        raise UserError(f"{path.parent} was trained on other data; --resume needs the same prepared folder")
    old, new = (json.loads(json.dumps(values["config"])) for values in (before, identity))
    for values in (old, new):
        for name in ("device", "tensorboard"):  # where it runs and what it also writes may change
            values.pop(name, None)
    changed = sorted(name for name in new if old.get(name) != new[name])
    if changed:
        raise UserError(f"{path.parent} was started with other values of {', '.join(changed)}; --resume needs the same")


def load_config(run: Path) -> TrainConfig:
    """The config a run was started with."""
    path = run / "run.json"
    try:
        return from_json(read_json(path)["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: it holds no config ({error!r})") from None


# ---- weights in and out ----------------------------------------------------------------------------------------------


@torch.no_grad()
def _copy(source: list[Tensor], target: Iterator[Tensor]) -> None:
    for value, weight in zip(source, target, strict=True):
        weight.copy_(value)


@contextmanager
def _averaged(model: Transformer, average: list[Tensor]) -> Iterator[None]:
    """Within the context the model holds the moving average, if the run keeps one."""
    if not average:
        yield
        return
    weights = [p.detach().clone() for p in model.parameters()]
    _copy(average, model.parameters())
    try:
        yield
    finally:
        _copy(weights, model.parameters())


class _Flag:
    """Set by the first signal; a second one ends the process at once."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True

    def __bool__(self) -> bool:
        return self.raised


@contextmanager
def _interruptible() -> Iterator[_Flag]:
    """Turn SIGINT and SIGTERM into a flag the loop looks at between steps."""
    flag, before = _Flag(), {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, flag)
    except ValueError:  # not the main thread: leave the signals alone
        pass
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
