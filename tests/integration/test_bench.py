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
from armd.bench.train import TrainBench, peak_memory
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
    assert len(rows) == 2 * (1 + 2 + 1 + 1 + 2)
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
    assert (
        passes["armd", "sequential", 1] == 8
        and ("armd", "exact", 1) not in passes
        and 1 + 1 < passes["armd", "parallel", 4] <= 4 + 1
    )  # heads are drafted
    assert passes["masked diffusion", "N steps", None] == 8 and passes["masked diffusion", "N/4 steps", None] == 2
    for row in rows:
        assert (row["acceptance"] is not None) == (row["mode"] in ("exact", "parallel") and row["streams"] == 4)
        assert row["extrapolated_from_passes"] == (2 if row["what"] == "masked diffusion" else None)

    plot = ElementTree.parse(tmp_path / "new" / "decode.svg").getroot()
    names = [e.text for e in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert "fp32, batch 2, N = 8" in names and "exact" in names and "streams S →" in names


@pytest.mark.usefixtures("no_transformers")
def test_a_bench_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "decode.json"
    whole, _ = run([*WORDS, "--out", str(out)], capsys)
    part = {**whole, "rows": [row for row in whole["rows"] if row["dtype"] == "fp32"]}
    out.write_text(json.dumps(part))
    again, _ = run([*WORDS, "--out", str(out), "--resume"], capsys)
    keys = [(row["dtype"], row["what"], row["mode"], row["streams"]) for row in whole["rows"]]
    assert [(row["dtype"], row["what"], row["mode"], row["streams"]) for row in again["rows"]] == keys
    old, new = ([row["seconds"] for row in r["rows"] if row["dtype"] == "fp32"] for r in (whole, again))
    assert old == new and all(row["date"] and "commit" in row for row in again["rows"])
    assert again["rows"][0]["seconds"] != whole["rows"][0]["seconds"]
    assert main([*WORDS, "--out", str(out), "--resume", "--seed", "1"]) == 2
    assert "of another shape, seed or processor" in capsys.readouterr().err


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
    record, _ = run(["bench", "--repeats", "1", "--streams", "1", "2", "--length", "8", "--json"], capsys)
    names = [row["what"] for row in record["rows"]]
    assert names[:2] == ["train, AR", "train, ARMD, L2s = 1"] and names[3:] == [
        f"decode, exact, S = {s}" for s in (1, 2)
    ]


NANOGPT = """
from dataclasses import dataclass
import torch
@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters")
        self.embed = torch.nn.Embedding(config.vocab_size, config.n_embd)
    def forward(self, tokens, targets):
        logits = self.embed(tokens) @ self.embed.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_training_beside_nanogpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(NANOGPT)
    words = ["bench", "train", "--layers", "4", "--batch", "2", "--steps", "1", "--repeats", "2", "--no-memory"]
    record, shown = run([*words, "--nanogpt", str(tmp_path), "--out", str(tmp_path / "r.json"), "--json"], capsys)
    assert json.loads((tmp_path / "r.json").read_text()) == record and not shown
    assert [row["what"] for row in record["rows"]] == ["nanoGPT", "AR", "ARMD, L2s = 1", "ARMD, L2s = L/2"]
    nano, ar, one, half = record["rows"]
    assert nano["ratio"]["median"] == ar["ratio_to_ar"]["median"] == 1
    assert all(row["tokens"] == 2 * 32 and len(row["seconds"]) == 2 for row in record["rows"])
    assert all(row["of_limit"] == pytest.approx(row["ratio_to_ar"]["median"] / row["limit"]) for row in (one, half))
    D, V, N, W = 16, 257, 32, 8  # multiply-adds a token: two products of attention see (N + 1) / 2 keys in the mean
    layer = 12 * D * D + D * (N + 1)
    autoregressive = 4 * layer + D * V
    assert one["limit"] == pytest.approx(autoregressive / (autoregressive + 2 * W * D))
    assert half["limit"] == pytest.approx(autoregressive / (autoregressive + 2 * W * D + layer - 2 * D * D))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's memory")
def test_memory_of_a_step() -> None:
    """Of 4 layers of width 256 (12.6 MB of weights) and 2 x 128 rows, AdamW's moments and gradients included."""
    config = ArmdConfig(257, hidden_size=256, num_hidden_layers=4, max_position_embeddings=128)
    peak = peak_memory("AR", config, TrainBench(batch=2), "fp32", torch.device("cpu"))
    assert peak is not None and 4 * 12.6e6 < peak < 3 * 4 * 12.6e6


def test_training_without_nanogpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--batch", "1", "--steps", "1", "--repeats", "1", "--no-memory"]) == 0
    shown = capsys.readouterr()
    assert "not compared: nanoGPT: give --nanogpt PATH" in shown.err and "ARMD, L2s = 1" in shown.out
    assert main(["bench", "train", "--nanogpt", str(tmp_path)]) == 2
    assert "holds no model.py" in capsys.readouterr().err


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
