"""Every baseline trains in the one loop, is saved, loaded and scored by the same commands."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import armd
from armd import Armd, BlockDiffusion, Order, OrderSchedule, PrefixAutoregressive, UserError, generate, nll
from armd.baselines import Denoiser, estimate_bound, nats, training_loss
from armd.checkpoint import ARCHITECTURES
from armd.cli import main
from armd.data import Document, prepare
from armd.flops import training_flops
from armd.noise import Noise
from armd.presets import for_architecture, tiny, with_steps
from armd.train import OptimConfig, TrainConfig, train
from armd.train.log import read_metrics
from conftest import make_model

BASELINES = ("ar", "ar+prefix", "mdlm", "mdlm+prefix", "bd3lm")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepared"
    corpus = [Document(f"d{i}", f"{i} bottles of beer on the wall, {i} bottles of beer. " * 8) for i in range(40)]
    prepare(lambda: iter(corpus), "byte", out, held_out=0.2, progress=False)
    return out


def small(architecture: str, steps: int = 40, **changes: object) -> TrainConfig:
    config = for_architecture(tiny(257, 256), architecture)
    shape = replace(
        config.model,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        block_size=4,
        dropout=0.1,
    )
    fields: dict[str, object] = {
        "model": shape, "optim": OptimConfig(lr=1e-2, warmup_steps=5), "batch_size": 8, "eval_every": steps // 2,
        "eval_texts": 8, "save_every": steps // 2, "log_every": 1, "precision": "fp32",
    }  # fmt: skip
    return replace(with_steps(config, steps), **{**fields, **changes})


@pytest.mark.parametrize("architecture", BASELINES)
def test_the_loss_falls_and_a_stopped_run_goes_on(architecture: str, data: Path, tmp_path: Path) -> None:
    config = small(architecture)
    result = train(config, data, tmp_path / "run", quiet=True)
    order = "bound" if issubclass(ARCHITECTURES[architecture], Denoiser) else "left_to_right"
    valid = [record["valid"][order] for record in read_metrics(tmp_path / "run") if "valid" in record]
    assert valid[1] < valid[0] < 5.0 < torch.tensor(257).log() and result.valid == {order: valid[1]}
    assert type(result.model) is ARCHITECTURES[architecture] is type(armd.load(tmp_path / "run")[0])

    stopped = tmp_path / "stopped"  # as it was after the first checkpoint
    train(config, data, stopped, quiet=True)
    for last in (stopped / "checkpoints").glob("*40*"):
        shutil.rmtree(last)
    train(config, data, stopped, resume=True, quiet=True)
    ours, theirs = (load_file(run / "model.safetensors") for run in (tmp_path / "run", stopped))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_block_diffusion_learns_what_is_there_to_learn() -> None:
    """Texts that count on from a random token: only the first one is unknown, log(V) / N nats per token."""
    torch.manual_seed(0)
    model = BlockDiffusion(armd.ArmdConfig(11, 32, 2, num_attention_heads=4, max_position_embeddings=12, block_size=2))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(250):
        tokens = (torch.randint(11, (32, 1)) + torch.arange(12)) % 11
        optimiser.zero_grad()
        training_loss(model, tokens, Noise.draw(32, 12, block_size=2)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        found = estimate_bound(model, tokens, 8).mean.mean().item() / 12
    assert math.log(11) / 12 - 0.02 < found < math.log(11) / 12 + 0.05


@pytest.mark.parametrize("architecture", ["mdlm", "mdlm+prefix", "bd3lm"])
def test_noise_does_not_depend_on_micro_batches(architecture: str) -> None:
    """The draw is that of the whole batch, each forward pass takes its rows."""
    config, tokens = small(architecture), torch.randint(257, (8, 32), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture](config.model).eval()
    name, draw = config.draw(3, 8, 32)
    assert name == "noise" and isinstance(draw, Noise) and torch.equal(draw.masked, config.draw(3, 8, 32)[1].masked)
    assert not torch.equal(draw.masked, config.draw(4, 8, 32)[1].masked)
    whole = training_loss(model, tokens, draw)
    parts = [training_loss(model, tokens[rows], draw.rows(rows)) for rows in torch.arange(8).split(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    torch.testing.assert_close(nats(model, tokens, draw).mean(), whole)
    assert (draw.times[:, 0] != draw.times[:, 4]).all() == (architecture == "bd3lm")


def test_noise_is_drawn_from_its_interval() -> None:
    for low, high in ((1e-3, 1.0), (0.3, 0.8)):
        times = small("bd3lm", noise=(low, high)).draw(0, 8, 32)[1].times
        assert (times > low).all() and (times <= high).all() and times.min() < low + 0.2 and times.max() > high - 0.2


@pytest.mark.parametrize(("architecture", "changes", "message"), [
    ("mdlm", {"eval_orders": ("left_to_right",)}, "architecture=mdlm is validated by its bound"),
    ("mdlm", {"orders": tiny(257, 256).orders, "max_steps": 1000}, "architecture=mdlm trains on noise, not on orders"),
    ("mdlm", {"orders": OrderSchedule(schedule="a.py:f")}, "trains on noise, not on orders: .* no schedule"),
    ("ar", {"orders": OrderSchedule(schedule="a.py:f")}, "architecture=ar has one order only: .* no schedule"),
    ("bd3lm", {"weighting": "late"}, "architecture=bd3lm trains on noise, not on orders: .* weighting=likelihood"),
    ("bd3lm", {"noise": (0.8, 0.3)}, r"noise=\(0.8, 0.3\) must be two times between 0 and 1"),
    ("ar", {"eval_orders": ("uniform",)}, "architecture=ar has one order only: set --eval-orders"),
    ("ar+prefix", {"orders": tiny(257, 256).orders, "max_steps": 1000}, "architecture=ar.prefix has one order only"),
    ("armd", {"eval_orders": ("bound",)}, "order family 'bound' is unknown"),
])  # fmt: skip
def test_what_does_not_fit_the_architecture_is_refused(
    architecture: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        small(architecture, **changes)


def test_noise_is_not_for_a_model_of_orders() -> None:
    with pytest.raises(UserError, match="model is a Armd: noise is for masked and block diffusion"):
        nats(make_model(), torch.zeros(2, 8, dtype=torch.long), Noise.draw(2, 8))


@pytest.mark.parametrize("architecture", BASELINES)
def test_operations_are_those_pytorch_counts(architecture: str) -> None:
    """To the last operation, once it is added that PyTorch counts whole squares of attention, seen or not."""
    config, N = small(architecture).model, 32
    model, tokens = ARCHITECTURES[architecture](replace(config, query="shift", dropout=0.0)), torch.zeros(2, N).long()
    draw = Noise.draw(2, N) if issubclass(ARCHITECTURES[architecture], Denoiser) else Order.left_to_right(2, N)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        training_loss(model, tokens, draw).backward()
    seen = {"mdlm": 2 * N, "mdlm+prefix": 2 * N, "bd3lm": N + 4}.get(architecture, N + 1)
    whole = 4 * N if architecture == "bd3lm" else 2 * N
    parts = training_flops(model.config, N, architecture)
    counted = sum(p.total * (whole / seen if name.startswith("attention") else 1) for name, p in parts.items())
    assert counter.get_total_flops() == pytest.approx(2 * N * counted, rel=1e-12)


def test_prefix_autoregressive_is_armd_left_to_right(tmp_path: Path) -> None:
    model, whole = make_model(PrefixAutoregressive, num_two_stream_layers=1), make_model(num_two_stream_layers=1)
    tokens, order = torch.randint(11, (2, 12)), Order.left_to_right(2, 12)
    assert torch.equal(model(tokens, order), whole(tokens, order))
    out = generate(model, prompt=[1, 2], length=6, seed=1)
    assert torch.equal(out.tokens, generate(whole, prompt=[1, 2], length=6, seed=1).tokens)
    armd.save(model, tmp_path)
    loaded, _ = armd.load(tmp_path)
    assert type(loaded) is PrefixAutoregressive and isinstance(loaded, Armd)
    with pytest.raises(UserError, match="one order only: left_to_right"):
        nll(loaded, tokens, Order.uniform(2, 12))
    with pytest.raises(UserError, match="left to right only"):
        generate(loaded, length=8, streams=2)


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--model.hidden-size", "32", "--model.num-hidden-layers", "2", "--model.num-attention-heads", "2",
             "--model.max-position-embeddings", "32", "--batch-size", "4", "--max-steps", "3"]  # fmt: skip
    scores = {}
    for architecture in ("ar", "mdlm", "bd3lm"):
        run = tmp_path / architecture
        options = ["--architecture", architecture, "--data", str(data), "--out", str(run)]
        assert main(["train", "tiny", *options, "--model.block-size", "4", *shape]) == 0
        assert f"Next: armd evaluate --model {run}" in capsys.readouterr().err
        words = ["evaluate", "--model", str(run), "--data", str(data), "--texts", "6", "--json"]
        assert main(words) == 0
        usual = json.loads(capsys.readouterr().out)["scores"]
        assert [s["order"] for s in usual] == ["left_to_right" if architecture == "ar" else "bound:8"]
        orders = "left_to_right" if architecture == "ar" else "bound:4,bound,left_to_right"
        assert main([*words, "--orders", orders]) == 0
        scores[architecture] = json.loads(capsys.readouterr().out)["scores"]
    assert [s["note"] for s in scores["bd3lm"]] == [
        "bound, 4 times a text",
        "bound, 1 time a text",
        "exact for this order",
    ]
    for s in (*scores["mdlm"], *scores["bd3lm"]):
        assert 4.5 < s["nats_per_token"] < 6 and s["stderr"] < 0.2 and s["texts"] == 6
    for words, message in (
        (["--model", str(tmp_path / "ar"), "--orders", "bound"], "order 'bound' is for masked and block diffusion"),
        (["--model", str(tmp_path / "bd3lm"), "--orders", "uniform"], "block_size=4 writes blocks of 4 tokens"),
        (["--model", str(tmp_path / "mdlm"), "--orders", "bound:0"], "order 'bound:0': the number of draws"),
    ):
        assert main(["evaluate", "--data", str(data), *words]) == 2
        assert message in capsys.readouterr().err
    for architecture, options, passes in (
        ("ar", [], 8),
        ("mdlm", ["--steps", "4"], 4),
        ("mdlm", ["--steps", "99", "--schedule", "ancestral", "--top-k", "3"], None),
        ("bd3lm", ["--steps", "2"], 2 * 2 + 1),  # blocks of 4; the prompt leaves 1, and 3 are in the last
    ):
        words = ["generate", "--model", str(tmp_path / architecture), "--prompt", "bottles of beer", "--length", "8"]
        assert main([*words, *options, "--seed", "1", "--samples", "2", "--rows", "1", "--json"]) == 0
        out = json.loads(capsys.readouterr().out)
        assert all(text.startswith("bottles of beer") for text in out["texts"]) and out["new_tokens"] == 16
        assert passes is None or out["forward_passes"] == 2 * passes
        assert out["tokens_per_pass"] == pytest.approx(16 / out["forward_passes"]) and max(out["log_probs"]) < -10
    words = ["generate", "--model", str(tmp_path / "mdlm"), "--template"]
    assert main([*words, "9<3> of beer<5>wall", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["tokens"][0][0] == ord("9") and out["new_tokens"] == out["forward_passes"] == 8
    for architecture, options, message in (
        ("mdlm", ["--streams", "2"], "--streams needs an armd model; "),
        ("mdlm", ["--mode", "parallel"], "is of class MaskedDiffusion, which writes by --steps and --schedule"),
        ("mdlm", ["--template", "a<2>", "--adaptive", "margin"], "--adaptive needs an armd model"),
        ("mdlm", ["--template", "a<2-4>b"], "filling by --best-of or <4-12> needs an armd model"),
        ("mdlm", ["--compiled"], "--compiled needs an armd model"),
        ("mdlm", ["--steps", "33"], "steps=33 must be at least 1 and at most 32"),
        ("mdlm", ["--schedule", "odd"], "--schedule"),
        ("bd3lm", ["--template", "a<2>b"], "a template may have no text behind a hole"),
        ("ar", ["--steps", "4"], "--steps needs a model of masked or block diffusion"),
        ("ar", ["--template", "a<2>b"], "writes left to right only: no template"),
        ("ar", ["--streams", "auto", "--data", str(data)], "--streams auto needs an armd model"),
    ):
        assert main(["generate", "--model", str(tmp_path / architecture), *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
