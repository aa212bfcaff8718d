"""Our own question: what the text after a hole is worth, and what filling several holes at once saves."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import torch

from armd.baselines import Denoiser
from armd.checkpoint import ARCHITECTURES
from armd.decode import generate
from armd.evals.mauve import until_end
from armd.evals.rouge import rouge_l
from armd.evals.stories import SENTENCES, Story, infill_stories
from armd.model import Armd
from armd.objective import nll
from armd.orders import Order
from armd.presets import for_architecture
from armd.reproduce.bases import PATIENT, armd, baselines, patient
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import called, losses, perplexity_ratios, ratio_target, svg
from armd.reproduce.page import spread
from armd.reproduce.study import Run, Study

SIZES = {4: 256, 16: 128, 64: 64}
"""Tokens of a hole in the middle of a text -> texts."""
STORIES, FILLED = 128, 8
"""Texts of which a sentence is filled in, and texts of which several holes are."""
HOLES, HOLE = (1, 4, 8, 16), 8
"""Holes of a text that are filled at once, and tokens of each."""

OURS, FILLER, MASKED = "ARMD", "ARMD, a fifth of holes", "MDLM + prefix"
LEFT = ("AR", "AR + prefix")
BOTH = (OURS, FILLER, MASKED, PATIENT)
COST = 1.02


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    trained_on_holes = replace(config.orders, floors={**config.orders.floors, "infill": 0.2})
    return {
        **{name: baselines(config)[name] for name in LEFT},
        OURS: Model(config),
        FILLER: Model(replace(config, orders=trained_on_holes)),
        MASKED: Model(for_architecture(config, "mdlm+prefix")),
        PATIENT: patient(config),
    }


# ---- what is measured ------------------------------------------------------------------------------------------------


def hole_nats(study: Study, run: Run, *, size: int, after: bool) -> list[float]:
    """Mean nats of each token of a hole in the middle, written left to right; with `after`, knowing what follows."""
    model, _ = run.load()
    dataset, batch = study.dataset(run, SIZES[size]), 16
    start = (dataset.length - size) // 2
    order = hole_order(range(start, start + size), dataset.length, after, at_once=isinstance(model, Denoiser))
    texts, found = min(SIZES[size], dataset.eval_windows()), []
    with model.evaluating(), torch.inference_mode():
        for first in range(0, texts, batch):
            tokens = dataset.eval_batch(first, min(batch, texts - first)).to(model.device)
            every = nll(model, tokens, Order.concatenate([order] * len(tokens)))
            found.append(every[:, start : start + size].cpu())
    nats: list[float] = torch.cat(found).double().mean(dim=0).tolist()
    return nats


def hole_order(hole: range, length: int, after: bool, at_once: bool) -> Order:
    """The order of one text: what is known first, then the hole, then the rest.

    With `at_once` what is known is one block, and so is the rest: masked diffusion, which does not care in which order
    evidence came, takes a pass a block.
    """
    outside = [place for place in range(length) if place not in hole]
    known = [place for place in outside if after or place < hole.start]
    rest = outside[len(known) :]
    sizes = [len(known), *[1] * len(hole), *[len(rest)] * bool(rest)] if at_once else [1] * length
    blocks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return Order(torch.tensor([[*known, *hole, *rest]]), blocks[None])


def holes_at_once(study: Study, run: Run, *, holes: int, size: int = HOLE, texts: int = FILLED) -> dict[str, Any]:
    """Texts with several holes, at equal distances, filled by mode exact and one token at a time."""
    model, _ = run.load()
    assert isinstance(model, Armd)
    template = study.dataset(run, texts).eval_batch(0, texts).clone()
    gap = (template.shape[1] - holes * size) // (holes + 1)
    for number in range(holes):
        start = (number + 1) * gap + number * size
        template[:, start : start + size] = -1
    exact, one = (
        generate(model, template=template, batch_size=texts, mode=mode, seed=0) for mode in ("exact", "sequential")
    )
    return {
        "tokens_per_pass": exact.tokens_per_pass,
        "sequential": one.tokens_per_pass,
        "equal": int((exact.tokens == one.tokens).all(dim=1).sum()),
        "texts": texts,
    }


def stories(study: Study, run: Run, *, missing: int = 3, count: int = STORIES) -> dict[str, Any] | None:
    """ROUGE of one of five sentences, the likeliest token at each place: the protocol of `armd evaluate stories`.

    None where the held-out texts have no story.
    """
    model, tokenizer = run.load()
    assert isinstance(model, Armd)
    dataset = study.dataset(run, 2 * count)
    rows = dataset.eval_batch(0, min(2 * count, dataset.eval_windows())).tolist()
    texts = [tokenizer.decode(until_end(row, model.config.eos_token_id)) for row in rows]
    found = [story for text in texts if (story := first_story(text))][:count]
    if not found:
        return None
    filled = asdict(infill_stories(model, tokenizer, found, missing=(missing,)))
    copied = fmean(100 * rouge_l(story[missing - 2], story[missing - 1]) for story in found)
    return {key: filled[key] for key in ("stories", "rouge_1", "rouge_2", "rouge_l")} | {"copied": copied}


def first_story(text: str) -> Story | None:
    """The first five whole sentences of a window of text, whose own first and last sentences may be cut."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)[1:-1]
    return tuple(sentences[:SENTENCES]) if len(sentences) >= SENTENCES else None


