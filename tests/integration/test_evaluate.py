"""armd evaluate with its tasks, as a user meets them: numbers with their protocol, and one line for a mistake."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from armd import Autoregressive, BlockDiffusion, MaskedDiffusion, save
from armd.cli import COMMANDS, main
from armd.cli.terminal import parse
from armd.data import Document, get_tokenizer, prepare
from conftest import linux, make_model

BYTE = get_tokenizer("byte")
STORY = {"sentences": ["Ann had a cat.", "It ran.", "She cried.", "It sat.", "It hid."]}
PROBLEM = {"task_id": "Tiny/0", "entry_point": "add", "prompt": "def add(a, b):\n    return a ", "suffix": "\n",
           "canonical_solution": "+ b", "test": "def check(f):\n    assert f(2, 3) == 5\n"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a baseline, a mute model, and the files of every task."""
    folder = tmp_path_factory.mktemp("evaluate")
    shape = {"vocab_size": 257, "max_position_embeddings": 64, "eos_token_id": 256}
    save(make_model(**shape), folder / "run", BYTE)
    save(make_model(Autoregressive, **shape), folder / "ar", BYTE)
    save(make_model(MaskedDiffusion, **shape), folder / "mdlm", BYTE)
    save(make_model(BlockDiffusion, **shape, block_size=8), folder / "bd3lm", BYTE)
    save(make_model(**shape), folder / "mute")
    (folder / "sets" / "lambada").mkdir(parents=True)
    passages = [json.dumps({"text": f"“It is {word}”, said the {word}"}) for word in ("late", "old", "far")]
    (folder / "sets" / "lambada" / "lambada_test.jsonl").write_text("\n".join(passages * 2))
    (folder / "sets" / "ptb.valid.txt").write_text("the mill did n't pay $ N a year \n" * 9)
    (folder / "stories.jsonl").write_text(json.dumps(STORY) + "\n")
    (folder / "code.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (folder / "broken.jsonl").write_text("{}\n")
    corpus = [Document(f"d{i}", f"{i} green bottles, hanging on the wall. " * 3) for i in range(30)]
    prepare(lambda: iter(corpus), "byte", folder / "data", held_out=0.8, progress=False)
    return folder


def run_json(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *words.format(f=folder).split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def shown(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["evaluate", *words.format(f=folder).split()]) == 0
    return capsys.readouterr().out


TASKS = {
    "zeroshot --model {f}/run --sets ptb,lambada --data-dir {f}/sets": ("sets", "perplexity", "detokenizer ptb"),
    "lambada --model {f}/ar --data-dir {f}/sets": (None, "accuracy", "last word"),
    "generation --model {f}/run --evaluator {f}/ar --samples 2": ("rows", "entropy", "under"),
    "generation --model {f}/mdlm --evaluator {f}/ar --samples 2 --steps 8": ("rows", "entropy", "8 steps of the even"),
    "generation --model {f}/bd3lm --evaluator {f}/ar --samples 2": ("rows", "passes", "blocks of 8, each in 8 steps"),
    "stories --model {f}/run --data {f}/stories.jsonl": (None, "ROUGE-1", "sentences 3 of 5 missing"),
    "code --model {f}/run --data {f}/code.jsonl": (None, "pass@1", "in a sandbox"),
}


@linux
@pytest.mark.parametrize("words", TASKS)
def test_no_number_without_its_protocol(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several, column, said = TASKS[words]
    fields = run_json(words, folder, capsys)
    protocols = [each["protocol"] for each in fields["sets"]] if several == "sets" else [fields["protocol"]]
    assert said in protocols[0]["line"]
    table = shown(words, folder, capsys)
    assert column.split()[0] in table
    for protocol in protocols:
        assert protocol["line"] in table.splitlines()


def test_a_set_that_cannot_be_had_takes_nothing_from_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"zeroshot --model {folder}/run --sets wikitext2,ptb --data-dir {folder}/sets --json"
    assert main(["evaluate", *words.split()]) == 2
    shown = capsys.readouterr()
    assert [each["set"] for each in json.loads(shown.out)["sets"]] == ["ptb"]
    assert "holds no wiki.valid.raw" in shown.err and "Traceback" not in shown.err


def test_zeroshot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --orders left_to_right,uniform:2,strided:4"
    [ptb] = run_json(words, folder, capsys)["sets"]
    bytes_ = len("the mill didn't pay $1 a year") * 9
    assert (ptb["documents"], ptb["words"], ptb["bytes"], ptb["tokens"]) == (9, 81, bytes_, bytes_)
    assert (ptb["chunks"], ptb["dropped"]) == (bytes_ // 62, bytes_ % 62)
    assert [s["order"] for s in ptb["scores"]] == ["left_to_right", "uniform:2", "uniform:2", "strided:4", "strided:4"]
    for s in ptb["scores"]:  # 64 tokens a chunk for 62 bytes, and 81 words for all bytes
        assert s["bits_per_byte"] == pytest.approx(s["nats_per_token"] / math.log(2) * 64 / 62)
        words_read = 81 / bytes_ * 62 / 64
        assert math.log(s["word_perplexity"]) == pytest.approx(s["nats_per_token"] / words_read)
    [given] = run_json(words.split(" --orders")[0] + " --protocol mdlm-ar", folder, capsys)["sets"]
    assert given["scores"][0]["tokens"] == ptb["scores"][0]["tokens"] - ptb["chunks"]


def test_generation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "generation --model {f}/run --evaluator {f}/run --samples 3 --length 16 --streams 4 --plot {f}/f.svg"
    fields = run_json(words + " --temperatures 0 0.05 1", folder, capsys)
    assert [row["temperature"] for row in fields["rows"]] == [0, 0.05, 1] and (folder / "f.svg").exists()
    assert fields["rows"][0]["entropy"] < fields["rows"][2]["entropy"]
    assert all(len(row["texts"]) == 3 and row["tokens_per_pass"] > 1 for row in fields["rows"])


def test_generation_against_held_out_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "generation --model {f}/mdlm --evaluator {f}/ar --samples 12 --length 32 --steps 8"
    mauve = words + " --mauve --data {f}/data"
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (armd[evals])")
    [row] = run_json(words, folder, capsys)["rows"]
    fields = run_json(mauve, folder, capsys)
    [compared], line = fields["rows"], fields["protocol"]["line"]
    assert row["mauve"] is None and 0 < compared["mauve"] <= 1 and compared == {**row, "mauve": compared["mauve"]}
    assert f"MAUVE: against 12 held-out texts of {folder / 'data'}, as long and cut alike" in line
    assert "MAUVE" in shown(mauve, folder, capsys)


def test_mauve_without_its_package(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    words = f"generation --model {folder}/run --evaluator {folder}/run --mauve --data {folder}/data"
    assert main(["evaluate", *words.split()]) == 2
    assert capsys.readouterr().err == "error: MAUVE needs scikit-learn; pip install 'armd[evals]'\n"


def test_stories(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "stories --model {f}/run --data {f}/stories.jsonl --missing 2 4"
    assert run_json(words, folder, capsys)["stories"] == 1
    assert "holes of 4 to 6 tokens" in run_json(words + " --hole 4-6", folder, capsys)["protocol"]["line"]


@linux
def test_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_json("code --model {f}/run --data {f}/code.jsonl --samples 2 --temperature 1", folder, capsys)
    assert out["pass_at_1"] == 0 and len(out["attempts"][0]["reasons"]) == 2 and all(out["attempts"][0]["reasons"])


MISTAKES = {
    "zeroshot --model {f}/run --sets moby": "sets='moby' must name some of wikitext2",
    "zeroshot --model {f}/run --sets ,": "must name some of",
    "zeroshot --model {f}/run --sets wikitext2 --data-dir {f}/sets": "holds no wiki.valid.raw",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/nowhere": "holds no ptb.valid.txt",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --split dev": "has no split 'dev'",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --texts 0": "texts=0 must be at least 1",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --length 65": "exceed max_position_embeddings=64",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --length 2": "length=2 must be at least 3",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --orders spiral": "order family 'spiral' is unknown",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --orders strided:5": "streams=5 does not divide",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --protocol mdlm-ar --orders uniform": "left_to_right",
    "zeroshot --model {f}/run --sets ptb --data-dir {f}/sets --protocol gpt": "--protocol",
    "zeroshot --model {f}/ar --sets ptb --data-dir {f}/sets --orders uniform": "one order only",
    "zeroshot --model {f}/mute --sets ptb --data-dir {f}/sets": "has no tokenizer.json",
    "lambada --model {f}/run --data-dir {f}": "holds no lambada_test",
    "lambada --model {f}/run --data-dir {f}/sets --batch-size 0": "batch_size=0",
    "generation --model {f}/run": "--evaluator",
    "generation --model {f}/run --evaluator {f}/mute": "has no tokenizer.json, so it cannot read text",
    "generation --model {f}/run --evaluator {f}/sets": "evaluator",
    "generation --model {f}/run --evaluator {f}/run --temperatures -1": "temperature=-1",
    "generation --model {f}/run --evaluator {f}/run --length 65": "exceed max_position_embeddings=64",
    "generation --model {f}/run --evaluator {f}/run --streams 5 --length 16": "streams=5 does not divide",
    "generation --model {f}/ar --evaluator {f}/run --streams 2": "left to right only",
    "generation --model {f}/run --evaluator {f}/run --mauve": "--mauve needs --data DIR",
    "generation --model {f}/run --evaluator {f}/run --data {f}/data": "--data needs --mauve",
    "generation --model {f}/run --evaluator {f}/run --steps 4": "--steps needs a model of masked or block diffusion",
    "generation --model {f}/mdlm --evaluator {f}/run --streams 4": "--streams needs an armd model",
    "generation --model {f}/mdlm --evaluator {f}/nowhere --steps 65": "steps=65 must be at least 1 and at most 64",
    "generation --model {f}/run --evaluator {f}/run --samples 0": "samples=0 must be at least 1",
    "stories --model {f}/run --data {f}/nowhere": "cannot be read",
    "stories --model {f}/run --data {f}/broken.jsonl": "is no .csv or .jsonl",
    "stories --model {f}/run --data {f}/stories.jsonl --missing 6": "must name some, not all",
    "stories --model {f}/run --data {f}/stories.jsonl --hole 9-4": "hole='9-4' must be reference, or LOW-HIGH",
    "stories --model {f}/ar --data {f}/stories.jsonl": "evaluate stories needs an armd model",
    "code --model {f}/run --data {f}/broken.jsonl": "line 1 is no problem with task_id",
    "code --model {f}/run --data {f}/code.jsonl --samples 2": "samples=2 at temperature 0 would all be the same",
    "code --model {f}/run --data {f}/code.jsonl --seconds 0": "seconds=0",
    "code --model {f}/run --data {f}/code.jsonl --top-p 2": "top_p=2.0 must be",
    "walk --model {f}/run --data {f}": "unknown option walk",
}  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", *words.format(f=folder).split()]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.strip().splitlines() if not line.startswith("reading ")]
    assert output.out == "" and len(lines) == 1 and lines[0].startswith("error: ") and MISTAKES[words] in lines[0]


def test_commands_of_the_page_parse() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    commands = re.findall(r"^armd (evaluate \w+) (.*)$", page, re.MULTILINE)
    assert {name for name, _ in commands} == {name for name in COMMANDS if name.startswith("evaluate ")}
    for name, words in commands:
        parse(COMMANDS[name][0], words.split(), name)


@pytest.mark.parametrize("task", ["zeroshot", "lambada", "generation", "stories", "code"])
def test_help(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", task, "--help"]) == 0
    assert "--model" in capsys.readouterr().out
