"""What experiments measure in a trained model: functions of (study, run) that return JSON values, made once each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from armd.baselines import Denoiser
from armd.chart import Series, drawing, finite_points, look, picture
from armd.checkpoint import ARCHITECTURES
from armd.decode import generate
from armd.evals import SETS, evaluate, pack, read_meter, read_set, zero_shot, zero_shot_protocol
from armd.evals.zeroshot import PACKINGS
from armd.model import Armd
from armd.reproduce.experiment import Table, Target
from armd.reproduce.page import spread
from armd.reproduce.study import Run, Study
from armd.train.log import read_metrics


def scores(study: Study, run: Run, *, orders: str, texts: int = 512) -> list[dict[str, Any]]:
    """Held-out likelihood by order, in float32; see `evals.evaluate`."""
    model, _ = run.load()
    return [asdict(score) for score in evaluate(model, study.dataset(run, texts), orders.split(","), texts=texts)]


def score(study: Study, run: Run, order: str, texts: int = 512) -> dict[str, Any]:
    """The first score of one order."""
    found: dict[str, Any] = study.measure(run, scores, orders=order, texts=texts)[0]
    return found


def main_order(run: Run) -> str:
    """What a model is compared by: left to right, or its bound."""
    return "bound:8" if issubclass(ARCHITECTURES[run.config.architecture], Denoiser) else "left_to_right"


def meter(study: Study, run: Run, *, streams: int, texts: int = 64) -> dict[str, Any]:
    """The likelihood meter of a number of streams; see `evals.read_meter`."""
    model, _ = run.load()
    assert isinstance(model, Armd)
    return asdict(read_meter(model, study.dataset(run, texts), streams, texts=texts))


def exact_writing(study: Study, run: Run, *, streams: int, texts: int = 8) -> dict[str, Any]:
    """Texts written by mode exact and one token at a time from the same seed: passes, and how many are equal."""
    model, _ = run.load()
    options: dict[str, Any] = {"length": run.config.text_length, "batch_size": texts, "seed": 0, "stop": False}
    exact, one = (generate(model, streams=streams, mode=mode, **options) for mode in ("exact", "sequential"))
    return {
        "tokens_per_pass": exact.tokens_per_pass,
        "acceptance": exact.acceptance,
        "equal": int((exact.tokens == one.tokens).all(dim=1).sum()),
        "texts": texts,
    }


def zero_shot_scores(
    study: Study, run: Run, *, data: str, order: str, content: str, texts: int | None
) -> dict[str, Any]:
    """Perplexity on another data set, whose files have the hash `content`: protocol `sedd`, as the paper's table."""
    model, tokenizer = run.load()
    length = run.config.text_length
    chunks = pack(read_set(data, None, study.sets), SETS[data][1], tokenizer, PACKINGS["sedd"], length)
    found = next(iter(zero_shot(model, data, chunks, [order], texts=texts)))
    protocol = zero_shot_protocol(data, None, "sedd", tokenizer, chunks, texts)
    return {"word_perplexity": found.word_perplexity, **asdict(found.score), "protocol": protocol.line}


def held_out(texts: int) -> str:
    """The terms of held-out numbers, for a note."""
    return f"held-out documents, {texts:,} texts at equal distances, or all there are, every token scored"


def ratio_target(
    claim: str, ratios: Mapping[int, float], seeds: Sequence[int], bar: float, *, least: bool = False
) -> Target:
    """A target on ratios by seed that are to be at most (or at least) the bar; open while a seed is missing."""
    known = [ratios[seed] for seed in seeds if seed in ratios]
    if not known:
        return Target(claim, "a model is missing", None)
    good = [ratio >= bar if least else ratio <= bar for ratio in known]
    told = f"{fmean(known):.3f} times ({', '.join(f'{ratio:.3f}' for ratio in known)})"
    if len(known) < len(seeds):
        return Target(claim, f"{told}, {len(known)} of {len(seeds)} seeds", None)
    return Target(claim, told, all(good) if all(good) == any(good) else None)


