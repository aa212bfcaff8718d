"""Experiments: models and figures are made once, goes on where it was stopped, and the page says what was found."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from armd import Armd, ArmdConfig, Order, nll
from armd.baselines import MaskedDiffusion
from armd.cli import main
from armd.data import Document, prepare
from armd.errors import UserError
from armd.evals import Writing
from armd.families import OrderSchedule
from armd.files import hold
from armd.presets import for_architecture, tiny
from armd.reproduce import (
    EXPERIMENTS,
    Experiment,
    Figure,
    Model,
    Run,
    Section,
    Setting,
    Study,
    Table,
    Target,
    bases,
    farm,
    measure_all,
    publish,
    report,
    train_all,
)
from armd.reproduce.experiments import curves, holes, rates, recipes, table2, two_stream
from armd.reproduce.measures import perplexity_ratios, ratio_target
from armd.reproduce.page import merged
from armd.reproduce.run import paper_plan
from armd.reproduce.study import fingerprint
from armd.train import OptimConfig, TrainConfig, train
from armd.train.folder import DONE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepared"
    corpus = [Document(f"d{i}", f"{i} bottles of beer on the wall, {i} bottles of beer. " * 3) for i in range(30)]
    prepare(lambda: iter(corpus), "byte", out, held_out=0.2, progress=False)
    return out


def shrunken(vocab_size: int, eos_id: int | None) -> TrainConfig:
    base = tiny(vocab_size, eos_id)
    shape = replace(base.model, hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
    return replace(base, model=shape)


def little(**changes: object) -> TrainConfig:
    base = shrunken(257, 256)
    fields = {
        "model": replace(base.model, max_position_embeddings=32), "orders": OrderSchedule(), "batch_size": 2,
        "max_steps": 4, "eval_texts": 2, "eval_every": 2, "save_every": 2, "log_every": 1,
        "eval_orders": ("left_to_right",), "precision": "fp32",
    }  # fmt: skip
    return replace(base, **{**fields, **changes})


def experiment(name: str = "toy", **models: Model) -> Experiment:
    return Experiment(name, "A | title", "Why?", lambda setting: models, lambda study: Section())


def train_here(runs: list[Run], data: Path) -> None:
    """As `train_all`, in this process."""
    for run in runs:
        if not run.finished:
            farm.command(run, data)
            train(run.config, data, run.folder, quiet=True)


# ---- what is made, once ----------------------------------------------------------------------------------------------


def test_a_model_is_known_by_all_that_makes_it(data: Path, tmp_path: Path) -> None:
    def key(model: Model, folder: Path = data, parent: str = "p") -> str:
        models = {"p": Model(little()), "other": Model(little(batch_size=4)), "m": replace(model, parent=parent)}
        return next(r.key for r in Study(experiment(**models), tmp_path, folder).all_runs if r.name == "m")

    own = key(Model(little()))
    assert key(Model(little(device="cpu", log_every=3, keep_last=5))) == own  # how it is executed does not count
    changed = [little(batch_size=4), little(orders=OrderSchedule(rho=2, perm_steps=2)), little(architecture="ar")]
    keys = {own, key(Model(little()), parent="other"), key(Model(little()), parent=""), *map(key, map(Model, changed))}
    prepare(lambda: iter([Document("a", "x" * 900), Document("b", "y" * 900)]), "byte", tmp_path / "d", held_out=0.5)
    assert len(keys | {key(Model(little()), tmp_path / "d")}) == 7


def test_a_precision_that_hangs_on_the_machine_is_refused(data: Path, tmp_path: Path) -> None:
    study = Study(experiment(m=Model(little(precision="auto"))), tmp_path, data)
    with pytest.raises(UserError, match="m leaves precision to the machine; name bf16 or fp32"):
        _ = study.all_runs


def test_seeds_parents_and_shared_models(data: Path, tmp_path: Path) -> None:
    a = experiment(
        "a", tuned=Model(little(batch_size=4), parent="base"), base=Model(little()), once=Model(little(), seeds=1)
    )
    b = experiment("b", other_name=Model(little()))
    runs = Study(a, tmp_path, data, seeds=(0, 1)).all_runs
    assert [(r.name, r.seed) for r in runs] == [("base", 0), ("once", 0), ("tuned", 0), ("base", 1), ("tuned", 1)]
    assert runs[2].config.init == str(runs[0].folder) and runs[4].config.init == str(runs[3].folder)
    assert len({r.key for r in runs}) == 4  # once is base under another name
    assert Study(b, tmp_path, data, seeds=(0,)).all_runs[0].folder == runs[0].folder


def test_training_goes_on_and_nothing_is_trained_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toy = experiment(base=Model(little()), tuned=Model(little(max_steps=2), parent="base"))
    study = Study(toy, tmp_path, data, seeds=(0,))
    base, tuned = study.all_runs
    train(replace(base.config, max_steps=4), data, base.folder, quiet=True)
    (base.folder / DONE).unlink()  # as if it was stopped before it was done
    train_all(study.all_runs, data, jobs=2)
    assert base.finished and tuned.finished and not (base.folder / "checkpoints").exists()
    assert json.loads(base.folder.with_suffix(".json").read_text())["at_once"] == 2
    assert tuned.tokens == (4 + 2) * 2 * 32  # with its parent's
    assert [tokens for tokens, _ in base.curve()] == [2 * 2 * 32, 4 * 2 * 32]
    before = (base.folder / DONE).stat().st_mtime_ns
    train_all(study.all_runs, data, jobs=2)
    assert (base.folder / DONE).stat().st_mtime_ns == before


def test_a_run_that_fails_is_named_and_stops_no_other(data: Path, tmp_path: Path) -> None:
    late = Model(little(max_steps=2), parent="bad")
    toy = experiment(bad=Model(little(batch_size=3)), late=late, good=Model(little()))
    runs = Study(toy, tmp_path, data, seeds=(0,)).all_runs
    bad, good = (next(run for run in runs if run.name == name) for name in ("bad", "good"))
    bad.folder.mkdir(parents=True)
    (bad.folder / "something").write_text("of somebody else")
    faults = train_all(runs, data, jobs=1)
    assert good.finished and not bad.finished
    assert len(faults) == 2 and "bad, seed 0, ended early: error: run folder" in faults[0]
    assert "late, seed 0, has no model to start from" in faults[1]


def test_impossible_parents_are_one_line(data: Path, tmp_path: Path) -> None:
    toy = experiment(tuned=Model(little(), parent="basis"), base=Model(little()))
    with pytest.raises(UserError, match="tuned have no parent with seed 0"):
        _ = Study(toy, tmp_path, data).all_runs
    with pytest.raises(UserError, match="name a parent instead"):
        _ = Study(experiment(tuned=Model(little(init="somewhere"))), tmp_path, data).all_runs


def test_a_finished_run_of_another_config_is_refused(data: Path, tmp_path: Path) -> None:
    """As by a default that was changed since: no hash shows it."""
    (run,) = Study(experiment(base=Model(little())), tmp_path, data, seeds=(0,)).all_runs
    train_here([run], data)
    assert run.finished
    other = replace(run, config=replace(run.config, weighting="late"))
    with pytest.raises(UserError, match="was trained with other values of weighting: remove it"):
        _ = other.finished
    (run.folder / "model.safetensors").unlink()
    assert not run.finished


calls: list[int] = []


BASE = 0


def helper(power: int) -> int:
    return BASE + power


def counted(study: Study, run: Run, *, power: int) -> int:
    """Measures nothing much."""
    calls.append(power)
    return run.config.max_steps ** helper(power)


def test_a_figure_is_measured_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(experiment(base=Model(little())), tmp_path, data, seeds=(0,))
    train_here(study.all_runs, data)
    calls.clear()
    assert [study.values("base", counted, power=p) for p in (2, 3, 2)] == [[16], [64], [16]]
    assert calls == [2, 3]
    monkeypatch.setattr(sys.modules[__name__], "BASE", 1)  # a constant of its helper
    assert study.values("base", counted, power=2) == [64] and calls == [2, 3, 2]
    run = study.runs("base")[0]
    before = run.weights
    shutil.rmtree(run.folder)
    train(replace(run.config, optim=OptimConfig(lr=1.0)), data, run.folder, quiet=True)
    assert replace(run).weights != before  # trained again, and measured again


def one_model(setting: Setting) -> dict[str, Model]:
    return {"base": Model(little()), "once": Model(little(weighting="late"), seeds=1)}


def process(study: Study, run: Run) -> int:
    with (study.out / "measured").open("a") as file:
        file.write(f"{run.name}\n")
    time.sleep(0.5)  # the other process comes here, if nothing keeps it out
    return os.getpid()


def processes(study: Study) -> Section:
    return Section(str([study.values(name, process) for name in ("once", "base")]))


def test_seeds_are_measured_side_by_side(data: Path, tmp_path: Path) -> None:
    study = Study(Experiment("mine", "Mine", "?", one_model, processes), tmp_path, data)
    train_here(study.all_runs, data)
    measure_all(study, jobs=2)
    found = study.values("base", process)
    assert len(set(found)) == 2 and os.getpid() not in found
    assert sorted((tmp_path / "measured").read_text().split()) == ["base", "base", "once"]
    assert all(pickle.dumps(experiment) for experiment in EXPERIMENTS.values())


def test_a_fingerprint_is_of_what_a_function_does() -> None:
    def made(text: str) -> object:
        scope: dict[str, object] = {"__name__": "user"}
        exec(text, scope)
        return scope["f"]

    same = [fingerprint(made(text)) for text in ("def f(x): return x + 1", "# why\n\ndef f(x):\n    return x + 1")]
    other = [fingerprint(made(text)) for text in ("def f(x): return x + 2", "def f(x): return abs(x)",
             "def g(x): return 1\ndef f(x): return g(x)", "def g(x): return 2\ndef f(x): return g(x)",
             "K = {4: [1]}\ndef f(x): return K[x]", "K = {4: [2]}\ndef f(x): return K[x]")]  # fmt: skip
    assert same[0] == same[1] and len({same[0], *other}) == 7


def test_held_out_texts_come_from_all_of_the_split(data: Path, tmp_path: Path) -> None:
    study = Study(experiment(base=Model(little())), tmp_path, data, seeds=(0,))
    run = study.all_runs[0]
    spread, every = study.dataset(run, 3), study.dataset(run, 10**6)
    windows = spread.whole.eval_windows()
    assert windows > 6 and spread.eval_windows() == 3 and every.eval_windows() == windows
    wanted = [spread.whole.eval_batch(place, 1)[0].tolist() for place in (0, windows // 3, 2 * windows // 3)]
    assert spread.eval_batch(0, 3).tolist() == wanted and spread.eval_batch(1, 2).tolist() == wanted[1:]


# ---- frontiers -------------------------------------------------------------------------------------------------------


def test_a_frontier_is_once_itself_wherever_its_marks_are() -> None:
    def line(*entropies: float, times: float = 1.0) -> list[tuple[float, float]]:
        return [(x, times * 2.0 ** (3 * x)) for x in entropies]

    own = line(1.0, 2.0, 3.0)
    assert table2.ratio_at_equal_entropy(own, line(1.5, 2.25, 2.75)) == pytest.approx(1)
    assert table2.ratio_at_equal_entropy(line(1.5, 2.5, times=1.5), own) == pytest.approx(1.5)
    assert table2.ratio_at_equal_entropy(line(4.0, 5.0), own) is None


def test_a_target_is_met_with_every_seed_or_open() -> None:
    found = ({0: 0.9, 1: 1.0}, {0: 1.1, 1: 1.2}, {0: 0.9, 1: 1.1}, {})
    verdicts = [ratio_target("x", ratios, (0, 1), 1.0).met for ratios in found]
    assert verdicts == [True, False, None, None]
    assert ratio_target("x", {0: 1.5, 1: 1.6}, (0, 1), 1.5, least=True).met is True
    half = ratio_target("x", {1: 0.9}, (0, 1), 1.0)
    assert half.met is None and half.found == "0.900 times (0.900), 1 of 2 seeds"  # the other run ended early
    assert perplexity_ratios({0: 1.0, 1: 2.0}, {1: 2.0, 2: 1.0}) == {1: 1.0}  # seed beside seed


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_holds_what_was_found(data: Path, tmp_path: Path) -> None:
    section = Section(
        "Words.",
        [Table("A table", ("a", "b"), [["1 | 2", "<b>"]], ("protocol: x",))],
        [Figure("Chart", "<svg/>", "a line")],
        [Target("small", "3 of 4", False), Target("large", "none", None)],
    )
    toy = replace(experiment(base=Model(little())), report=lambda study: section)
    study = Study(toy, tmp_path / "out", data, seeds=(0,))
    train_here(study.all_runs, data)
    report(study, "armd reproduce toy")
    page = tmp_path / "results.md"
    assert publish(tmp_path / "out", "small", page, [experiment("absent"), toy]) == ["toy"]
    text = page.read_text()
    assert "| 1 \\| 2 | \\<b\\> |" in text and "<sub>protocol: x</sub>" in text
    assert "| A \\| title | small | 3 of 4 | missed |" in text and "large | none | open |" in text
    assert "](results/toy-1.svg)" in text and (tmp_path / "results" / "toy-1.svg").read_text() == "<svg/>"
    assert all((tmp_path / link).is_file() for link in re.findall(r"\]\((.*?)\)", text))
    record = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert record["data"]["tokenizer"] == "byte" and record["trained_at"]
    assert record["models"][0]["curve"] == [list(point) for point in study.runs("base")[0].curve()]
    assert str(tmp_path) not in text + json.dumps(record)  # no path of this machine
    assert publish(tmp_path / "another", "small", page, [toy]) == ["toy"]  # made elsewhere: it stays as it is
    assert page.read_text() == text and (tmp_path / "results" / "toy-1.svg").read_text() == "<svg/>"
    newer = replace(toy, models=lambda setting: {"base": Model(replace(little(), batch_size=3))})
    publish(tmp_path / "another", "small", page, [newer])
    assert (
        "earlier recipe" not in text and page.read_text().count("earlier recipe") == 3
    )  # the section, and two targets
    with pytest.raises(UserError, match="holds results of scale small; give those of paper another page"):
        publish(tmp_path / "another", "paper", page, [toy])
    (tmp_path / "results" / "toy-1.svg").unlink()
    with pytest.raises(UserError, match=r"toy-1\.svg, a chart of .* is gone"):
        publish(tmp_path / "another", "small", page, [toy])
    with pytest.raises(UserError, match=r"must end in \.md"):
        publish(tmp_path / "out", "small", tmp_path / "page.txt", [toy])


def test_the_paper_s_models_are_planned_once() -> None:
    table = paper_plan(EXPERIMENTS.values())
    rows = [row[:2] for row in table.rows]
    assert ["table1", "MDLM"] in rows and ["table2", "MDLM"] not in rows and ["table3", "MDLM"] in rows
    armd = next(row for row in table.rows if row[:2] == ["table1", "ARMD"])
    assert armd[3] == "94.4B" and float(armd[4]) > 1  # 180,000 x 512 x 1,024 tokens
    sizes = {row[1]: row[2:4] for row in table.rows if "iterations" in row[1]}
    assert [tokens for _, tokens in sizes.values()] == ["210B", "157B", "65.5B"]  # 400K, medium 300K, LM1B 1M


def test_one_two_stream_layer_is_judged_by_the_best_of_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [two_stream.Cell(8, "uniform", "kernel", n) for n in (1, 2, 3)]
    by_name: dict[str, dict[int, float]] = {}
    monkeypatch.setattr(two_stream, "losses", lambda study, name, order: by_name.get(name, {}))
    study = Study(experiment(), Path(), Path(), seeds=(0, 1))

    def met(*nats: tuple[float, ...]) -> bool | None:
        by_name.update({cell.name: dict(enumerate(by)) for cell, by in zip(cells, nats, strict=False)})
        return two_stream._target(study, cells, "uniform:4").met

    assert met((4.0, 4.0), (4.0, 4.1)) is None  # the third is missing
    assert met((4.0, 4.0), (4.0, 4.1), (4.2, 4.1)) is True
    assert met((4.0, 4.0), (4.0, 4.1), (3.9, 3.9)) is False
    assert met((4.0, 4.0), (4.0, 4.1), (3.9, 4.1)) is None  # by the seed
    assert met((4.0,), (4.0,), (4.2,)) is None  # one seed


def test_a_share_of_the_tokens_is_read_from_the_curve_and_the_best_bound_by_seed() -> None:
    def run(seed: int, *bounds: float) -> SimpleNamespace:
        curve = [(100 * (i + 1), {"bound": nats, "uniform": nats + 1}) for i, nats in enumerate(bounds)]
        return SimpleNamespace(seed=seed, tokens=300, curve=lambda: curve)

    found = {"MDLM": [run(0, 7, 6, 5), run(1, 7, 6, 5.5)], "BD3-LM 4": [run(0, 6, 5, 5.2), run(1, 6, 5, 4.5)]}
    study: Any = SimpleNamespace(runs=lambda name: found.get(name, []))
    assert curves._at_share(study, "MDLM", 1 / 3, "bound") == {0: 7, 1: 7}
    assert curves._at_share(study, "MDLM", 0.99, "uniform") == {0: 7, 1: 7}
    assert curves._at_share(study, "MDLM", 0.3, "bound") == {}
    assert curves._best(study) == {}  # blocks of 16 are missing
    found["BD3-LM 16"] = [run(0, 5.3), run(1, 4.4)]
    assert curves._best(study) == {0: 5, 1: 4.4}
    found["MDLM"].pop()
    assert curves._best(study) == {0: 5}


def verdicts(targets: list[Target]) -> dict[str, tuple[str, bool | None]]:
    return {target.claim: (target.found.split(" ")[0], target.met) for target in targets}


def test_texts_by_steps_are_compared_as_claimed() -> None:
    """Frontiers whose ratios are known: each claim is about the one it names, in the direction it says."""
    found = {
        (name, each): {seed: [{"entropy": e, "generative_perplexity": times * math.exp(e)} for e in (4.0, 4.5, 5.0)]
                       for seed in (0, 1)}
        for (name, each), times in {("ours", 1): 1.0, ("ours", 2): 1.05, ("ours", 4): 1.2, ("MDLM", 2): 2.1,
                                    ("MDLM", 4): 1.5, (bases.PATIENT, 2): 1.05 * 1.6, (bases.PATIENT, 4): 1.2}.items()
    }  # fmt: skip
    for each in (2, 4):
        found[bases.PATIENT, each].pop(1)
    study: Any = SimpleNamespace(seeds=(0, 1), runs=lambda name: [1])
    told = "a step at least 1.5 times the perplexity of ARMD at"
    assert verdicts(table2._targets(study, found, "ours")) == {
        "2 tokens a step at most 1.1 times the perplexity of one at a time, at equal entropy": ("1.050", True),
        "4 tokens a step at most 1.1 times the perplexity of one at a time, at equal entropy": ("1.200", False),
        f"MDLM, at 2 {told} 2, at equal entropy": ("2.000", True),
        f"MDLM, at 4 {told} 4, at equal entropy": ("1.250", False),
        f"{bases.PATIENT}, at 2 {told} 2, at equal entropy": ("1.600", True),
        f"{bases.PATIENT}, at 4 {told} 4, at equal entropy": ("1.000", False),
    }


def test_loss_against_tokens_is_compared_as_claimed() -> None:
    def run(seed: int, last: float, early: float, order: str) -> SimpleNamespace:
        curve = [(100, {order: early, "uniform": early + 1}), (300, {order: last, "uniform": last + 1})]
        return SimpleNamespace(seed=seed, tokens=300, curve=lambda: curve)

    log, bounds = math.log, {"MDLM": 1.0, "BD3-LM 16": 0.7, "BD3-LM 4": 0.6}
    runs = {name: [run(s, log(100 * times), 9.0, "bound") for s in (0, 1)] for name, times in bounds.items()}
    runs["ARMD"] = [run(s, 0.0, log(30 / math.e), "left_to_right") for s in (0, 1)]
    by_name = {"ARMD": 51.9, "ARMD, no uniform orders": 50, "AR": 51, "AR + prefix": 50, "ARMD, strided": 52.9,
               "ARMD, as many more steps": 50.9}  # fmt: skip
    loss = {name: dict.fromkeys((0, 1), log(value)) for name, value in by_name.items()}
    random = {"ARMD": 80, "ARMD, no uniform orders": 120, "MDLM": 100}
    any_order = {name: dict.fromkeys((0, 1), log(value)) for name, value in random.items()}
    study: Any = SimpleNamespace(seeds=(0, 1), runs=lambda name: runs.get(name, []))
    found = verdicts(curves._targets(study, loss, any_order))
    assert list(found.values()) == [
        ("1.018", False), ("1.038", True), ("0.800", True),  # ours
        ("0.980", True), ("1.000", True), ("1.200", False),  # without uniform orders
        ("0.184", True), ("0.300", True), ("0.500", True),  # at a third of the tokens
        ("1.019", True), ("1.039", False),  # strided
    ]  # fmt: skip


def test_texts_are_written_in_as_many_steps_as_claimed(data: Path, tmp_path: Path, monkeypatch) -> None:
    """And the evaluator is larger than what it reads, and trained for longer."""
    asked: list[Writing] = []

    def judged(model: object, tokenizer: object, judge: object, writing: Writing, temperature: float) -> object:
        asked.append(writing)
        raise KeyError

    monkeypatch.setattr(table2, "write_and_judge", judged)
    monkeypatch.setattr(table2, "_judge", lambda study: None)
    base = bases.own(Setting("small", 257, 256))
    study: Any = SimpleNamespace(scale="small")
    for architecture, each, steps in [("mdlm", 2, 128), ("mdlm", 4, 64), ("bd3lm", 2, 8), ("armd", 4, None)]:
        run: Any = SimpleNamespace(config=for_architecture(base, architecture), load=lambda: (None, None))
        with pytest.raises(KeyError):
            table2.texts(study, run, each=each, temperature=1.0, samples=2, judge="")
        assert asked[-1].length == 256 and (asked[-1].steps == steps if steps else asked[-1].streams == each)
        assert asked[-1].mode == ("parallel" if architecture == "armd" else Writing(8).mode)
    ours, larger = base, table2.evaluator(base)
    assert larger.model.hidden_size > ours.model.hidden_size and larger.architecture == "ar"
    assert larger.model.num_hidden_layers > ours.model.num_hidden_layers and larger.max_steps > ours.max_steps


def test_a_hole_is_read_knowing_what_its_column_says() -> None:
    """The text after it tells where it may, and masked diffusion is asked for the same law in fewer passes."""
    torch.manual_seed(0)
    config = ArmdConfig(17, 32, 2, 1, 4, max_position_embeddings=12)
    tokens, hole = torch.randint(17, (1, 12)), range(4, 7)
    later = tokens.clone()
    later[:, 7:] = (later[:, 7:] + 1) % 17
    for model in (Armd(config).eval(), MaskedDiffusion(config).eval()):
        for after in (False, True):
            order, quick = (holes.hole_order(hole, 12, after, at_once) for at_once in (False, True))
            asked = quick if isinstance(model, MaskedDiffusion) else order
            before, changed = (nll(model, text, asked)[:, 4:7] for text in (tokens, later))
            assert torch.equal(before, changed) != after
            torch.testing.assert_close(before, nll(model, tokens, order)[:, 4:7])
    template = torch.zeros(12, dtype=torch.bool)
    template[4:7] = True
    assert torch.equal(holes.hole_order(hole, 12, True, False).positions, Order.template(template).positions)
    assert holes.hole_order(hole, 12, False, False).is_left_to_right


def test_filled_holes_are_compared_as_claimed() -> None:
    perplexities = {(holes.SHORT, True): 90, (holes.SHORT, False): 200, (holes.LEFT[1], False): 100}
    found = {(name, size, after): {seed: [math.log(value)] for seed in (0, 1)}
             for (name, after), value in perplexities.items() for size in holes.SIZES}  # fmt: skip
    found[holes.SHORT, 64, True] = {seed: [math.log(100), math.log(121)] for seed in (0, 1)}
    study: Any = SimpleNamespace(seeds=(0, 1), runs=lambda name: [name] * (name == holes.SHORT))
    filled = {1: [{"equal": 2, "texts": 2}], 4: [{"equal": 1, "texts": 2}]}
    told = holes._gains(study, found).rows
    assert told == [[holes.SHORT, *["0.799 ± 0.000"] * 4, "0.598 ± 0.000", "0.503 ± 0.000"]]
    study.runs = lambda name: []
    verdict = list(verdicts(holes._targets(study, found, filled)).values())
    assert verdict == [("0.900", True), ("0.900", True), ("1.100", False), ("a", None), ("3", False)]


def test_holes_stand_apart() -> None:
    assert holes.places(2, 3, 12) == [range(2, 5), range(7, 10)]
    with pytest.raises(UserError, match="2 holes of 5 tokens do not fit apart into 12"):
        holes.places(2, 5, 12)


def test_a_story_is_five_whole_sentences() -> None:
    text = 'of it. One is here. "Two?" Three! Four was Mr. Five. He said: "Five." Six and then'
    assert holes.first_story(text) == ("One is here.", '"Two?"', "Three!", "Four was Mr. Five.", 'He said: "Five."')
    assert holes.first_story(text.replace("Three! ", "")) is None


def test_muon_is_compared_with_the_best_adamw_of_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    nats = {"AdamW": {0: 5.0, 1: 4.0}, "AdamW, WSD": {0: 4.5, 1: 4.2}, "Muon": {0: 4.5, 1: 3.0}, "Muon, WSD": {0: 1.0}}
    monkeypatch.setattr(recipes, "losses", lambda study, name: nats[name])
    study: Any = SimpleNamespace(names=list(nats))
    assert recipes._ratios(study, "Muon") == pytest.approx({0: 1.0, 1: math.exp(-1)})
    nats["AdamW, WSD"].pop(1)
    assert recipes._ratios(study, "Muon").keys() == {0}


def test_the_best_rate_is_told_once_all_are_there() -> None:
    assert rates._best([5.0, 4.0, 4.5, 4.6]) == f"x 0.5: {math.exp(-0.5):.3f}"
    assert rates._best([5.0, 4.6, 4.5, 4.6]) == "x 1: 1.000"
    assert rates._best([5.0, 4.6, 4.5]) == ""


def test_notes_that_differ_in_one_clause_are_one() -> None:
    notes = ["a; b, c, d; e", "i: alone", "a; b, x, y, d; e", "a; b; other", "alone: j"]
    assert merged(notes) == ["a; b, (c / x, y), d; e", "i: alone", "a; b; other", "alone: j"]
    assert merged(["a; b", "a; b", "c; b", "c; d"]) == ["(a / c); b", "c; d"]


# ---- the experiments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["small", "medium", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_is_possible(name: str, scale: str) -> None:
    models = EXPERIMENTS[name].models(Setting(scale, 50257, 50256))  # type: ignore[arg-type]
    same = ("ARMD, as in the paper", "ARMD, no uniform orders") if scale == "paper" else ()  # which all are there
    given = [repr(model) for name, model in models.items() if name not in same]
    assert len(set(given)) == len(given), "two names for one model"
    assert models and all(not model.parent or model.parent in models for model in models.values())


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if EXPERIMENTS[name].prepare is None])
def test_every_report_is_made(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From models of a few steps, and from none."""
    for constant, value in {"LENGTH": 32, "SENTENCE": 16, "ABLATION_WIDTH": 24}.items():
        monkeypatch.setattr(bases, constant, value)
    monkeypatch.setitem(bases.SIZES, "small", replace(bases.SIZES["small"], steps=16, texts=1))
    for constant, value in {"SIZES": {2: 4, 8: 4}, "HOLES": (1, 2), "HOLE": 4, "FILLED": 2, "WINDOWS": 4}.items():
        monkeypatch.setattr(holes, constant, value)
    for grid, families in (two_stream.GRID, ("strided", "uniform")), (two_stream.LONG, ("uniform",)):
        for length in list(grid):
            monkeypatch.delitem(grid, length)
        monkeypatch.setitem(grid, 32, families)
    monkeypatch.setattr(table2, "SAMPLES", 4)
    monkeypatch.setattr(table2, "SLOW", 2)
    monkeypatch.setattr(bases, "tiny", shrunken)
    (tmp_path / "sets" / "lambada").mkdir(parents=True)
    lines = [json.dumps({"text": f"The {i}th day was as long as the one before it ."}) for i in range(40)]
    (tmp_path / "sets" / "lambada" / "lambada_test.jsonl").write_text("\n".join(lines))
    study = Study(EXPERIMENTS[name], tmp_path, data, seeds=(0,), sets=tmp_path / "sets")
    assert all(target.met is None for target in EXPERIMENTS[name].report(study).targets)
    runs = list({run.key: run for run in study.all_runs}.values())
    whole = name.startswith("table")  # the others have many models that are all measured alike
    train_here(runs if whole else runs[:8], data)
    section = report(study, "command")
    rows = [row for table in section.tables for row in table.rows]
    assert rows and not any("nan" in cell for row in rows for cell in row)
    if whole:
        ours = section.tables[0].rows
        assert all(any(map(_number, row[2 if name == "table2" else 1 :])) for row in ours)  # past the count of texts
        more = {"held-out texts of people, as they are"} if name == "table2" else set()
        assert {row[0] for row in ours} == {run.name for run in runs} - {table2.JUDGE} | more
    if name == "table2":  # the same texts under an evaluator from elsewhere
        other = replace(study, evaluator=str(study.runs("AR")[0].folder))
        assert table2.JUDGE not in other.names
        found = report(other, "command").tables[0]
        assert [row[:2] for row in found.rows] == [row[:2] for row in ours] and found.rows != ours
        assert any(f"under {Path(other.evaluator).name}" in note for note in found.notes)
        retrained = tmp_path / "evaluator"
        shutil.copytree(other.evaluator, retrained)
        named = replace(study, evaluator=str(retrained))
        first = report(named, "command").tables[0].rows
        table2._judge_from_elsewhere.cache_clear()
        shutil.rmtree(retrained)
        shutil.copytree(study.runs(table2.JUDGE)[0].folder, retrained)
        assert report(named, "command").tables[0].rows != first  # other weights at the same place


