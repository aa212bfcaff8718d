"""Controls of the comparison with masked diffusion, which learns late: more tokens, and our prefix layer."""

from __future__ import annotations

import math

from armd.presets import for_architecture
from armd.reproduce.bases import PATIENT, armd, as_in_the_paper, baselines, patient
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table
from armd.reproduce.experiments.curves import token_frequencies
from armd.reproduce.measures import called, held_out, mean_curve, perplexity_ratios, ratio_target, score, svg
from armd.reproduce.page import spread
from armd.reproduce.study import Study

TEXTS = 256
OURS, PAPERS, MASKED = "ARMD", "ARMD, as in the paper", "MDLM"
PREFIXED = "MDLM + prefix"
MEASURE = {OURS: "uniform:4", PAPERS: "uniform:4", MASKED: "bound:8", PREFIXED: "bound:8", PATIENT: "bound:8"}


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    masked = baselines(config)[MASKED].config
    papers = as_in_the_paper(config)  # which at paper scale ARMD is
    return {
        OURS: Model(config),
        **({PAPERS: Model(papers)} if papers != config else {}),
        MASKED: Model(masked),
        PREFIXED: Model(for_architecture(config, "mdlm+prefix")),
        PATIENT: patient(config),
    }


def report(study: Study) -> Section:
    nats = {
        name: {run.seed: score(study, run, order, TEXTS)["nats_per_token"] for run in study.runs(name)}
        for name, order in MEASURE.items()
    }
    rows = [
        [
            called(study, name),
            f"{study.runs(name)[0].tokens / 1e6:.2f}M",
            spread(list(by_seed.values())),
            spread([math.exp(value) for value in by_seed.values()], ".1f"),
        ]
        for name, by_seed in nats.items()
        if by_seed
    ]
    notes = [
        f"{held_out(TEXTS)}; ARMD: mean over 4 uniform orders a text; MDLM: its bound, the same quantity, over "
        "8 times a text",
        f"{PAPERS}: with the first queries of Eq. (6), and no uniform orders in training; {PREFIXED}: ARMD's prefix "
        "layer at the masks",
        *[f"the frequencies of single tokens in training give {token_frequencies(study):.3f} nats/token"] * bool(rows),
    ]
    table = Table("Random orders", ("model", "tokens", "nats/token", "perplexity"), rows, notes)
    lines = {
        f"{name}, random orders" if name.startswith(OURS) else name: mean_curve(
            study, name, MEASURE[name].partition(":")[0]
        )
        for name in MEASURE
        if study.runs(name)
    }
    title = "Held-out loss in random orders against tokens"
    figure = Figure(title, svg(title, lines, ("million tokens", "nats/token")), "training's validation")
    claim = f"{OURS}: perplexity in random orders at most that of MDLM with 4 times the tokens (one seed)"
    seeds = list(nats[PATIENT]) or study.seeds[:1]
    more = ratio_target(claim, perplexity_ratios(nats[OURS], nats[PATIENT]), seeds, 1.0)
    other = ratio_target(
        f"{OURS}: the same, at most that of MDLM with ARMD's prefix layer",
        perplexity_ratios(nats[OURS], nats[PREFIXED]),
        study.seeds,
        1.0,
    )
    return Section("", [table], [figure], [more, other])


PATIENCE = Experiment(
    "patience",
    "Masked diffusion with more",
    "Masked diffusion learns little in the tokens that the others are given. Does it with four times as many, in a "
    "schedule as much longer, or with the prefix layer that ARMD has?",
    models,
    report,
)
