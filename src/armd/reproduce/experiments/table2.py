"""The paper's table of generative perplexity: quality of texts by steps, by rho and by strided fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from statistics import fmean
from typing import Any

from armd.baselines import Denoiser
from armd.checkpoint import ARCHITECTURES
from armd.evals import Judge, Writing, judge_name, judge_texts, load_judge, own_judge, quality_protocol, write_and_judge
from armd.families import OrderSchedule
from armd.presets import for_architecture
from armd.reproduce.bases import PATIENT, armd, baselines, patient, progressive, strided
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import called, parameters, ratio_target, svg
from armd.reproduce.page import spread
from armd.reproduce.paper import GENERATION
from armd.reproduce.study import Run, Study
from armd.train import TrainConfig
from armd.train.loop import pick_device

JUDGE = "evaluator"
SAMPLES, ROWS = 128, 64
"""Texts of a model at a temperature; those at once."""
SLOW = 16
"""Texts of MDLM, which reads whole texts in every step, on a CPU."""
TEMPERATURES = (0.7, 0.85, 1.0)
DIFFUSION = ("MDLM", "BD3-LM 4")
MASKED = ("MDLM", PATIENT)
SHARES = (1, 2, 4)
"""Tokens a step."""


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    steps, small = config.max_steps, setting.scale != "paper"
    counts = (steps // 16, steps // 8, steps // 4) if small else (10_000, 50_000, 80_000)
    tunings = {f"i_SBP {count:,}": count for count in counts}
    rhos = (8, 4) if small else (32, 16)
    found = {"AR": baselines(config)["AR"], **{name: baselines(config)[name] for name in DIFFUSION}}
    if small:
        found[PATIENT] = patient(config)
    for rho in rhos:
        base, orders = f"ARMD, rho {rho}", config.orders
        schedule = progressive(steps, rho, floors=orders.floors) if small else replace(orders, rho=rho)
        seeds = 0 if rho == rhos[0] else 1
        found[base] = Model(replace(config, orders=schedule), seeds=seeds)
        for name, tuning in tunings.items():
            if rho == rhos[0] or tuning in (counts[0], counts[-1]):
                found[f"{base}, {name}"] = Model(strided(config, tuning), parent=base, seeds=seeds)
    return found if setting.evaluator else {**found, JUDGE: Model(evaluator(config), seeds=1)}


def evaluator(config: TrainConfig) -> TrainConfig:
    """A larger autoregressive model, trained apart on the same texts, that reads what the others write."""
    shape, width = config.model, config.model.hidden_size * 4 // 3
    wide = replace(shape, hidden_size=width, num_attention_heads=max(width // 64, 1))
    deep = replace(wide, num_hidden_layers=shape.num_hidden_layers * 4 // 3)
    larger = replace(config, model=deep, orders=OrderSchedule())
    return for_architecture(replace(larger, max_steps=config.max_steps * 3 // 2), "ar")


def shares(study: Study, name: str) -> tuple[int, ...]:
    """Tokens a step that a model is asked for: AR knows one, and for MDLM one at a time takes long on a CPU."""
    return (1,) if name == "AR" else SHARES[1:] if name in MASKED and study.scale == "small" else SHARES


def samples(study: Study, name: str) -> int:
    """Texts that a model writes at a temperature."""
    return SLOW if name in MASKED and study.scale == "small" else SAMPLES


# ---- measures --------------------------------------------------------------------------------------------------------


def texts(study: Study, run: Run, *, each: int, temperature: float, samples: int, judge: str) -> dict[str, Any]:
    """Texts of one temperature at `each` tokens a step; `judge` says which evaluator the study has, see `_judge_id`."""
    length, rows = run.config.text_length, min(samples, ROWS)
    if issubclass(ARCHITECTURES[run.config.architecture], Denoiser):
        block = run.config.model.block_size if run.config.architecture == "bd3lm" else length
        writing = Writing(length, steps=max(block // each, 1), samples=samples, rows=rows)
    else:
        mode = "parallel" if each > 1 else "sequential"
        writing = Writing(length, streams=each, mode=mode, samples=samples, rows=rows)
    model, tokenizer = run.load()
    judging = _judge(study)
    found = asdict(write_and_judge(model, tokenizer, judging, writing, temperature))
    found["texts"] = found["texts"][:2]
    return {**found, "protocol": quality_protocol(model, tokenizer, judging, writing).line}


def people(study: Study, run: Run, *, samples: int, judge: str) -> dict[str, Any]:
    """Held-out texts, as long as those that `run` writes, under the evaluator."""
    texts, (_, tokenizer) = study.dataset(run, samples), run.load()
    rows = texts.eval_batch(0, texts.eval_windows()).tolist()
    found = asdict(judge_texts(rows, run.config.model.eos_token_id, tokenizer, _judge(study)))
    return {**found, "samples": len(rows), "texts": found["texts"][:2]}


def _judge(study: Study) -> Judge:
    if study.evaluator:
        return _judge_from_elsewhere(study.evaluator)
    return own_judge(*study.runs(JUDGE)[0].load(), "our larger AR model")


@cache
def _judge_from_elsewhere(path: str) -> Judge:
    return load_judge(path, pick_device("auto"))


def _judge_id(study: Study) -> str | None:
    """A hash of the evaluator's weights; None while our own is not trained."""
    if study.evaluator:
        return _judge_from_elsewhere(study.evaluator).weights
    return next((run.weights for run in study.runs(JUDGE)), None)