# ---- the section -----------------------------------------------------------------------------------------------------


def report(study: Study) -> Section:
    by_place = {
        (name, size, after): {run.seed: study.measure(run, hole_nats, size=size, after=after) for run in runs}
        for name in study.names
        if (runs := study.runs(name))
        for size in SIZES
        for after in _sides(runs[0])
    }
    nats = {key: {seed: fmean(places) for seed, places in by_seed.items()} for key, by_seed in by_place.items()}
    return Section("", [_likelihoods(study, nats), _stories(study), _at_once(study)], [_figure(by_place)],
                   _targets(study, nats))  # fmt: skip


def _sides(run: Run) -> list[bool]:
    """What a model may know of the text after a hole: an autoregressive one nothing, masked diffusion reads it all."""
    architecture = ARCHITECTURES[run.config.architecture]
    return [False] * (not issubclass(architecture, Denoiser)) + [True] * architecture.any_order


Nats = dict[tuple[str, int, bool], dict[int, float]]


def _likelihoods(study: Study, nats: Nats) -> Table:
    rows = [
        [called(study, name)]
        + [spread(list(nats.get((name, size, after), {}).values()), ".3f") for size in SIZES for after in (False, True)]
        for name in study.names
        if study.runs(name)
    ]
    columns = [
        f"{size} tokens, {'both sides' if after else 'text before'}" for size in SIZES for after in (False, True)
    ]
    notes = (
        f"nats per token of a hole in the middle of {', '.join(map(str, SIZES.values()))} held-out texts, by size, at "
        "equal distances; it is written left to right, knowing the text before it, or that on both sides",
        f"{FILLER}: {OURS}'s orders, but in a fifth of the steps one span of up to half the text is written last",
    )
    return Table("What a hole holds", ("model", *columns), rows, notes)


def _stories(study: Study) -> Table:
    rows, copied = [], []
    for name in (OURS, FILLER):
        found = [each for each in study.values(name, stories) if each]
        keys = ("rouge_1", "rouge_2", "rouge_l")
        rows.append([name, *(spread([each[key] for each in found], ".2f") for key in keys)])
        copied += [each["copied"] for each in found]
    notes = (
        f"the third of five sentences, of up to {STORIES} runs of whole sentences from held-out texts; its number of "
        "tokens is given; at every place the likeliest token",
        *[f"the second sentence in its place has ROUGE-L {fmean(copied):.2f}" for _ in copied[:1]],
    )
    return Table("A sentence filled in", ("model", "ROUGE-1", "ROUGE-2", "ROUGE-L"), rows, notes)


def _at_once(study: Study) -> Table:
    rows = []
    for holes in HOLES:
        found = study.values(FILLER, holes_at_once, holes=holes)
        speeds = (spread([each[key] for each in found], ".2f") for key in ("tokens_per_pass", "sequential"))
        rows.append([str(holes), *speeds, _equal(found)])
    notes = (
        f"{FILLER}; holes of {HOLE} tokens at equal distances, every one a stream; {FILLED} texts a seed at "
        "temperature 1, the pass that reads the template counted; equal: token for token those of one token at a time",
    )
    return Table("Several holes at once", ("holes", "tokens a pass", "one at a time", "texts equal"), rows, notes)


def _equal(found: list[dict[str, Any]]) -> str:
    return f"{sum(each['equal'] for each in found)} of {sum(each['texts'] for each in found)}"


def _figure(by_place: dict[tuple[str, int, bool], dict[int, list[float]]]) -> Figure:
    """Means over four neighbouring places each."""
    lines, size = {}, max(SIZES)
    for name, after in ((LEFT[1], False), (FILLER, False), (FILLER, True), (MASKED, True)):
        seeds = list(by_place.get((name, size, after), {}).values())
        if seeds:
            places = [fmean(at) for at in zip(*seeds, strict=True)]
            points = [(start + 2.5, fmean(places[start : start + 4])) for start in range(0, size, 4)]
            lines[f"{name}, {'both sides' if after else 'text before'}"] = points
    title = f"Loss by place in a hole of {size} tokens"
    return Figure(title, svg(title, lines, ("place in the hole", "nats/token")), "means of four neighbouring places")


def _targets(study: Study, nats: Nats) -> list[Target]:
    known = [
        ratio_target(
            f"{FILLER}: perplexity of {size} tokens given both sides at most that of {LEFT[1]} given the text before",
            perplexity_ratios(nats.get((FILLER, size, True), {}), nats.get((LEFT[1], size, False), {})),
            study.seeds,
            1.0,
        )
        for size in SIZES
    ]
    cost = perplexity_ratios(losses(study, FILLER), losses(study, OURS))
    dearer = f"{FILLER}: perplexity left to right at most {COST:g} times that of {OURS}"
    found = [each for holes in HOLES for each in study.values(FILLER, holes_at_once, holes=holes)]
    equal = all(each["equal"] == each["texts"] for each in found) if found else None
    return [
        *known,
        ratio_target(dearer, cost, study.seeds, COST),
        Target("holes filled at once equal those of one token at a time", f"{_equal(found)} texts", equal),
    ]  # fmt: skip


HOLES_FILLED = Experiment(
    "holes",
    "Filling holes",
    "How much does a model gain from the text after a hole, what does training on holes cost, and how many tokens does "
    "a pass write where a text has several holes?",
    models,
    report,
)
