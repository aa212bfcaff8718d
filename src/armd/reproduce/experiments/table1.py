"""The paper's table of zero-shot perplexities."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from armd.evals import last_words, read_set
from armd.presets import paper_medium, paper_small
from armd.reproduce.bases import armd, as_in_the_paper, baselines
from armd.reproduce.experiment import Experiment, Model, Section, Setting, Table
from armd.reproduce.measures import called, zero_shot_scores
from armd.reproduce.page import spread
from armd.reproduce.paper import ZERO_SHOT_MEDIUM, ZERO_SHOT_SETS, ZERO_SHOT_SMALL
from armd.reproduce.study import Run, Study

ORDER = dict.fromkeys(("MDLM", "BD3-LM 16", "BD3-LM 4"), "bound:8")
TEXTS = {"small": 128, "medium": 1024, "paper": None}
"""Chunks of a set that are scored, by scale; None: all."""
PASSAGES = {"small": 256, "medium": 1024, "paper": None}
"""Passages of LAMBADA whose last word is asked for; masked diffusion takes a pass a token for each."""


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    found = {"ARMD": Model(config), "ARMD, as in the paper": Model(as_in_the_paper(config)), **baselines(config)}
    return found | (_more_of_the_paper(setting) if setting.scale == "paper" else {})


def _more_of_the_paper(setting: Setting) -> dict[str, Model]:
    """The other ARMD models of its table, whose schedules end long before they do."""
    small, medium = (preset(setting.vocab_size, setting.eos_id) for preset in (paper_small, paper_medium))
    return {
        "ARMD, 400K iterations": Model(replace(small, max_steps=400_000)),
        "ARMD medium": Model(medium),
        "ARMD medium, 300K iterations": Model(replace(medium, max_steps=300_000)),
    }


def last_word(study: Study, run: Run, *, content: str, passages: int | None) -> dict[str, Any]:
    """Whether the model knows the last words of LAMBADA, whose files have the hash `content`."""
    model, tokenizer = run.load()
    found = last_words(model, tokenizer, list(read_set("lambada", None, study.sets))[:passages])
    return {**asdict(found), "protocol": found.protocol.line}


def report(study: Study) -> Section:
    sets = _sets(study)
    found = {
        name: {
            data: study.values(
                name,
                zero_shot_scores,
                data=data,
                order=ORDER.get(name, "left_to_right"),
                content=content,
                texts=TEXTS[study.scale],
            )
            for data, content in sets.items()
        }
        for name in study.names
    }
    by_word = {
        called(study, name): [spread([each["word_perplexity"] for each in by_set[data]], ",.0f") for data in sets]
        for name, by_set in found.items()
    }
    by_byte = {
        called(study, name): [spread([each["bits_per_byte"] for each in by_set[data]], ".3f") for data in sets]
        for name, by_set in found.items()
    }
    terms = list(dict.fromkeys(each["protocol"] for by in found.values() for data in sets for each in by[data]))
    absent = [name for name in ZERO_SHOT_SETS if name not in sets]
    bounds = "MDLM and BD3-LM: the bound over 8 times a text; all others: left to right"
    notes = [*terms, bounds, *[f"not at hand, so not measured: {', '.join(absent)}"] * bool(absent)]
    return Section(
        "Ours are models of the stated scale with their own tokenizer, so only perplexities of words and bits a byte "
        "compare between tokenizers, and none of them with the paper's perplexities of GPT-2 tokens.",
        [
            *(
                [
                    Table("Ours: perplexity of a word", ("model", *sets), _rows(by_word), notes),
                    Table("Ours: bits per byte", ("model", *sets), _rows(by_byte)),
                    *[_last_words(study, sets["lambada"])] * ("lambada" in sets),
                ]
                if sets
                else []
            ),
            _published("The paper, small: perplexity of a GPT-2 token", ZERO_SHOT_SMALL),
            _published("The paper, medium: perplexity of a GPT-2 token", ZERO_SHOT_MEDIUM),
        ],
    )


def _last_words(study: Study, content: str) -> Table:
    rows, terms = [], dict[str, None]()
    for name in study.names:
        found = study.values(name, last_word, content=content, passages=PASSAGES[study.scale])
        accuracy = spread([100 * each["accuracy"] for each in found], ".1f")
        rows.append([called(study, name), accuracy, spread([each["perplexity"] for each in found], ",.0f")])
        terms |= dict.fromkeys(each["protocol"] for each in found)
    columns = ("model", "right, per cent", "perplexity of the word")
    return Table("Ours: the last word of LAMBADA's passages", columns, rows, tuple(terms))


def _sets(study: Study) -> dict[str, str]:
    """The sets whose files are there, with a hash of these."""
    if study.sets is None:
        return {}
    folders = {re.sub("[-_]", "", path.name.lower()): path for path in study.sets.iterdir() if path.is_dir()}
    return {name: _digest(folders[plain]) for name in ZERO_SHOT_SETS if (plain := name.replace("_", "")) in folders}


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def _rows(cells: Mapping[str, list[str]]) -> list[list[str]]:
    return [[name, *values] for name, values in cells.items()]


def _published(title: str, numbers: Mapping[str, Sequence[Any]]) -> Table:
    return Table(
        title, ("model", *ZERO_SHOT_SETS), _rows({name: [f"{v:.2f}" for v in row] for name, row in numbers.items()})
    )


TABLE1 = Experiment(
    "table1",
    "Zero-shot perplexity (the paper's Table 1)",
    "How well do the models of the first experiment read texts that were gathered for other purposes?",
    models,
    report,
)
