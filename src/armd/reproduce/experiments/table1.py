"""The paper's table of zero-shot perplexities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from armd.reproduce.bases import armd, baselines
from armd.reproduce.experiment import Experiment, Model, Section, Setting, Table
from armd.reproduce.measures import main_order, zero_shot_scores
from armd.reproduce.page import spread
from armd.reproduce.paper import ZERO_SHOT_MEDIUM, ZERO_SHOT_SETS, ZERO_SHOT_SMALL
from armd.reproduce.study import Study

NAMES = ("ARMD", "AR", "AR + prefix", "MDLM", "BD3-LM 16", "BD3-LM 4")


def models(setting: Setting) -> dict[str, Model]:
    return {"ARMD": Model(armd(setting)), **baselines(armd(setting))}


def report(study: Study) -> Section:
    sets = _sets(study)
    found = {
        name: {
            data: [study.measure(run, zero_shot_scores, name=data, order=main_order(run)) for run in study.runs(name)]
            for data in sets
        }
        for name in NAMES
    }
    by_word = {
        name: [spread([each["word_perplexity"] for each in by_set[data]], ",.0f") for data in sets]
        for name, by_set in found.items()
    }
    by_byte = {
        name: [spread([each["bits_per_byte"] for each in by_set[data]], ".3f") for data in sets]
        for name, by_set in found.items()
    }
    terms = list(dict.fromkeys(each["protocol"] for by in found.values() for data in sets for each in by[data]))
    absent = [name for name in ZERO_SHOT_SETS if name not in sets]
    notes = [*terms, *[f"not at hand, so not measured: {', '.join(absent)}"] * bool(absent)]
    return Section(
        "Ours are models of the stated scale with their own tokenizer, so only perplexities of words and bits a byte "
        "compare between tokenizers, and none of them with the paper's perplexities of GPT-2 tokens.",
        [
            Table("Ours: perplexity of a word", ("model", *sets), _rows(by_word), notes),
            Table("Ours: bits per byte", ("model", *sets), _rows(by_byte)),
            _published("The paper, small: perplexity of a GPT-2 token", ZERO_SHOT_SMALL),
            _published("The paper, medium: perplexity of a GPT-2 token", ZERO_SHOT_MEDIUM),
        ],
    )


def _sets(study: Study) -> list[str]:
    """The sets whose files are there."""
    if study.sets is None:
        return []
    folders = {path.name.lower().replace("-", "").replace("_", "") for path in study.sets.iterdir() if path.is_dir()}
    return [name for name in ZERO_SHOT_SETS if name.replace("_", "") in folders]


def _rows(cells: Mapping[str, list[str]]) -> list[list[str]]:
    return [[name, *values] for name, values in cells.items()]


def _published(title: str, numbers: Mapping[str, Sequence[Any]]) -> Table:
    return Table(
        title, ("model", *ZERO_SHOT_SETS), _rows({name: [f"{v:.2f}" for v in row] for name, row in numbers.items()})
    )


TABLE1 = Experiment(
    "table1",
    "Zero-shot perplexity (the paper's Table 1)",
    "How well do the models of the first experiment read texts of a kind they were not trained on?",
    models,
    report,
)
