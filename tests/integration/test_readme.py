"""The README keeps its word: its Python runs, its commands parse, and it is short."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from armd.cli import COMMANDS, main

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


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
    page = (Path(__file__).resolve().parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    load = re.compile(r'^model, tokenizer = armd.load\("run"\).*$', re.MULTILINE)
    assert load.search(block)
    small = "model = armd.Armd(armd.ArmdConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))"
    exec(compile(load.sub(small, block), "decoding.md", "exec"), {})
    assert capsys.readouterr().out.startswith("256 ")


def test_the_laboratory_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "laboratory.md").read_text(encoding="utf-8")
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


def test_commands_exist() -> None:
    commands = re.findall(r"^armd (\w+)", README, re.MULTILINE)
    assert set(commands) == {name.split()[0] for name in COMMANDS} - {"demo"} and "make demo" in README


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 200
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (Path(__file__).resolve().parents[2] / target).exists(), target
