"""The figure of loss against tokens: ARMD beside autoregressive, masked and block diffusion models on equal terms."""

from __future__ import annotations

import math
from dataclasses import replace

from armd.data import TokenDataset
from armd.reproduce.bases import CLIPPED, armd, as_in_the_paper, baselines, no_strided, strided
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import (
    called,
    held_out,
    main_order,
    mean_curve,
    parameters,
    perplexity_ratios,
    ratio_target,
    score,
    svg,
)
from armd.reproduce.page import spread
from armd.reproduce.study import Run, Study

TEXTS = 256
OURS, PROGRESSIVE, PAPERS = "ARMD", "ARMD, no uniform orders", "ARMD, as in the paper"
NAMES = (OURS, PROGRESSIVE, PAPERS, "AR", "AR + prefix", "MDLM", "BD3-LM 16", "BD3-LM 4")
TUNED, LONGER = "ARMD, strided", "ARMD, as many more steps"


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    steps = config.max_steps // 8 if setting.scale != "paper" else 10_000
    return {
        OURS: Model(config),
        PROGRESSIVE: Model(replace(config, orders=replace(config.orders, floors={}))),
        PAPERS: Model(as_in_the_paper(config)),
        **baselines(config),
        TUNED: Model(strided(config, steps), parent=OURS),
        LONGER: Model(no_strided(config, steps), parent=OURS),
    }


def report(study: Study) -> Section:
    loss = {
        name: {run.seed: score(study, run, main_order(run), TEXTS)["nats_per_token"] for run in study.runs(name)}
        for name in (*NAMES, TUNED, LONGER)
    }
    any_order = {
        name: {run.seed: score(study, run, "uniform:4", TEXTS)["nats_per_token"] for run in study.runs(name)}
        for name in (OURS, PROGRESSIVE, PAPERS, TUNED, LONGER)
    }
    any_order["MDLM"] = loss["MDLM"]
    rows = []
    for name in (*NAMES, TUNED, LONGER):
        runs = study.runs(name)
        if not runs:
            continue
        what = {"left_to_right": "left to right", "bound:8": "bound"}[main_order(runs[0])]
        perplexity = spread([math.exp(nats) for nats in loss[name].values()], ".2f")
        size = f"{study.measure(runs[0], parameters) / 1e6:.2f}M"
        nats = spread(list(loss[name].values()))
        cells = [called(study, name), size, f"{runs[0].tokens / 1e6:.2f}M", what, nats, perplexity]
        rows.append([*cells, spread(list(any_order.get(name, {}).values()))])
    columns = ("model", "parameters", "tokens", "measure", "nats/token", "perplexity", "random orders, nats/token")
    notes = (
        f"{held_out(TEXTS)}; bound: mean over 8 times a text; random orders: mean over 4 uniform orders a text, "
        "for MDLM its bound, which is the same quantity; tokens: those of the model it was fine-tuned from included",
        *(f"{name}: {_described(study.runs(name)[0])}" for name in (OURS, PROGRESSIVE, PAPERS) if study.runs(name)),
        f"{TUNED}: strided orders only; {LONGER}: the orders that training ended with; both at a fifth of the rates",
        *map(_terms, study.runs(OURS)[:1]),
        f"to compare with: the frequencies of single tokens in training give {token_frequencies(study):.3f} nats/token",
        "rates and recipes were chosen on the split that is reported",
        *(
            f"BD3-LM {size}: trained with {low:.0%} to {high:.0%} of a block masked, the clipped noise of its paper"
            for size, (low, high) in CLIPPED.items()
        ),
    )
    lines = {name: mean_curve(study, name, main_order(study.runs(name)[0]).partition(":")[0]) for name in NAMES
             if study.runs(name)}  # fmt: skip
    lines["ARMD, random orders"] = mean_curve(study, OURS, "uniform")
    figure = Figure(
        "Held-out loss against tokens",
        svg("Held-out loss against tokens", lines, ("million tokens", "nats/token")),
        "left to right for ARMD and AR, the bound for masked and block diffusion",
    )
    return Section("", [Table("Likelihood", columns, rows, notes)], [figure], _targets(study, loss, any_order))