def _number(cell: str) -> bool:
    return any(character.isdigit() for character in cell)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in EXPERIMENTS)
    command = ["reproduce", "curves", "--data", str(data), "--out", str(tmp_path), "--scale", "paper", "--seeds", "1"]
    assert main([*command, "--json"]) == 0  # nothing is trained here: the plan
    left = json.loads(capsys.readouterr().out)["left"]
    assert {row["name"] for row in left} >= {"ARMD", "AR", "MDLM"} and all(row["days"] > 0 for row in left)
    assert all(row["line"].startswith("torchrun --nproc-per-node=8 -m armd.cli train ") for row in left)


def test_an_experiment_is_run_by_one_process_at_a_time(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPERIMENTS, "toy", experiment("toy", base=Model(little())))
    command = ["reproduce", "toy", "--data", str(data), "--out", str(tmp_path), "--seeds", "1"]
    held = hold(tmp_path / "sections" / "small" / "toy.json", "")
    assert main(command) == 2 and not (tmp_path / "runs").exists()
    assert f"experiment toy is being run in {tmp_path} by another process" in capsys.readouterr().err
    held.close()
    assert main(command) == 0 and (tmp_path / "sections" / "small" / "toy.json").exists()


def test_at_paper_scale_others_train_and_it_reports(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        EXPERIMENTS, "toy", experiment("toy", base=Model(little()), tuned=Model(little(), parent="base"))
    )
    command = ["reproduce", "toy", "--data", str(data), "--out", str(tmp_path), "--scale", "paper", "--seeds", "1"]
    command += ["--gpus", "1"]
    for left in (2, 1):
        assert main(command) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("torchrun")]
        assert len(lines) == left
        assert main(lines[0].split("armd.cli ")[1].split()) == 0
        capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["toy"]["models"]) == 2


@pytest.mark.parametrize(
    "words, message",
    {
        "magic --data {d}": "experiment 'magic' is unknown; choose one of curves",
        "curves": "needs --data",
        "curves --data {d}/nowhere": "nowhere",
        "curves --data {d} --seeds 0": "seeds=0",
        "curves --data {d} --sets {d}/nowhere": "is no folder",
        "curves --data {d} --puzzles {d}/nowhere": "is no file",
        "table2 --data {d} --evaluator {d}/nowhere": "nowhere could not be loaded",
        "curves --data {d} --evaluator {d}/nowhere": "reads the texts of table2",
        "curves --data {d} --page page.txt": "page=page.txt must end in .md",
    }.items(),
)
def test_mistakes_are_one_line(words: str, message: str, data: Path, tmp_path: Path, capsys) -> None:
    assert main(["reproduce", *words.format(d=data).split(), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not any(tmp_path.iterdir())
