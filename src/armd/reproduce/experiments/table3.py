"""The paper's table of perplexities on LM1B: short texts, a small rho, a schedule that grows to the end."""

from __future__ import annotations

import math
from dataclasses import replace

from armd.reproduce.bases import as_in_the_paper, baselines, sentences
from armd.reproduce.experiment import Experiment, Model, Section, Setting, Table
from armd.reproduce.measures import called, held_out, main_order, score
from armd.reproduce.page import spread
from armd.reproduce.paper import LM1B
from armd.reproduce.study import Study


def models(setting: Setting) -> dict[str, Model]:
    config = sentences(setting)
    found = {"ARMD": Model(config), "ARMD, as in the paper": Model(as_in_the_paper(config)), **baselines(config)}
    if setting.scale == "paper":
        found["ARMD, 1M iterations"] = Model(replace(config, max_steps=1_000_000))
    return found


def report(study: Study) -> Section:
    nats = {
        name: [score(study, run, main_order(run), texts=1024)["nats_per_token"] for run in study.runs(name)]
        for name in study.names
    }
    rows = [
        [called(study, name), spread(values), spread([math.exp(v) for v in values], ".2f")]
        for name, values in nats.items()
    ]
    ours = Table(
        "Ours",
        ("model", "nats/token", "perplexity"),
        rows,
        (f"texts of 128 tokens, packed; {held_out(1024)}; left to right for ARMD and AR, the bound over 8 times a text "
         "for the others",),
    )  # fmt: skip
    paper = Table(
        "The paper, LM1B test", ("model", "perplexity"), [[name, f"{value:.2f}"] for name, value in LM1B.items()]
    )
    return Section("", [ours, paper])


TABLE3 = Experiment(
    "table3",
    "Short texts (the paper's LM1B table)",
    "The same comparison on texts of 128 tokens with the paper's LM1B schedule: a third of the run left to right, then "
    "rho growing to 8 at its end.",
    models,
    report,
)
