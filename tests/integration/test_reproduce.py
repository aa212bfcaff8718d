"""Experiments: models and figures are made once, goes on where it was stopped, and the page says what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from armd.cli import main
from armd.data import Document, prepare
from armd.errors import TrainingStopped, UserError
from armd.families import OrderSchedule
from armd.files import write_json
from armd.presets import tiny
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
    publish,
    report,
    train_all,
)
from armd.reproduce.experiments import choices, table2
from armd.reproduce.run import paper_plan
from armd.reproduce.study import DONE
from armd.train import TrainConfig, train


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
            train(run.config, data, run.folder, quiet=True)
            write_json(run.folder / DONE, {"name": run.name, "commit": None, "seconds": 1.0})


# ---- what is made, once ----------------------------------------------------------------------------------------------


def test_a_model_is_known_by_all_that_makes_it(data: Path, tmp_path: Path) -> None:
    def key(model: Model, folder: Path = data, parent: str = "p") -> str:
        models = {"p": Model(little()), "other": Model(little(batch_size=4)), "m": replace(model, parent=parent)}
        return next(r.key for r in Study(experiment(**models), tmp_path, folder).all_runs() if r.name == "m")

    own = key(Model(little()))
    assert key(Model(little(device="cpu", log_every=3, keep_last=5))) == own  # how it is executed does not count
    changed = [little(batch_size=4), little(orders=OrderSchedule(rho=2, perm_steps=2)), little(architecture="ar")]
    keys = {own, key(Model(little()), parent="other"), key(Model(little()), parent=""), *map(key, map(Model, changed))}
    prepare(lambda: iter([Document("a", "x" * 900), Document("b", "y" * 900)]), "byte", tmp_path / "d", held_out=0.5)
    assert len(keys | {key(Model(little()), tmp_path / "d")}) == 7


def test_seeds_parents_and_shared_models(data: Path, tmp_path: Path) -> None:
    a = experiment(
        "a", tuned=Model(little(batch_size=4), parent="base"), base=Model(little()), once=Model(little(), seeds=1)
    )
    b = experiment("b", other_name=Model(little()))
    runs = Study(a, tmp_path, data, seeds=(0, 1)).all_runs()
    assert [(r.name, r.seed) for r in runs] == [("base", 0), ("once", 0), ("tuned", 0), ("base", 1), ("tuned", 1)]
    assert runs[2].config.init == str(runs[0].folder) and runs[4].config.init == str(runs[3].folder)
    assert len({r.key for r in runs}) == 4  # once is base under another name
    assert Study(b, tmp_path, data, seeds=(0,)).all_runs()[0].folder == runs[0].folder


def test_training_goes_on_and_nothing_is_trained_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toy = experiment(base=Model(little()), tuned=Model(little(max_steps=2), parent="base"))
    study = Study(toy, tmp_path, data, seeds=(0,))
    base, tuned = study.all_runs()
    train(replace(base.config, max_steps=4), data, base.folder, quiet=True)  # as if it was stopped before it was done
    train_all(study.all_runs(), data, jobs=2)
    assert base.finished and tuned.finished and not (base.folder / "checkpoints").exists()
    assert json.loads((base.folder / DONE).read_text())["at_once"] == 2
    assert [tokens for tokens, _ in base.curve()] == [2 * 2 * 32, 4 * 2 * 32]
    before = (base.folder / DONE).stat().st_mtime_ns
    train_all(study.all_runs(), data, jobs=2)
    assert (base.folder / DONE).stat().st_mtime_ns == before


def test_a_run_that_fails_is_named(data: Path, tmp_path: Path) -> None:
    runs = Study(experiment(bad=Model(little())), tmp_path / "out", data, seeds=(0,)).all_runs()
    with pytest.raises(TrainingStopped, match=r"bad, seed 0, ended early: error: .*holds no manifest.json"):
        train_all(runs, tmp_path / "gone", jobs=1)
    assert not runs[0].finished


calls: list[int] = []


def counted(study: Study, run: Run, *, power: int) -> int:
    calls.append(power)
    return run.config.max_steps**power


def test_a_figure_is_measured_once(data: Path, tmp_path: Path) -> None:
    study = Study(experiment(base=Model(little())), tmp_path, data, seeds=(0,))
    train_here(study.all_runs(), data)
    calls.clear()
    assert [study.values("base", counted, power=p) for p in (2, 3, 2)] == [[16], [64], [16]]
    assert calls == [2, 3]


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
    train_here(study.all_runs(), data)
    report(study, "armd reproduce toy")
    page = tmp_path / "results.md"
    assert publish(tmp_path / "out", "small", page, [experiment("absent"), toy]) == ["toy"]
    text = page.read_text()
    assert "| 1 \\| 2 | \\<b\\> |" in text and "<sub>protocol: x</sub>" in text
    assert "small | 3 of 4 | missed |" in text and "large | none | not measured |" in text
    assert "](results/toy-1.svg)" in text and (tmp_path / "results" / "toy-1.svg").read_text() == "<svg/>"
    record = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert record["models"][0]["curve"] == [list(point) for point in study.runs("base")[0].curve()]
    assert str(tmp_path) not in text + json.dumps(record)  # no path of this machine
    with pytest.raises(UserError, match=r"must end in \.md"):
        publish(tmp_path / "out", "small", tmp_path / "page.txt", [toy])


def test_the_paper_s_models_are_planned_once() -> None:
    table = paper_plan(EXPERIMENTS.values())
    rows = [row[:2] for row in table.rows]
    assert ["table1", "MDLM"] in rows and ["table2", "MDLM"] not in rows and ["table3", "MDLM"] in rows
    armd = next(row for row in table.rows if row[:2] == ["table1", "ARMD"])
    assert armd[3] == "94.4B" and float(armd[4]) > 1  # 180,000 x 512 x 1,024 tokens


# ---- the experiments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_is_possible(name: str, scale: str) -> None:
    models = EXPERIMENTS[name].models(Setting(scale, 50257, 50256))  # type: ignore[arg-type]
    assert models and all(not model.parent or model.parent in models for model in models.values())


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if EXPERIMENTS[name].prepare is None])
def test_every_report_is_made(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From models of a few steps, and from none."""
    for constant, value in {"SMALL_STEPS": 16, "SMALL_TEXTS": 1, "SMALL_LENGTH": 32, "SENTENCE": 16}.items():
        monkeypatch.setattr(bases, constant, value)
    monkeypatch.setattr(choices, "LENGTHS", (32, 64))
    monkeypatch.setattr(table2, "SAMPLES", 2)
    monkeypatch.setattr(bases, "tiny", shrunken)
    study = Study(EXPERIMENTS[name], tmp_path, data, seeds=(0,))
    assert all(target.met is None for target in EXPERIMENTS[name].report(study).targets)
    runs = {run.key: run for run in study.all_runs()}
    train_here(list(runs.values())[:8], data)
    section = report(study, "command")
    cells = [cell for table in section.tables for row in table.rows for cell in row]
    assert cells and not any("nan" in cell for cell in cells)


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


@pytest.mark.parametrize(
    "words, message",
    {
        "magic --data {d}": "experiment 'magic' is unknown; choose one of curves",
        "curves": "needs --data",
        "curves --data {d} --seeds 0": "seeds=0",
        "curves --data {d} --sets {d}/nowhere": "is no folder",
    }.items(),
)
def test_mistakes_are_one_line(words: str, message: str, data: Path, tmp_path: Path, capsys) -> None:
    assert main(["reproduce", *words.format(d=data).split(), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
