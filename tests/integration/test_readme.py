"""The README keeps its word: its Python runs, the commands of all pages parse, and it is short."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro

from armd.cli import COMMANDS, main
from armd.cli.terminal import parse
from armd.cli.train import Train, fitted
from armd.presets import get_preset

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        scope: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), scope)
        assert tuple(scope["logits"].shape) == (2, 128, 256)
        assert not (scope["filled"].tokens < 0).any()
    shape, passes, acceptance = re.search(r"(torch.Size\(\[1, 67\]\)) (\d+) (\S+)", capsys.readouterr().out).groups()
    assert shape and int(passes) < 64 and 0 < float(acceptance) <= 1


def test_the_check_of_the_decoding_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    load = re.compile(r'^model, tokenizer = armd.load\("run"\).*$', re.MULTILINE)
    assert load.search(block)
    small = "model = armd.Armd(armd.ArmdConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))"
    exec(compile(load.sub(small, block), "decoding.md", "exec"), {})
    assert capsys.readouterr().out.startswith("256 ")


def test_the_laboratory_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("coarse.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    Path("text.txt").write_text("a stitch in time saves nine, " * 40)
    small = "--max-steps 4 --model.hidden-size 32 --model.num-hidden-layers 2 --model.num-attention-heads 2 --length 32"
    train = f"{small} --model.max-position-embeddings 32 --batch-size 2 --eval-texts 2 --device cpu"
    options = {"prepare": "", "train": train, "evaluate": "--texts 2", "laboratory": "--texts 2 --shuffles 2"}
    first = ["prepare --input text.txt --tokenizer byte --out data --held-out 0.3", "train tiny --data data --out run"]
    commands = re.findall(r"^armd (.*)", page, re.MULTILINE)
    assert len(commands) == 5
    for command in first + commands:
        assert main([*command.split(), *options[command.split()[0]].split()]) == 0, command
    assert "coarse.py:coarse:4" in Path("after/laboratory.md").read_text()
    assert json.loads(Path("turned/run.json").read_text())["plugins"].keys() == {
        "coarse.py:turn", "coarse.py:late", "coarse.py:coarse",
    }  # fmt: skip


PAGES = [
    ROOT / "README.md",
    *(page for page in (ROOT / "docs").glob("*.md") if page.name not in ("log.md", "results.md")),
]
LINES = {line for page in PAGES for line in re.findall(r"^armd (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("line", sorted(LINES))
def test_commands_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On every page but the log; what they would read is not there."""
    words = shlex.split(line, comments=True)
    first, rest = (" ".join(words[:2]), words[2:]) if " ".join(words[:2]) in COMMANDS else (words[0], words[1:])
    kind = COMMANDS[first][0]
    if first == "train":
        preset, _ = fitted(get_preset(rest.pop(0))(257, 256), rest, "")
        assert parse(Train, rest, "", Train(tyro.MISSING, tyro.MISSING, config=preset))
    elif kind:
        assert parse(kind, rest, "")
    else:
        assert main(words) == (2 if "run" in line else 0)
        assert "option" not in capsys.readouterr().err


def test_commands_exist() -> None:
    commands = re.findall(r"^armd (\w+)", README, re.MULTILINE)
    assert set(commands) == {name.split()[0] for name in COMMANDS} - {"demo"} and "make demo" in README


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 200
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
