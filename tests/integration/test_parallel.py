"""Several processes are one run: the same losses, checkpoints for any number of processes, and an end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import several
from armd.errors import UserError
from armd.presets import tiny
from armd.train import state
from armd.train.log import read_metrics
from armd.train.parallel import Ranks, Replica
from processes import TINY, make_data, ranks, start, start_training

STEPS = ["--max-steps", "50", "--save-every", "25", "--eval-every", "25"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("parallel") / "data")


def end(processes: list[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str]]:
    """The exit status and the output of each process."""
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def in_two_processes(runs: list[list[str]], seconds: float = 60) -> None:
    """Some runs one after another in the same two processes: to import torch takes longer than any of them."""
    done = end([start([several.__file__, json.dumps(runs)], **variables) for variables in ranks(2)], seconds)
    for status, said in done:
        assert status == 0, said


def curve(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def norms(run: Path) -> list[float]:
    """Of the gradients, whose scale Adam would not feel."""
    return [record["grad_norm"] for record in read_metrics(run) if "loss" in record]


def skipped(run: Path) -> list[int]:
    return [record["step"] for record in read_metrics(run) if "skipped" in record]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """What a run publishes, and everything in its newest checkpoint."""
    files = [run / "model.safetensors", *sorted(state.checkpoints(run)[-1].glob("*.safetensors"))]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def valid(run: Path) -> list[float]:
    return [nats for record in read_metrics(run) for nats in record.get("valid", {}).values()]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process; two of each kind; and checkpoints of step 25 of one number resumed on the other."""
    folder = tmp_path_factory.mktemp("runs")
    micro, half = ["--micro-batch-size", "2"], ["--stop-after", "25"]

    def run(name: str, *more: str) -> list[str]:
        return [str(data), str(folder / name), *STEPS, *more]

    several.main([run("one"), run("one-two", *half)])
    in_two_processes([
        run("ddp", "--parallel", "ddp"),
        run("ddp-micro", *micro),
        run("fsdp", "--parallel", "fsdp"),
        run("fsdp-micro", *micro, "--parallel", "fsdp"),
        run("ddp-one", *half),
        run("fsdp-one", *half, "--parallel", "fsdp"),
        run("one-two", "--resume", "--parallel", "fsdp"),
    ])  # fmt: skip
    several.main([run("ddp-one", "--resume"), run("fsdp-one", "--resume")])
    return folder


@pytest.mark.parametrize("name", ["ddp", "ddp-micro", "fsdp", "fsdp-micro", "one-two", "ddp-one", "fsdp-one"])
def test_losses_and_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    one, run = runs / "one", runs / name
    assert len(curve(run)) == 50 and curve(run)[-1] < curve(run)[0] - 1
    assert curve(run) == pytest.approx(curve(one), abs=2e-5) and norms(run) == pytest.approx(norms(one), rel=1e-3)
    assert len(valid(run)) == 4 and valid(run) == pytest.approx(valid(one), abs=2e-5)
    whole, other = tensors(one), tensors(run)
    assert whole.keys() == other.keys() and len(whole) > 70
    for key, tensor in whole.items():
        torch.testing.assert_close(other[key], tensor, atol=1e-4, rtol=1e-3)


DENOISING = ["--eval-orders", "bound", "--orders.rho", "0", "--orders.ar-steps", "0", "--orders.perm-steps", "0"]
STRIDED = ["--orders.ar-steps", "2", "--orders.perm-steps", "4", "--orders.sbp-steps", "8"]
KINDS = {
    "muon": ["--optim.name", "muon"],
    "recompute": ["--checkpoint-activations"],
    "skip": ["--on-bad-step", "skip", "--spoil-after", "3"],
    "per_block": ["--weighting", "per_block", *STRIDED],
    "mdlm": ["--architecture", "mdlm", *DENOISING],
    "bd3lm": ["--architecture", "bd3lm", "--model.block-size", "4", *DENOISING],
}
"""What a run may be made of; with the moving average that every run here has."""
MODES = ["muon-ddp", "muon-fsdp", "recompute-fsdp", "skip-ddp", "skip-fsdp", "per_block-ddp", "mdlm-fsdp", "bd3lm-ddp"]


