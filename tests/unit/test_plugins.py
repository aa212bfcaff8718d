"""Orders, schedules and weights of the user's own: as good as the built-in ones, and every mistake is one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from armd import Family, OrderSchedule, UserError, nll, plugins
from armd.cli import main
from armd.data import documents, prepare
from armd.objective import loss
from armd.orders import generator
from armd.train import TrainConfig, load_config, train
from conftest import make_config, make_model

MINE = """
import itertools, random, torch
from armd import Order

calls = itertools.count()

def zigzag(batch, length, argument, generator):
    return Order.strided(batch, length, argument or 1)

def shuffled(batch, length, argument, generator):
    return Order.uniform(batch, length, generator=generator)

def forgetful(batch, length, argument, generator):
    return Order.uniform(batch, length)

def short(batch, length, argument, generator):
    return Order.left_to_right(batch, length - 1)

def numbers(batch, length, argument, generator):
    return list(range(length))

def twice(batch, length, argument, generator):
    positions = torch.zeros(batch, length, dtype=torch.long)
    return Order(positions, positions)

def divides(batch, length, argument, generator):
    return length / 0

def no_arguments():
    pass

def turns(step, seed, max_steps):
    return "uniform" if step % 2 else "{mine}:zigzag:4"

def spirals(step, seed, max_steps):
    return "spiral" if step == 3 else "uniform"

def silent(step, seed, max_steps):
    pass

def moody(step, seed, max_steps):
    return "uniform" if next(calls) % 3 else "left_to_right"

def too_wide(step, seed, max_steps):
    return "strided:5"

def twofold(order):
    return torch.full(order.positions.shape, 2)

def scalar(order):
    return torch.tensor(1.0)

def infinite(order):
    return 1 / torch.zeros(order.positions.shape)

