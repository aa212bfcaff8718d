"""Quality and diversity of written texts, and the frontier between them over temperatures.

Generative perplexity alone is easily fooled: a model that repeats itself scores well. So it is never given without the
entropy of the same texts, and one temperature says less than a frontier of several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from armd.baselines import Denoiser, denoising
from armd.chart import MARKS, Series, drawing, finite_points, look, picture
from armd.data import Tokenizer
from armd.decode import collect, stream
from armd.errors import UserError
from armd.evals.judge import Judge
from armd.evals.mauve import Human, mauve, until_end
from armd.evals.protocol import Protocol, vocabulary
from armd.model import Transformer
from armd.request import Request, make_request
from armd.sampling import check_sampling
from armd.writer import Event

# ---- measures of token rows ------------------------------------------------------------------------------------------


def entropy(tokens: Sequence[int]) -> float:
    """Entropy of the token counts of one text, in nats: at most log of its length. 0 for an empty text."""
    counts = Counter(tokens).values()
    return -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts) if tokens else 0.0


def ngrams(tokens: Sequence[Any], n: int) -> Iterator[tuple[Any, ...]]:
    """The runs of n tokens, one for every place they start at."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams of one text that were there before (seq-rep-n, Welleck et al., 2020); nan if it has none."""
    runs = list(ngrams(tokens, n))
    return 1 - len(set(runs)) / len(runs) if runs else math.nan


