"""One experiment being carried out: trained models and measured figures, each made once and kept under its hash.

    OUT/runs/HASH/       a model: the run folder of `armd train`, without its checkpoints once it is finished
    OUT/figures/HASH     what one function found in one model

A model's hash is that of its config, its data and its parent; a figure's that of its model, its function's source and
options. So any command can be stopped and started again, experiments share models, and a changed recipe or measure is
made anew while all others stay.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from armd import checkpoint
from armd.data import Manifest, TokenDataset, Tokenizer
from armd.errors import UserError
from armd.files import read_json, write_json
from armd.model import Transformer
from armd.reproduce.experiment import Experiment, Scale, Setting
from armd.train import TrainConfig
from armd.train.config import EXECUTION, to_json
from armd.train.log import read_metrics

DONE = "done.json"


@dataclass(frozen=True)
class Run:
    """One model with one seed, trained or to be trained."""

    name: str
    seed: int
    config: TrainConfig
    key: str
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / DONE).exists()

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.config.max_steps * self.config.batch_size * self.config.text_length

    @property
    def valid(self) -> dict[str, float]:
        """The last validation: held-out nats per token by order."""
        return self.curve()[-1][1]

    def curve(self) -> list[tuple[int, dict[str, float]]]:
        """Tokens trained on, and the validation after them."""
        each = self.config.batch_size * self.config.text_length
        return [(r["step"] * each, r["valid"]) for r in read_metrics(self.folder) if "valid" in r]

    def load(self) -> tuple[Transformer, Tokenizer]:
        model, tokenizer = checkpoint.load(self.folder)
        if tokenizer is None:
            raise UserError(f"{self.folder} has no tokenizer.json")
        return model, tokenizer


@dataclass(frozen=True)
class Study:
    """An experiment, where it is kept, and at which scale.

    Attributes:
        out: folder of runs and figures, shared by all experiments.
        data: prepared data.
        seeds: numbers of the repetitions.
        sets: folder with the files of the zero-shot sets; None if there is none.
        puzzles: file of test puzzles; None if there is none.
    """

    experiment: Experiment
    out: Path
    data: Path
    scale: Scale = "small"
    seeds: Sequence[int] = (0, 1)
    sets: Path | None = None
    puzzles: Path | None = None
    say: Callable[[str], object] = field(default=lambda text: None, repr=False)

    def all_runs(self) -> list[Run]:
        """Every run of the experiment, seed by seed, parents before those that start from them."""
        manifest = Manifest.load(self.data)
        models = self.experiment.models(Setting(self.scale, manifest.vocab_size, manifest.eos_id))
        runs: list[Run] = []
        for place, seed in enumerate(self.seeds):
            made: dict[str, Run] = {}
            waiting = {name: model for name, model in models.items() if not 0 < model.seeds <= place}
            while waiting:
                ready = [name for name, model in waiting.items() if not model.parent or model.parent in made]
                for name in ready:
                    model = waiting.pop(name)
                    parent = made.get(model.parent)
                    made[name] = self._run(name, replace(model.config, seed=seed), manifest.digest, parent)
            runs += made.values()
        return runs

    def runs(self, name: str) -> list[Run]:
        """The finished runs of a model, by seed."""
        return [run for run in self.all_runs() if run.name == name and run.finished]

    def _run(self, name: str, config: TrainConfig, digest: str, parent: Run | None) -> Run:
        values = {key: value for key, value in _changed(config).items() if key not in (*EXECUTION, "init")}
        key = _hash([values, digest, parent.key if parent else None])
        if parent:
            config = replace(config, init=str(parent.folder))
        return Run(name, config.seed, config, key, self.out / "runs" / key)

    def dataset(self, run: Run) -> TokenDataset:
        """The held-out texts of a run's length."""
        return TokenDataset(self.data, "valid", run.config.text_length)

    def measure(self, run: Run, function: Callable[..., Any], **options: Any) -> Any:
        """`function(study, run, **options)`, JSON values, looked up where it was made before."""
        name = f"{function.__module__}.{function.__qualname__}"
        key = _hash([run.key, name, inspect.getsource(function), {k: str(v) for k, v in options.items()}])
        path = self.out / "figures" / f"{key}.json"
        if not path.exists():
            told = ", ".join(f"{k} {v}" for k, v in options.items() if isinstance(v, str | int | float))
            self.say(f"measuring {run.name}, seed {run.seed}: {function.__name__.strip('_')} {told}".rstrip())
            found = function(self, run, **options)
            write_json(path, {"run": run.key, "function": name, "options": options, "found": found})
        return read_json(path)["found"]

    def values(self, name: str, function: Callable[..., Any], **options: Any) -> list[Any]:
        """`measure` of every finished run of a model."""
        return [self.measure(run, function, **options) for run in self.runs(name)]


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