number = 7
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a user."""
    file = tmp_path_factory.mktemp("mine") / "mine.py"
    file.write_text(MINE.replace("{mine}", str(file)))
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"a stitch in time saves {i + 9}, " * 30)
    prepare(lambda: documents([str(folder / "*.txt")]), "byte", folder / "data", held_out=0.3)
    return folder / "data"


def small(**changes: object) -> TrainConfig:
    config = TrainConfig(
        make_config(vocab_size=257, max_position_embeddings=16), batch_size=2, max_steps=4, save_every=2, eval_texts=2,
        precision="fp32", eval_orders=("left_to_right",),
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


# ---- orders ----------------------------------------------------------------------------------------------------------


def test_an_order_of_ones_own_is_as_good_as_a_built_in_one(mine: str) -> None:
    family = Family.parse(f"{mine}:zigzag:4")
    assert (str(family), family.argument, family.own) == (f"{mine}:zigzag:4", 4, True)
    for own, built_in in ((family, "strided:4"), (Family.parse(f"{mine}:shuffled"), "uniform")):
        one, other = own.order(2, 16, generator(3)), Family.parse(built_in).order(2, 16, generator(3))
        assert torch.equal(one.positions, other.positions) and torch.equal(one.blocks, other.blocks)
        own.check(16)


def test_modules_serve_as_files_do(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(mine).parent)
    assert Family.parse("mine:zigzag:2").order(1, 8, generator(0)).blocks[0, -1] == 4
    monkeypatch.chdir(Path(mine).parent)
    assert Family.parse("mine.py:zigzag").order(1, 8, generator(0)).is_sequential


@pytest.mark.parametrize(("name", "message"), [
    ("nowhere.py:zigzag", r"nowhere\.py:zigzag: there is no file /.*nowhere\.py"),
    ("no_such_module:zigzag", "no_such_module:zigzag cannot be loaded: ModuleNotFoundError: .*no_such_module"),
    ("{mine}:zagzig", "has no function zagzig"), ("{mine}:number", "number is a int, which cannot be called"),
    ("{mine}:zigzag:x", "the number after the colon must be an integer >= 1"),
    ("{mine}:zigzag:5", r"mine\.py:zigzag: streams=5 does not divide"),
    ("{mine}:numbers", r"mine\.py:numbers returned a list; it must return an armd\.Order"),
    ("{mine}:short", r"returned an order \(2, 15\) on cpu; it must be \(batch, length\) = \(2, 16\)"),
    ("{mine}:twice", r"mine\.py:twice: positions: every row must be a permutation"),
    ("{mine}:divides", r"divides failed: ZeroDivisionError: division by zero \(line 27 of .*mine\.py\)"),
    ("{mine}:no_arguments", "failed: TypeError: no_arguments.. takes 0 positional arguments but 4 were given$"),
    ("{mine}:forgetful", "order .*forgetful: its orders differ from call to call"),
])  # fmt: skip
def test_mistakes_of_orders_are_one_line(mine: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Family.parse(name.format(mine=mine)).check(16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("def f(:", "SyntaxError: .*line 1"), ("import no_such_thing", "No module named 'no_such_thing' .line 1 of"),
    ("raise SystemExit(0)", "cannot be loaded: SystemExit"),
])  # fmt: skip
def test_a_file_that_does_not_run_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Family.parse(f"{tmp_path}/broken.py:f").check(16)
    assert "\n" not in str(caught.value)


# ---- schedules and weights -------------------------------------------------------------------------------------------


def test_a_schedule_of_ones_own_takes_the_place_of_the_phases(mine: str) -> None:
    schedule = OrderSchedule(rho=4, perm_steps=2, schedule=f"{mine}:turns")
    assert [str(schedule.family(s, 0, 4)) for s in range(3)] == [f"{mine}:zigzag:4", "uniform", f"{mine}:zigzag:4"]
    assert len(schedule.check(0, 4, 16)) == 2
    floored = replace(schedule, floors={"infill": 1.0})
    assert str(floored.family(0, 0, 4)) == "infill"


@pytest.mark.parametrize(("name", "message"), [
    ("spirals", "spirals, step 3: order family 'spiral' is unknown"), ("silent", "silent returned None for step 0"),
    ("moody", "moody differs from call to call"), ("too_wide", "orders.schedule .*too_wide names strided:5: streams=5"),
])  # fmt: skip
def test_mistakes_of_schedules_are_one_line(mine: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OrderSchedule(schedule=f"{mine}:{name}").check(0, 8, 16)
    with pytest.raises(UserError, match="schedule='later' must be empty"):
        OrderSchedule(schedule="later")


def test_weights_of_ones_own(mine: str) -> None:
    model, tokens = make_model(), torch.randint(11, (2, 12))
    order = Family("strided", 4).order(2, 12, generator(0))
    assert loss(model, tokens, order, f"{mine}:twofold").item() == pytest.approx(
        2 * nll(model, tokens, order).mean().item(), rel=1e-5
    )
    with pytest.raises(UserError, match=r"scalar returned \(\); it must return a tensor \(2, 12\)"):
        loss(model, tokens, order, f"{mine}:scalar")
    with pytest.raises(UserError, match="infinite: its numbers must be finite"):
        small(weighting=f"{mine}:infinite").check_plugins()


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_resumes_with_its_functions_and_not_without_them(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(MINE.replace("{mine}", str(file)))
    own = OrderSchedule(schedule=f"{file}:turns", floors={f"{file}:shuffled": 0.3})
    config = small(orders=own, weighting=f"{file}:twofold", eval_orders=("left_to_right", f"{file}:zigzag:2"))
    whole = train(config, data, tmp_path / "whole", quiet=True)
    assert whole.valid.keys() == {"left_to_right", f"{file}:zigzag:2"}
    train(config, data, tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")  # as if it had been stopped after step 2
    again = train(config, data, tmp_path / "run", resume=True, quiet=True)
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)

    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]
    assert recorded.keys() == {f"{file}:{name}" for name in ("turns", "shuffled", "twofold", "zigzag")}
    text = file.read_text()
    file.write_text(text + "\n# another thought\n")
    train(config, data, tmp_path / "run", resume=True, quiet=True)  # a process keeps what it has loaded
    plugins.forget()
    with pytest.raises(UserError, match=r"was trained with another text of .*own\.py:shuffled"):
        train(config, data, tmp_path / "run", resume=True, quiet=True)
    file.unlink()
    plugins.forget()
    with pytest.raises(UserError, match=r"own\.py:zigzag: there is no file .*own\.py"):
        train(load_config(tmp_path / "run"), data, tmp_path / "run", resume=True, quiet=True)


def test_evaluate_scores_the_blocks_of_ones_own_order(
    mine: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(), data, tmp_path / "run", quiet=True)
    words = ["evaluate", "--model", str(tmp_path / "run"), "--data", str(data), "--texts", "3"]
    assert main([*words, "--json", "--orders", f"{mine}:zigzag:4,strided:4,{mine}:shuffled,uniform"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [s["blocks"] for s in scores] == ["sequential", "parallel"] * 2 + ["sequential"] * 2
    nats = [s["nats_per_token"] for s in scores]
    assert nats[:2] == nats[2:4] and nats[0] != nats[1] and nats[4] == pytest.approx(nats[5], rel=1e-6)
    assert main([*words, "--orders", "gone.py:zigzag"]) == 2
    assert "error: gone.py:zigzag: there is no file" in capsys.readouterr().err
