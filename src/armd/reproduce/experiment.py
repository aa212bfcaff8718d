"""What an experiment is: the models it needs, and a function that turns trained models into a section of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from armd.train import TrainConfig

if TYPE_CHECKING:
    from armd.reproduce.study import Study

Scale = Literal["small", "medium", "paper"]


@dataclass(frozen=True)
class Setting:
    """What the models of an experiment depend on.

    Attributes:
        scale: small (2 CPU cores, hours), medium (one GPU, minutes) or paper (its shapes and budgets, for a cluster).
        vocab_size, eos_id: of the prepared data.
        evaluator: a model from elsewhere that reads what ours write; empty: one of ours is trained for it.
    """

    scale: Scale
    vocab_size: int
    eos_id: int | None
    evaluator: str = ""


@dataclass(frozen=True)
class Model:
    """A model to train.

    Attributes:
        config: the run; the seed is set by the study.
        parent: the model of the same experiment and seed whose weights it starts from; empty for random ones.
        seeds: at most so many seeds are trained; 0: all of the study.
    """

    config: TrainConfig
    parent: str = ""
    seeds: int = 0


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; `notes` are the terms of its numbers, protocol lines first."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A chart as a whole SVG file; `tells` is what it shows, in words."""

    title: str
    svg: str
    tells: str


@dataclass(frozen=True)
class Target:
    """What was to be shown, and what was found; `met` is None where it is not known, or not the same for all seeds."""

    claim: str
    found: str
    met: bool | None


@dataclass(frozen=True)
class Section:
    """The outcome of an experiment. `text` says what the numbers say, in a few sentences."""

    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    targets: Sequence[Target] = ()


@dataclass(frozen=True)
class Experiment:
    """A question and the way to its answer.

    Attributes:
        name: what `armd reproduce` calls it.
        title: a heading.
        question: what it asks, in a sentence or two.
        models: the models it needs, by name; experiments share those whose configs are equal.
        report: measures the trained models.
        prepare: makes the data folder; None: the folder of text that the user gives.
    """

    name: str
    title: str
    question: str
    models: Callable[[Setting], dict[str, Model]]
    report: Callable[[Study], Section]
    prepare: Callable[[Path], object] | None = None