def perplexity_ratios(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """How many times the one perplexity is of the other, from nats by seed, for the seeds that both have."""
    return {seed: math.exp(nats - other[seed]) for seed, nats in own.items() if seed in other}


def called(study: Study, name: str) -> str:
    """The name of a model, with its seeds where it has fewer than the study."""
    count = len(study.runs(name))
    return name if count >= len(study.seeds) else f"{name} ({count} seed{'s' * (count != 1)})"


def sizes(study: Study, names: Sequence[str]) -> str:
    """Parameters and tokens of some models, for a note."""
    runs = [run for name in names for run in study.runs(name)[:1]]
    if not runs:
        return "no model"
    millions = {
        "parameters": [study.measure(run, parameters) / 1e6 for run in runs],
        "tokens": [run.tokens / 1e6 for run in runs],
    }
    told = []
    for what, values in millions.items():
        low, high = f"{min(values):.2f}M", f"{max(values):.2f}M"
        told.append(f"{low if low == high else f'{low} to {high}'} {what}")
    return ", ".join(told)


def parameters(study: Study, run: Run) -> int:
    """Parameters of the network, embeddings included."""
    return run.load()[0].num_parameters()


# ---- tables of likelihood by order ----------------------------------------------------------------------------------

SCORED = 32_768
"""Held-out tokens that our own questions are measured on."""
ORDERS = ("left_to_right", "reinsert:8", "uniform:4", "strided:4")


def likelihood(study: Study, title: str, names: Sequence[str], *more: tuple[str, Callable[[Run], Any], str]) -> Table:
    """Nats by order of some models, and more columns: (name, what of a run, form)."""
    rows = []
    for name in names:
        runs = study.runs(name)
        cells = [spread([nats(study, run, order) for run in runs]) for order in ORDERS]
        cells += [spread([value(run) for run in runs], form) for _, value, form in more]
        rows.append([called(study, name), *cells])
    terms = (
        f"{sizes(study, names)}; nats per token, one token a block; {SCORED:,} tokens of held-out texts at equal "
        "distances, or all there are; uniform: mean over 4 orders a text"
    )
    return Table(title, ("model", *ORDERS, *(column for column, _, _ in more)), rows, (terms,))


def nats(study: Study, run: Run, order: str = "left_to_right") -> float | None:
    """Held-out nats per token; None where a model knows left to right only."""
    if not ARCHITECTURES[run.config.architecture].any_order and order != "left_to_right":
        return None
    value: float = score(study, run, order, SCORED // run.config.text_length)["nats_per_token"]
    return value


def losses(study: Study, name: str, order: str = "left_to_right") -> dict[int, float]:
    """`nats` of a trained model by seed, where it knows the order."""
    return {run.seed: value for run in study.runs(name) if (value := nats(study, run, order)) is not None}


def tokens_per_second(run: Run) -> float:
    """Of training, the median of its log; several models may have shared the machine (`at_once` beside the run)."""
    return median(record["tokens_per_second"] for record in read_metrics(run.folder) if "loss" in record)


def exact_tokens_per_pass(study: Study, run: Run) -> float:
    """Tokens a pass in exact mode with four streams."""
    value: float = study.measure(run, exact_writing, streams=4)["tokens_per_pass"]
    return value


# ---- charts ----------------------------------------------------------------------------------------------------------


def svg(title: str, lines: dict[str, list[tuple[float, float]]], axes: tuple[str, str], **options: Any) -> str:
    """Lines by name, under their names, as a whole SVG file; options are those of `chart.drawing`."""
    series = [
        Series(name, finite_points(points), look(i), "circle" * (len(points) < 24))
        for i, (name, points) in enumerate(lines.items())
    ]
    drawn = drawing(title, ", ".join(lines), series, axes, **options)
    return picture([(title, drawn)], [(s.label, s.style, s.marks) for s in series])


def mean_curve(study: Study, name: str, order: str) -> list[tuple[float, float]]:
    """Million tokens against held-out nats per token, the mean over the seeds that got as far."""
    curves = [run.curve() for run in study.runs(name)]
    points = []
    for at in zip(*curves, strict=False):
        values = [valid[order] for _, valid in at if order in valid]
        if len(values) == len(curves):
            points.append((at[0][0] / 1e6, sum(values) / len(values)))
    return points
