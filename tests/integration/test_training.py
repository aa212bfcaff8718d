"""Training: the loss falls, nothing is ever lost, and a run that was stopped equals one that never was, bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import armd
from armd import files
from armd.data import Document, prepare
from armd.errors import UserError
from armd.orders import OrderSchedule
from armd.presets import PRESETS, tiny
from armd.train import OptimConfig, TrainConfig, TrainingStopped, load_config, state, train
from armd.train import loop as loops
from armd.train.config import from_json, to_json
from armd.train.log import read_metrics
from armd.train.optim import learning_rate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepared"
    corpus = [Document(f"d{i}", f"{i} bottles of beer on the wall, {i} bottles of beer. " * 8) for i in range(60)]
    prepare(lambda: iter(corpus), "byte", out, held_out=0.2, progress=False)
    return out


def small(**changes: object) -> TrainConfig:
    config = tiny(257, 256)
    shape = replace(
        config.model,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        dropout=0.1,
    )
    orders = OrderSchedule(ar_steps=4, perm_steps=12, rho=4, sbp_steps=6, floors={"uniform": 0.2})
    fields: dict[str, object] = {
        "model": shape, "orders": orders, "optim": OptimConfig(lr=3e-3, warmup_steps=3, ema=0.9), "batch_size": 4,
        "max_steps": 24, "eval_every": 8, "eval_texts": 6, "save_every": 8, "log_every": 1, "precision": "fp32",
        "eval_orders": ("left_to_right", "strided:4", "uniform"),
    }  # fmt: skip
    return replace(config, **{**fields, **changes})


def everything(run: Path) -> dict[str, torch.Tensor]:
    newest = state.checkpoints(run)[-1]
    files = [run / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_run(run: Path, other: Path) -> None:
    mine, theirs = everything(run), everything(other)
    assert mine.keys() == theirs.keys() and len(mine) > 50
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    curve, other_curve = ([(r["step"], r.get("loss"), r.get("valid")) for r in read_metrics(r_)] for r_ in (run, other))
    assert curve == other_curve


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_in_every_order(data: Path, tmp_path: Path, precision: str) -> None:
    result = train(small(max_steps=120, precision=precision, eval_every=60), data, tmp_path / "run", quiet=True)
    records = [r for r in read_metrics(tmp_path / "run") if "valid" in r]
    for order, value in result.valid.items():
        assert value < 0.8 * math.log(257) and value < records[0]["valid"][order], order
    model, tokenizer = armd.load(tmp_path / "run")
    assert tokenizer is not None and tokenizer.decode(armd.generate(model, length=8).tokens[0].tolist())


def test_interrupted_and_resumed_equals_never_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small(), data, tmp_path / "whole", quiet=True)
    step = loops.train_step

    def interrupt(*args: object) -> tuple[str, float, float]:
        if args[3] == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loops, "train_step", interrupt)
    with pytest.raises(TrainingStopped, match="interrupted after step 11, which is saved; go on with --resume"):
        train(small(), data, tmp_path / "parts", quiet=True)
    monkeypatch.setattr(loops, "train_step", step)
    train(small(), data, tmp_path / "parts", resume=True, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.timeout(240)
def test_killed_at_any_moment_and_resumed_equals_never_stopped(data: Path, tmp_path: Path) -> None:
    """SIGKILL, four times, at moments spread over training and saving."""
    config = small(max_steps=400, save_every=5, eval_every=100)
    program = (
        "import sys, json; import torch; torch.set_num_threads(1)\n"
        "from armd.train import train; from armd.train.config import from_json\n"
        "config = from_json(json.loads(sys.argv[1]))\n"
        "train(config, sys.argv[2], sys.argv[3], resume=sys.argv[4] == 'resume', quiet=True)\n"
    )

    def start(run: str, how: str) -> subprocess.Popen[bytes]:
        words = [json.dumps(to_json(config)), str(data), str(tmp_path / run), how]
        return subprocess.Popen([sys.executable, "-c", program, *words])

    assert start("whole", "new").wait() == 0
    how, kills = "new", 0
    for wait in (0.35, 0.1, 0.22, 0.4):
        process = start("parts", how)
        seen = len(read_metrics(tmp_path / "parts"))
        while process.poll() is None and len(read_metrics(tmp_path / "parts")) <= max(seen, 1):
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        how = "resume" if (tmp_path / "parts" / "run.json").exists() else "new"
    assert kills >= 3
    assert start("parts", "resume").wait() == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_gradient_accumulation_equals_the_large_batch(data: Path, tmp_path: Path) -> None:
    config = small(max_steps=6)
    config = replace(config, model=replace(config.model, dropout=0.0))
    whole = train(config, data, tmp_path / "whole", quiet=True)
    parts = train(replace(config, micro_batch_size=1), data, tmp_path / "parts", quiet=True)
    for order in whole.valid:
        assert parts.valid[order] == pytest.approx(whole.valid[order], abs=1e-4)


def test_not_a_number_stops_with_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loops.loss
    calls = iter(range(1000))

    def breaks(*args: object) -> torch.Tensor:
        return real(*args) * (math.nan if next(calls) == 13 else 1.0)

    monkeypatch.setattr(loops, "loss", breaks)
    with pytest.raises(TrainingStopped, match=r"loss is nan at step 14; last good checkpoint: .*step-00000008"):
        train(small(), data, tmp_path / "run", quiet=True)
    assert all(tensor.isfinite().all() for tensor in everything(tmp_path / "run").values())


def test_a_full_disk_leaves_the_previous_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes fail from the second checkpoint on, in the middle of it."""
    real, saved = files.save_file, []

    def full(tensors: object, path: str) -> None:
        saved.append(path)
        if len(saved) > 6:
            Path(path).write_bytes(b"half a f")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UserError, match=r"step 16 could not be saved .*No space left.*step-00000008") as caught:
        train(small(), data, tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [c.name for c in state.checkpoints(tmp_path / "run")] == ["step-00000008"]
    assert not [p for p in (tmp_path / "run").rglob("*") if p.name.startswith((".", "partial"))]
    armd.load(tmp_path / "run")
    train(small(), data, tmp_path / "run", resume=True, quiet=True)
    train(small(), data, tmp_path / "whole", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_and_its_data_must_fit(data: Path, tmp_path: Path) -> None:
    train(small(max_steps=2), data, tmp_path / "run", quiet=True)
    other = tmp_path / "other"
    prepare(lambda: iter([Document("x", "abc\n" * 2000)]), "byte", other, progress=False)
    for config, source, resume, message in [
        (small(max_steps=2), data, False, "not empty; use --resume"),
        (small(max_steps=3), data, True, "other values of max_steps"),
        (small(max_steps=2), other, True, "other data"),
    ]:
        with pytest.raises(UserError, match=message):
            train(config, source, tmp_path / "run", resume=resume, quiet=True)
    with pytest.raises(UserError, match=r"run.json does not exist"):
        train(small(), data, tmp_path / "new", resume=True, quiet=True)
    with pytest.raises(UserError, match="one order only"):
        train(small(architecture="ar"), data, tmp_path / "ar", quiet=True)


def test_checkpoints_rotate(data: Path, tmp_path: Path) -> None:
    train(small(save_every=4, keep_last=2), data, tmp_path / "run", quiet=True)
    assert [c.name for c in state.checkpoints(tmp_path / "run")] == ["step-00000020", "step-00000024"]


# ---- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_json(name: str) -> None:
    config = PRESETS[name](50257, 50256)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_the_run_folder_holds_the_whole_config(data: Path, tmp_path: Path) -> None:
    train(small(max_steps=2), data, tmp_path / "run", quiet=True)
    assert load_config(tmp_path / "run") == small(max_steps=2)


def test_preset_sizes_are_those_of_the_paper() -> None:
    sizes = {
        "paper-small": (50257, 124e6),
        "paper-medium": (50257, 354e6),
        "laptop": (4096, 12.2e6),
        "tiny": (257, 2.7e6),
    }
    for name, (vocab, wanted) in sizes.items():
        with torch.device("meta"):
            count = armd.Armd(PRESETS[name](vocab, None).model).num_parameters()
        assert count == pytest.approx(wanted, rel=0.02), name


def test_learning_rates() -> None:
    cosine, wsd = OptimConfig(lr=1.0, warmup_steps=10), OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd")
    assert [round(learning_rate(s, 110, cosine), 3) for s in (0, 9, 10, 60, 110)] == [0.1, 1.0, 1.0, 0.55, 0.1]
    assert [round(learning_rate(s, 100, wsd), 3) for s in (0, 9, 69, 85, 99)] == [0.1, 1.0, 1.0, 0.5, 0.033]
    constant = replace(wsd, schedule="constant")
    assert learning_rate(99, 100, constant) == 1.0


@pytest.mark.parametrize(("field", "value"), [
    ("batch_size", 0), ("max_steps", -1), ("micro_batch_size", 3), ("length", 99), ("precision", "fp8"),
    ("architecture", "rnn"), ("weighting", "loud"), ("eval_orders", ("spiral",)), ("keep_last", 0),
])  # fmt: skip
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field if field != "eval_orders" else "spiral"):
        small(**{field: value})


@pytest.mark.parametrize(
    "fields", [{"lr": 0.0}, {"schedule": "zigzag"}, {"ema": 1.0}, {"grad_clip": 0.0}, {"warmup_steps": -1}]
)
def test_bad_optimiser_fields_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"optim.{next(iter(fields))}="):
        OptimConfig(**fields)
