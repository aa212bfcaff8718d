"""One experiment being carried out: trained models and measured figures, each made once and kept under its hash.

    OUT/runs/HASH/       a model: the run folder of `armd train`, without its checkpoints once it is finished
    OUT/figures/HASH     what one function found in one model

A model's hash is that of its config, its data and its parent; a figure's that of the model's weights, of the function
as it is in memory, with the helpers and constants of its module, and of its options. So any command can be stopped and
started again, experiments share models, and a changed recipe or measure is made anew while all others stay. What a
measure calls in other modules is not in the hash: remove OUT/figures after a change there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from armd import checkpoint
from armd.bench.timing import commit, machine
from armd.data import Manifest, Spread, TokenDataset, Tokenizer
from armd.errors import UserError
from armd.files import alone_at, read_json, write_json
from armd.model import Transformer
from armd.reproduce.experiment import Experiment, Scale, Setting
from armd.train import TrainConfig, load_config
from armd.train.config import EXECUTION, to_json
from armd.train.folder import DONE
from armd.train.log import read_metrics
from armd.train.loop import pick_device


@dataclass(frozen=True)
class Run:
    """One model with one seed, trained or to be trained; `before` are the tokens its parent was trained on."""

    name: str
    seed: int
    config: TrainConfig
    key: str
    folder: Path
    before: int = 0

    @property
    def finished(self) -> bool:
        """Whether it is there; a run of the same key with another config, as by a changed default, is refused."""
        if not ((self.folder / DONE).exists() and (self.folder / "model.safetensors").exists()):
            return False
        own, found = ({**to_json(c), "init": ""} for c in (self.config, load_config(self.folder)))
        changed = sorted(name for name in own.keys() - set(EXECUTION) if own[name] != found[name])
        if changed:
            raise UserError(f"{self.folder} was trained with other values of {', '.join(changed)}: remove it")
        return True

    @property
    def tokens(self) -> int:
        """Tokens it has been trained on, its parent's included."""
        return self.before + self.config.max_steps * self.config.batch_size * self.config.text_length

    @property
    def valid(self) -> dict[str, float]:
        """The last validation: held-out nats per token by order."""
        return self.curve()[-1][1]

    def curve(self) -> list[tuple[int, dict[str, float]]]:
        """Tokens trained on, and the validation after them."""
        each = self.config.batch_size * self.config.text_length
        return [(r["step"] * each, r["valid"]) for r in read_metrics(self.folder) if "valid" in r]

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the trained weights."""
        return hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()

    @property
    def seconds(self) -> float:
        """Time the run took, without its parent's."""
        return max((record.get("seconds", 0.0) for record in read_metrics(self.folder)), default=0.0)

    def load(self) -> tuple[Transformer, Tokenizer]:
        model, tokenizer = checkpoint.load(self.folder, pick_device("auto"))
        if tokenizer is None:
            raise UserError(f"{self.folder} has no tokenizer.json")
        return model, tokenizer


def _silence(text: str) -> None:
    """A function with a name: a study travels to other processes."""