def distinct(texts: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all texts, divided by all n-grams (Li et al., 2016); nan if there are none."""
    runs = [run for tokens in texts for run in ngrams(tokens, n)]
    return len(set(runs)) / len(runs) if runs else math.nan


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; nan if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# ---- one temperature -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writing:
    """How texts are written.

    Attributes:
        streams, mode: as of `armd.generate`; masked and block diffusion have none.
        steps, schedule: as of `armd.denoise`, for masked and block diffusion only.
        length, top_k, top_p, seed, rows: as of both.
        samples: texts at each temperature.
    """

    length: int
    streams: int = 1
    mode: str = "exact"
    steps: int | None = None
    schedule: str = "even"
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    samples: int = 64
    rows: int | None = None

    def start(self, model: Transformer, temperature: float) -> tuple[Request, Iterator[Event]]:
        """What is to be written, checked, and the passes that write it: an armd model's or a denoiser's."""
        shared = {name: getattr(self, name) for name in ("length", "top_k", "top_p", "seed")}
        shared.update(temperature=temperature, batch_size=self.samples)
        if isinstance(model, Denoiser):
            request = make_request(model, **shared)
            return request, denoising(model, request, self.steps, self.schedule, rows=self.rows)
        request = make_request(model, streams=self.streams, mode=self.mode, **shared)
        return request, stream(model, request, self.rows)

    def words(self, model: Transformer) -> str:
        """How a model writes, for a protocol."""
        if not isinstance(model, Denoiser):
            return f"mode {self.mode}, streams {self.streams}"
        size = min(model.noise_block(model.config) or self.length, self.length)
        place = f"blocks of {size:,}, each in " if size < self.length else ""
        steps = f"{self.steps or size:,} steps of the {self.schedule} schedule"
        return f"{place}{steps}" + ", idle ones skipped" * (self.schedule == "ancestral")


@dataclass(frozen=True)
class Judged:
    """Texts, whoever wrote them.

    Attributes:
        tokens: in the writer's vocabulary, up to the first end of text.
        judged: tokens that the evaluator scored, in its vocabulary.
        generative_perplexity: exp of the evaluator's mean nats over all judged tokens.
        perplexity_by_text: mean over texts of exp of a text's mean nats: the other convention, larger by Jensen.
        entropy: nats, of the token counts of one text, mean over texts.
        repetition: share of 4-grams that repeat one of the same text, mean over texts.
        distinct: distinct 1-, 2- and 3-grams over all texts, divided by all.
        texts: the texts.
    """

    tokens: int
    judged: int
    generative_perplexity: float
    perplexity_by_text: float
    entropy: float
    repetition: float
    distinct: tuple[float, float, float]
    texts: list[str] = field(repr=False)


@dataclass(frozen=True)
class Quality(Judged):
    """Texts that a model wrote at one temperature.

    Attributes:
        forward_passes: passes of the network that were really made, each over the texts written at once.
        passes: those a text took part in (masked and block diffusion: that wrote a token of it), mean over texts.
        tokens_per_pass: tokens a text gained in such a pass.
        mauve: closeness to texts of people; None if there were none to compare with.
    """

    temperature: float
    forward_passes: int
    passes: float
    tokens_per_pass: float
    mauve: float | None


def judge_texts(rows: Iterable[list[int]], eos: int | None, tokenizer: Tokenizer, judge: Judge) -> Judged:
    """Measure texts of token ids, each before its first `eos`."""
    rows = [until_end(row, eos) for row in rows]
    texts = [tokenizer.decode(row) for row in rows]
    nats = judge.nats(texts)
    judged = sum(len(each) for each in nats)
    total = sum(each.sum().item() for each in nats)
    return Judged(
        tokens=sum(map(len, rows)),
        judged=judged,
        generative_perplexity=_exp(total / judged) if judged else math.nan,
        perplexity_by_text=mean(_exp(each.mean().item()) for each in nats if len(each)),
        entropy=mean(map(entropy, rows)),
        repetition=mean(map(repetition, rows)),
        distinct=(distinct(rows, 1), distinct(rows, 2), distinct(rows, 3)),
        texts=texts,
    )


def write_and_judge(
    model: Transformer,
    tokenizer: Tokenizer,
    judge: Judge,
    writing: Writing,
    temperature: float,
    human: Human | None = None,
) -> Quality:
    """Write texts at one temperature and measure them. Texts of the same seed share their noise."""
    out = collect(*writing.start(model, temperature))
    rows = [row[:n].tolist() for row, n in zip(out.tokens, out.lengths.tolist(), strict=True)]
    judged = judge_texts(rows, model.config.eos_token_id, tokenizer, judge)
    return Quality(
        **vars(judged),
        temperature=temperature,
        forward_passes=out.forward_passes,
        passes=out.passes.double().mean().item(),
        tokens_per_pass=out.tokens_per_pass,
        mauve=None if human is None else mauve(human.points, judge.points(judged.texts)),
    )


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def quality_protocol(
    model: Transformer, tokenizer: Tokenizer, judge: Judge, writing: Writing, human: Human | None = None
) -> Protocol:
    """The terms of the numbers of `write_and_judge`."""
    w = writing
    departures = ["another evaluator than gpt2-large"] * (not judge.is_gpt2_large)
    departures += [f"texts of {w.length:,} tokens instead of 1,024"] * (w.length != 1024)
    departures += ["MAUVE of fewer than 5,000 texts"] * (human is not None and min(w.samples, len(human.points)) < 5000)
    first = "the first token of a window given" if judge.first else "every token scored"
    return Protocol(
        task=f"generative perplexity under {judge.name}",
        data=f"{w.samples:,} texts a row of at most {w.length:,} tokens, no prompt, seed {w.seed}, none redrawn",
        text=f"{w.words(model)}, top-k {w.top_k}, top-p {w.top_p:g}, float64 noise, cut at the first "
        f"end of text, decoded and tokenized anew by the evaluator (windows of {judge.window:,} without overlap, "
        f"{first})",
        scoring=f"perplexity: mean over tokens, and mean over texts of exp; entropy: nats of a text's token counts "
        f"({vocabulary(tokenizer)}); repetition: 4-grams; distinct: all texts together"
        + ("" if human is None else f"; {human.words(judge, w.samples)}"),
        departures=tuple(departures),
    )


# ---- the frontier ----------------------------------------------------------------------------------------------------


def check_temperatures(temperatures: Sequence[float]) -> None:
    if not temperatures:
        raise UserError("temperatures is empty; give one or more, such as 0.8 1.0")
    for temperature in temperatures:
        check_sampling(temperature, 0, 1.0)


def frontier(
    model: Transformer,
    tokenizer: Tokenizer,
    judge: Judge,
    writing: Writing,
    temperatures: Sequence[float],
    human: Human | None = None,
) -> Iterator[Quality]:
    """Quality at every temperature, yielded as soon as it is there."""
    check_temperatures(temperatures)
    for temperature in temperatures:
        yield write_and_judge(model, tokenizer, judge, writing, temperature, human)


def plot(series: Mapping[str, Sequence[Quality]], *protocols: Protocol) -> str:
    """Generative perplexity against entropy, a line a writer and a mark a temperature, as a whole SVG file.

    Args:
        series: name of a writer -> its rows; names are shown where there are several.
        protocols: the terms of the numbers, one for all writers or one each.
    """
    several, lines, told = len(series) > 1, [], []
    for i, (name, rows) in enumerate(series.items()):
        points = finite_points((row.entropy, row.generative_perplexity) for row in rows)
        label = f"{name}, " * several + "temperatures " + ", ".join(f"{row.temperature:g}" for row in rows)
        lines.append(Series(label, points, look(i), list(MARKS)[i % len(MARKS)]))
        told += [
            f"{name}, " * several
            + f"temperature {r.temperature:g}: perplexity {r.generative_perplexity:.4g}, entropy {r.entropy:.3g}"
            for r in rows
        ]
    drawn = drawing("Frontier", "; ".join(told), lines, ("entropy, nats", "generative perplexity"), log_y=True)
    names = [(name, line.style, line.marks) for name, line in zip(series, lines, strict=True)] if several else []
    title = "Quality against diversity, by temperature"
    return picture([(title, drawn)], names, "\n".join(protocol.line for protocol in protocols))