def token_frequencies(study: Study) -> float:
    """Nats per token of the held-out texts by how often a token occurs in training: what every model learns first."""
    run = study.all_runs[0]
    seen, held_out = TokenDataset(study.data, "train", run.config.text_length).spread(4096), study.dataset(run, TEXTS)
    seen_tokens, tokens = (texts.eval_batch(0, texts.eval_windows()).flatten() for texts in (seen, held_out))
    counts = seen_tokens.bincount(minlength=study.setting.vocab_size) + 1.0
    return -(counts / counts.sum()).log()[tokens].mean().item()


def _described(run: Run) -> str:
    shape, floors = run.config.model, run.config.orders.floors
    streams = f"{shape.num_two_stream_layers} of {shape.num_hidden_layers} layers on two streams"
    return f"query {shape.query}, {streams}, {floors.get('uniform', 0.0):.0%} of the steps in uniform orders"


def _terms(run: Run) -> str:
    """Of all models of a scale."""
    config, optim = run.config, run.config.optim
    rates = f"{optim.lr:g}" if optim.name == "adamw" else f"{optim.muon_lr:g}, AdamW for the rest at {optim.lr:g}"
    steps = f"{config.max_steps:,} steps of {config.batch_size} texts of {config.text_length} tokens"
    return (
        f"all but the fine-tuned: {steps}; all: {optim.name} at {rates}, chosen on ARMD among few "
        f"(docs/log.md) and varied in the section on rates, {config.precision}; the curve "
        f"is that of training's validation: {config.eval_texts} texts, the bound at one time a text"
    )


def _targets(study: Study, loss: dict[str, dict[int, float]], any_order: dict[str, dict[int, float]]) -> list[Target]:
    def target(claim: str, own: dict[int, float], other: dict[int, float], bar: float = 1.0) -> Target:
        return ratio_target(claim, perplexity_ratios(own, other), study.seeds, bar)

    targets = []
    for name in (OURS, PROGRESSIVE):
        own, bound = loss[name], any_order[name]
        targets += [
            target(f"{name}: perplexity left to right at most that of plain AR", own, loss["AR"]),
            target(f"{name}: at most 1.04 times that of AR with the prefix layer", own, loss["AR + prefix"], 1.04),
            target(f"{name}: bound over random orders at most MDLM's", bound, any_order["MDLM"]),
        ]
    early = _at_share(study, OURS, 1 / 3, "left_to_right"), _at_share(study, OURS, 1 / 3, "uniform")
    return [
        *targets,
        target(f"{OURS}: perplexity left to right at a third of the tokens at most the best bound of MDLM and BD3-LM "
               "at all of them, on the texts of training's validation",
               early[0], _best(study)),
        target(f"{OURS}: the same in random orders, at most MDLM's bound at all of the tokens",
               early[1], _at_share(study, "MDLM", 1.0, "bound")),
        target(f"{OURS}: the same in random orders, at most the best of these bounds, though block diffusion knows all "
               "of the blocks before", early[1], _best(study)),
        target(f"{TUNED}, an eighth more steps: at most 1.02 times that before", loss[TUNED], loss[OURS], 1.02),
        target(f"{TUNED}: at most 1.02 times that after as many more steps of training's last orders",
               loss[TUNED], loss[LONGER], 1.02),
    ]  # fmt: skip


def _best(study: Study) -> dict[int, float]:
    """The best last bound of masked and block diffusion, by seed."""
    mdlm, long, short = (_at_share(study, name, 1.0, "bound") for name in ("MDLM", "BD3-LM 16", "BD3-LM 4"))
    return {seed: min(mdlm[seed], long[seed], short[seed]) for seed in mdlm.keys() & long.keys() & short.keys()}


def _at_share(study: Study, name: str, share: float, order: str) -> dict[int, float]:
    """The last validation within a share of the tokens, by seed; before the end no learning rate had fallen yet."""
    found = {}
    for run in study.runs(name):
        within = [valid[order] for tokens, valid in run.curve() if tokens <= share * run.tokens]
        if within:
            found[run.seed] = within[-1]
    return found


CURVES = Experiment(
    "curves",
    "Loss against tokens",
    "Does ARMD learn faster than masked and block diffusion, and as fast as an autoregressive model, on equal terms: "
    "the same layers, texts, steps and optimiser, and as many parameters to within 1%?",
    models,
    report,
)