@dataclass(frozen=True)
class Study:
    """An experiment, where it is kept, and at which scale.

    Attributes:
        out: folder of runs and figures, shared by all experiments.
        data: prepared data.
        seeds: numbers of the repetitions.
        sets: folder with the files of the zero-shot sets; None if there is none.
        puzzles: file of test puzzles; None if there is none.
        evaluator: see `Setting`.
        say: gets a line before each measurement.
        only: the one seed whose runs are looked at, but of models that have fewer seeds; None: all.
        used: every figure that was looked up, with its commit and machine.
    """

    experiment: Experiment
    out: Path
    data: Path
    scale: Scale = "small"
    seeds: Sequence[int] = (0, 1)
    sets: Path | None = None
    puzzles: Path | None = None
    evaluator: str = ""
    say: Callable[[str], object] = field(default=_silence, repr=False)
    only: int | None = None
    used: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def setting(self) -> Setting:
        manifest = Manifest.load(self.data)
        return Setting(self.scale, manifest.vocab_size, manifest.eos_id, self.evaluator)

    @property
    def section(self) -> Path:
        """The file of what the experiment found."""
        return self.out / "sections" / self.scale / f"{self.experiment.name}.json"

    @cached_property
    def names(self) -> list[str]:
        """The models of the experiment, in its order."""
        return list(self.experiment.models(self.setting))

    @cached_property
    def all_runs(self) -> list[Run]:
        """Every run of the experiment, see `planned`."""
        return planned(self.experiment, self.setting, Manifest.load(self.data).digest, self.seeds, self.out)

    def runs(self, name: str) -> list[Run]:
        """The finished runs of a model, by seed."""
        found = [run for run in self.all_runs if run.name == name and run.finished]
        return [run for run in found if run.seed == self.only] or found

    def dataset(self, run: Run, texts: int) -> Spread:
        """Held-out texts of a run's length, `texts` of them, from all of the split."""
        return TokenDataset(self.data, "valid", run.config.text_length).spread(texts)

    def measure(self, run: Run, function: Callable[..., Any], **options: Any) -> Any:
        """`function(study, run, **options)`, JSON values, looked up where it was made before."""
        name = f"{function.__module__}.{function.__qualname__}"
        told = {key: str(value) for key, value in options.items()}
        key = _hash([run.weights, run.key, name, fingerprint(function), told])
        path = self.out / "figures" / f"{key}.json"
        if not path.exists():
            with alone_at(path):  # two seeds may ask for the figure of one model at the same time
                if not path.exists():
                    about = {"run": run.key, "function": name, "options": told}
                    write_json(path, {**about, **self._measured(run, function, options)})
        figure = read_json(path)
        self.used.append({"model": run.name, "seed": run.seed, **figure})
        return figure["found"]

    def _measured(self, run: Run, function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
        shown = ", ".join(f"{key} {value}" for key, value in options.items() if isinstance(value, str | int | float))
        self.say(f"measuring {run.name}, seed {run.seed}: {function.__name__.strip('_')} {shown}".rstrip())
        found = function(self, run, **options)
        return {"commit": commit(), "machine": machine(pick_device("auto")), "found": found}

    def values(self, name: str, function: Callable[..., Any], **options: Any) -> list[Any]:
        """`measure` of every finished run of a model."""
        return [self.measure(run, function, **options) for run in self.runs(name)]


def planned(experiment: Experiment, setting: Setting, digest: str, seeds: Sequence[int], out: Path) -> list[Run]:
    """Every run of an experiment, seed by seed, parents before those that start from them; `digest`: of the data."""
    runs, models = list[Run](), experiment.models(setting)
    for place, seed in enumerate(seeds):
        made: dict[str, Run] = {}
        waiting = {name: model for name, model in models.items() if not 0 < model.seeds <= place}
        while waiting:
            ready = [name for name, model in waiting.items() if not model.parent or model.parent in made]
            if not ready:
                raise UserError(f"{experiment.name}: {', '.join(waiting)} have no parent with seed {seed}")
            for name in ready:
                model = waiting.pop(name)
                if model.config.precision == "auto":
                    raise UserError(f"{experiment.name}: {name} leaves precision to the machine; name bf16 or fp32")
                if model.config.init:
                    raise UserError(f"{experiment.name}: {name} sets init; name a parent instead")
                made[name] = _run(name, replace(model.config, seed=seed), digest, made.get(model.parent), out)
        runs += made.values()
    return runs


def _run(name: str, config: TrainConfig, digest: str, parent: Run | None, out: Path) -> Run:
    values = {key: value for key, value in _changed(config).items() if key not in (*EXECUTION, "init")}
    key = _hash([values, digest, parent.key if parent else None])
    if parent:
        config = replace(config, init=str(parent.folder.resolve()))
    return Run(name, config.seed, config, key, out / "runs" / key, parent.tokens if parent else 0)


def fingerprint(function: Callable[..., Any]) -> str:
    """A hash of what a function does: its bytecode, and that of helpers and the constants of its module it names."""
    assert isinstance(function, FunctionType)
    seen: dict[str, Any] = {}

    def look(code: CodeType, scope: dict[str, Any]) -> list[Any]:
        for name in code.co_names:
            value = inspect.unwrap(scope.get(name))  # type: ignore[arg-type]  # as of functools.cache
            if name in seen:
                continue
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                seen[name] = None  # before looking: it may call itself
                seen[name] = look(value.__code__, scope)
            elif isinstance(value, int | float | str | tuple) or (name.isupper() and _is_plain(value)):
                seen[name] = repr(value)  # a list or dict of another name may be what changes from call to call
        constants = [look(c, scope) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
        return [code.co_code.hex(), code.co_names, constants]

    defaults = repr((function.__defaults__, function.__kwdefaults__))
    return _hash([look(function.__code__, function.__globals__), defaults, sorted(seen.items())])


def _is_plain(value: Any) -> bool:
    """Whether a value is numbers and words all through, and so has one spelling."""
    if isinstance(value, dict):
        return _is_plain([*value, *value.values()])
    return isinstance(value, int | float | str) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _changed(config: Any) -> dict[str, Any]:
    """The fields of a config that are not at their defaults: a field that is added later changes no hash."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if is_dataclass(value):
            found[item.name] = _changed(value)
        elif value != default:
            found[item.name] = to_json(value)
    return found


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
