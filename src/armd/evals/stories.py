"""Infilling of ROCStories (Mostafazadeh et al., 2016): a sentence of five is taken out, the model writes it anew.

Data: .csv with columns sentence1 .. sentence5, as the stories are published, or .jsonl with the same fields or with
"sentences", a list of five.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from armd.data import Tokenizer
from armd.errors import UserError
from armd.evals.protocol import Protocol, vocabulary
from armd.evals.quality import mean
from armd.evals.rouge import rouge_l, rouge_n
from armd.infill import Part, fill
from armd.model import Armd

SENTENCES = 5
FIELDS = [f"sentence{i}" for i in range(1, SENTENCES + 1)]

Story = tuple[str, ...]
Hole = tuple[int, int] | None
"""Least and most tokens; None: as many as the reference has, and so where no text follows that could tell."""


@dataclass(frozen=True)
class Stories:
    """Infilled stories.

    Attributes:
        rouge_1, rouge_2, rouge_l: F1 x 100 against the sentences that were taken out, mean over stories.
        too_long: stories left out as they do not fit into the model.
        fillings: the texts written, one a story.
    """

    stories: int
    rouge_1: float
    rouge_2: float
    rouge_l: float
    too_long: int
    fillings: list[str]
    protocol: Protocol


def read_stories(path: str | Path) -> list[Story]:
    """The stories of a file, five sentences each."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            records = list(csv.DictReader(io.StringIO(text)))
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        stories = [tuple(r["sentences"] if "sentences" in r else [r[name] for name in FIELDS]) for r in records]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is no .csv or .jsonl with {FIELDS[0]} .. {FIELDS[-1]}: {error!r}") from None
    for number, story in enumerate(stories, 1):
        if len(story) != SENTENCES or not all(isinstance(s, str) and s.strip() for s in story):
            raise UserError(f"{path} story {number} does not have {SENTENCES} sentences")
    if not stories:
        raise UserError(f"{path} holds no story")
    return [tuple(sentence.strip() for sentence in story) for story in stories]


def check_missing(missing: Sequence[int]) -> None:
    if not missing or not all(1 <= i <= SENTENCES for i in missing) or len(set(missing)) in (0, SENTENCES):
        raise UserError(f"missing={tuple(missing)} must name some, not all, of the sentences 1..{SENTENCES}")


def story_parts(story: Story, missing: Sequence[int], tokenizer: Tokenizer, hole: Hole) -> tuple[list[Part], list[str]]:
    """The story as parts for `infill.fill`, and the text taken out of each hole; neighbours share one hole."""
    runs: list[tuple[bool, str]] = []
    for number, sentence in enumerate(story, 1):
        gone, text = number in missing, (" " if number > 1 else "") + sentence
        if runs and runs[-1][0] == gone:
            runs[-1] = gone, runs[-1][1] + text
        else:
            runs.append((gone, text))
    parts: list[Part] = []
    for number, (gone, text) in enumerate(runs, 1):
        ids = tokenizer.encode(text)
        size = hole if hole and number < len(runs) else (len(ids), len(ids))
        parts.append(size if gone else ids)
    return parts, [text for gone, text in runs if gone]


def infill_stories(
    model: Armd,
    tokenizer: Tokenizer,
    stories: Sequence[Story],
    *,
    missing: Sequence[int] = (3,),
    hole: Hole = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    mode: str = "exact",
    seed: int = 0,
) -> Stories:
    """Write the missing sentences of every story, and compare them with the ones that were there."""
    check_missing(missing)
    limit, scores, fillings = model.config.max_position_embeddings, [], []
    for story in stories:
        parts, gone = story_parts(story, missing, tokenizer, hole)
        if sum(part[1] if isinstance(part, tuple) else len(part) for part in parts) > limit:
            continue
        filled = fill(model, parts, temperature=temperature, top_p=top_p, mode=mode, seed=seed)
        text = "".join(tokenizer.decode(filled.tokens[list(each)].tolist()) for each in filled.holes)
        wanted = "".join(gone)
        fillings.append(text)
        scores.append((rouge_n(text, wanted, 1), rouge_n(text, wanted, 2), rouge_l(text, wanted)))
    too_long = len(stories) - len(scores)
    if not scores:
        raise UserError(f"none of the {too_long} stories fits into the {limit} tokens of the model")
    rouge_1, rouge_2, rouge = (100 * mean(column) for column in zip(*scores, strict=True))
    size = (
        f"{hole[0]} to {hole[1]} tokens, the likeliest number where text follows"
        if hole
        else "as many tokens as the reference"
    )
    protocol = Protocol(
        task="ROCStories infilling",
        data=f"{len(scores):,} stories, sentences {', '.join(map(str, sorted(set(missing))))} of {SENTENCES} missing",
        text=f"{vocabulary(tokenizer)}; holes of {size}; one filling a story, mode {mode}, "
        f"temperature {temperature:g}, top-p {top_p:g}, seed {seed}",
        scoring="ROUGE-1, -2, -L: F1 x 100, lower case, letters and digits, no stemming, mean over stories",
        departures=(f"{too_long:,} stories longer than the model's {limit:,} tokens left out",) if too_long else (),
    )
    return Stories(len(scores), rouge_1, rouge_2, rouge, too_long, fillings, protocol)
