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
SHARED = FACTORS.index(1.0)
NAMES = ("ARMD", "AR", "AR + prefix", "MDLM", "BD3-LM 4")


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
        gains = [math.exp(min(nats) - nats[SHARED]) for nats in zip(*cells, strict=False)]  # by seed
        rows.append([name, *(spread(cell) for cell in cells), spread(gains, ".3f")])
    note = (
        f"{sizes(study, study.names)}; nats per token, left to right for ARMD and AR, the bound over 8 times a text "
        f"for the others; {SCORED:,} tokens of held-out texts at equal distances, or all there are; one seed; the "
        "last column: perplexity at the best of the rates over that at the shared one"
    )
    columns = ("model", *(f"rate x {factor:g}" for factor in FACTORS), "best / shared")
    return Section("", [Table("Held-out loss by rate", columns, rows, (note,))])


RATES = Experiment(
    "rates",
    "Is one learning rate fair to all?",
    "All architectures are compared at one pair of rates. Would another have been better for some of them? Both rates, "
    "of the matrices and of the rest, are multiplied by a factor, on smaller models than those compared.",
    models,
    report,
)
