"""The README keeps its word: its Python runs, its commands parse, and it is short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from armd.cli import COMMANDS

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


def test_commands_exist() -> None:
    commands = re.findall(r"^armd (\w+)", README, re.MULTILINE)
    assert set(commands) == {name.split()[0] for name in COMMANDS} - {"demo"} and "make demo" in README


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 200
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (Path(__file__).resolve().parents[2] / target).exists(), target