Frontier = list[dict[str, Any]]
"""Texts of a model at `TEMPERATURES`, judged."""


def frontiers(study: Study, name: str, each: int, judge: str) -> dict[int, Frontier]:
    """Those of the finished runs of a model, by seed."""

    def judged(run: Run, at: float) -> dict[str, Any]:
        options = {"each": each, "temperature": at, "samples": samples(study, name), "judge": judge}
        found: dict[str, Any] = study.measure(run, texts, **options)
        return found

    return {run.seed: [judged(run, at) for at in TEMPERATURES] for run in study.runs(name)}


# ---- report ----------------------------------------------------------------------------------------------------------


def report(study: Study) -> Section:
    names = [run.name for run in study.all_runs if run.seed == study.seeds[0] and run.name != JUDGE]
    best, judge = _best(names), _judge_id(study)
    pairs = [(name, each) for name in names for each in shares(study, name)] if judge else []
    found = {pair: seeds for pair in pairs if (seeds := frontiers(study, *pair, str(judge)))}
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        cells = [_cell(list(found.get((name, each), {}).values())) for each in SHARES]
        rows.append([called(study, name), str(samples(study, name)), *cells])
    humans = [study.measure(study.runs(name)[0], people, samples=SAMPLES, judge=judge) for name, _ in list(found)[:1]]
    for human in humans:
        rows.append(
            ["held-out texts of people, as they are", str(human["samples"]), _entry([human]), *[""] * (len(SHARES) - 1)]
        )
    protocols = [at["protocol"] for seeds in found.values() for frontier in seeds.values() for at in frontier[:1]]
    notes = ["i_SBP: steps of strided fine-tuning, above those of the others", _about(study)]
    ours = Table(
        "Ours: generative perplexity (entropy in nats) at temperature 1, by tokens a step",
        ("model", "texts", *(f"{each} ({'T = N' if each == 1 else f'T = N/{each}'})" for each in SHARES)),
        rows,
        [*dict.fromkeys(protocols), *notes],
    )
    varied = Table(
        "Ours: variety at temperature 1",
        ("model", "tokens a step", "4-grams that repeat", *(f"distinct {n}-grams" for n in (1, 2, 3))),
        [
            [name, str(each), *_variety([frontier[-1] for frontier in seeds.values()])]
            for (name, each), seeds in found.items()
            if name in ("AR", best, PATIENT, *DIFFUSION)
        ]
        + [["held-out texts of people", "", *_variety([human])] for human in humans],
        ("4-grams: share of a text's, mean over texts; distinct: of all texts together, so more texts have fewer",),
    )
    paper = Table(
        "The paper: N = 1,024, under gpt2-large",
        ("model", "T = 1024", "T = 512", "T = 256"),
        [[name, *cells] for name, cells in GENERATION.items()],
        ("entropy as printed, not ours: counts of 1,024 tokens have at most 6.93 nats",),
    )
    shown = {
        f"{name}, {each} a step": _line(list(found[name, each].values()))
        for name, each in [("AR", 1), *((name, each) for name in (best, *DIFFUSION, PATIENT) for each in SHARES)]
        if (name, each) in found
    }
    drawn = svg("Quality against diversity", shown, ("entropy, nats", "generative perplexity"), log_y=True)
    figure = Figure("Quality against diversity", drawn, "a line for each writer, a mark for each temperature")
    return Section("", [ours, varied, paper], [figure], _targets(study, found, best))


