"""Our own question: which optimiser, and which tricks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from armd.reproduce.bases import ablation, shortened
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting
from armd.reproduce.measures import (
    likelihood,
    losses,
    mean_curve,
    perplexity_ratios,
    ratio_target,
    svg,
    tokens_per_second,
)
from armd.reproduce.study import Study
from armd.train import OptimConfig

ADAMW, BUDGETS = "AdamW", (1.0, 0.7, 0.35)
FACTORS = (0.25, 0.5, 2.0)
CLOCK = (
    "training, tokens/s: the median of its log; seconds: of training, its validation included; as many models as "
    "--jobs says shared the machine"
)
PLAIN = OptimConfig(lr=4e-3, warmup_steps=50)


def models(setting: Setting) -> dict[str, Model]:
    config = ablation(setting)
    adamw = PLAIN if setting.scale != "paper" else config.optim
    muon = replace(config.optim, name="muon")

    def recipe(optim: OptimConfig, share: float = 1.0, **changes: Any) -> Model:
        return Model(shortened(replace(config, optim=optim, model=replace(config.model, **changes)), share))

    found = {ADAMW: recipe(adamw)}
    found |= {_budget(share): recipe(muon, share) for share in BUDGETS}
    for factor in FACTORS:  # are the rates good?
        found[f"AdamW, rate x {factor:g}"] = recipe(replace(adamw, lr=factor * adamw.lr))
        found[f"Muon, rate x {factor:g}"] = recipe(replace(muon, muon_lr=factor * muon.muon_lr))
    return found | {
        "AdamW, WSD": recipe(replace(adamw, schedule="wsd")),
        "AdamW, EMA": recipe(replace(adamw, ema=0.99)),
        "Muon, WSD": recipe(replace(muon, schedule="wsd")),
        "Muon, QK-norm": recipe(muon, qk_norm=True),
        "Muon, relu2": recipe(muon, activation="relu2"),
        "Muon, zero init": recipe(muon, zero_init_residual=True),
    }


def _budget(share: float) -> str:
    return "Muon" if share == 1 else f"Muon, {share:g} of the tokens"


def report(study: Study) -> Section:
    names = [name for name in study.names if study.runs(name)]
    clock = ("training, tokens/s", tokens_per_second, ",.0f"), ("seconds", lambda run: run.seconds, ",.0f")
    table = likelihood(study, "Recipes", names, *clock)
    table = replace(table, notes=(*table.notes, CLOCK))
    lines = {name: mean_curve(study, name, "left_to_right")[1:] for name in names}
    drawn = svg("Recipes: held-out loss, left to right", lines, ("million tokens", "nats/token"))
    figure = Figure("Recipes: held-out loss, left to right", drawn, "a line for each recipe, mean over the seeds")
    targets = [
        ratio_target(f"Muon at {share:g} of the tokens at most the perplexity of AdamW, at the best of its rates "
                     "and schedules, at all of them", _ratios(study, _budget(share)), study.seeds, 1.0)
        for share in BUDGETS[1:]
    ]  # fmt: skip
    return Section("", [table], [figure], targets)


def _ratios(study: Study, name: str) -> dict[int, float]:
    """Ratios of perplexity left to right to the best AdamW there is, for the seeds that have all of these."""
    rated = [losses(study, other) for other in study.names if other.startswith(ADAMW)]
    complete = set.intersection(*map(set, rated))
    return perplexity_ratios(losses(study, name), {seed: min(by[seed] for by in rated) for seed in complete})


RECIPES = Experiment(
    "recipes",
    "Which optimiser",
    "How many tokens does each recipe need for the held-out loss of AdamW? Every budget has a whole learning-rate "
    "schedule.",
    models,
    report,
)
