"""The order laboratory against evaluate, against brute force, and against networks whose answer is known."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from armd import Armd, Autoregressive, Order, generate, nll, save
from armd.chart import Series, drawing
from armd.cli import main
from armd.data import TokenDataset, documents, get_tokenizer, prepare
from armd.evals import evaluate, held_out_protocol, laboratory, notebook
from armd.evals.laboratory import Study, explore, loss_by_rank, read_pair, sensitivity
from armd.evals.likelihood import orders_of
from armd.orders import generator
from conftest import make_model

N = 24
OWN = """
from armd import Order

def pairs(batch, length, argument, generator):
    return Order.from_masking_times(Order.uniform(batch, length, generator=generator).inverse // 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laboratory")
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"a stitch in time saves {i + 9}, " * 20)
    prepare(lambda: documents([str(folder / "*.txt")]), "byte", folder / "data", held_out=0.3)
    (folder / "mine.py").write_text(OWN)
    save(make_model(vocab_size=257), folder / "run", get_tokenizer("byte"))
    save(make_model(Autoregressive, vocab_size=257), folder / "ar", get_tokenizer("byte"))
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> TokenDataset:
    return TokenDataset(folder / "data", "valid", N)


@pytest.fixture(scope="module")
def model() -> Armd:
    return make_model(vocab_size=257)


STUDY = Study(orders=("left_to_right",), streams=(2, 4), evidence=(1, 12), shuffles=3, bins=5, texts=5, batch_size=2)


# ---- loss by rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["left_to_right", "reinsert:3", "strided:4", "uniform", "uniform:3", "{own}"])
def test_the_mean_over_ranks_is_the_number_of_evaluate(
    folder: Path, model: Armd, dataset: TokenDataset, order: str
) -> None:
    order = order.format(own=f"{folder}/mine.py:pairs")
    curve, pair = loss_by_rank(model, dataset, order, STUDY), read_pair(model, dataset, order, 4, STUDY)
    score = next(evaluate(model, dataset, [order], texts=5, batch_size=5))
    assert score.blocks == "sequential" and score.texts == 5
    weighted = sum(
        (high - low) * nats for low, high, nats in zip(curve.ranks, curve.ranks[1:], curve.nats, strict=False)
    )
    for nats in (weighted / N, curve.mean, pair.meter.sequential):
        assert nats == pytest.approx(score.nats_per_token, rel=1e-5)


def test_a_bin_holds_the_ranks_it_names(model: Armd, dataset: TokenDataset) -> None:
    curve = loss_by_rank(model, dataset, "uniform", replace(STUDY, seed=3))
    [order] = orders_of("uniform", N, range(5), 3)
    with torch.no_grad():
        nats = order.to_generation(nll(model, dataset.eval_batch(0, 5), order))
    assert curve.ranks == [0, 4, 9, 14, 19, 24]
    for i, (low, high) in enumerate(pairwise(curve.ranks)):
        by_text = nats[:, low:high].mean(dim=1)
        assert curve.nats[i] == pytest.approx(by_text.mean().item(), rel=1e-5)
        assert curve.stderr[i] == pytest.approx(by_text.std().item() / 5**0.5, rel=1e-4)


# ---- the order of the evidence ---------------------------------------------------------------------------------------


def test_a_network_of_one_layer_reads_its_evidence_as_a_set_and_a_deeper_one_does_not(dataset: TokenDataset) -> None:
    for layers, sensitive in ((1, False), (3, True)):
        model = make_model(vocab_size=257, num_hidden_layers=layers, num_two_stream_layers=1)
        found = sensitivity(model, dataset, 12, STUDY)
        readings = found.text_order, found.shuffled, found.one_block
        assert (found.spread > 1e-3) == sensitive and (max(readings) - min(readings) > 1e-4) == sensitive
        assert sensitivity(model, dataset, 1, STUDY).spread < 1e-5  # one token has one order


def test_sensitivity_equals_one_reading_after_the_other(model: Armd, dataset: TokenDataset) -> None:
    """Text by text; what comes after the targets is put in another order, for it must not matter."""
    found = sensitivity(model, dataset, 12, replace(STUDY, texts=2, targets=4))
    sequential, one_block = torch.arange(N), (torch.arange(N) - 11).clamp(min=0)
    spreads, nats = [], []
    for text in range(2):
        places = torch.randperm(N, generator=(draw := generator(0, text)))
        known, targets, after = places[:12].sort().values, places[12:16], places[16:].flip(0)
        readings = [known, *(known[torch.randperm(12, generator=draw)] for _ in range(3))]

        def read(
            reading: torch.Tensor, blocks: torch.Tensor, text: int = text, targets: torch.Tensor = targets,
            after: torch.Tensor = after,
        ) -> torch.Tensor:  # fmt: skip
            order = Order(torch.cat((reading, targets, after))[None], blocks[None])
            with torch.no_grad():
                return nll(model, dataset.eval_batch(text, 1), order)[0, targets]

        each = torch.stack([read(reading, sequential) for reading in readings])
        spreads.append(each[1:].std(dim=0).mean().item())
        nats.append([each[0].mean().item(), each[1:].mean().item(), read(known, one_block).mean().item()])
    expected = [sum(column) / 2 for column in zip(*nats, strict=True)]
    assert [found.text_order, found.shuffled, found.one_block] == pytest.approx(expected, rel=1e-5)
    assert found.spread == pytest.approx(sum(spreads) / 2, rel=1e-3)
    above = [(shuffled - text_order, block - text_order) for text_order, shuffled, block in nats]
    errors = [abs(one - other) / 2 for one, other in zip(*above, strict=True)]
    assert [found.shuffled_stderr, found.one_block_stderr] == pytest.approx(errors, abs=1e-5)
    assert found.spread_stderr == pytest.approx(abs(spreads[0] - spreads[1]) / 2, rel=1e-2)


