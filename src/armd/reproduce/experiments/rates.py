"""A control of the comparisons between architectures: is the learning rate they share fair to each?"""

from __future__ import annotations

import math
from dataclasses import replace

from armd.reproduce.bases import ablation, baselines
from armd.reproduce.experiment import Experiment, Model, Section, Setting, Table
from armd.reproduce.measures import SCORED, main_order, score, sizes
from armd.reproduce.page import spread
from armd.reproduce.study import Study

FACTORS = (0.25, 0.5, 1.0, 2.0)
NAMES = ("ARMD", "AR", "AR + prefix", "MDLM", "BD3-LM 16", "BD3-LM 4")


def models(setting: Setting) -> dict[str, Model]:
    config = ablation(setting)
    found = {"ARMD": Model(config), **baselines(config)}
    return {_name(name, factor): _scaled(found[name], factor) for name in NAMES for factor in FACTORS}


def _name(name: str, factor: float) -> str:
    return f"{name}, rate x {factor:g}"


def _scaled(model: Model, factor: float) -> Model:
    optim = model.config.optim
    scaled = replace(optim, lr=factor * optim.lr, muon_lr=factor * optim.muon_lr)
    return Model(replace(model.config, optim=scaled), seeds=1)


def report(study: Study) -> Section:
    rows = []
    for name in NAMES:
        runs = [study.runs(_name(name, factor)) for factor in FACTORS]
        cells = [[score(study, r, main_order(r), SCORED // r.config.text_length)["nats_per_token"] for r in at]
                 for at in runs]  # fmt: skip
        rows.append([name, *(spread(cell) for cell in cells), _best([nats for cell in cells for nats in cell])])
    note = (
        f"{sizes(study, study.names)}; nats per token, left to right for ARMD, AR and AR + prefix, the bound over 8 "
        f"times a text for the others; {SCORED:,} tokens of held-out texts at equal distances, or all there are; one "
        "seed; best: perplexity over that at the shared rate, the rate chosen on these same texts"
    )
    columns = ("model", *(f"rate x {factor:g}" for factor in FACTORS), "best")
    return Section("", [Table("Held-out loss by rate", columns, rows, (note,))])


def _best(nats: list[float]) -> str:
    """Which factor is the best, and what it gains; nothing while a model is missing."""
    if len(nats) < len(FACTORS):
        return ""
    best = min(nats)
    return f"x {FACTORS[nats.index(best)]:g}: {math.exp(best - nats[FACTORS.index(1.0)]):.3f}"


RATES = Experiment(
    "rates",
    "Is one learning rate fair to all?",
    "All architectures are compared at one pair of rates. Would another have been better for some of them? Both rates, "
    "of the matrices and of the rest, are multiplied by a factor, on smaller models than those compared.",
    models,
    report,
)
