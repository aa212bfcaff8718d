"""Quality and diversity of written texts, and the frontier between them over temperatures.

Generative perplexity alone is easily fooled: a model that repeats itself scores well. So it is never given without the
entropy of the same texts, and one temperature says less than a frontier of several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from armd.chart import Series, drawing, finite_points, safe
from armd.data import Tokenizer
from armd.decode import generate
from armd.errors import UserError
from armd.evals.judge import Judge
from armd.evals.protocol import Protocol, vocabulary
from armd.model import Transformer
from armd.sampling import check_sampling

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555 } .head { font-weight: 600; font-size: 14px; fill: #111 }
.paper { fill: #fff } .grid { stroke: #ddd; fill: none } .marks { fill: currentColor } .s1 { color: #1f6feb }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round }
"""


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
    """How texts are written; the fields are those of `armd.generate`."""

    length: int
    streams: int = 1
    mode: str = "exact"
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    samples: int = 64
    rows: int | None = None


@dataclass(frozen=True)
class Quality:
    """Texts of one temperature.

    Attributes:
        tokens: written, in the writer's vocabulary, up to the first end of text.
        judged: tokens that the evaluator scored, in its vocabulary.
        generative_perplexity: exp of the evaluator's mean nats over all judged tokens.
        perplexity_by_text: mean over texts of exp of a text's mean nats: the other convention, larger by Jensen.
        entropy: nats, of the token counts of one text, mean over texts.
        repetition: share of 4-grams that repeat one of the same text, mean over texts.
        distinct: distinct 1-, 2- and 3-grams over all texts, divided by all.
        tokens_per_pass: tokens a text gained in a pass.
        texts: what was written.
    """

    temperature: float
    tokens: int
    judged: int
    generative_perplexity: float
    perplexity_by_text: float
    entropy: float
    repetition: float
    distinct: tuple[float, float, float]
    tokens_per_pass: float
    texts: list[str] = field(repr=False)


def write_and_judge(
    model: Transformer, tokenizer: Tokenizer, judge: Judge, writing: Writing, temperature: float
) -> Quality:
    """Write texts at one temperature and measure them. Texts of the same seed share their noise."""
    options = {name: getattr(writing, name) for name in ("length", "streams", "mode", "top_k", "top_p", "seed", "rows")}
    out = generate(model, temperature=temperature, batch_size=writing.samples, **options)
    eos = model.config.eos_token_id
    rows = [row[:n].tolist() for row, n in zip(out.tokens, out.lengths.tolist(), strict=True)]
    rows = [row[:-1] if row[-1] == eos else row for row in rows]
    texts = [tokenizer.decode(row) for row in rows]
    nats = judge.nats(texts)
    judged = sum(len(each) for each in nats)
    total = sum(each.sum().item() for each in nats)
    return Quality(
        temperature=temperature,
        tokens=sum(map(len, rows)),
        judged=judged,
        generative_perplexity=_exp(total / judged) if judged else math.nan,
        perplexity_by_text=mean(_exp(each.mean().item()) for each in nats if len(each)),
        entropy=mean(map(entropy, rows)),
        repetition=mean(map(repetition, rows)),
        distinct=(distinct(rows, 1), distinct(rows, 2), distinct(rows, 3)),
        tokens_per_pass=out.tokens_per_pass,
        texts=texts,
    )


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def quality_protocol(judge: Judge, writing: Writing, tokenizer: Tokenizer) -> Protocol:
    """The terms of the numbers of `write_and_judge`."""
    w, gpt2_large = writing, "gpt2-large" in judge.name
    departures = ["another evaluator than gpt2-large"] * (not gpt2_large)
    departures += [f"texts of {w.length:,} tokens instead of 1,024"] * (w.length != 1024)
    first = "the first token of a window given" if judge.first else "every token scored"
    return Protocol(
        task=f"generative perplexity under {judge.name}",
        data=f"{w.samples:,} texts a row of at most {w.length:,} tokens, no prompt, seed {w.seed}, none redrawn",
        text=f"mode {w.mode}, streams {w.streams}, top-k {w.top_k}, top-p {w.top_p:g}, float64 noise, cut at the first "
        f"end of text, decoded and tokenized anew by the evaluator (windows of {judge.window:,} without overlap, "
        f"{first})",
        scoring=f"perplexity: mean over tokens, and mean over texts of exp; entropy: nats of a text's token counts "
        f"({vocabulary(tokenizer)}); repetition: 4-grams; distinct: all texts together",
        departures=tuple(departures),
    )


# ---- the frontier ----------------------------------------------------------------------------------------------------


def check_temperatures(temperatures: Sequence[float]) -> None:
    if not temperatures:
        raise UserError("temperatures is empty; give one or more, such as 0.8 1.0")
    for temperature in temperatures:
        check_sampling(temperature, 0, 1.0)


def frontier(
    model: Transformer, tokenizer: Tokenizer, judge: Judge, writing: Writing, temperatures: Sequence[float]
) -> Iterator[Quality]:
    """Quality at every temperature, yielded as soon as it is there."""
    check_temperatures(temperatures)
    for temperature in temperatures:
        yield write_and_judge(model, tokenizer, judge, writing, temperature)


def plot(rows: Sequence[Quality], protocol: Protocol) -> str:
    """Generative perplexity against entropy, a mark a temperature, as a whole SVG file."""
    points = finite_points((row.entropy, row.generative_perplexity) for row in rows)
    told = "; ".join(
        f"temperature {r.temperature:g}: perplexity {r.generative_perplexity:.4g}, entropy {r.entropy:.3g}"
        for r in rows
    )
    line = Series("temperatures " + ", ".join(f"{r.temperature:g}" for r in rows), points, "s1", "circle")
    drawn = drawing("Frontier", told, [line], ("entropy, nats", "generative perplexity"), log_y=True)
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 330 250" width="660">',
            f"<desc>{safe(protocol.line)}</desc>",
            f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>',
            '<text x="12" y="20" class="head">Quality against diversity, by temperature</text>',
            f'<svg x="10" y="34" width="310" height="208" viewBox="0 0 310 208">{drawn}</svg>',
            "</svg>\n",
        ]
    )
