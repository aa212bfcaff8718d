"""The figure of loss against tokens: ARMD beside autoregressive, masked and block diffusion models on equal terms."""

from __future__ import annotations

import math
from itertools import zip_longest

from armd.reproduce.bases import armd, as_in_the_paper, baselines, no_strided, strided
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import held_out, main_order, mean_curve, parameters, ratio_target, score, svg
from armd.reproduce.page import spread
from armd.reproduce.study import Study

TEXTS = 256
OURS, PAPERS = "ARMD", "ARMD, as in the paper"
NAMES = (OURS, PAPERS, "AR", "AR + prefix", "MDLM", "BD3-LM 16", "BD3-LM 4")
TUNED, LONGER = "ARMD, strided", "ARMD, as many more steps"


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    steps = config.max_steps // 8 if setting.scale == "small" else 10_000
    return {
        OURS: Model(config),
        PAPERS: Model(as_in_the_paper(config)),
        **baselines(config),
        TUNED: Model(strided(config, steps), parent=OURS),
        LONGER: Model(no_strided(config, steps), parent=OURS),
    }


def report(study: Study) -> Section:
    loss = {
        name: [score(study, run, main_order(run), TEXTS)["nats_per_token"] for run in study.runs(name)]
        for name in (*NAMES, TUNED, LONGER)
    }
    any_order = {
        name: [score(study, run, "uniform:4", TEXTS)["nats_per_token"] for run in study.runs(name)]
        for name in (OURS, PAPERS, TUNED, LONGER)
    }
    any_order["MDLM"] = loss["MDLM"]
    rows = []
    for name in (*NAMES, TUNED, LONGER):
        runs = study.runs(name)
        if not runs:
            continue
        what = {"left_to_right": "left to right", "bound:8": "bound"}[main_order(runs[0])]
        perplexity = spread([math.exp(nats) for nats in loss[name]], ".2f")
        size = f"{study.measure(runs[0], parameters) / 1e6:.2f}M"
        cells = [name, size, f"{runs[0].tokens / 1e6:.2f}M", what, spread(loss[name]), perplexity]
        rows.append([*cells, spread(any_order.get(name, []))])
    columns = ("model", "parameters", "tokens", "measure", "nats/token", "perplexity", "random orders, nats/token")
    notes = (
        f"{held_out(TEXTS)}; bound: mean over 8 times a text; random orders: mean over 4 uniform orders a text, "
        "for MDLM its bound, which is the same quantity; tokens: those of the model it was fine-tuned from included",
        "ARMD: query kernel, one two-stream layer, a fifth of the steps in random orders, chosen on held-out novels "
        "(docs/log.md); as in the paper: query aggregate (Eq. 6), L2s = L/2. The curve is that of training: 64 texts",
    )
    lines = {name: mean_curve(study, name, main_order(study.runs(name)[0]).partition(":")[0]) for name in NAMES
             if study.runs(name)}  # fmt: skip
    lines["ARMD, random orders"] = mean_curve(study, OURS, "uniform")
    figure = Figure(
        "Held-out loss against tokens",
        svg("Held-out loss against tokens", lines, ("million tokens", "nats/token"), log_y=True),
        "left to right for ARMD and AR, the bound for masked and block diffusion",
    )
    return Section("", [Table("Likelihood", columns, rows, notes)], [figure], _targets(study, loss, any_order))


def _targets(study: Study, loss: dict[str, list[float]], any_order: dict[str, list[float]]) -> list[Target]:
    own, early = loss[OURS], _at_share(study, OURS, 1 / 3)
    others = [_valid(study, name, "bound") for name in ("MDLM", "BD3-LM 16", "BD3-LM 4")]
    best = [min(bound for bound in at if bound is not None) for at in zip_longest(*others)]
    return [
        ratio_target("perplexity left to right at most that of plain AR", _ratios(own, loss["AR"]), 1.0),
        ratio_target("at most 1.04 times that of AR with the prefix layer", _ratios(own, loss["AR + prefix"]), 1.04),
        ratio_target("bound over random orders at most MDLM's", _ratios(any_order[OURS], any_order["MDLM"]), 1.0),
        ratio_target("perplexity left to right at a third of the tokens at most the best bound of MDLM and BD3-LM at "
                     "all of them, on the texts of training's validation", _ratios(early, best), 1.0),
        ratio_target("the same in random orders, at most MDLM's bound at all of the tokens",
                     _ratios(_at_share(study, OURS, 1 / 3, "uniform"), _valid(study, "MDLM", "bound")), 1.0),
        ratio_target("after strided fine-tuning, an eighth more steps, at most 1.02 times that before",
                     _ratios(loss[TUNED], own), 1.02),
    ]  # fmt: skip


def _ratios(own: list[float], other: list[float]) -> list[float]:
    """Ratios of perplexities, seed by seed."""
    return [math.exp(a - b) for a, b in zip(own, other, strict=False)]


def _valid(study: Study, name: str, order: str) -> list[float]:
    """The last validation of training, seed by seed."""
    return [run.valid[order] for run in study.runs(name)]


def _at_share(study: Study, name: str, share: float, order: str = "left_to_right") -> list[float]:
    """The last validation within a share of the tokens, seed by seed; its learning rate had not fallen yet."""
    curves = [[v[order] for tokens, v in run.curve() if tokens <= share * run.tokens] for run in study.runs(name)]
    return [curve[-1] for curve in curves if curve]


CURVES = Experiment(
    "curves",
    "Loss against tokens",
    "Does ARMD learn faster than masked and block diffusion, and as fast as an autoregressive model, on equal terms: "
    "the same layers, texts, steps and optimiser, and as many parameters to within 1%?",
    models,
    report,
)
