"""Our own question: how many tokens to shuffle, how, and which orders to mix in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from armd.families import OrderSchedule
from armd.reproduce.bases import ablation, progressive
from armd.reproduce.experiment import Experiment, Model, Section, Setting
from armd.reproduce.measures import exact_tokens_per_pass, likelihood
from armd.reproduce.study import Study


def models(setting: Setting) -> dict[str, Model]:
    config = ablation(setting)
    steps = config.max_steps
    schedules = {
        "left to right": OrderSchedule(),
        **{f"progressive, rho = {rho}": progressive(steps, rho) for rho in (4, 8, 16, 32)},
        "progressive, rho = 8, subsets": progressive(steps, 8, shuffle="subset"),
        **{
            f"progressive, rho = 8, {share:.0%} uniform": progressive(steps, 8, floors={"uniform": share})
            for share in (0.05, 0.1, 0.2)
        },
        "progressive, rho = 8, 5% uniform, 30% left to right": progressive(
            steps, 8, floors={"left_to_right": 0.3, "uniform": 0.05}
        ),
        "uniform": OrderSchedule(floors={"uniform": 1.0}),
    }
    return {name: Model(replace(config, orders=orders)) for name, orders in schedules.items()}


def report(study: Study) -> Section:
    exact = ("tokens a pass, exact, S = 4", partial(exact_tokens_per_pass, study), ".2f")
    return Section("", [likelihood(study, "Training orders", study.names, exact)])


ORDERS = Experiment(
    "orders",
    "Which orders to train on",
    "What do more shuffled tokens (rho), another way to shuffle, or a share of wholly random orders cost left to "
    "right, and what do they buy in all other orders?",
    models,
    report,
)
