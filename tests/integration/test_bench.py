"""The benchmark of decoding: its record says what was run, adds up, and survives without the library it compares to."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from armd.bench import alternate
from armd.bench.decode import DecodeBench
from armd.bench.timing import Work
from armd.cli import main
from armd.model import ArmdConfig
from armd.presets import PRESETS
from armd.train import TrainConfig

WORDS = [
    "bench", "decode", "--preset", "tiny", "--streams", "1", "4", "--length", "8",
    "--repeats", "2", "--dtype", "bf16", "fp32", "--batch", "2", "--json",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = TrainConfig(ArmdConfig(257, **shape), batch_size=2)
    monkeypatch.setitem(PRESETS, "tiny", lambda vocab_size, eos_token_id: config)


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(words) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises ImportError


@pytest.mark.usefixtures("no_transformers")
def test_record_without_hugging_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, shown = run([*WORDS, "--out", str(tmp_path / "new" / "decode.json")], capsys)
    assert "pip install 'armd[bench]'" in shown and "pip install" in record["absent"]["hugging face gpt-2"]
    assert record["reference"] == "autoregressive"
    assert json.loads((tmp_path / "new" / "decode.json").read_text()) == record
    assert {"command", "commit", "date", "seed", "shape", "parameters", "bandwidth_bytes_per_second"} < set(record)
    machine = record["machine"]
    assert machine["cpu"] and machine["cores"] and machine["threads"] and len(machine["load_average"]) == 3
    assert machine["torch"] == torch.__version__ and record["shape"]["num_two_stream_layers"] == 1

    rows = record["rows"]
    assert len(rows) == 2 * (1 + 3 * 2 + 2)
    for row in rows:
        assert row["tokens"] == 8 * row["batch"] == 16 and len(row["seconds"]) == 2
        assert row["tokens_per_pass"] == pytest.approx(8 / row["passes"])
        rate = row["tokens_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert rate["max"] == pytest.approx(row["tokens"] / min(row["seconds"]))
        assert 0 < row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert row["ratio"]["median"] == 1 or row["what"] != "autoregressive"
        floor = row["passes"] * row["weight_bytes"] / record["bandwidth_bytes_per_second"]
        assert row["floor_tokens_per_second"] == pytest.approx(row["tokens"] / floor)
        assert row["of_floor"] == pytest.approx(rate["median"] / row["floor_tokens_per_second"])
        size = {"bf16": 2, "fp32": 4}[row["dtype"]]
        assert row["weight_bytes"] == size * record["parameters"][row["what"]]

    passes = {(row["what"], row["mode"], row["streams"]): row["passes"] for row in rows}
    assert passes["autoregressive", "sequential", None] == passes["armd", "sequential", 4] == 8
    assert passes["armd", "exact", 1] == 8 and 1 + 1 < passes["armd", "parallel", 4] <= 4 + 1  # heads are drafted
    assert passes["masked diffusion", "N steps", None] == 8 and passes["masked diffusion", "N/4 steps", None] == 2
    for row in rows:
        assert (row["acceptance"] is not None) == (row["mode"] in ("exact", "parallel") and row["streams"] == 4)
        assert row["extrapolated_from_passes"] == (2 if row["what"] == "masked diffusion" else None)

    plot = ElementTree.parse(tmp_path / "new" / "decode.svg").getroot()
    names = [e.text for e in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert "fp32, batch 2, N = 8" in names and "exact" in names and "streams S →" in names


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_hugging_face_is_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    words = [*WORDS, "--quick", "--tokens", "8", "--dtype", "fp32", "--modes", "parallel"]
    record, _ = run([*words, "--plot", str(tmp_path / "plot.svg")], capsys)
    first = record["rows"][0]
    assert first["what"] == record["reference"] == "hugging face gpt-2" and not record["absent"]
    assert first["tokens"] == 2 * 8 and first["passes"] == 8 and first["ratio"]["median"] == 1
    assert record["machine"]["transformers"] and "hugging face" in (tmp_path / "plot.svg").read_text()
    ours = next(row for row in record["rows"] if row["streams"] == 4)
    assert 8 <= ours["tokens"] / 2 < 8 + 4 and len(ours["seconds"]) == 2 and ours["length"] == 8
    same = record["parameters"]
    assert 0 < abs(same["hugging face gpt-2"] / same["armd"] - 1) < 0.2  # GPT-2 has biases and learned positions


def test_quick_keeps_what_was_asked_for() -> None:
    assert (DecodeBench(quick=True).length, DecodeBench(quick=True).repeats) == ((32,), 1)
    assert (DecodeBench(quick=True, length=(64,)).length, DecodeBench(quick=True, repeats=2).repeats) == ((64,), 2)


@pytest.mark.usefixtures("no_transformers")
def test_table_and_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS[:-1], "--quick", "--dtype", "fp32", "--modes", "exact"]) == 0
    shown = capsys.readouterr().out
    assert "armd, exact" in shown and "masked diffusion, N/4 steps*" in shown and "of the speed at" in shown
    record, _ = run(["bench", "train", "--repeats", "1", "--json"], capsys)
    assert [row["what"] for row in record["rows"]] == ["train, AR", "train, ARMD"]


def test_rounds_alternate_and_the_first_is_not_counted() -> None:
    calls: list[str] = []

    def job(name: str) -> Work:
        calls.append(name)
        return Work(tokens=10, share=0.5)

    times = alternate({name: lambda name=name: job(name) for name in "ab"}, 2, torch.device("cpu"))
    assert "".join(calls) == "ab" + "ba" + "ab"
    assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in times.values())
    fields = times["b"].fields(times["a"])
    expected = sorted(a / b for a, b in zip(times["a"].seconds, times["b"].seconds, strict=True))
    assert [fields["ratio"]["min"], fields["ratio"]["max"]] == pytest.approx(expected)
