"""Runs survive: kills, signals, full disks, rotten bits, vanished data, steps that explode. Nothing made is lost."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import armd
from armd.errors import UserError
from armd.families import OrderSchedule
from armd.presets import tiny, with_steps
from armd.train import OptimConfig, TrainConfig, TrainingStopped, parallel, state, train
from armd.train import loop as loops
from armd.train.config import EXECUTION
from armd.train.guard import LEAST, Guard
from armd.train.log import read_metrics
from armd.train.optim import Pair
from crash import assert_same, kill_and_resume
from processes import make_data
from several import stopping_after


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("survival") / "data")


def config(**changes: object) -> TrainConfig:
    base = tiny(257, 256)
    shape = replace(base.model, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16)
    small = replace(base, model=shape, optim=OptimConfig(lr=3e-3, warmup_steps=3, ema=0.9), batch_size=4)
    small = replace(small, eval_texts=4, eval_every=8, save_every=8, log_every=1, precision="fp32")
    return replace(with_steps(small, 24), **changes)


def names(run: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in state.checkpoints(run)]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config(), data, run, quiet=True)
    return run


# ---- kills and signals -----------------------------------------------------------------------------------------------


def test_killed_at_random_moments_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    """`make test-crash` does it thirty times."""
    assert kill_and_resume(tmp_path, kills=2).kills == 2


def signalled_in(step: int, *numbers: signal.Signals) -> contextlib.AbstractContextManager[object]:
    """Signals to this process while it trains a step, the first being 1."""
    train_step = loops.train_step

    def interrupted(*args: object) -> loops.Step:
        if args[3] == step - 1:
            for number in numbers:
                os.kill(os.getpid(), number)
        return train_step(*args)

    return mock.patch.object(loops, "train_step", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(data: Path, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Twice within a second, as torchrun passes on what the terminal sent already."""
    saved = "interrupted after step 11, which is saved; go on with --resume"
    with signalled_in(11, number, number), pytest.raises(TrainingStopped, match=saved):
        train(config(), data, tmp_path / "run", quiet=True)
    assert names(tmp_path / "run") == [8, 11]
    train(config(), data, tmp_path / "run", resume=True, quiet=True)
    assert_same(whole, tmp_path / "run")


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["a full tmpfs", "RLIMIT_FSIZE"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable]]:
    """A folder, and a context in which no checkpoint fits into it any more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "RLIMIT_FSIZE":
        yield folder, files_are_short
        return
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({mount.stderr.strip()}); RLIMIT_FSIZE is tried beside it")
    try:
        yield folder, lambda: disk_is_full(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def files_are_short() -> Iterator[None]:
    """Files longer than 60 KB cannot be written: weights fit, the state of the optimiser does not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def disk_is_full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - 80_000)  # room for the weights, not for all of a checkpoint
    try:
        yield
    finally:
        filler.unlink()


def test_a_full_disk_leaves_the_last_checkpoint_and_a_line(
    data: Path, whole: Path, small_disk: tuple[Path, Callable]
) -> None:
    folder, no_room = small_disk
    run = folder / "run"
    with stopping_after(10), pytest.raises(TrainingStopped):
        train(config(), data, run, quiet=True)
    with no_room(), pytest.raises(UserError) as caught:
        train(config(), data, run, resume=True, quiet=True)
    line = str(caught.value)
    assert "step 16 could not be saved" in line and ("No space left" in line or "File too large" in line)
    assert line.endswith(f"; last good checkpoint: {run}/checkpoints/step-00000008") and "\n" not in line
    assert names(run) == [8]
    train(config(), data, run, resume=True, quiet=True)
    assert_same(whole, run)


