"""Our own question: how many two-stream layers, with our query and with that of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

from armd.families import OrderSchedule
from armd.flops import two_stream_ratio
from armd.reproduce.bases import ablation, progressive
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Target
from armd.reproduce.measures import (
    exact_tokens_per_pass,
    likelihood,
    losses,
    perplexity_ratios,
    ratio_target,
    svg,
    tokens_per_second,
)
from armd.reproduce.study import Study

FAMILIES: dict[str, Callable[[int], OrderSchedule]] = {
    "progressive": progressive,
    "strided": lambda steps: progressive(steps, sbp_steps=steps // 5, sbp_streams=(1, 2, 4, 8)),
    "uniform": lambda steps: OrderSchedule(floors={"uniform": 1.0}),
}
GRID = {256: tuple(FAMILIES), 1024: ("progressive",)}
"""Length of text -> the order families that are tried with it."""
LONG = {1024: ("strided", "uniform")}
"""The rest of the grid, whose models take longest: an experiment of its own, with both queries."""
NOTHING_LOST = 1.01
"""Times the perplexity: a hundredth of a nat, which is less than two seeds of a model may differ by."""

SPEED = (
    "arithmetic: operations of a training step, those of AR being 1; training, tokens/s: the median of its log, while "
    "as many models as --jobs says shared the machine"
)


class Cell(NamedTuple):
    """One model of the grid."""

    length: int
    family: str
    query: str
    two_stream: int

    @property
    def name(self) -> str:
        return f"N = {self.length:,}, {self.family}, {self.query}, L2s = {self.two_stream}"


class Grid(NamedTuple):
    """What is tried with every number of two-stream layers: length of text -> order families, and queries."""

    families: Mapping[int, tuple[str, ...]]
    queries: tuple[str, ...]

    def rows(self, setting: Setting) -> list[list[Cell]]:
        """Cells that differ in nothing but the number of two-stream layers, the fewest first."""
        layers = ablation(setting).model.num_hidden_layers
        return [
            [Cell(length, family, query, two_stream) for two_stream in sorted({1, 2, layers // 2, layers})]
            for length, families in self.families.items()
            for family in families
            for query in self.queries
        ]


def models(setting: Setting, grid: Grid) -> dict[str, Model]:
    return {cell.name: _model(setting, cell) for row in grid.rows(setting) for cell in row}


def _model(setting: Setting, cell: Cell) -> Model:
    config = ablation(setting, max_position_embeddings=cell.length)
    shape = replace(config.model, query=cell.query, num_two_stream_layers=cell.two_stream)
    return Model(replace(config, model=shape, orders=FAMILIES[cell.family](config.max_steps)))


def report(study: Study, grid: Grid) -> Section:
    tables, figures = [], []
    more = (
        ("tokens a pass, exact, S = 4", partial(exact_tokens_per_pass, study), ".2f"),
        ("arithmetic, times AR", lambda run: two_stream_ratio(run.config.model, run.config.text_length), ".2f"),
        ("training, tokens/s", tokens_per_second, ",.0f"),
    )
    rows = grid.rows(study.setting)
    for length in grid.families:
        trained = [cell for row in rows for cell in row if cell.length == length and study.runs(cell.name)]
        if not trained:
            continue
        table = likelihood(study, f"Texts of {length:,} tokens", [cell.name for cell in trained], *more)
        tables.append(replace(table, notes=(*table.notes, SPEED)))
        for order, what in (("left_to_right", "left to right"), ("uniform:4", "in uniform orders")):
            lines: dict[str, list[tuple[float, float]]] = {}
            for cell in trained:
                point = float(cell.two_stream), fmean(losses(study, cell.name, order).values())
                lines.setdefault(f"{cell.family}, {cell.query}", []).append(point)
            title = f"Loss {what} by two-stream layers, N = {length:,}"
            drawn = svg(title, lines, ("two-stream layers", "nats/token"), log_x=True)
            figures.append(Figure(title, drawn, "a line for each order family and query"))
    targets = [_target(study, row, order) for row in rows for order in ("left_to_right", "uniform:4")]
    return Section("", tables, figures, targets)


def _target(study: Study, cells: Sequence[Cell], order: str) -> Target:
    """That one two-stream layer loses nothing beside the number of more that is best on average, seed by seed."""
    one, *more = [losses(study, cell.name, order) for cell in cells]
    claim = (
        f"{cells[0].name}: perplexity {order.replace('_', ' ')} at most {NOTHING_LOST:g} times the best of "
        f"L2s = {', '.join(str(cell.two_stream) for cell in cells[1:])}"
    )
    if not all(more):
        return Target(claim, "a model is missing", None)
    best = min(more, key=lambda by_seed: fmean(by_seed.values()))
    return ratio_target(claim, perplexity_ratios(one, best), study.seeds, NOTHING_LOST)


def _asked_of(grid: Grid, name: str, title: str, question: str) -> Experiment:
    return Experiment(name, title, question, partial(models, grid=grid), partial(report, grid=grid))


TWO_STREAM = _asked_of(
    Grid(GRID, ("kernel",)),
    "two-stream",
    "How many two-stream layers",
    "The paper runs half of the layers on both streams, which costs up to a half more than one stream. What do 1, 2, "
    "L/2 and L two-stream layers buy, by training orders and length of text?",
)
TWO_STREAM_AGGREGATE = _asked_of(
    Grid(GRID, ("aggregate",)),
    "two-stream-aggregate",
    "How many two-stream layers with the paper's queries",
    "The same with prefix aggregation (Eq. 6), which tells the first layer less than our kernel does.",
)
TWO_STREAM_LONG = _asked_of(
    Grid(LONG, ("kernel", "aggregate")),
    "two-stream-long",
    "How many two-stream layers on long texts",
    "The same with both queries on texts four times as long, trained on strided and on uniform orders.",
)