@pytest.fixture(scope="module")
def kinds(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each on one process and, in micro-batches, on two; and Muon stopped on two processes, resumed on one.

    What spoils a step is in one process only, all skip it.
    """
    folder = tmp_path_factory.mktemp("kinds")

    def run(name: str, *more: str) -> list[str]:
        kind, *_ = name.split("-")
        steps = ["--max-steps", "12", "--save-every", "6", "--eval-every", "12", "--optim.warmup-steps", "2"]
        return [str(data), str(folder / name), *steps, *KINDS[kind], *more]

    several.main([run(kind) for kind in KINDS])
    in_two_processes([
        *(run(name, "--parallel", name.split("-")[1], "--micro-batch-size", "2") for name in MODES),
        run("muon-one", "--parallel", "fsdp", "--stop-after", "6"),
    ])  # fmt: skip
    several.main([run("muon-one", "--resume")])
    return folder


@pytest.mark.parametrize("name", [*MODES, "muon-one"])
def test_every_kind_of_run_is_that_of_one_process(kinds: Path, name: str) -> None:
    one, run = kinds / name.split("-")[0], kinds / name
    assert skipped(run) == skipped(one) == ([4] if name.startswith("skip") else [])
    assert len(curve(run)) == 12 - len(skipped(run)) and curve(run) == pytest.approx(curve(one), abs=5e-6)
    assert norms(run) == pytest.approx(norms(one), rel=1e-4)
    assert valid(run) and valid(run) == pytest.approx(valid(one), abs=5e-6)
    whole, other = tensors(one), tensors(run)
    assert whole.keys() == other.keys() and len(whole) > 60
    for key, tensor in whole.items():
        torch.testing.assert_close(other[key], tensor, atol=1e-5, rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_runs_are_those_of_one_process_without(data: Path, tmp_path: Path) -> None:
    def run(name: str, *more: str) -> list[str]:
        steps = ["--max-steps", "4", "--eval-every", "4", "--eval-orders", "left_to_right", "--optim.warmup-steps", "2"]
        return [str(data), str(tmp_path / name), *steps, *more]

    several.main([run("one")])
    in_two_processes([run("ddp", "--compile"), run("fsdp", "--compile", "--parallel", "fsdp")], seconds=240)
    for name in "ddp", "fsdp":
        assert curve(tmp_path / name) == pytest.approx(curve(tmp_path / "one"), abs=5e-6)
        whole, other = tensors(tmp_path / "one"), tensors(tmp_path / name)
        for key, tensor in whole.items():
            torch.testing.assert_close(other[key], tensor, atol=1e-5, rtol=0)


MUON = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from armd.train.muon import Muon
from armd.train.parallel import leave, whole
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for shape in (16, 16), (48, 16), (16, 48), (1, 8), (33, 17):
    torch.manual_seed(0)
    one = torch.nn.Parameter(torch.randn(shape))
    cut = torch.nn.Parameter(distribute_tensor(one.detach(), mesh, [Shard(0)]))
    optimisers = [Muon([weight], lr=0.5, momentum=0.9, weight_decay=0.1) for weight in (one, cut)]
    for _ in range(3):
        one.grad = torch.randn(shape)
        cut.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
        for optimiser in optimisers:
            optimiser.step()
    held = optimisers[1].state[cut]["momentum_buffer"].to_local()
    print(shape, torch.equal(whole(cut), one), cut.to_local().shape == held.shape)
leave(0)
"""


def test_muon_on_shares_of_matrices_is_muon_on_matrices() -> None:
    """Bit for bit, also where a matrix has fewer rows than there are processes; each keeps its own momentum."""
    for status, said in end([start(["-c", MUON], **variables) for variables in ranks(2)]):
        assert status == 0 and said.count("True True\n") == 5, said


def test_rows_are_cut_without_rest_or_overlap() -> None:
    for size in (1, 2, 3, 8):
        for batch in (1, 2, 8, 9, 24):
            rows = [list(Ranks(rank, size, 0).rows(batch)) for rank in range(size)]
            assert [row for part in rows for row in part] == list(range(batch))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert Ranks(5, 8, 1).device(torch.device("cuda")) == torch.device("cuda:1") and chosen == [1]
    assert Ranks(5, 8, 1).device(torch.device("cpu")) == torch.device("cpu")
    assert Ranks(0, 1, 0).device(torch.device("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(UserError, match="device=cuda:1 is one GPU, but 8 processes train"):
        Ranks(5, 8, 1).device(torch.device("cuda:1"))
    with pytest.raises(UserError, match="3 processes or more on a machine of 2 GPUs"):
        Ranks(2, 8, 2).device(torch.device("cuda"))


def test_a_batch_must_be_divisible(data: Path) -> None:
    config = tiny(257, 256)
    model = torch.nn.Linear(1, 1)
    for changes, message in [
        ({"batch_size": 15}, "batch_size=15 cannot be divided by 2 processes"),
        ({"batch_size": 12, "micro_batch_size": 4}, "micro_batch_size=4 must divide the 6 texts of a process"),
    ]:
        with pytest.raises(UserError, match=message):
            Replica(model, replace(config, **changes), Ranks(0, 2, 0))


def test_a_mistake_that_one_process_finds_is_told_once_and_ends_all(data: Path, tmp_path: Path) -> None:
    folders = zip([data, tmp_path / "nowhere"], ranks(2), strict=True)
    done = end([start_training(folder, tmp_path / "run", *STEPS, variables=place) for folder, place in folders])
    assert [status for status, _ in done] == [2, 2], done
    lines = [line for line in done[0][1].splitlines() if "error" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "nowhere" in lines[0] and not done[1][1], done
    assert not (tmp_path / "run").exists()


def wait_for(run: Path, steps: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < steps:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.01)


def test_a_killed_process_ends_the_other_with_a_line(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--max-steps", "100000", "--save-every", "10"]
    processes = [start_training(data, run, *more, variables=variables) for variables in ranks(2)]
    wait_for(run, 30, processes)
    processes[1].kill()
    began = time.monotonic()
    status, said = end([processes[0]])[0]
    assert status == 1 and time.monotonic() - began < 20
    last = said.splitlines()[-1]
    assert last.startswith("stopped: process 0 lost another process (") and "Traceback" not in said
    assert last.endswith(f"; last good checkpoint: {state.checkpoints(run)[-1]}")
    processes[1].communicate()
    state.verify(state.checkpoints(run)[-1])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find the processes of torchrun in")
def test_under_torchrun_a_signal_to_one_process_stops_all_at_the_same_step(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--data", str(data), "--out", str(run), *TINY, "--max-steps", "100000", "--save-every", "1000"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "armd.cli"]
    process = start([*launcher, "train", "tiny", "--parallel", "fsdp", *words])
    wait_for(run, 12, [process])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGTERM)
    ((_, said),) = end([process])
    (saved,) = state.checkpoints(run)
    step = state.read_state(saved)["step"]
    assert said.count("on 2 processes, fp32, into") == 1 and said.count("stopped: ") == 1, said
    assert f"stopped: interrupted after step {step}, which is saved; go on with --resume" in said
    assert len(curve(run)) == step


def test_one_process_may_be_sharded_too(data: Path, tmp_path: Path) -> None:
    several.main([[str(data), str(tmp_path / mode), *STEPS, "--parallel", mode] for mode in ("ddp", "fsdp")])
    assert curve(tmp_path / "ddp") == pytest.approx(curve(tmp_path / "fsdp"), abs=2e-5)
