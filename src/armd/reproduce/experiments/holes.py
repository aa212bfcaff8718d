"""Our own question: what the text after a hole tells, and what filling several holes at once saves."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import torch

from armd.baselines import Denoiser
from armd.checkpoint import ARCHITECTURES
from armd.decode import generate
from armd.errors import UserError
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
from armd.train import TrainConfig

SIZES = {4: 512, 16: 128, 64: 64}
"""Tokens of a hole in the middle of a text -> texts."""
HOLES, HOLE, FILLED = (1, 4, 8, 16), 8, 8
"""Holes of a text that are filled at once, tokens of each, and texts."""
WINDOWS, MISSING = 256, 3
"""Texts that are looked through for five whole sentences, and the sentence that is taken out."""
SENTENCE_END = re.compile(
    r"""(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?:(?<=[.!?])|(?<=[.!?]["\u201d\u2019']))\s+(?=\W?[A-Z])"""
)

OURS, LONG, SHORT = "ARMD", "ARMD, a fifth one hole", "ARMD, a fifth short holes"
LEFT = ("AR", "AR + prefix")
MASKED = "MDLM + prefix"
COST = 1.02


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    found = {
        **{name: baselines(config)[name] for name in LEFT},
        OURS: Model(config),
        LONG: Model(_with_a_fifth(config, "infill")),
        SHORT: Model(_with_a_fifth(config, "spans:16")),
        MASKED: Model(for_architecture(config, "mdlm+prefix")),
    }
    return found if setting.scale == "paper" else {**found, PATIENT: patient(config)}


def _with_a_fifth(config: TrainConfig, family: str) -> TrainConfig:
    return replace(config, orders=replace(config.orders, floors={**config.orders.floors, family: 0.2}))


# ---- what is measured ------------------------------------------------------------------------------------------------


def hole_nats(study: Study, run: Run, *, size: int, after: bool, texts: int) -> list[float]:
    """Mean nats of each token of a hole in the middle, written left to right; with `after`, knowing what follows."""
    model, _ = run.load()
    dataset, batch, found = study.dataset(run, texts), 16, []
    start, texts = (dataset.length - size) // 2, dataset.eval_windows()
    order = hole_order(range(start, start + size), dataset.length, after, at_once=isinstance(model, Denoiser))
    with model.evaluating(), torch.inference_mode():
        for first in range(0, texts, batch):
            tokens = dataset.eval_batch(first, min(batch, texts - first)).to(model.device)
            nats = nll(model, tokens, Order.concatenate([order] * len(tokens)))
            found.append(nats[:, start : start + size].double().cpu())
    by_place: list[float] = torch.cat(found).mean(dim=0).tolist()
    return by_place


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


def stories(study: Study, run: Run, *, missing: int, windows: int) -> dict[str, Any] | None:
    """ROUGE of one of five sentences, the likeliest token at each place: the protocol of `armd evaluate stories`.

    None where the held-out texts have no story.
    """
    model, tokenizer = run.load()
    assert isinstance(model, Armd)
    dataset = study.dataset(run, windows)
    rows = dataset.eval_batch(0, dataset.eval_windows()).tolist()
    texts = [tokenizer.decode(until_end(row, model.config.eos_token_id)) for row in rows]
    found = [story for text in texts if (story := first_story(text))]
    if not found:
        return None
    filled = asdict(infill_stories(model, tokenizer, found, missing=(missing,)))
    copied = fmean(100 * rouge_l(story[missing - 2], story[missing - 1]) for story in found)
    return {key: filled[key] for key in ("stories", "rouge_1", "rouge_2", "rouge_l")} | {"copied": copied}


def first_story(text: str) -> Story | None:
    """The first five whole sentences of a window of text, whose own first and last sentences may be cut."""
    sentences = SENTENCE_END.split(text)[1:-1]
    return tuple(sentences[:SENTENCES]) if len(sentences) >= SENTENCES else None


def holes_at_once(study: Study, run: Run, *, holes: int, size: int, texts: int) -> dict[str, Any]:
    """Texts with several holes filled by mode exact and one token at a time."""
    model, _ = run.load()
    assert isinstance(model, Armd)
    dataset = study.dataset(run, texts)
    texts = dataset.eval_windows()
    template = dataset.eval_batch(0, texts)
    for hole in places(holes, size, dataset.length):
        template[:, hole.start : hole.stop] = -1
    exact, one = (
        generate(model, template=template, batch_size=texts, mode=mode, seed=0) for mode in ("exact", "sequential")
    )
    return {
        "tokens_per_pass": exact.tokens_per_pass,
        "sequential": one.tokens_per_pass,
        "equal": int((exact.tokens == one.tokens).all(dim=1).sum()),
        "texts": texts,
    }


def places(holes: int, size: int, length: int) -> list[range]:
    """Holes at equal distances."""
    gap = (length - holes * size) // (holes + 1)
    if gap < 1:
        raise UserError(f"{holes} holes of {size} tokens do not fit apart into {length}")
    return [range(start, start + size) for start in range(gap, gap + holes * (gap + size), gap + size)]


# ---- the section -----------------------------------------------------------------------------------------------------

ByPlace = dict[tuple[str, int, bool], dict[int, list[float]]]
"""(model, tokens of the hole, whether what follows is known) -> seed -> nats by place in the hole."""


def report(study: Study) -> Section:
    found: ByPlace = {
        (name, size, after): {
            run.seed: study.measure(run, hole_nats, size=size, after=after, texts=texts) for run in runs
        }
        for name in study.names
        if (runs := study.runs(name))
        for size, texts in SIZES.items()
        for after in _sides(runs[0])
    }
    filled = {holes: study.values(SHORT, holes_at_once, holes=holes, size=HOLE, texts=FILLED) for holes in HOLES}
    tables = [_likelihoods(study, found), _gains(study, found), _stories(study), _at_once(filled)]
    return Section("", tables, [_figure(found)], _targets(study, found, filled))


def _sides(run: Run) -> list[bool]:
    """What a model may know of the text after a hole: an autoregressive one nothing, masked diffusion reads it all."""
    architecture = ARCHITECTURES[run.config.architecture]
    return [False] * (not issubclass(architecture, Denoiser)) + [True] * architecture.any_order


def _nats(found: ByPlace, name: str, size: int, after: bool) -> dict[int, float]:
    """Nats per token of a hole, by seed."""
    return {seed: fmean(by_place) for seed, by_place in found.get((name, size, after), {}).items()}


def _likelihoods(study: Study, found: ByPlace) -> Table:
    columns = [(size, after) for size in SIZES for after in (False, True)]
    rows = [
        [called(study, name), *(spread(list(_nats(found, name, *column).values()), ".3f") for column in columns)]
        for name in study.names
        if study.runs(name)
    ]
    notes = (
        f"nats per token of a hole in the middle of {', '.join(map(str, SIZES.values()))} held-out texts, by size, at "
        "equal distances; it is written left to right, knowing the text before it, or that on both sides",
        f"{LONG}: in a fifth of the steps one span of up to half the text is written last; {SHORT}: in a fifth half of "
        f"the text, in holes of up to 16 tokens; else both as {OURS}",
    )
    heads = [f"{size} tokens, {'both sides' if after else 'text before'}" for size, after in columns]
    return Table("What a hole holds", ("model", *heads), rows, notes)


def _gains(study: Study, found: ByPlace) -> Table:
    rows = []
    for name in filter(study.runs, (OURS, LONG, SHORT)):
        cells = []
        for size in SIZES:
            before, both = (found[name, size, after] for after in (False, True))
            cells.append([fmean(before[seed]) - fmean(both[seed]) for seed in both])
            cells.append([before[seed][-1] - both[seed][-1] for seed in both])
        rows.append([name, *(spread(cell, ".3f") for cell in cells)])
    heads = [f"{size} tokens{which}" for size in SIZES for which in ("", ", the last")]
    note = "nats per token by which knowing the text after the hole is better, for all of its tokens and for the last"
    return Table("What the text after a hole tells", ("model", *heads), rows, (note,))


def _stories(study: Study) -> Table:
    rows, told = [], dict[str, None]()
    for name in (OURS, LONG, SHORT):
        found = [each for each in study.values(name, stories, missing=MISSING, windows=WINDOWS) if each]
        rows.append([name, *(spread([each[f"rouge_{n}"] for each in found], ".2f") for n in (1, 2, "l"))])
        told |= {f"{each['stories']} of them; the sentence before, copied, has ROUGE-L {each['copied']:.2f}": None
                 for each in found}  # fmt: skip
    note = (
        f"sentence {MISSING} of the first {SENTENCES} whole ones of those of {WINDOWS} held-out texts that have so "
        "many; its number of tokens is given; the likeliest token at every place"
    )
    return Table("A sentence filled in", ("model", "ROUGE-1", "ROUGE-2", "ROUGE-L"), rows, (note, *told))


Filled = dict[int, list[dict[str, Any]]]
"""Holes of a text -> what `holes_at_once` found, seed by seed."""


def _at_once(filled: Filled) -> Table:
    rows = [
        [str(holes), *(spread([each[key] for each in found], ".2f") for key in ("tokens_per_pass", "sequential")),
         _equal(found)]
        for holes, found in filled.items()
    ]  # fmt: skip
    note = (
        f"{SHORT}; holes of {HOLE} tokens at equal distances, every one a stream; {FILLED} texts a seed at temperature "
        "1, the pass that reads the template counted; equal: token for token those of one token at a time"
    )
    return Table("Several holes at once", ("holes", "tokens a pass", "one at a time", "texts equal"), rows, (note,))


def _equal(found: list[dict[str, Any]]) -> str:
    return f"{sum(each['equal'] for each in found)} of {sum(each['texts'] for each in found)}"


def _figure(found: ByPlace) -> Figure:
    """Means over four neighbouring places each."""
    lines, size = {}, max(SIZES)
    for name, after in ((LEFT[1], False), (SHORT, False), (SHORT, True), (MASKED, True)):
        seeds = list(found.get((name, size, after), {}).values())
        if seeds:
            by_place = [fmean(at) for at in zip(*seeds, strict=True)]
            points = [(start + 2.5, fmean(by_place[start : start + 4])) for start in range(0, size, 4)]
            lines[f"{name}, {'both sides' if after else 'text before'}"] = points
    title = f"Loss by place in a hole of {size} tokens"
    return Figure(title, svg(title, lines, ("place in the hole", "nats/token")), "means of four neighbouring places")


def _targets(study: Study, found: ByPlace, filled: Filled) -> list[Target]:
    targets = [
        ratio_target(
            f"{SHORT}: perplexity of {size} tokens given both sides at most that of {LEFT[1]} given the text before",
            perplexity_ratios(_nats(found, SHORT, size, True), _nats(found, LEFT[1], size, False)),
            study.seeds,
            1.0,
        )
        for size in SIZES
    ]
    claim = f"{SHORT}: perplexity left to right at most {COST:g} times that of {OURS}"
    cost = perplexity_ratios(losses(study, SHORT), losses(study, OURS))
    every = [each for found in filled.values() for each in found]
    equal = all(each["equal"] == each["texts"] for each in every) if every else None
    return [
        *targets,
        ratio_target(claim, cost, study.seeds, COST),
        Target("holes filled at once equal those of one token at a time", f"{_equal(every)} texts", equal),
    ]


HOLES_FILLED = Experiment(
    "holes",
    "Filling holes",
    "What does a model gain from the text after a hole, what does training on holes buy and cost, and how many tokens "
    "does a pass write where a text has several holes?",
    models,
    report,
)
