"""Our own questions: where G^0 comes from, how many two-stream layers, how many shuffled tokens, which optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from armd.checkpoint import ARCHITECTURES
from armd.families import OrderSchedule
from armd.presets import for_architecture
from armd.reproduce.bases import OPTIM, armd, mixed, progressive, shortened, small
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table
from armd.reproduce.measures import exact_writing, held_out, mean_curve, ratio_target, score, svg
from armd.reproduce.page import spread
from armd.reproduce.study import Run, Study
from armd.train import OptimConfig

ORDERS = ("left_to_right", "reinsert:8", "uniform:4", "strided:4")
TERMS = f"nats per token; {held_out(512)}; uniform: mean over 4 orders a text"


def likelihood(study: Study, title: str, names: Sequence[str], *more: tuple[str, Callable[[Run], Any], str]) -> Table:
    """Nats by order of some models, and more columns: (name, what of a run, form)."""
    rows = []
    for name in names:
        runs = study.runs(name)
        cells = [spread([_nats(study, run, order) for run in runs]) for order in ORDERS]
        cells += [spread([value(run) for run in runs], form) for _, value, form in more]
        rows.append([name, *cells])
    return Table(title, ("model", *ORDERS, *(column for column, _, _ in more)), rows, (TERMS,))


def _nats(study: Study, run: Run, order: str) -> float | None:
    """None where a model knows left to right only."""
    if not ARCHITECTURES[run.config.architecture].any_order and order != "left_to_right":
        return None
    value: float = score(study, run, order)["nats_per_token"]
    return value


def _mean(study: Study, name: str, order: str = "left_to_right") -> float | None:
    values = [value for run in study.runs(name) if (value := _nats(study, run, order)) is not None]
    return fmean(values) if values else None


def _tokens_per_pass(study: Study, run: Run) -> float:
    value: float = study.measure(run, exact_writing, streams=4)["tokens_per_pass"]
    return value


# ---- queries ---------------------------------------------------------------------------------------------------------


def query_models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    half = config.model.num_hidden_layers // 2

    def with_query(query: str, two_stream: int) -> Model:
        return Model(replace(config, model=replace(config.model, query=query, num_two_stream_layers=two_stream)))

    return {
        **{f"{query}, L2s = {half}": with_query(query, half)
           for query in ("aggregate", "shift", "anchor", "anchor+aggregate", "kernel")},
        "kernel, L2s = 1": with_query("kernel", 1),
        "AR": Model(for_architecture(config, "ar")),
        "AR + kernel": Model(for_architecture(with_query("kernel", 1).config, "ar+prefix")),
    }  # fmt: skip


def query_report(study: Study) -> Section:
    names = list(query_models(Setting(study.scale, 257, 256)))
    return Section("", [likelihood(study, "Queries", names)])


QUERIES = Experiment(
    "queries",
    "Where the first queries come from",
    "What is the best G^0, the first rows of the prediction stream: the paper's prefix aggregation (Eq. 6), a shift, "
    "an anchor at the position before, or a kernel over the positions around?",
    query_models,
    query_report,
)

# ---- two-stream layers -----------------------------------------------------------------------------------------------

LENGTHS = (256, 1024)
FAMILIES: dict[str, Callable[[int], OrderSchedule]] = {
    "progressive": progressive,
    "strided": lambda steps: progressive(steps, sbp_steps=steps // 5, sbp_streams=(1, 2, 4, 8)),
    "uniform": lambda steps: OrderSchedule(floors={"uniform": 1.0}),
}


def _layer_cells(layers: int) -> list[tuple[int, int, str, str]]:
    """(length, L2s, query, orders) of every model."""
    return [
        (length, two_stream, query, family)
        for length in LENGTHS
        for family in FAMILIES
        for query in ("kernel", "aggregate")
        for two_stream in sorted({1, 2, layers // 2, layers})
    ]


def _layer_name(length: int, two_stream: int, query: str, family: str) -> str:
    return f"N = {length}, {family}, {query}, L2s = {two_stream}"


def layer_models(setting: Setting) -> dict[str, Model]:
    def model(length: int, two_stream: int, query: str, family: str) -> Model:
        shape: dict[str, Any] = {"num_two_stream_layers": two_stream, "query": query, "max_position_embeddings": length}
        if setting.scale == "paper":
            config = armd(setting)
            config = replace(config, model=replace(config.model, **shape))
        else:
            config = small(setting, 0.5, hidden_size=128, **shape)
        return Model(replace(config, orders=FAMILIES[family](config.max_steps)))

    layers = armd(setting).model.num_hidden_layers
    return {_layer_name(*cell): model(*cell) for cell in _layer_cells(layers)}


def layer_report(study: Study) -> Section:
    cells = _layer_cells(armd(Setting(study.scale, 257, 256)).model.num_hidden_layers)
    tables, figures = [], []
    for length in LENGTHS:
        names = [_layer_name(*cell) for cell in cells if cell[0] == length and study.runs(_layer_name(*cell))]
        if not names:
            continue
        exact = ("tokens a pass, exact, S = 4", partial(_tokens_per_pass, study), ".2f")
        tables.append(likelihood(study, f"Texts of {length} tokens", names, exact))
        lines: dict[str, list[tuple[float, float]]] = {}
        for cell in cells:
            if cell[0] == length and (nats := _mean(study, _layer_name(*cell))) is not None:
                lines.setdefault(f"{cell[2]}, {cell[3]}", []).append((float(cell[1]), nats))
        title = f"Left to right by two-stream layers, N = {length}"
        drawn = svg(title, lines, ("two-stream layers", "nats/token"), log_x=True)
        figures.append(Figure(title, drawn, "a line for each query and order family"))
    return Section("", tables, figures)


LAYERS = Experiment(
    "two-stream",
    "How many two-stream layers",
    "The paper runs half of the layers on both streams, which costs up to a half more than one stream. What do 1, 2, "
    "L/2 and L two-stream layers buy, by query, training orders and length of text?",
    layer_models,
    layer_report,
)

# ---- shuffled tokens and mixtures of orders --------------------------------------------------------------------------


def order_models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    steps = config.max_steps
    schedules = {
        "left to right": OrderSchedule(),
        **{f"progressive, rho = {rho}": progressive(steps, rho) for rho in (4, 8, 16, 32)},
        "progressive, rho = 8, subsets": progressive(steps, 8, shuffle="subset"),
        "progressive, rho = 8, a fifth uniform": mixed(steps),
        "uniform": OrderSchedule(floors={"uniform": 1.0}),
    }
    return {name: Model(replace(config, orders=orders)) for name, orders in schedules.items()}


def order_report(study: Study) -> Section:
    names = list(order_models(Setting(study.scale, 257, 256)))
    exact = ("tokens a pass, exact, S = 4", partial(_tokens_per_pass, study), ".2f")
    return Section("", [likelihood(study, "Training orders", names, exact)])


ORDER_MIXTURES = Experiment(
    "orders",
    "Which orders to train on",
    "What do more shuffled tokens (rho), another way to shuffle, or a share of wholly random orders cost left to "
    "right, and what do they buy in all other orders?",
    order_models,
    order_report,
)

# ---- optimisers ------------------------------------------------------------------------------------------------------

ADAMW, FULL, BUDGETS = "AdamW", 1.0, (1.0, 0.7, 0.35)
PLAIN = OptimConfig(lr=4e-3, warmup_steps=50)


def recipe_models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    adamw = PLAIN if setting.scale == "small" else config.optim
    muon = OPTIM if setting.scale == "small" else replace(config.optim, name="muon")

    def recipe(optim: OptimConfig, share: float, **changes: Any) -> Model:
        return Model(shortened(replace(config, optim=optim, model=replace(config.model, **changes)), share))

    found = {ADAMW: recipe(adamw, FULL)}
    found |= {_budget("Muon", share): recipe(muon, share) for share in BUDGETS}
    for factor in (0.5, 2.0):  # are the rates good?
        found[f"AdamW, rate x {factor:g}"] = replace(recipe(replace(adamw, lr=factor * adamw.lr), FULL), seeds=1)
        found[f"Muon, rate x {factor:g}"] = replace(recipe(replace(muon, muon_lr=factor * muon.muon_lr), FULL), seeds=1)
    return found | {
        "AdamW, WSD": recipe(replace(adamw, schedule="wsd"), FULL),
        "AdamW, EMA": recipe(replace(adamw, ema=0.99), FULL),
        "Muon, WSD": recipe(replace(muon, schedule="wsd"), FULL),
        "Muon, QK-norm": recipe(muon, FULL, qk_norm=True),
        "Muon, relu2": recipe(muon, FULL, activation="relu2"),
        "Muon, zero init": recipe(muon, FULL, zero_init_residual=True),
    }


def _budget(name: str, share: float) -> str:
    return name if share == FULL else f"{name}, {share:g} of the tokens"


def recipe_report(study: Study) -> Section:
    names = [name for name in recipe_models(Setting(study.scale, 257, 256)) if study.runs(name)]
    table = likelihood(study, "Recipes", names)
    lines = {name: mean_curve(study, name, "left_to_right")[1:] for name in names}
    drawn = svg("Recipes: held-out loss, left to right", lines, ("million tokens", "nats/token"))
    figure = Figure("Recipes: held-out loss, left to right", drawn, "a line for each recipe, mean over the seeds")
    targets = [
        ratio_target(f"Muon at {share:g} of the tokens at most AdamW's perplexity at all of them", ratios, 1.0)
        for share in BUDGETS[1:]
        for ratios in [_ratios(study, _budget("Muon", share), ADAMW)]
    ]
    return Section("", [table], [figure], targets)


def _ratios(study: Study, name: str, other: str) -> list[float]:
    """Ratios of perplexities left to right, seed by seed."""
    pairs = zip(study.runs(name), study.runs(other), strict=False)
    return [math.exp(_loss(study, a) - _loss(study, b)) for a, b in pairs]


def _loss(study: Study, run: Run) -> float:
    value: float = score(study, run, "left_to_right")["nats_per_token"]
    return value


RECIPES = Experiment(
    "recipes",
    "Which optimiser",
    "How many tokens does each recipe need for the held-out loss of AdamW? Every budget has a whole learning-rate "
    "schedule.",
    recipe_models,
    recipe_report,
)