def _about(study: Study) -> str:
    """The evaluator."""
    for judge in study.runs(JUDGE):
        size, seen = (f"{count / 1e6:.2f}M" for count in (study.measure(judge, parameters), judge.tokens))
        return f"{JUDGE}: plain AR, {size} parameters, trained on {seen} tokens of the same documents"
    return f"{JUDGE}: {judge_name(study.evaluator) if study.evaluator else 'not trained yet'}"


def _best(names: list[str]) -> str:
    """The model with the longest fine-tuning of the first rho."""
    first = next(name for name in names if name.startswith("ARMD"))
    return [name for name in names if name.startswith(first)][-1]


def _cell(seeds: list[Frontier]) -> str:
    return _entry([rows[-1] for rows in seeds]) if seeds else ""


def _entry(by_seed: list[dict[str, Any]]) -> str:
    entropy = fmean(row["entropy"] for row in by_seed)
    return f"{spread([row['generative_perplexity'] for row in by_seed], '.1f')} ({entropy:.2f})"


def _variety(by_seed: list[dict[str, Any]]) -> list[str]:
    measures = [[row["repetition"] for row in by_seed], *zip(*(row["distinct"] for row in by_seed), strict=True)]
    return [spread(list(values), ".3f") for values in measures]


def _line(seeds: list[Frontier]) -> list[tuple[float, float]]:
    """Mean entropy and mean perplexity over the seeds, temperature by temperature."""
    return [
        (fmean(row["entropy"] for row in at), fmean(row["generative_perplexity"] for row in at))
        for at in zip(*seeds, strict=True)
    ]


def at_entropy(line: list[tuple[float, float]], entropy: float) -> float | None:
    """Log perplexity of a frontier at an entropy, between its marks on a straight line; None outside them.

    Perplexity grows about exponentially with entropy: a chord of it, not of its logarithm, would lie far too high.
    """
    points = sorted(line)
    for (low, first), (high, second) in pairwise(points):
        if low <= entropy <= high:
            share = (entropy - low) / ((high - low) or 1.0)
            return math.log(first) + math.log(second / first) * share
    return None


def ratio_at_equal_entropy(line: list[tuple[float, float]], own: list[tuple[float, float]]) -> float | None:
    """How many times the perplexity of one frontier is that of another, at the marks of both that lie within the other.

    The geometric mean; None if there are fewer than two such marks.
    """
    logs = [at - math.log(y) for x, y in own if (at := at_entropy(line, x)) is not None]
    logs += [math.log(y) - at for x, y in line if (at := at_entropy(own, x)) is not None]
    return math.exp(fmean(logs)) if len(logs) > 1 else None


def _targets(study: Study, found: dict[tuple[str, int], dict[int, Frontier]], best: str) -> list[Target]:
    def compared(
        claim: str, one: tuple[str, int], other: tuple[str, int], bar: float, *, least: bool, seeds: Sequence[int]
    ) -> Target:
        """On two frontiers, seed by seed."""
        own, theirs = found.get(one, {}), found.get(other, {})
        both = {seed: ratio_at_equal_entropy(_line([own[seed]]), _line([theirs[seed]])) for seed in own.keys() & theirs}
        ratios = {seed: ratio for seed, ratio in both.items() if ratio is not None}
        if both and not ratios:
            return Target(claim, "they share no range of entropies", None)
        return ratio_target(claim, ratios, seeds, bar, least=least)

    targets = []
    for each in SHARES[1:]:
        claim = f"{each} tokens a step at most 1.1 times the perplexity of one at a time, at equal entropy"
        targets.append(compared(claim, (best, each), (best, 1), 1.1, least=False, seeds=study.seeds))
    for masked in MASKED if study.runs(PATIENT) else MASKED[:1]:
        seeds = study.seeds[:1] if masked == PATIENT else study.seeds
        for each in SHARES[1:]:
            claim = f"{masked}, at {each} a step at least 1.5 times the perplexity of ARMD at {each}, at equal entropy"
            targets.append(compared(claim, (masked, each), (best, each), 1.5, least=True, seeds=seeds))
    return targets


TABLE2 = Experiment(
    "table2",
    "Texts by steps (the paper's Table 2)",
    "How good are texts written with fewer steps, by rho and by length of the strided fine-tuning, beside AR and "
    "masked diffusion at the same number of steps? Perplexity is that of a larger AR model, never without entropy.",
    models,
    report,
)
