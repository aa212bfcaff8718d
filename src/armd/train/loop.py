"""The training loop. One loop for every model: batch, order, loss, backward, step, log."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import armd
from armd import checkpoint
from armd.data import Manifest, TokenDataset, Tokenizer
from armd.errors import TrainingStopped, UserError
from armd.files import read_json, write_json
from armd.gpus import prefers_bfloat16
from armd.heap import keep_freed_memory
from armd.model import Transformer
from armd.train import average, optim, parallel, state
from armd.train.batches import Batch, Batches
from armd.train.board import load_writer
from armd.train.compiler import check_compiler
from armd.train.config import TrainConfig, load_config, to_json
from armd.train.folder import BEST, DONE, alone, check_run, last_validation, naming_last_good
from armd.train.gauge import Gauge
from armd.train.guard import Guard
from armd.train.log import Log, Silence
from armd.train.parallel import Ranks, Replica
from armd.train.signals import Flag, interruptible
from armd.train.step import Step, train_step, validate


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


def settle_precision(config: TrainConfig, folder: Path, resume: bool) -> str:
    """The precision of a run, `auto` settled: what it was started with, or what its device is faster in."""
    if config.precision != "auto":
        return config.precision
    if resume and (folder / "run.json").exists():
        return load_config(folder).precision
    return "bf16" if prefers_bfloat16(pick_device(config.device)) else "fp32"


def train(
    config: TrainConfig, data: str | Path, run: str | Path, *, resume: bool = False, quiet: bool = False
) -> TrainResult:
    """Train a model on prepared data and leave a run folder (see `state`). Under `torchrun` all processes call it.

    Args:
        config: the run.
        data: a folder made by `armd.data.prepare`.
        run: the run folder; it must be new unless `resume`.
        resume: go on from the newest checkpoint; on one process and a CPU the result equals that of a run never
            stopped, bit for bit.

    Raises:
        UserError: config, data and run folder do not fit each other or are damaged, or the disk is full.
        TrainingStopped: a loss, a gradient or a weight was not finite, the run was interrupted, or another process of
            it died. What is not finite is never saved.
    """
    run = Path(run)
    with parallel.joined(config.parallel) as ranks:
        trainer = Trainer(config, Path(data), run, resume, ranks)
        with alone(run, ranks), naming_last_good(run), parallel.agreeing(ranks):
            trainer.stand(resume)
            return trainer.run(quiet)


class Trainer:
    """A run: what it reads, its model, and where it stands."""

    def __init__(self, config: TrainConfig, data: Path, folder: Path, resume: bool, ranks: Ranks) -> None:
        precision = ranks.on_first(lambda: settle_precision(config, folder, resume))
        if config.precision == "auto":
            config = replace(config, precision=precision)
        self.config, self.folder, self.ranks = config, folder, ranks
        ranks.attempt(lambda: self._read(data, resume))
        first = ranks.on_first(lambda: self.identity)
        ranks.attempt(lambda: self._check_same(first))
        torch.manual_seed(config.seed)
        self.model = checkpoint.ARCHITECTURES[config.architecture](config.model).to(self.device)
        if config.init and not (resume and state.checkpoints(folder)):
            ranks.attempt(self._start_from)
        self.model.checkpoint_activations = config.checkpoint_activations
        if config.compile:
            self.model.compile_layers()
        self.replica = Replica(self.model, config, ranks)
        self.batches = Batches(self.train_set, config, self.replica)
        self.optimiser = optim.build(self.model, config.optim)
        self.average = [p.detach().clone() for p in self.model.parameters()] if config.optim.ema else []
        self.guard = Guard(config)
        self.done, self.valid, self.noticed = 0, dict[str, float](), list[str]()

    def _read(self, data: Path, resume: bool) -> None:
        """Everything that may be wrong with files, before any work is done."""
        config = self.config
        self.train_set, self.valid_set = (TokenDataset(data, name, config.text_length) for name in ("train", "valid"))
        if config.model.vocab_size < self.train_set.vocab_size:
            sizes = f"{config.model.vocab_size} is below the {self.train_set.vocab_size} tokens of {data}"
            raise UserError(f"model.vocab_size={sizes}: the vocabulary does not fit")
        self.tokenizer = Tokenizer.load(data / "tokenizer.json")
        self.device = self.ranks.device(pick_device(config.device))
        if self.device.type == "cpu":
            keep_freed_memory()
        if config.compile:
            check_compiler(self.device)
        if config.tensorboard and self.ranks.first:
            load_writer()  # absent, it is missed now and not after the run is made
        self.identity = {"config": to_json(config), "data": Manifest.load(data).digest}
        self.identity["plugins"] = config.check_plugins()
        self.identity["versions"] = {"armd": armd.__version__, "torch": torch.__version__}
        check_run(self.folder, self.identity, resume)
        if self.ranks.local == 0:  # once on every machine
            for part in (self.train_set, self.valid_set):
                part.verify()

    def _claim(self) -> None:
        """Make the folder ours, unless another run took it while ours was made ready."""
        check_run(self.folder, self.identity, resume=False)
        write_json(self.folder / "run.json", self.identity)

    def _check_same(self, first: dict[str, Any]) -> None:
        if self.identity != first:
            words = {"config": "options", "versions": "versions of armd or torch"}
            what = next(words.get(key, key) for key, value in first.items() if self.identity[key] != value)
            raise UserError(f"process {self.ranks.rank} has other {what} than process 0; start all with the same")

    def _start_from(self) -> None:
        """Take over the weights of another run of the same network; text length and dropout may differ."""
        other, _ = checkpoint.load(self.config.init)
        theirs, own = ({**asdict(m.config), "architecture": checkpoint.name_of(m)} for m in (other, self.model))
        changed = sorted(k for k in own if theirs[k] != own[k] and k not in ("max_position_embeddings", "dropout"))
        if changed:
            raise UserError(f"init={self.config.init} is another network: it differs in {', '.join(changed)}")
        self.model.load_state_dict(other.state_dict())

    def stand(self, resume: bool) -> None:
        """Take the folder, or go on from what is in it; nobody else may train the run meanwhile."""
        if resume:
            self._restore()
        else:
            self.ranks.on_first(self._claim)
        self.saved = self.done

    def _restore(self) -> None:
        parts = self.model, self.average, self.optimiser
        progress, self.noticed = state.restore_newest(self.folder, *parts, self.ranks)
        before = read_json(self.folder / "run.json").get("versions")
        if isinstance(before, dict) and before != self.identity["versions"]:
            told = ", ".join(f"{name} {version}" for name, version in before.items())
            self.noticed.append(f"begun with {told}: other versions may compute other bits")
        self.done, self.valid = progress.step, progress.valid
        if progress.guard:
            self.guard.restore(progress.guard)

    # ---- the loop --------------------------------------------------------------------------------------------------

    def run(self, quiet: bool) -> TrainResult:
        config, start, began = self.config, self.done, time.monotonic()
        first, told = self.ranks.first, (self.folder, start, config.max_steps, quiet, config.tensorboard)
        with Log(*told) if first else Silence() as log, interruptible() as interrupted:
            self._greet(log)
            gauge = Gauge(config, self.device, devices=self.ranks.size, before=log.seconds)
            if start and self._due(config.eval_every) and not self.valid:
                self._validate(log, gauge)  # which a lost shard had prevented
            while self.done < config.max_steps:
                batch = self._next_batch(interrupted)
                step = train_step(self.replica, self.optimiser, batch, self.done, config, self.guard)
                self.done += 1
                if step.fault:
                    self._skip(step, log)
                else:
                    self._use(step, log, gauge)
                best = self._due(config.eval_every) and self._validate(log, gauge)
                if best:
                    self._publish(self.folder / BEST)
                if best or self._due(config.save_every):
                    self._save()
                gauge.start()
        return self._finish(start, time.monotonic() - began)

    def _greet(self, log: Log | Silence) -> None:
        for what in self.noticed:
            log.say(f"{what}; going on from step {self.done}")
        size, where = self.model.num_parameters(), f"{self.device}{self.ranks}, {self.config.precision}"
        log.say(f"training {size:,} parameters on {self.train_set.tokens:,} tokens, {where}, into {self.folder}")

    def _due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.config.max_steps

    def _next_batch(self, interrupted: Flag) -> Batch:
        """This process's rows of the next step; or, if anyone wants to stop, a last checkpoint and the end."""
        fault = None
        try:
            batch = self.batches[self.done]
        except UserError as error:
            fault = error
        if not self.ranks.check(stop=bool(interrupted) or fault is not None):
            return batch
        self._keep()
        self.ranks.check(fault)
        where = f"after step {self.done}, which is saved" if self.done else "before the first step was done"
        raise TrainingStopped(f"interrupted {where}; go on with --resume")

    def _use(self, step: Step, log: Log | Silence, gauge: Gauge) -> None:
        """What follows a step that reached the weights."""
        optimising = self.config.optim
        if self.average:
            average.update(self.average, self.model.parameters(), optimising.ema, self.done - 1)
        gauge.stop(step.family, step.loss)
        if self._due(self.config.log_every):
            lr, measured = optim.learning_rate(self.done - 1, self.config.max_steps, optimising), gauge.read()
            speed = f"{measured['tokens_per_second']:,} tokens/s"
            log.step(self.done, f"loss {step.loss:.3f} nats ({step.family})  {speed}")
            log.record(step=self.done, family=step.family, loss=step.loss, grad_norm=step.grad_norm, lr=lr, **measured)

    def _skip(self, step: Step, log: Log | Silence) -> None:
        """What follows a step that did not."""
        fault = step.fault or ""
        try:
            self.guard.skip(fault, self.done)
        except TrainingStopped:
            self.done -= 1  # this step; those before it are good
            with suppress(TrainingStopped, UserError):  # the first fault is the one to tell
                self._keep()
            raise
        log.record(step=self.done, family=step.family, skipped=fault)
        log.say(f"step {self.done} skipped: {fault.rstrip(',')} ({self.guard.skipped} skipped so far)")

    def _validate(self, log: Log | Silence, gauge: Gauge) -> bool:
        """Validate and tell; returns whether this is to be saved as the best checkpoint so far."""
        self.valid = {}
        try:
            with average.standing_in(self.model, self.average):
                self.valid = validate(self.replica, self.valid_set, self.config)
        except UserError:  # a shard is gone; the steps are not
            self._keep()
            raise
        _check_finite(self.done, {f"held-out loss of {name}": value for name, value in self.valid.items()})
        log.record(step=self.done, valid=self.valid, seconds=gauge.seconds)
        told = ", ".join(f"{name} {value:.4f}" for name, value in self.valid.items())
        log.say(f"step {self.done}: held-out nats/token {told}")
        order = self.config.main_order
        if not self.config.keep_best or order not in self.valid:
            return False
        return self.ranks.on_first(lambda: self.valid[order] < state.best(self.folder, order)[1])

    def _keep(self) -> None:
        """Save the steps that are not saved yet."""
        if self.saved < self.done:
            self._save()

    def _save(self) -> None:
        self.ranks.check()  # the first may have failed alone, at the log
        weights = parallel.own([*self.model.parameters(), *self.average])
        _check_finite(self.done, {"largest weight": self.ranks.sum(_largest(weights))[0]})
        valid = self.valid if self._due(self.config.eval_every) else {}
        state.save(
            self.folder,
            state.Progress(self.done, valid, self.guard.state()),
            self.model,
            self.average,
            self.optimiser,
            keep_last=self.config.keep_last,
            keep_best=self.config.main_order if self.config.keep_best else None,
            ranks=self.ranks,
        )
        self.saved = self.done
        self._publish(self.folder)

    def _publish(self, folder: Path) -> None:
        """Leave the model as it is now in a folder that can be loaded."""
        with average.standing_in(self.model, self.average):
            weights = state.gather(self.model.state_dict(), self.ranks)
            self.ranks.on_first(lambda: checkpoint.save(self.model, folder, self.tokenizer, weights))

    def _finish(self, start: int, seconds: float) -> TrainResult:
        self.ranks.check()
        if start == self.config.max_steps:  # it may have been killed between its last checkpoint and publishing that
            self._publish(self.folder)
        model = self.model
        if self.replica.sharded:
            model, _ = self.ranks.attempt(lambda: checkpoint.load(self.folder, self.device))
        elif self.average:
            average.copy(self.average, model.parameters())
        valid = self.valid or last_validation(self.folder)
        self.ranks.on_first(lambda: write_json(self.folder / DONE, {"step": self.done, "valid": valid}))
        return TrainResult(self.folder, model.eval(), valid, seconds)


def _check_finite(step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingStopped(f"{name} is {value} at step {step}")


def _largest(tensors: list[Tensor]) -> float:
    return torch.stack([tensor.abs().max() for tensor in tensors if tensor.numel()]).max().item()
