"""What a run tells: the fields of its records, TensorBoard, armd watch, armd plot, armd plan."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import types
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from rich.console import Console

from armd import load, watch
from armd.cli import main
from armd.data import Document, prepare
from armd.errors import UserError
from armd.families import OrderSchedule
from armd.files import json_text
from armd.flops import total, training_flops
from armd.presets import tiny
from armd.train import TrainConfig, TrainingStopped, gauge, load_config, train
from armd.train import loop as loops
from armd.train.log import read_metrics
from armd.train.optim import learning_rate


def small(**changes: object) -> TrainConfig:
    config = tiny(257, 256)
    shape = replace(
        config.model, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16
    )
    orders = OrderSchedule(ar_steps=2, perm_steps=8, rho=2, floors={"uniform": 0.4})
    fields: dict[str, object] = {
        "model": shape, "orders": orders, "batch_size": 2, "max_steps": 12, "log_every": 4, "eval_every": 6,
        "save_every": 4, "eval_texts": 2, "eval_orders": ("left_to_right", "reinsert:2"), "precision": "fp32",
    }  # fmt: skip
    return replace(config, **{**fields, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepared"
    corpus = [Document(f"d{i}", f"{i} bottles of beer on the wall. " * 4) for i in range(30)]
    prepare(lambda: iter(corpus), "byte", out, held_out=0.2, progress=False)
    return out


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(small(), data, run, quiet=True)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---- records ---------------------------------------------------------------------------------------------------------


def test_a_gauge_measures_the_steps_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    config, clock = small(), [1000.0]
    per_token = total(training_flops(config.model, config.text_length))
    monkeypatch.setattr(gauge.time, "monotonic", lambda: clock[0])
    peaks = {config.precision: 100 * per_token}
    monkeypatch.setattr(gauge, "peak_of", lambda device, precision: peaks.get(precision))
    meter = gauge.Gauge(config, torch.device("cpu"), devices=2, before=50.0)

    def steps(seconds: float, losses: dict[str, float]) -> None:
        for family, loss in losses.items():
            clock[0] += seconds
            meter.stop(family, loss)
            clock[0] += 10  # a validation, which is no training
            meter.start()

    steps(2.0, {"left_to_right": 5.0, "reinsert:1": 4.0, "reinsert:2": 3.0, "uniform": 6.0})
    first = meter.read()
    assert first["losses"] == {"left_to_right": 5.0, "reinsert": 3.5, "uniform": 6.0}
    assert first["tokens_per_second"] == 2 * 16 / 2 and first["seconds"] == 50 + 4 * 12
    assert first["mfu"] == pytest.approx(16 / (2 * 100)) and first["memory_bytes"] > 10e6
    steps(0.5, {"uniform": 2.0})
    second = meter.read()
    assert second["losses"] == {"uniform": 2.0} and second["tokens_per_second"] == 64 and second["seconds"] == 108.5


def test_records_of_a_run(finished: Path) -> None:
    config, records = load_config(finished), read_metrics(finished)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [4, 8, 12]
    for record in steps:
        assert set(record) == {"step", "family", "loss", "grad_norm", "lr", "losses", "tokens_per_second", "mfu",
                               "memory_bytes", "seconds"}  # fmt: skip
        assert record["lr"] == learning_rate(record["step"] - 1, config.max_steps, config.optim)
        assert record["family"].partition(":")[0] in record["losses"] and record["tokens_per_second"] > 0
        assert record["mfu"] is None or torch.cuda.is_available()
    families = {name for record in steps for name in record["losses"]}
    assert families == {"left_to_right", "uniform", "reinsert"}
    assert [r["seconds"] for r in records] == sorted(r["seconds"] for r in records)


def test_losses_are_the_means_of_their_families(data: Path, tmp_path: Path) -> None:
    train(small(log_every=1), data, tmp_path / "each", quiet=True)
    train(small(), data, tmp_path / "fourth", quiet=True)
    each = [record for record in read_metrics(tmp_path / "each") if "loss" in record]
    assert all(r["losses"] == {r["family"].partition(":")[0]: r["loss"]} for r in each)
    for record in (r for r in read_metrics(tmp_path / "fourth") if "loss" in r):
        four = each[record["step"] - 4 : record["step"]]
        for family, mean in record["losses"].items():
            assert mean == pytest.approx(fmean(r["loss"] for r in four if family in r["losses"]))


def test_seconds_go_on_when_a_run_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loops.train_step

    def interrupt(*args: object) -> tuple[str, float, float]:
        if args[3] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loops, "train_step", interrupt)
    with pytest.raises(TrainingStopped):
        train(small(), data, tmp_path / "run", quiet=True)
    monkeypatch.setattr(loops, "train_step", step)
    path = tmp_path / "run" / "metrics.jsonl"
    [record] = read_metrics(tmp_path / "run")
    path.write_text(json.dumps({**record, "seconds": 5000.0}) + "\n")
    train(small(), data, tmp_path / "run", resume=True, quiet=True)
    assert all(5000 <= r["seconds"] < 5100 for r in read_metrics(tmp_path / "run"))


class FakeWriter:
    """Stands for TensorBoard's, and keeps what it is told."""

    made: list[FakeWriter]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.told, self.closed = folder, purge_step, [], False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.told.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_the_numbers_of_the_records(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeWriter.made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(small(), data, tmp_path / "run", quiet=True)  # without it, then go on with it: a finished run stays as it is
    train(small(tensorboard=True), data, tmp_path / "run", resume=True, quiet=True)
    train(small(tensorboard=True), data, tmp_path / "board", quiet=True)
    again, writer = FakeWriter.made
    assert again.told == [] and again.purge_step == 13
    assert writer.folder == str(tmp_path / "board" / "tensorboard") and writer.purge_step == 1 and writer.closed
    told = {(name, step): value for name, value, step in writer.told}
    for record in read_metrics(tmp_path / "board"):
        at = record["step"]
        numbers = {
            f"{part}/{name}": value for part in ("losses", "valid") for name, value in record.get(part, {}).items()
        }
        numbers |= {n: record[n] for n in ("loss", "grad_norm", "lr", "tokens_per_second") if n in record}
        assert numbers and all(told[name, at] == value for name, value in numbers.items())
    assert not {name for name, _, _ in writer.told} & {"step", "family", "mfu"}


def test_tensorboard_on_a_full_disk_is_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread keeps the error, which the next call raises."""

    class Full(FakeWriter):
        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    FakeWriter.made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Full  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with pytest.raises(UserError, match=r"cannot write .*tensorboard: .*No space left.*goes on without it"):
        train(small(tensorboard=True), data, tmp_path / "run", quiet=True)
    train(small(), data, tmp_path / "run", resume=True, quiet=True)
    assert (tmp_path / "run" / "done.json").exists()


def test_tensorboard_absent_is_one_line_before_anything_is_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"needs the package tensorboard: pip install 'armd\[tensorboard\]'"):
        train(small(tensorboard=True), data, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# ---- armd watch ------------------------------------------------------------------------------------------------------


def test_a_look_says_what_the_records_say(run: Path) -> None:
    config, records = load_config(run), read_metrics(run)
    now = (run / "metrics.jsonl").stat().st_mtime
    seen = watch.look(run, config, now + 1)
    steps = [record for record in records if "loss" in record]
    assert (seen["state"], seen["step"], seen["checkpoint"], seen["eta_seconds"]) == ("done", 12, 12, 0)
    assert seen["loss"] == steps[-1]["loss"] and seen["valid"] == records[-1]["valid"]
    assert seen["curves"]["loss"] == [record["loss"] for record in steps]
    (run / "done.json").unlink()  # killed before it was published
    assert watch.look(run, config, now + 1)["state"] == "running"
    (run / "checkpoints" / "step-00000012").rename(run / "checkpoints" / "partial-00000012")
    assert watch.look(run, config, now + 1)["state"] == "running" and watch.look(run, config, now)["checkpoint"] == 8
    assert watch.look(run, config, now + 1000)["state"] == "silent"
    slow = [{**r, "seconds": 100.0 * r["step"]} for r in steps[:2]]  # 400 seconds a record
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in slow))
    now = (run / "metrics.jsonl").stat().st_mtime
    seen = watch.look(run, config, now + 1000)
    assert (seen["state"], seen["eta_seconds"], seen["seconds"]) == ("running", 400.0, 800.0)
    assert watch.look(run, config, now + 2001)["state"] == "silent"
    (run / "metrics.jsonl").write_text("")
    assert watch.look(run, config, now)["state"] == "waiting"


def test_steps_left_out_are_shown(run: Path) -> None:
    def shown() -> tuple[int, str]:
        seen, console = watch.look(run, load_config(run), 0.0), Console(width=120)
        with console.capture() as captured:
            console.print(watch.panel(seen))
        return seen["skipped"], captured.get()

    assert shown()[0] == 0 and "skipped" not in shown()[1]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json_text({"step": s, "family": "uniform", "skipped": "loss is nan"}) + "\n" for s in (5, 6))
    assert shown()[0] == 2 and "2 skipped" in shown()[1]


def test_a_line_still_being_written_is_not_damage(run: Path) -> None:
    before = watch.look(run, load_config(run), 0.0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    after = watch.look(run, load_config(run), 0.0)
    assert {**after, "silent_seconds": 0} == {**before, "silent_seconds": 0}


@pytest.mark.parametrize(
    ("values", "drawn"), [([], ""), ([3.0], "▁"), ([2.0, 2.0], "▁▁"), ([0, 7, 3.5], "▁█▅"), ([1, 3, 5, 7], "▁█")]
)
def test_a_curve_in_a_line(values: list[float], drawn: str) -> None:
    assert watch.spark(values, 3 if len(values) < 4 else 2) == drawn


def test_following_ends_with_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, hidden = load_config(run), run / "hidden"
    (run / "done.json").rename(hidden)
    monkeypatch.setattr(watch.time, "sleep", lambda _: hidden.rename(run / "done.json"))
    shown: list[object] = []
    seen = watch.follow(lambda: watch.look(run, config, 0.0), shown.append, 1.0)
    assert seen["state"] == "done" and len(shown) == 2


def test_ctrl_c_ends_watching_and_is_no_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    (run / "checkpoints" / "step-00000012").rename(run / "hidden")
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    assert main(["watch", str(run)]) == 0
    shown = capsys.readouterr()
    assert "step 12 of 12" in shown.out and shown.err == ""


def test_names_are_no_markup_in_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = run.rename(run.with_name("[bold]a"))
    with (odd / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "valid": {"[/y]": 1.5}}\n')
    assert main(["watch", str(odd), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "[bold]a" in shown and "[/y]" in shown


def test_watch_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--once"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "step 12 of 12, 100%",
        "left_to_right",
        "(reinsert:2)",
        "last checkpoint: step 12",
        "done",
        "tokens/s",
    ):
        assert words in shown
    assert main(["watch", str(run)]) == 0 and "step 12 of 12" in capsys.readouterr().out
    assert main(["watch", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"


# ---- armd plot -------------------------------------------------------------------------------------------------------


def picture(words: list[str], out: Path) -> ElementTree.Element:
    assert main(["plot", *words, "--out", str(out)]) == 0
    return ElementTree.fromstring(out.read_text(encoding="utf-8"))


def texts(drawn: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in drawn.iter() if element.tag.endswith("text")]


def test_a_plot_has_a_line_for_each_run_in_each_chart(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    drawn = picture([str(run), str(tmp_path / "other")], tmp_path / "plot.svg")
    charts = [e for e in drawn.iter() if e.get("role") == "img"]
    assert len(charts) == 3  # training, and two families held out
    for chart in charts:
        assert [e.get("class") for e in chart.iter() if e.get("class", "").startswith("r")] == ["r0", "r1"]
    shown = texts(drawn)
    assert {"run", "other", "Training loss", "Held out, left to right", "Held out, reinsert:2"} <= set(shown)
    assert shown.count("tokens →") == 3 and shown.count("↑ nats per token") == 3


def test_a_run_that_has_just_begun_hides_no_other(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "begun")
    (tmp_path / "begun" / "metrics.jsonl").unlink()
    drawn = picture([str(tmp_path / "begun"), str(run), "--key", "loss"], tmp_path / "plot.svg")
    assert {"run", "begun"} <= set(texts(drawn))
    [chart] = [e for e in drawn.iter() if e.get("role") == "img"]
    drawn_as = {group.get("class"): [e for e in group.iter() if e.get("class") == "line"] for group in chart.iter("*")}
    assert drawn_as["r1"] and not drawn_as.get("r0")


def test_runs_beyond_the_colours_are_dashed(run: Path, tmp_path: Path) -> None:
    copies = [str(shutil.copytree(run, tmp_path / f"copy-{i}")) for i in range(9)]
    drawn = picture([*copies, "--key", "loss"], tmp_path / "plot.svg")
    [chart] = [e for e in drawn.iter() if e.get("role") == "img"]
    looks = [e.get("class") for e in chart.iter() if e.get("class", "").startswith("r")]
    assert len(set(looks)) == 9 and looks[7:] == ["r0 dashed", "r1 dashed"]


def test_points_lie_where_the_records_say(run: Path, tmp_path: Path) -> None:
    """The marks of a held-out curve tell their place: tokens of a step, or seconds."""
    valid = [r for r in read_metrics(run) if "valid" in r]
    for x, places in (("tokens", [r["step"] * 32 for r in valid]), ("seconds", [r["seconds"] for r in valid])):
        drawn = picture([str(run), "--key", "valid", "--x", x], tmp_path / "plot.svg")
        told = [e.text or "" for e in drawn.iter() if e.tag.endswith("title")]
        expected = [
            f"run, {x} {at:g}: {r['valid'][name]:.3f}"
            for name in valid[0]["valid"]
            for at, r in zip(places, valid, strict=True)
        ]
        assert told == expected


def test_every_key_but_the_unknown_is_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["loss", "losses", "valid", "grad_norm", "lr", "tokens_per_second", "memory_bytes"]
    drawn = picture([str(run), "--key", *keys, "--x", "steps"], tmp_path / "plot.svg")
    assert {"Training loss, uniform", "Gradient norm", "Learning rate", "Speed", "Memory"} <= set(texts(drawn))
    capsys.readouterr()
    assert main(["plot", str(run), "--out", str(tmp_path / "plot.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"] == ["loss", "valid"]
    html = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert (
        html.startswith("<!DOCTYPE html>")
        and html.count("<svg xmlns") == 1
        and not re.search(r"<script|https?:(?!//www.w3)", html)
    )


def test_names_are_text_in_the_picture(run: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<script>&x"
    run.rename(evil)
    assert "<script>&x" in texts(picture([str(evil)], tmp_path / "plot.svg"))


# ---- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "watch {r}/nowhere": "run folder {r}/nowhere does not exist",
    "watch {r}/checkpoints": "run.json does not exist; is {r}/checkpoints the right folder?",
    "watch {r} --every 0": "every=0.0 must be above 0 seconds",
    "watch": "armd watch",
    "plot": "name a run folder first",
    "plot {r}/nowhere": "run folder {r}/nowhere does not exist",
    "plot {r} {r}": "is given twice",
    "plot {r} --out {r}/x.png": "must end in .svg or .html",
    "plot {r} --key charm": "key='charm' is unknown; choose one of loss, losses, valid",
    "plot {r} --x miles": "x='miles' is unknown; choose one of tokens, steps, seconds",
    "plot {r} --key mfu": "key='mfu': no record of it in run",
    "plan": "name a preset first: tiny",
    "plan huge": "preset 'huge' is unknown",
    "plan tiny --gpu abacus": "gpu='abacus' is unknown; choose one of a100, h100, h200 or cpu",
    "plan tiny --gpus 3": "gpus=3 must divide batch_size=16",
    "plan tiny --gpus many": "--gpus",
    "plan tiny --utilisation 0": "utilisation=0.0 must be above 0",
    "plan tiny --vocab-size 0": "vocab_size=0 must be at least 1",
    "plan tiny --wings 2": "--wings",
    "plan tiny --against {r}/nowhere": "{r}/nowhere/run.json does not exist",
    "plan tiny --against {r}": "{r} is of another network",
}  # fmt: skip


def one_line(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(command) == 2
    shown = capsys.readouterr()
    [line] = shown.err.splitlines()
    assert line.startswith("error: ") and message in line and shown.out == ""


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(command.format(r=run).split(), MISTAKES[command].format(r=run), capsys)


@pytest.mark.parametrize("words", ["watch {r} --once", "plot {r} --out {r}/x.svg"])
def test_bad_records_are_one_line(words: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (
        ("", "metrics.jsonl holds no record yet"),
        ('{"step": 1, "loss": 2.0}\n{oops\n', "metrics.jsonl line 2 is damaged"),
        (
            '{"step": 1, "losses": [2.0]}\n',
            "metrics.jsonl line 1 is damaged: losses and valid must name order families",
        ),
    ):
        (run / "metrics.jsonl").write_text(content)
        one_line(words.format(r=run).split(), message, capsys)
    (run / "metrics.jsonl").unlink()
    one_line(words.format(r=run).split(), "metrics.jsonl holds no record yet", capsys)
    assert not (run / "x.svg").exists()


def test_values_of_other_kinds_are_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"step": 4, "loss": None, "lr": "high", "losses": {"uniform": None}, "seconds": "late", "family": 3}
    (run / "metrics.jsonl").write_text(json.dumps(odd) + '\n{"step": 5, "valid": {"uniform": "good"}}\n')
    assert main(["watch", str(run), "--once"]) == 0
    one_line(["plot", str(run), "--out", str(run / "x.svg")], "key='loss': no record of it", capsys)


# ---- armd plan -------------------------------------------------------------------------------------------------------


def test_plan_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "paper-small", "--gpus", "8", "--price-per-hour", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [row["steps"] for row in made["budgets"]] == [180_000, 400_000] and made["devices"] == 8
    assert 1.2e8 < sum(made["parameters"].values()) < 1.3e8 and made["flops_per_token"]["against_ar"] > 1.2
    assert (
        main(["plan", "paper-small", "--max-steps", "50", "--vocab-size", "100", "--model.num-hidden-layers", "6"]) == 0
    )
    shown = capsys.readouterr().out
    assert "keys, values" in shown and "tokens/s" in shown and "H100" in shown and " 50 " in shown
    plans = {}
    for architecture in ("ar", "mdlm", "bd3lm"):
        assert main(["plan", "paper-small", "--architecture", architecture, "--json"]) == 0
        plans[architecture] = json.loads(capsys.readouterr().out)
        assert plans[architecture]["architecture"] == architecture
    ratios = [each["flops_per_token"]["against_ar"] for each in plans.values()]
    assert ratios[0] == 1 < ratios[1] < ratios[2] < 2  # whole squares; two copies of the text, but one head
    kept = [each["memory"][0]["activations"] for each in plans.values()]
    assert kept[2] == pytest.approx(2 * kept[0], rel=0.03)
    assert main(["plan", "paper-small", "--architecture", "bd3lm"]) == 0
    assert f"bd3lm: {ratios[2]:.3f} times the operations" in capsys.readouterr().out
    assert main(["plan", str(run / "run.json"), "--json"]) == 0  # a run, whatever it was
    made = json.loads(capsys.readouterr().out)
    assert sum(made["parameters"].values()) == load(run)[0].num_parameters()
    assert [row["steps"] for row in made["budgets"]] == [load_config(run).max_steps]
    one_line(["plan", str(run / "run.json"), "--vocab-size", "9"], "has a vocabulary of", capsys)
    sizes = {"hidden-size": 16, "num-hidden-layers": 1, "num-attention-heads": 2, "max-position-embeddings": 16}
    words = [word for name, size in sizes.items() for word in (f"--model.{name}", str(size))]
    assert main(["plan", "tiny", "--gpu", "cpu", "--against", str(run), *words, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["tokens_per_second"] > 0 and measured["utilisation"] > 0


@pytest.mark.parametrize("words", ["plan --help", "plan tiny --help", "watch --help", "plot --help"])
def test_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 0
    assert len(capsys.readouterr().out) > 100
