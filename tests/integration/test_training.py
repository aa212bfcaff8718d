"""Training: the loss falls, nothing is ever lost, and a run that was stopped equals one that never was, bit for bit."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import armd
from armd import files
from armd.data import Document, prepare
from armd.errors import UserError
from armd.families import OrderSchedule
from armd.presets import PRESETS, tiny, with_steps
from armd.train import OptimConfig, TrainConfig, TrainingStopped, load_config, optim, parallel, state, train
from armd.train import loop as loops
from armd.train.batches import Batches
from armd.train.config import from_json, to_json
from armd.train.folder import alone
from armd.train.log import Log, read_metrics
from armd.train.muon import Muon
from armd.train.optim import learning_rate
from armd.train.step import validate


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
    steps: int = changes.pop("max_steps", 24)  # type: ignore[assignment]
    return replace(with_steps(replace(config, **fields), steps), **changes)


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
    config = replace(small(max_steps=120), orders=small().orders)
    result = train(replace(config, precision=precision, eval_every=60), data, tmp_path / "run", quiet=True)
    records = [r for r in read_metrics(tmp_path / "run") if "valid" in r]
    for order, value in result.valid.items():
        assert value < 0.8 * math.log(257) and value < records[0]["valid"][order], order
    model, tokenizer = armd.load(tmp_path / "run")
    assert tokenizer is not None and tokenizer.decode(armd.generate(model, length=8).tokens[0].tolist())


def test_precision_is_what_the_device_is_faster_in_and_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small(max_steps=8), precision="auto", save_every=4)
    for faster, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(loops, "prefers_bfloat16", lambda device, faster=faster: faster)
        train(config, data, tmp_path / wanted, quiet=True)
        train(replace(config, precision=wanted), data, tmp_path / f"{wanted}-named", quiet=True)
        assert load_config(tmp_path / wanted).precision == wanted
        assert_same_run(tmp_path / wanted, tmp_path / f"{wanted}-named")
    train(config, data, tmp_path / "bf16", resume=True, quiet=True)  # fp32 is the faster now, and changes nothing
    assert load_config(tmp_path / "bf16").precision == "bf16"
    with pytest.raises(UserError, match="started with other values of precision"):
        train(replace(config, precision="fp32"), data, tmp_path / "bf16", resume=True, quiet=True)
    curves = [[r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("bf16", "fp32")]
    assert curves[0] != curves[1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_interrupted_and_resumed_equals_never_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = small(optim=replace(small().optim, name=name))
    train(config, data, tmp_path / "whole", quiet=True)
    step = loops.train_step

    def interrupt(*args: object) -> loops.Step:
        if args[3] == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loops, "train_step", interrupt)
    with pytest.raises(TrainingStopped, match="interrupted after step 11, which is saved; go on with --resume"):
        train(config, data, tmp_path / "parts", quiet=True)
    monkeypatch.setattr(loops, "train_step", step)
    train(config, data, tmp_path / "parts", resume=True, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("weighting", ["likelihood", "late"])
def test_gradient_accumulation_equals_the_large_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """Losses, norms of gradients, whose scale Adam would not feel, and what is held out, in passes as small."""
    config = small(max_steps=6, weighting=weighting)
    config = replace(config, model=replace(config.model, dropout=0.0))
    largest, real = [0], parallel.Replica.__call__

    def watched(replica: parallel.Replica, tokens: torch.Tensor, *more: object) -> torch.Tensor:
        largest[0] = max(largest[0], len(tokens))
        return real(replica, tokens, *more)

    monkeypatch.setattr(parallel.Replica, "__call__", watched)
    runs = []
    for micro in (4, 1):
        largest[0] = 0
        result = train(replace(config, micro_batch_size=micro), data, tmp_path / str(micro), quiet=True)
        steps = [(r["loss"], r["grad_norm"]) for r in read_metrics(result.run) if "loss" in r]
        runs.append([*sum(steps, ()), *result.valid.values()])
        assert largest == [micro] and len(steps) == 6
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


def test_fine_tuning_starts_from_the_weights_of_another_run(data: Path, finished: Path, tmp_path: Path) -> None:
    config = small(max_steps=2, init=str(finished), orders=OrderSchedule(sbp_steps=2, sbp_streams=(2,)))
    train(
        replace(config, max_steps=1, orders=OrderSchedule(), optim=OptimConfig(lr=1e-30)),
        data,
        tmp_path / "still",
        quiet=True,
    )
    before, after = (load_file(run / "model.safetensors") for run in (finished, tmp_path / "still"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(config, data, tmp_path / "tuned", quiet=True)
    (tmp_path / "early").mkdir()  # stopped before its first checkpoint, it starts from these weights again
    shutil.copy(tmp_path / "tuned" / "run.json", tmp_path / "early")
    train(config, data, tmp_path / "early", resume=True, quiet=True)
    assert_same_run(tmp_path / "tuned", tmp_path / "early")
    finished_config = armd.load(finished)[0].config
    wide = replace(finished_config, hidden_size=64)
    with pytest.raises(UserError, match="is another network: it differs in hidden_size"):
        train(replace(config, model=wide), data, tmp_path / "wide", quiet=True)
    with pytest.raises(UserError, match="differs in architecture"):
        train(
            replace(config, architecture="ar", orders=OrderSchedule(), eval_orders=("left_to_right",)),
            data,
            tmp_path / "ar",
            quiet=True,
        )
    assert not list((tmp_path / "wide").glob("*")) and not list((tmp_path / "ar").glob("*"))


def test_one_process_at_a_time_trains_a_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, config = loops.train_step, small(max_steps=1, orders=OrderSchedule())

    def intrude(*args: object) -> object:
        with pytest.raises(UserError, match="is being trained by another process"):
            train(config, data, tmp_path / "run", resume=True, quiet=True)
        return step(*args)

    monkeypatch.setattr(loops, "train_step", intrude)
    train(config, data, tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 1
    monkeypatch.undo()
    train(config, data, tmp_path / "run", resume=True, quiet=True)


def test_a_run_that_another_trains_is_not_even_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a checkpoint while another process drops old ones would take it for damaged, and set it aside."""
    run, config = tmp_path / "run", small(max_steps=1, orders=OrderSchedule())
    train(config, data, run, quiet=True)
    monkeypatch.setattr(state, "verify", lambda folder: pytest.fail(f"{folder} was read"))
    with alone(run, parallel.ALONE), pytest.raises(UserError, match="is being trained by another"):
        train(config, data, run, resume=True, quiet=True)


