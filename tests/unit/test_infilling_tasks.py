"""Infilling tasks: what is cut out, what is put back, and what it scores."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from armd import Armd, UserError, fill
from armd.data import get_tokenizer
from armd.evals import humaneval, infill_code, infill_stories, read_problems, read_stories, stories
from armd.evals.humaneval import FIELDS, Problem
from armd.evals.rouge import rouge_l, rouge_n
from armd.evals.sandbox import Limits, run
from armd.evals.stories import story_parts
from conftest import linux, make_model

BYTE = get_tokenizer("byte")
STORY = ("Ann had a cat.", "It ran off.", "She cried.", "She looked for it.", "It was in bed.")


@pytest.fixture(scope="module")
def model() -> Armd:
    return make_model(vocab_size=257, max_position_embeddings=96)


def filler(*texts: str) -> Callable:
    """A stand-in for `infill.fill` that writes these texts into the first hole, a filling each."""

    def fill_in(model: Armd, parts: list, **_: object) -> SimpleNamespace:
        at = next(i for i, part in enumerate(parts) if isinstance(part, tuple))
        rows = []
        for text in texts:
            assert len(BYTE.encode(text)) == parts[at][0], "the hole has the length of the reference"
            rows.append([token for i, part in enumerate(parts) for token in (BYTE.encode(text) if i == at else part)])
        start = sum(map(len, parts[:at]))
        holes = [range(start, start + len(BYTE.encode(texts[0])))]
        tokens = torch.tensor(rows)
        return SimpleNamespace(tokens=tokens[0], holes=holes, generation=SimpleNamespace(tokens=tokens))

    return fill_in


# ---- stories ---------------------------------------------------------------------------------------------------------


def test_holes_of_a_story() -> None:
    parts, gone = story_parts(STORY, (3,), BYTE, None)
    assert [BYTE.decode(part) if isinstance(part, list) else part for part in parts] == [
        "Ann had a cat. It ran off.", (11, 11), " She looked for it. It was in bed.",
    ]  # fmt: skip
    assert gone == [" She cried."]
    parts, gone = story_parts(STORY, (1, 3, 4), BYTE, (4, 9))
    assert parts[0] == (4, 9) == parts[2] and gone == ["Ann had a cat.", " She cried. She looked for it."]
    parts, gone = story_parts(STORY, (2, 5), BYTE, (4, 9))
    assert [part for part in parts if isinstance(part, tuple)] == [(4, 9), (15, 15)]  # nothing follows the last


def test_the_reference_scores_100_and_other_words_0(model: Armd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "fill", filler(" She cried."))
    result = infill_stories(model, BYTE, [STORY, STORY])
    assert (result.rouge_1, result.rouge_2, result.rouge_l) == pytest.approx((100, 100, 100))
    monkeypatch.setattr(stories, "fill", filler(" xyz abcde."))
    result = infill_stories(model, BYTE, [STORY])
    assert (result.rouge_1, result.rouge_2, result.rouge_l) == (0, 0, 0)


@pytest.mark.parametrize("hole", [None, (9, 11)])
def test_stories_equal_filling_and_scoring_by_hand(model: Armd, hole: tuple[int, int] | None) -> None:
    long = ("word " * 50, *STORY[1:])
    result = infill_stories(model, BYTE, [STORY, long], missing=(3,), hole=hole, temperature=1.0, seed=3)
    parts = [BYTE.encode(" ".join(STORY[:2])), hole or (11, 11), BYTE.encode(" " + " ".join(STORY[3:]))]
    filled = fill(model, parts, temperature=1.0, seed=3)
    text = BYTE.decode(filled.tokens[list(filled.holes[0])].tolist())
    assert result.fillings == [text] and result.stories == result.too_long == 1
    assert result.rouge_1 == 100 * rouge_n(text, STORY[2], 1) and result.rouge_l == 100 * rouge_l(text, STORY[2])
    assert "1 stories longer than the model's 96 tokens left out" in result.protocol.line


def test_stories_from_files(tmp_path: Path) -> None:
    names = [f"sentence{i}" for i in range(1, 6)]
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"sentences": STORY}) + "\n" + json.dumps(dict(zip(names, STORY, strict=True))) + "\n"
    )
    (tmp_path / "a.csv").write_text("storyid,storytitle," + ",".join(names) + "\n1,Cat," + ",".join(STORY) + "\n")
    assert read_stories(tmp_path / "a.jsonl") == [STORY, STORY] and read_stories(tmp_path / "a.csv") == [STORY]
    wrong = {"": "holds no story", '{"sentences": ["a"]}': "story 1 does not have 5", "[1]": "is no .csv or .jsonl",
             "{": "is no .csv", '{"sentences": 5}': "is no .csv"}  # fmt: skip
    for text, message in wrong.items():
        (tmp_path / "b.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            read_stories(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_stories(tmp_path / "none.csv")


def test_some_sentences_stay(model: Armd) -> None:
    for missing in ((), (6,), (0, 1), (1, 2, 3, 4, 5)):
        with pytest.raises(UserError, match="must name some, not all"):
            infill_stories(model, BYTE, [STORY], missing=missing)
    with pytest.raises(UserError, match="none of the 1 stories fits"):
        infill_stories(model, BYTE, [("word " * 50, *STORY[1:])])


# ---- code ------------------------------------------------------------------------------------------------------------

PROBLEM = Problem(
    "Tiny/0", "add", "def add(a, b):\n    return a ", "+ b", " b\n", "def check(f):\n    assert f(2, 3) == 5\n"
)
ADD = Problem(**{**vars(PROBLEM), "suffix": "\n", "canonical_solution": "+ b"})


@linux
def test_right_fillings_pass_and_wrong_ones_fail(model: Armd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval, "fill", filler("+ b", "- b", "+ (", "+ b"))
    long = Problem(**{**vars(ADD), "task_id": "Tiny/1", "prompt": "#" * 96 + "\n" + ADD.prompt})
    result = infill_code(model, BYTE, [ADD, long], samples=4, temperature=1.0)
    assert result.attempts[0].middles == ["+ b", "- b", "+ (", "+ b"]
    first, second, third, fourth = result.attempts[0].reasons
    assert first == fourth == "" and second == "AssertionError" and third.startswith("SyntaxError")
    assert result.attempts[0].pass_rate == 0.5 and result.attempts[1].pass_rate == 0
    assert result.pass_at_1 == 0.25 and result.too_long == 1 and result.problems == 2
    assert "1 problems longer than the model counted as failed" in result.protocol.line


@linux
def test_a_widened_hole_takes_in_the_white_space_beside_it(model: Armd, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Problem("Tiny/2", "add", "def add(a, b):\n    a += 0\n", "    return c\n", "    c = a + b\n", PROBLEM.test)
    wide = lines.widened()
    assert (wide.prompt, wide.canonical_solution, wide.suffix) == (
        "def add(a, b):\n    a += 0", "\n    c = a + b\n    ", "return c\n",
    )  # fmt: skip
    assert wide.program(wide.canonical_solution) == lines.program(lines.canonical_solution)
    monkeypatch.setattr(humaneval, "fill", filler("\n    c = a + b\n    ", "\n    c = a - b\n    "))
    result = infill_code(model, BYTE, [lines], samples=2, temperature=1.0, widen=True)
    assert result.pass_at_1 == 0.5 and "the white space beside a hole is part of it" in result.protocol.line


@linux
def test_code_is_filled_by_the_model(model: Armd) -> None:
    for hole in (None, (2, 4)):
        result = infill_code(model, BYTE, [ADD], samples=2, temperature=1.0, seed=5, hole=hole)
        filled = fill(model, [BYTE.encode(ADD.prompt), hole or (3, 3), BYTE.encode("\n")], best_of=2, seed=5)
        at = torch.tensor(list(filled.holes[0]))
        assert result.attempts[0].middles == [BYTE.decode(row[at].tolist()) for row in filled.generation.tokens]
        assert result.pass_at_1 == 0


def test_problems_from_files(tmp_path: Path) -> None:
    line = json.dumps(vars(ADD))
    (tmp_path / "a.jsonl").write_text(f"{line}\n\n{line}\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert read_problems(tmp_path / "a.jsonl") == [ADD, ADD] and read_problems(tmp_path / "a.jsonl.gz") == [ADD]
    wrong = {"": "holds no problem", "{}": "line 1 is no problem with task_id", "[]": "line 1 is no problem",
             json.dumps({**vars(ADD), "entry_point": "a(); b"}): "entry_point a name",
             json.dumps({**vars(ADD), "test": 3}): "must be strings"}  # fmt: skip
    for text, message in wrong.items():
        (tmp_path / "b.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            read_problems(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        read_problems(tmp_path / "b.jsonl.gz")


@linux
def test_real_problems_pass_with_their_solutions_only(shared: Path) -> None:
    folder = shared / "humaneval-infilling"
    problems = read_problems(folder / "HumanEval-SingleLineInfilling.jsonl.gz")
    assert len(problems) == 1033 and {*vars(problems[0])} == set(FIELDS)
    for problem in problems[::90]:
        assert run(problem.program(problem.canonical_solution), Limits(seconds=20)).passed
        assert not run(problem.program("    raise KeyError\n"), Limits(seconds=20)).passed