# ---- orders and streams ----------------------------------------------------------------------------------------------


def test_what_is_measured_is_what_decoding_does(model: Armd, dataset: TokenDataset) -> None:
    pair = read_pair(model, dataset, "strided:4", 4, replace(STUDY, measure=3))
    out = generate(model, length=N, streams=4, batch_size=3, stop=False)
    assert (pair.acceptance, pair.tokens_per_pass) == (out.acceptance, out.tokens_per_pass)
    tokens, order = dataset.eval_batch(0, 5), Order.strided(5, N, 4)
    with torch.no_grad():
        assert pair.meter.parallel == pytest.approx(nll(model, tokens, order).mean().item(), rel=1e-5)


def test_every_pair_is_looked_at_once() -> None:
    study = replace(STUDY, orders=("uniform", "strided:2"))
    assert study.pairs == [("strided:2", 2), ("strided:4", 4), ("uniform", 2), ("uniform", 4), ("strided:2", 4)]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = f"{folder}/mine.py:pairs"
    words = f"laboratory --model {folder}/run --data {folder}/data --orders uniform:2,{own} --streams 2,4 --texts 3"
    words += f" --out {folder}/lab --shuffles 2 --measure 1 --evidence 6,12"
    assert main([*words.split(), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "lab" / "record.json").read_text())
    assert [c["order"] for c in printed["ranks"]] == ["uniform:2", own]
    assert [r["evidence"] for r in printed["evidence"]] == [6, 12] and len(printed["streams"]) == 6
    page = (folder / "lab" / "laboratory.md").read_text()
    for key, told in (("ranks", own), ("evidence", "spread"), ("streams", "strided:4")):
        assert printed["protocols"][key]["line"] in page and told in page and f"({key}.svg)" in page
        drawn = ElementTree.parse(folder / "lab" / f"{key}.svg")
        assert "mine.py:pairs" in "".join(drawn.getroot().itertext()) or key == "evidence"
    assert main(words.split()) == 2
    assert "holds the record of an earlier study" in capsys.readouterr().err
    assert main([*words.replace("/lab ", "/lab2 ").split()]) == 0
    table = capsys.readouterr().out
    assert all(protocol["line"] in table.splitlines() for protocol in printed["protocols"].values())


def test_looks_that_are_whole_stay_when_it_is_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"laboratory --model {folder}/run --data {folder}/data --orders left_to_right --streams 2 --texts 2"
    words += f" --out {tmp_path}/lab --shuffles 2 --evidence 6,12"

    def interrupted(*given: object) -> Iterator[object]:
        yield from itertools.islice(explore(*given), 4)  # two whole looks, and half of the last
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(laboratory, "explore", interrupted)
        main(words.split())
    half, page = json.loads((tmp_path / "lab" / "record.json").read_text()), tmp_path / "lab" / "laboratory.md"
    assert len(half["evidence"]) == 2 and half["streams"] == [] and not half["complete"]
    assert "Not complete" in page.read_text()
    assert main(words.split()) == 0  # the same command makes it whole
    whole = json.loads((tmp_path / "lab" / "record.json").read_text())
    assert whole["complete"] and len(whole["streams"]) == 2 and whole["ranks"] == half["ranks"]
    assert "Not complete" not in page.read_text()


@pytest.mark.parametrize(("words", "message"), [
    ("--streams 5", "streams strided:5: streams=5 does not divide the 24"), ("--streams 2,x", "streams='2,x' must"),
    ("--streams 25", "streams=25 must be between 1 and 24"), ("--evidence 24", "evidence=24 must be between 1 and 23"),
    ("--shuffles 1", "shuffles=1 must be at least 2"), ("--orders spiral", "order family 'spiral' is unknown"),
    ("--orders bound", "order 'bound' has no ranks"), ("--orders reinsert:25", "rho=25 exceeds"),
    ("--orders none.py:f", "none.py:f: there is no file"), ("--bins 0", "bins=0 must be at least 1"),
    ("--model {f}/ar", "ar is a Autoregressive; the laboratory needs"), ("--length 25", "exceed"),
])  # fmt: skip
def test_mistakes_are_one_line(folder: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(folder / "run"), "--data", str(folder / "data"), "--out", str(folder / "none")]
    assert main(["laboratory", *given, *words.format(f=folder).split()]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not (folder / "none").exists()


def test_one_text_has_no_standard_error(model: Armd, dataset: TokenDataset, folder: Path) -> None:
    study = replace(STUDY, texts=1)
    found = notebook.Findings.of(list(explore(model, dataset, study)))
    assert len(found.ranks) + len(found.evidence) + len(found.streams) == len(study) == 7
    terms = notebook.protocols(held_out_protocol(folder, dataset.spread(1), 0, None), study)
    parts = notebook.sections(study, found, terms)
    assert re.search(r"\d ± \u2013", parts[0].rows[0][2]) and "nan" not in notebook.page("m", parts).lower()


def test_standard_errors_are_drawn_to_scale() -> None:
    line = Series("a", [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)], "r0", errors=[1.0, 0.5, math.nan])
    drawn = drawing("title", "told", [line], ("x", "y"))
    [(_, top, bottom), (_, higher, lower)] = [map(float, w) for w in re.findall(r"d=\"M(\S+) (\S+)V(\S+)\"", drawn)]
    assert top - bottom == pytest.approx(2 * (higher - lower), abs=0.3) and top > bottom  # none without an error
    values = [float(y) for y in re.findall(r'text-anchor="end">([\d.]+)</text>', drawn)]
    assert min(values) <= 1 and max(values) >= 4  # the axis spans the whiskers