def test_a_read_only_run_folder_is_one_line(data: Path, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mount.stderr.strip()}")
    try:
        shutil.copytree(whole, folder / "run")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for run, resume in ((folder / "new", False), (folder / "run", True)):
            with pytest.raises(UserError, match=r"cannot write .*Read-only file system") as caught:
                train(config(), data, run, resume=resume, quiet=True)
            assert "\n" not in str(caught.value)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_any_flipped_byte_of_a_checkpoint_is_found(whole: Path, tmp_path: Path) -> None:
    draw, newest = random.Random(0), tmp_path / "step-00000024"
    shutil.copytree(state.checkpoints(whole)[-1], newest)
    state.verify(newest)
    good = state.read_state(newest)
    for file in sorted(newest.iterdir()) * 40:
        before = file.read_bytes()
        place, mask = draw.randrange(len(before)), draw.randrange(1, 256)
        file.write_bytes(before[:place] + bytes([before[place] ^ mask]) + before[place + 1 :])
        try:
            state.verify(newest)
            assert file.name == "state.json" and state.read_state(newest) == good  # a blank became another blank
        except UserError as error:
            assert str(newest) in str(error) and "\n" not in str(error)
        file.write_bytes(before)


@pytest.mark.parametrize("damage", ["a flipped byte", "a cut file", "a missing file", "no state"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = state.checkpoints(run)[-1]
    file = newest / ("state.json" if damage == "no state" else "optimiser.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "a flipped byte":
        file.write_bytes(content)
    elif damage == "a cut file":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    capsys.readouterr()
    train(config(), data, run, resume=True)
    first = capsys.readouterr().err.splitlines()[0]
    assert str(file) in first and first.endswith("; going on from step 16")
    assert_same(whole, run)


def test_a_run_begun_with_another_torch_is_told_so(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    told = json.loads((run / "run.json").read_text())
    for torch_version, lines in ((torch.__version__, 0), ("1.0.0", 1)):
        told["versions"]["torch"] = torch_version
        (run / "run.json").write_text(json.dumps(told))
        capsys.readouterr()
        train(config(), data, run, resume=True)
        assert capsys.readouterr().err.count("torch 1.0.0: other versions may compute other bits") == lines


def test_what_is_saved_after_a_damaged_checkpoint_is_kept(data: Path, whole: Path, tmp_path: Path) -> None:
    """Saved at a step before it, too: the damaged one is not the newest of those to keep."""
    run, kept = tmp_path / "run", config(keep_last=1)
    shutil.copytree(whole, run)
    newest = state.checkpoints(run)[-1]
    (newest / "weights.safetensors").write_bytes(b"")
    saved = r"step 19, which is saved.*00000019$"
    with signalled_in(19, signal.SIGTERM), pytest.raises(TrainingStopped, match=saved):
        train(kept, data, run, resume=True, quiet=True)
    assert names(run) == [19] and (run / "checkpoints" / "damaged-00000024").is_dir() and not newest.exists()
    train(kept, data, run, resume=True, quiet=True)
    assert_same(whole, run)


# ---- which checkpoints are kept --------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validated between saves, and best at step 6: saved there at once, and still there at the end."""
    values = iter([5.0, 3.0, 4.0, 3.5, 3.6, 3.7, 3.8, 3.9])
    monkeypatch.setattr(loops, "validate", lambda *_: {"left_to_right": next(values), "uniform": 1.0})
    best = config(eval_every=3, save_every=4, keep_last=2, keep_best=True)
    with stopping_after(14), pytest.raises(TrainingStopped):
        train(best, data, tmp_path / "run", quiet=True)
    assert names(tmp_path / "run") == [6, 8, 12]
    train(best, data, tmp_path / "run", resume=True, quiet=True)
    assert names(tmp_path / "run") == [6, 20, 24]
    assert state.best(tmp_path / "run", "left_to_right") == (state.checkpoints(tmp_path / "run")[0], 3.0)
    model, tokenizer = armd.load(tmp_path / "run" / "best")
    average = load_file(state.checkpoints(tmp_path / "run")[0] / "average.safetensors")
    assert tokenizer is not None
    assert all(torch.equal(weight, average[str(i)]) for i, weight in enumerate(model.parameters()))


def test_the_average_is_what_is_published(whole: Path) -> None:
    model, _ = armd.load(whole)
    average = load_file(state.checkpoints(whole)[-1] / "average.safetensors")
    assert len(average) == len(list(model.parameters()))
    for i, (name, weight) in enumerate(model.named_parameters()):
        assert torch.equal(weight, average[str(i)]), name


# ---- what may change between runs ------------------------------------------------------------------------------------


def test_only_fields_of_execution_may_change_on_resume(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with stopping_after(9), pytest.raises(TrainingStopped):
        train(config(), data, run, quiet=True)
    others: dict[str, object] = {
        "batch_size": 8, "seed": 1, "precision": "bf16", "weighting": "late", "length": 8, "save_every": 4,
        "eval_texts": 2, "optim": OptimConfig(lr=1e-3, warmup_steps=3, ema=0.9),
    }  # fmt: skip
    for name, value in others.items():
        with pytest.raises(UserError, match=f"other values of {name}; --resume needs the same"):
            train(config(**{name: value}), data, run, resume=True, quiet=True)
    changes: dict[str, object] = {
        "device": "cpu", "parallel": "fsdp", "micro_batch_size": 2, "log_every": 5, "tensorboard": False,
        "keep_last": 1, "keep_best": True, "on_bad_step": "skip", "spike_factor": 9.0, "max_skipped": 3,
        "compile": False, "checkpoint_activations": True,
    }  # fmt: skip
    assert changes.keys() == set(EXECUTION)
    train(config(**changes), data, run, resume=True, quiet=True)
    assert names(run) == [24]


# ---- data that goes away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["vanished", "was changed"])
def test_data_lost_during_a_run_costs_no_step(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The shard is removed, or cut to nothing, which would kill a process that had mapped it by SIGBUS."""
    moved, step = tmp_path / "data", loops.train_step
    shutil.copytree(data, moved)
    (shard,) = moved.glob("train*.bin")
    content = shard.read_bytes()

    def lose(*args: object) -> loops.Step:
        if args[3] == 10:
            shard.unlink() if what == "vanished" else os.truncate(shard, 0)
        return step(*args)

    monkeypatch.setattr(loops, "train_step", lose)
    # The batch of the next step may have been read before.
    with pytest.raises(UserError, match=f"shard {shard} {what} during the run.*step-0000001[12]$"):
        train(config(), moved, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"shard {shard} (is missing|has 0 bytes)"):
        train(config(), moved, tmp_path / "run", resume=True, quiet=True)
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match=f"shard {shard} was changed since it was made"):
        train(config(), moved, tmp_path / "run", resume=True, quiet=True)
    shard.write_bytes(content)
    train(config(), moved, tmp_path / "run", resume=True, quiet=True)
    assert_same(whole, tmp_path / "run")


def test_held_out_data_lost_during_a_run_costs_no_step_and_no_validation(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, step = tmp_path / "data", loops.train_step
    shutil.copytree(data, moved)
    (shard,) = moved.glob("valid*.bin")
    content = shard.read_bytes()

    def lose(*args: object) -> loops.Step:
        if args[3] == 10:
            shard.unlink()
        return step(*args)

    monkeypatch.setattr(loops, "train_step", lose)
    with pytest.raises(UserError, match=f"shard {shard} vanished during the run.*step-00000016$"):
        train(config(), moved, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    shard.write_bytes(content)
    train(config(), moved, tmp_path / "run", resume=True, quiet=True)
    assert_same(whole, tmp_path / "run")
    assert [r["step"] for r in read_metrics(tmp_path / "run") if "valid" in r] == [
        r["step"] for r in read_metrics(whole) if "valid" in r
    ]


# ---- steps that must not reach the weights ---------------------------------------------------------------------------


def break_steps(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply the losses of some steps."""
    real, step, now = parallel.training_loss, loops.train_step, [0]

    def remember(*args: object) -> loops.Step:
        now[0] = args[3]  # type: ignore[call-overload]
        return step(*args)

    monkeypatch.setattr(loops, "train_step", remember)
    monkeypatch.setattr(parallel, "training_loss", lambda *args: real(*args) * factors.get(now[0], 1.0))


def test_bad_steps_are_skipped_counted_and_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_steps(monkeypatch, {5: math.nan, 18: math.inf, 20: 50.0})
    skip = config(on_bad_step="skip", spike_factor=4.0, orders=OrderSchedule())
    for run, stop in (("whole", 24), ("parts", 19)):
        with stopping_after(stop), contextlib.suppress(TrainingStopped):
            train(skip, data, tmp_path / run)
    train(skip, data, tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    skipped = {r["step"]: r["skipped"] for r in read_metrics(tmp_path / "whole") if "skipped" in r}
    assert skipped.keys() == {6, 19, 21}
    assert skipped[6] == "loss is nan" and "above spike_factor=4 times the usual" in skipped[21]
    assert "step 21 skipped: loss is" in capsys.readouterr().err
    assert state.read_state(state.checkpoints(tmp_path / "whole")[-1])["guard"]["skipped"] == 3
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["config"]["on_bad_step"] == "skip"


def test_a_skipped_step_changes_no_weight(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of 9 steps is skipped: what is saved after it is what was saved before it."""
    break_steps(monkeypatch, {8: math.nan})
    run = tmp_path / "run"
    train(replace(with_steps(config(on_bad_step="skip"), 9), save_every=8), data, run, quiet=True)
    before, after = state.checkpoints(run)
    for name in ("weights", "average", "optimiser"):
        assert (before / f"{name}.safetensors").read_bytes() == (after / f"{name}.safetensors").read_bytes()


def test_too_many_bad_steps_in_a_row_stop_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_steps(monkeypatch, dict.fromkeys([3, 10, 11, 12], math.nan))
    with pytest.raises(TrainingStopped, match=r"nan at step 13, after max_skipped=2 skipped in a row; .*step-00000012"):
        train(config(on_bad_step="skip", max_skipped=2), data, tmp_path / "run", quiet=True)


def test_a_spike_stops_by_default() -> None:
    guard = Guard(config(spike_factor=2.0))
    for _ in range(LEAST - 1):
        assert guard.fault("reinsert:1", 3.0, 1.0) is None
    assert guard.fault("reinsert:2", 7.0, 1.0) is None  # too early to tell
    assert guard.fault("uniform", 6.1, 1.0) is None  # another family
    again = Guard(config(spike_factor=2.0))
    again.restore(json.loads(json.dumps(guard.state())))
    fault = guard.fault("reinsert:3", 6.1, 1.0)
    assert fault is not None and fault == again.fault("reinsert:3", 6.1, 1.0)
    assert guard.fault("reinsert:3", 5.9, 1.0) is None
    with pytest.raises(TrainingStopped, match=r"loss is 6.1, above spike_factor=2 times the usual 3, at step 5"):
        guard.skip(fault, 5)


def test_a_checkpoint_of_another_version_is_told_in_a_line() -> None:
    for saved in {"recent": [3.0], "skipped": 0, "in_a_row": 0}, {"losses": []}:
        with pytest.raises(UserError, match=r"another version of armd saved this run's checkpoint; .*--init RUN"):
            Guard(config()).restore(saved)


# ---- any optimiser ---------------------------------------------------------------------------------------------------


def test_the_state_of_any_optimiser_is_restored(tmp_path: Path) -> None:
    """A pair over halves of a network: momentum buffers, step counts that are plain numbers, and AdamW."""

    def make() -> tuple[torch.nn.Linear, Pair]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        return net, Pair(torch.optim.SGD([net.weight], lr=0.1, momentum=0.9), torch.optim.AdamW([net.bias], lr=0.1))

    def steps(net: torch.nn.Linear, optimiser: Pair) -> None:
        for _ in range(3):
            net(torch.ones(1, 3)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()

    net, optimiser = make()
    steps(net, optimiser)
    optimiser.state[net.weight]["count"] = 3  # not every optimiser keeps its numbers in tensors
    folder = state.save(tmp_path, state.Progress(1), net, [], optimiser, keep_last=1)
    other, another = make()
    state.verify(folder)
    assert state.restore(folder, other, [], another) == state.Progress(1)
    assert another.state[other.weight]["count"] == 3
    steps(net, optimiser)
    steps(other, another)
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