def test_batches_are_those_of_their_steps_and_their_errors_arrive(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(micro_batch_size=2)
    texts = armd.data.TokenDataset(data, "train", 32)
    batches = Batches(texts, config, parallel.Replica(armd.Armd(config.model), config))
    for step in (20, 21, 22, 23, 3):
        batch = batches[step]
        tokens, again = torch.cat([t for t, _ in batch.parts]), texts.batch(step, 4, config.seed)
        order = config.orders.order(step, config.seed, config.max_steps, 4, 32)
        assert torch.equal(tokens, again) and len(batch.parts) == 2
        assert torch.equal(torch.cat([o.positions for _, o in batch.parts]), order.positions)

    def breaks(*_: object) -> torch.Tensor:
        raise UserError("shard is gone")

    monkeypatch.setattr(texts, "batch", breaks)
    with pytest.raises(UserError, match="shard is gone"):
        batches[0]


def test_a_run_that_keeps_no_activations_is_the_same_run(data: Path, tmp_path: Path) -> None:
    """Dropout included: the second pass over a layer draws what the first drew."""
    train(small(), data, tmp_path / "run", quiet=True)
    train(small(checkpoint_activations=True), data, tmp_path / "other", quiet=True)
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_compiling_without_a_compiler_is_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match=r"compile=True needs a C\+\+ compiler on a CPU, and there is no 'no-such-compiler'"
    ):
        train(small(compile=True, device="cpu"), data, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_not_a_number_stops_with_all_good_steps_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parallel.training_loss
    calls = iter(range(1000))

    def breaks(*args: object) -> torch.Tensor:
        return real(*args) * (math.nan if next(calls) == 13 else 1.0)

    monkeypatch.setattr(parallel, "training_loss", breaks)
    with pytest.raises(TrainingStopped, match=r"loss is nan at step 14; last good checkpoint: .*step-00000013"):
        train(small(), data, tmp_path / "run", quiet=True)
    assert all(tensor.isfinite().all() for tensor in everything(tmp_path / "run").values())


def test_what_is_not_finite_is_never_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient, a held-out loss, and a weight, each broken after the first checkpoint."""
    whole = small()
    real = loops.train_step

    def breaks(replica: parallel.Replica, optimiser: object, tokens: torch.Tensor, step: int, *rest: object):
        if step == 9 and kind == "gradient":
            monkeypatch.setattr(parallel, "training_loss", lambda m, *a: armd.loss(m, *a) + (m.bos * 0).sqrt().sum())
        done = real(replica, optimiser, tokens, step, *rest)
        if step == 15 and kind == "weight":
            replica.model.embed.weight.data[200] = math.inf
        return done

    monkeypatch.setattr(loops, "train_step", breaks)
    for kind, config, message in [
        ("gradient", whole, r"gradient norm is nan at step 10; last good checkpoint: .*step-00000009"),
        ("weight", replace(whole, eval_every=99), r"largest weight is inf at step 16; .*step-00000008"),
        ("weight", whole, r"held-out loss of left_to_right is nan at step 16; .*step-00000008"),
    ]:
        run = tmp_path / f"{kind}-{config.eval_every}"
        with pytest.raises(TrainingStopped, match=message):
            train(config, data, run, quiet=True)
        monkeypatch.setattr(parallel, "training_loss", armd.loss)
        good = ["step-00000008", *["step-00000009"] * (kind == "gradient")]
        assert [c.name for c in state.checkpoints(run)] == good
        assert all(tensor.isfinite().all() for tensor in everything(run).values())


def test_a_finished_run_is_published_again(data: Path, tmp_path: Path) -> None:
    """As if it was killed between its last checkpoint and publishing that."""
    train(small(), data, tmp_path / "run", quiet=True)
    published = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    train(small(), data, tmp_path / "run", resume=True, quiet=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == published


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_without_checkpoints_is_left_alone(data: Path, tmp_path: Path, finished: bool) -> None:
    run = tmp_path / "run"
    train(small(max_steps=1, orders=OrderSchedule()), data, run, quiet=True)
    if not finished:
        (run / "done.json").unlink()
    shutil.rmtree(run / "checkpoints")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UserError, match=r"the checkpoints of .* are gone; a new run with --init .* starts from"):
        train(small(max_steps=1, orders=OrderSchedule()), data, run, resume=True, quiet=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_that_started_meanwhile_keeps_its_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the folder empty."""
    config, build = small(max_steps=1, orders=OrderSchedule()), optim.build

    def other_starts(*args: object) -> object:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("of the other")
        return build(*args)

    monkeypatch.setattr(loops.optim, "build", other_starts)
    with pytest.raises(UserError, match="is not empty"):
        train(config, data, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "run.json").read_text() == "of the other"


DAMAGE = {
    "run.json is damaged or no JSON file": ("run.json", b"{oops"),
    "run.json is damaged: it holds no JSON object": ("run.json", b"[]"),
    "run.json is damaged: it holds no config": ("run.json", b'{"config": 3}'),
    "metrics.jsonl line 2 is damaged": ("metrics.jsonl", b'{"step": 1}\n{oops\n{"step": 2}\n'),
    "metrics.jsonl line 1 is damaged: no record of a step": ("metrics.jsonl", b"[]\n"),
    "metrics.jsonl line 1 is damaged: 'utf-8' codec": ("metrics.jsonl", b'"\xff"\n'),
    "no checkpoint to go on from: {c}/state.json is damaged or": ("checkpoints/step-00000002/state.json", b"{oops"),
    "{c}/state.json is damaged, or was not written by this": ("checkpoints/step-00000002/state.json", b'{"format": 1}'),
    "{c}/weights.safetensors is damaged: it has 4 bytes": ("checkpoints/step-00000002/weights.safetensors", b"half"),
    "{c}/average.safetensors is damaged": ("checkpoints/step-00000002/average.safetensors", b""),
    "{c}/optimiser.safetensors is damaged": ("checkpoints/step-00000002/optimiser.safetensors", b""),
}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train(small(max_steps=2), data, run, quiet=True)
    return run


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_run_is_one_line(message: str, data: Path, finished: Path, tmp_path: Path) -> None:
    run, (name, content) = tmp_path / "run", DAMAGE[message]
    shutil.copytree(finished, run)
    (run / name).write_bytes(content) if content else save_file({"0": torch.zeros(1)}, run / name)
    with pytest.raises(UserError) as caught:
        train(small(max_steps=2), data, run, resume=True, quiet=True)
    assert message.format(c=state.checkpoints(run)[0]) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_config_of_a_run_is_one_line(tmp_path: Path) -> None:
    for text in (
        "{}",
        '{"config": {}}',
        '{"config": {"orders": 1}}',
        '{"config": {"orders": {"rho": 1}, "optim": []}}',
    ):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json is damaged: it holds no config"):
            load_config(tmp_path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(), data, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    weights = state.checkpoints(tmp_path / "run")[-1] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()
    train(small(), data, tmp_path / "run", resume=True)
    assert f"{weights} is damaged: it has 100 bytes" in capsys.readouterr().err.splitlines()[0]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_metrics_survive_a_kill_while_they_are_read_back(data: Path, tmp_path: Path, monkeypatch) -> None:
    train(small(max_steps=4), data, tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(before + b'{"step": 4, "lo')  # cut off by the kill before

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Log(tmp_path / "run", 4, 4, quiet=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().startswith(before)
    monkeypatch.undo()
    with Log(tmp_path / "run", 4, 4, quiet=True) as log:
        log.record(step=5, loss=math.nan)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before + b'{"step": 5, "loss": null}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_while_logging_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left"), Log(tmp_path, 0, 1, quiet=True) as log:
        log._file.close()
        log._file = Path("/dev/full").open("a")  # noqa: SIM115 (closed by the log)
        log.record(step=1)


def test_a_run_outlives_those_who_read_it(tmp_path: Path) -> None:
    """As under `armd train 2>&1 | head`, or in a terminal that is closed."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    error: BaseException = SystemExit(1)  # what rich makes of a broken pipe
    with Log(tmp_path, 0, 1) as log:
        log.console.file = Gone()
        log.say("lost")
    error = OSError(5, "Input/output error")
    with Log(tmp_path, 0, 1) as log:
        log.console.file = Gone()
        log.say("lost")
        log.record(step=1)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_what_killed_processes_left_goes(data: Path, tmp_path: Path) -> None:
    left = tmp_path / "run" / "checkpoints" / "partial-00000099"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.partial").write_text("{")
    train(small(max_steps=1), data, tmp_path / "run", quiet=True)
    left.mkdir()
    linear = torch.nn.Linear(1, 1)
    optimiser = torch.optim.AdamW(linear.parameters())
    state.save(tmp_path / "run", state.Progress(2), linear, [], optimiser, keep_last=2)
    names = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    assert not [n for n in names if "partial" in n]


def test_a_validation_does_not_depend_on_the_batch_size(data: Path, tmp_path: Path) -> None:
    config = small(eval_orders=("left_to_right", "uniform", "infill", "strided:4"))
    valid = armd.data.TokenDataset(data, "valid", 32)
    torch.manual_seed(0)
    replica = parallel.Replica(armd.Armd(config.model), config)
    one, other = (validate(replica, valid, replace(config, batch_size=size)) for size in (4, 5))
    assert one == pytest.approx(other, abs=1e-6)


def test_a_bad_network_leaves_no_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loops.optim, "build", fails)
    with pytest.raises(RuntimeError):
        train(small(), data, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mps", "meta", "tpu7", "cuda:99", ""])
def test_devices_are_cpu_and_cuda(name: str) -> None:
    with pytest.raises(UserError, match=f"device='{name}'"):
        loops.pick_device(name)


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
    assert not [p for p in (tmp_path / "run").rglob("*") if "partial" in p.name]
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


def test_muon_gets_the_matrices_inside_the_layers() -> None:
    model = armd.Armd(small().model)
    torch.nn.init.normal_(model.prefix.kernel)  # no channel is empty, so that gradients have full rank
    optimiser = optim.build(model, OptimConfig(name="muon", lr=1.0, muon_lr=4.0, weight_decay=0.5))
    optim.set_rates(optimiser, 0.25)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimiser.param_groups]
    assert sorted(groups[0] + groups[1] + groups[2]) == sorted(names.values())
    assert len(groups[0]) == 5 * 2 and all(name.startswith("layers.") for name in groups[0])
    assert set(groups[1]) == {"embed.weight", "prefix.kernel"} and "bos" in groups[2]
    assert [group["lr"] for group in optimiser.param_groups] == [1.0, 0.25, 0.25]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.5, 0.5, 0.0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    armd.loss(model, torch.randint(257, (2, 32)), armd.Order.left_to_right(2, 32)).backward()
    optimiser.step()
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters() if p.grad.any())
    step = before["layers.0.up.weight"] * (1 - 0.5) - model.layers[0].up.weight  # after the decay lr * 0.5
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 1.0, rel=0.2)  # a full step of lr 1


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (1, 8), (5, 3)])
def test_muon_is_that_of_torch(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.randn(shape, generator=g)) for _ in range(2))
    theirs.data.copy_(ours.data)
    mine = Muon([ours], lr=0.5, momentum=0.9, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], 0.5, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(shape, generator=g)
        mine.step()
        torchs.step()
        assert torch.equal(ours, theirs)
    assert torch.equal(mine.state[ours]["momentum_buffer"], torchs.state[theirs]["momentum_buffer"])


def test_learning_rates() -> None:
    cosine, wsd = OptimConfig(lr=1.0, warmup_steps=10), OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd")
    assert [round(learning_rate(s, 110, cosine), 3) for s in (0, 9, 10, 60, 110)] == [0.1, 1.0, 1.0, 0.55, 0.1]
    assert [round(learning_rate(s, 100, wsd), 3) for s in (0, 9, 69, 85, 99)] == [0.1, 1.0, 1.0, 0.5, 0.033]
    constant = replace(wsd, schedule="constant")
    assert learning_rate(99, 100, constant) == 1.0


@pytest.mark.parametrize(("field", "value"), [
    ("batch_size", 0), ("max_steps", -1), ("micro_batch_size", 3), ("length", 99), ("precision", "fp8"),
    ("architecture", "rnn"), ("weighting", "loud"), ("keep_last", 0), ("seed", -1), ("seed", 2**32),
    ("seed", 1.5), ("parallel", "tensor"), ("on_bad_step", "pray"), ("spike_factor", 1.0), ("max_skipped", 0),
    ("keep_best", 1), ("batch_size", "4"), ("eval_orders", "left_to_right"), ("device", None),
])  # fmt: skip
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{field}="):
        small(**{field: value})


STREAMS = OrderSchedule(sbp_steps=4, sbp_streams=(1, 2, 5))


@pytest.mark.parametrize(("changes", "message"), [
    ({"eval_orders": ("spiral",)}, "'spiral' is unknown"),
    ({"eval_orders": ("strided:5",)}, "eval_orders strided:5: streams=5 does not divide the 32 tokens of a text"),
    ({"eval_orders": ("reinsert:33",)}, "eval_orders reinsert:33: rho=33 exceeds the 32 tokens"),
    ({"orders": OrderSchedule(floors={"strided_sequential:3": 0.1})}, "orders.floors strided_sequential:3: streams=3"),
    ({"orders": STREAMS}, "orders.sbp_streams strided:5: streams=5 does not divide"),
    ({"orders": OrderSchedule(perm_steps=4, rho=40)}, "orders.rho reinsert:40: rho=40 exceeds the 32"),
    ({"orders": OrderSchedule(ar_steps=20, sbp_steps=5)}, "ar_steps=20, .*sbp_steps=5 do not fit max_steps=24"),
    ({"orders": OrderSchedule(perm_steps=20, rho=4, sbp_steps=5)}, "orders.perm_steps=20 .* do not fit max_steps=24"),
    ({"architecture": "ar"}, "one order only: set --eval-orders"),
    ({"architecture": "ar", "eval_orders": ("left_to_right",)}, "one order only: set orders.rho"),
])  # fmt: skip
def test_orders_that_do_not_fit_the_run_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)
    small(orders=replace(STREAMS, sbp_steps=0))  # what is never drawn need not fit


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [1, 7, 100, 999])
def test_a_preset_in_fewer_steps_keeps_its_shape(name: str, steps: int) -> None:
    whole = PRESETS[name](257, 256)
    short = with_steps(whole, steps)
    for phase in ("ar_steps", "perm_steps", "sbp_steps"):
        share = getattr(whole.orders, phase) / whole.max_steps
        assert getattr(short.orders, phase) == pytest.approx(share * steps, abs=1)
    assert short.optim.warmup_steps == min(whole.optim.warmup_steps, steps // 2)  # the rate reaches its peak


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.0}, {"schedule": "zigzag"}, {"ema": 1.0}, {"grad_clip": 0.0}, {"warmup_steps": -1}, {"lr": math.nan},
        {"weight_decay": math.inf}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"warmup_steps": 2.5},
        {"grad_clip": "1"}, {"name": "sgd"}, {"muon_lr": 0.0}, {"muon_momentum": 1.0},
    ],
)  # fmt: skip
def test_bad_optimiser_fields_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"optim.{next(iter(fields))}="):
        OptimConfig(**fields)
