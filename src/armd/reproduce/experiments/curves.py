"""The figure of loss against tokens: ARMD beside autoregressive, masked and block diffusion models on equal terms."""

from __future__ import annotations

import math

from armd.reproduce.bases import armd, baselines, strided
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import main_order, mean_curve, parameters, score, svg
from armd.reproduce.page import spread
from armd.reproduce.study import Study

NAMES = ("ARMD", "AR", "AR + prefix", "MDLM", "BD3-LM 16", "BD3-LM 4")


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    steps = config.max_steps // 8 if setting.scale == "small" else 10_000
    return {"ARMD": Model(config), **baselines(config), "ARMD, strided": Model(strided(config, steps), parent="ARMD")}


def report(study: Study) -> Section:
    loss = {
        name: [score(study, run, main_order(run))["nats_per_token"] for run in study.runs(name)]
        for name in (*NAMES, "ARMD, strided")
    }
    any_order = {
        name: [score(study, run, "uniform:4")["nats_per_token"] for run in study.runs(name)]
        for name in ("ARMD", "ARMD, strided")
    }
    any_order["MDLM"] = loss["MDLM"]
    rows = []
    for name in (*NAMES, "ARMD, strided"):
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
        "held-out documents, the first 512 windows without overlap, every token scored; bound: mean over 8 times a "
        "text; random orders: mean over 4 uniform orders a text, for MDLM its bound, which is the same quantity",
    )
    lines = {name: mean_curve(study, name, main_order(study.runs(name)[0]).partition(":")[0]) for name in NAMES
             if study.runs(name)}  # fmt: skip
    lines["ARMD, random orders"] = mean_curve(study, "ARMD", "uniform")
    figure = Figure(
        "Held-out loss against tokens",
        svg("Held-out loss against tokens", lines, ("million tokens", "nats/token"), log_y=True),
        "left to right for ARMD and AR, the bound for masked and block diffusion",
    )
    return Section("", [Table("Likelihood", columns, rows, notes)], [figure], _targets(study, loss, any_order))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _targets(study: Study, loss: dict[str, list[float]], any_order: dict[str, list[float]]) -> list[Target]:
    mean = {name: _mean(values) for name, values in loss.items()}
    orders = {name: _mean(values) for name, values in any_order.items()}

    def ratio(claim: str, own: float | None, other: float | None, most: float) -> Target:
        if own is None or other is None:
            return Target(claim, "a model is missing", None)
        found = math.exp(own - other)
        return Target(claim, f"{found:.3f} times", found <= most)

    early = _at_share(study, "ARMD", 1 / 3)
    late = [value for name in ("MDLM", "BD3-LM 16", "BD3-LM 4") if (value := mean[name]) is not None]
    return [
        ratio("perplexity left to right at most that of plain AR", mean["ARMD"], mean["AR"], 1.0),
        ratio("at most 1.04 times that of AR with the same prefix layer", mean["ARMD"], mean["AR + prefix"], 1.04),
        ratio("bound over random orders below MDLM's bound", orders["ARMD"], orders["MDLM"], 1.0),
        ratio("ARMD at a third of the tokens beats MDLM and BD3-LM at all of them (curve of training)", early,
              min(late, default=None), 1.0),
        ratio("perplexity after strided fine-tuning at most 1.02 times that before", mean["ARMD, strided"],
              mean["ARMD"], 1.02),
    ]  # fmt: skip


def _at_share(study: Study, name: str, share: float) -> float | None:
    """Mean held-out loss left to right at the last validation within a share of the run."""
    runs = study.runs(name)
    return _mean(
        [[v["left_to_right"] for tokens, v in run.curve() if tokens <= share * run.tokens][-1] for run in runs]
    )


CURVES = Experiment(
    "curves",
    "Loss against tokens",
    "Does ARMD learn faster than masked and block diffusion, and as fast as an autoregressive model, on equal terms: "
    "the same layers, parameters, texts, steps and optimiser?",
    models,
    report,
)
