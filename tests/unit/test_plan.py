"""A plan is checked against what PyTorch counts: operations, parameters, bytes of real tensors, a run's own speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import armd
from armd import objective
from armd.baselines import Denoiser, Draw, nats, training_loss
from armd.checkpoint import ARCHITECTURES
from armd.errors import UserError
from armd.files import write_json
from armd.flops import parameters_by_part, total, training_flops, two_stream_ratio
from armd.gpus import GPUS, get_accelerator
from armd.memory import training_memory
from armd.model import ArmdConfig
from armd.noise import Noise
from armd.plan import Machine, measured, plan
from armd.presets import PRESETS, for_architecture, paper_small, tiny
from armd.train import OptimConfig, TrainConfig, optim
from armd.train.config import to_json
from conftest import QUERIES

SHAPES = [("armd", query, layers, two) for query in QUERIES for layers, two in ((1, 1), (3, 1), (3, 2), (3, 3))]
SHAPES += [("ar", "kernel", 3, 2), ("ar+prefix", "kernel", 3, 1), ("ar+prefix", "anchor", 3, 2)]
SHAPES += [("mdlm+prefix", "aggregate", 3, 1)]
SHAPES += [(noised, "kernel", layers, 1) for noised in ("mdlm", "mdlm+prefix", "bd3lm") for layers in (1, 3)]
BATCH = 2


def shape(query: str, layers: int, two: int, **changes: object) -> ArmdConfig:
    fields: dict[str, object] = {
        "vocab_size": 31, "hidden_size": 64, "num_hidden_layers": layers, "num_two_stream_layers": two,
        "num_attention_heads": 2, "intermediate_size": 160, "max_position_embeddings": 48, "query": query,
        "norm": "layernorm", "block_size": 8,
    }  # fmt: skip
    return ArmdConfig(**{**fields, **changes})


def batch(config: ArmdConfig, architecture: str) -> tuple[torch.Tensor, Draw]:
    size, kind = (BATCH, config.max_position_embeddings), ARCHITECTURES[architecture]
    tokens = torch.randint(config.vocab_size, size)
    if issubclass(kind, Denoiser):
        return tokens, Noise.draw(*size, block_size=kind.noise_block(config))
    return tokens, armd.Order.uniform(*size) if kind.any_order else armd.Order.left_to_right(*size)


@pytest.mark.parametrize(("architecture", "query", "layers", "two"), SHAPES)
def test_operations_are_those_pytorch_counts(architecture: str, query: str, layers: int, two: int) -> None:
    """To the last operation, once two differences are added: PyTorch counts whole squares and no sums of products."""
    config = shape(query, layers, two)
    N, model = config.max_position_embeddings, ARCHITECTURES[architecture](config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = nats(model, *batch(config, architecture)).mean()
        forward = counter.get_total_flops()
        loss.backward()
        backward = counter.get_total_flops() - forward

    def counted(part: str) -> float:
        if part.startswith("attention"):
            half = 2 * N / (N + 1)  # the square, where half of it is needed
            return {"mdlm": 1, "mdlm+prefix": 1, "bd3lm": 4 * N / (N + config.block_size)}.get(architecture, half)
        return 0 if part == "G^0" and query == "kernel" else 1  # the kernel multiplies row by row, not by matrices

    parts = training_flops(config, N, architecture).items()
    assert round(BATCH * N * sum(counted(name) * part.forward for name, part in parts)) == forward
    assert round(BATCH * N * sum(counted(name) * part.backward for name, part in parts)) == backward


def test_two_streams_cost_nothing_at_one_layer_and_a_third_at_half() -> None:
    def layers_only(config: ArmdConfig, architecture: str) -> float:
        parts = training_flops(config, 1, architecture)
        return sum(parts[name].total for name in ("rows of G", "rows of X", "keys, values"))

    paper = paper_small(50_257, None).model
    for config, ratio in ((paper, 1 + 5 * 20 / (12 * 24)), (replace(paper, num_two_stream_layers=1), 1.0)):
        assert layers_only(config, "armd") / layers_only(config, "ar") == pytest.approx(ratio)
    assert two_stream_ratio(shape("shift", 3, 1), 48) == 1 < two_stream_ratio(shape("shift", 3, 2), 48)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_all_there(name: str, architecture: str) -> None:
    config = replace(PRESETS[name](300, None).model, num_hidden_layers=2, num_two_stream_layers=1)
    for tied in (True, False):
        model = ARCHITECTURES[architecture](replace(config, tie_word_embeddings=tied))
        parts = parameters_by_part(model.config, architecture)
        assert sum(parts.values()) == model.num_parameters()
        assert ("head" in parts) == (not tied) and ("G^0" in parts) == (
            architecture in ("armd", "ar+prefix", "mdlm+prefix")
        )


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(("architecture", "query", "layers", "two"), SHAPES)
def test_weights_gradients_and_optimiser_take_the_bytes_of_their_tensors(
    architecture: str, query: str, layers: int, two: int, name: str
) -> None:
    config = training(architecture, shape(query, layers, two), "fp32")
    config = replace(config, optim=replace(config.optim, name=name))
    model = ARCHITECTURES[architecture](config.model)
    optimiser = optim.build(model, config.optim)
    training_loss(model, *batch(config.model, architecture)).backward()
    optimiser.step()
    memory, weights = training_memory(config, BATCH), list(model.parameters())
    assert memory.weights == sum(t.nbytes for t in (*weights, *model.buffers()))
    assert memory.gradients == memory.average == sum(p.grad.nbytes for p in weights if p.grad is not None)
    state = (value for slot in optimiser.state.values() for value in slot.values())
    assert memory.optimiser == sum(value.nbytes for value in state)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("architecture", "query", "layers", "two"), SHAPES)
def test_activations_take_the_bytes_that_autograd_keeps(
    architecture: str, query: str, layers: int, two: int, precision: str, norm: str
) -> None:
    """Within 5%, which are statistics of norms and logits; dense masks, which a GPU has not, are left out."""
    config = training(architecture, shape(query, layers, two, norm=norm), precision)
    model = ARCHITECTURES[architecture](config.model)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), saved_tensors_hooks(keep, lambda t: t):
        training_loss(model, *batch(config.model, architecture))
    N = config.text_length
    kept = {at: tensor for at, tensor in kept.items() if tensor.shape[-2:] != (2 * N, 2 * N)}
    mine = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    measured = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in mine)

    memory = training_memory(config, BATCH)
    head = 4 * config.model.vocab_size * config.model.hidden_size  # its gradient is there already
    assert memory.activations + memory.copies + head == pytest.approx(measured, rel=0.05)


def training(architecture: str, model: ArmdConfig, precision: str) -> TrainConfig:
    config = TrainConfig(model, optim=OptimConfig(ema=0.9), precision=precision, eval_orders=("left_to_right",))
    return for_architecture(config, architecture)


def test_sharing_and_recomputing_save_what_they_share_and_recompute() -> None:
    config = paper_small(50_257, None)
    whole = training_memory(config, 16)
    half = training_memory(config, 16, "fsdp", 2)
    for part in ("gradients", "optimiser", "average"):
        assert getattr(half, part) == getattr(whole, part) / 2
    assert (
        half.activations == whole.activations and half.total < whole.total == training_memory(config, 16, "ddp").total
    )
    summed = training_memory(config, 16, "fsdp", 2, passes=2)
    assert summed.copies - half.copies == whole.gradients  # whole gradients until the last pass of a step
    again = training_memory(config, 16, recompute=True)
    assert again.activations < 0.3 * whole.activations and again.gradients == whole.gradients
    assert training_memory(config, 8).activations == whole.activations / 2


def test_days_and_cost_follow_from_operations() -> None:
    config = tiny(257, None)  # precision: auto, on a GPU bf16
    machine = Machine(GPUS["h100"], 4, 0.5, 3.0)
    made = plan(config, machine, (1000, 2000))
    flops = made["flops_per_token"]["total"]
    assert flops == total(training_flops(config.model, config.text_length))
    speeds = made["tokens_per_second"]
    assert speeds["kept"] == pytest.approx(4 * 0.5 * 989e12 / flops)  # one chunk of logits: nothing is computed twice
    whole = plan(replace(config, precision="fp32"), machine, ())["tokens_per_second"]["kept"]
    assert whole == pytest.approx(speeds["kept"] * 67 / 989)
    assert 0.7 < speeds["recomputed"] / speeds["kept"] < 0.8  # a third more, less head and G^0
    one, two = made["budgets"]
    assert one["tokens"] == 1000 * 16 * 256 and one["seconds"] == pytest.approx(one["tokens"] / speeds["kept"])
    assert two["cost"] == pytest.approx(2 * one["cost"]) and one["cost"] == pytest.approx(3.0 * one["device_hours"])
    assert one["device_hours"] == pytest.approx(4 * one["seconds"] / 3600)
    assert made["texts_per_pass"] == 4 and {row["sharding"] for row in made["memory"]} == {"none", "ddp", "fsdp"}


def test_chunks_of_logits_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts the same operations whatever the chunks, and for the head those of the plan."""
    config = shape("shift", 1, 1)
    model, (tokens, order) = armd.Armd(config), batch(config, "armd")
    counts = []
    for chunk in (2**26, 31 * 16):
        monkeypatch.setattr(objective, "CHUNK_LOGITS", chunk)
        with FlopCounterMode(display=False) as counter:
            armd.loss(model, tokens, order).backward()
        counts.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        model.hidden(tokens, order).sum().backward()
    assert counts[0] == counts[1]
    assert counts[0] - counter.get_total_flops() == training_flops(config, 48)["head"].total * tokens.numel()


def test_fits_is_said_by_the_memory_of_the_device() -> None:
    config = replace(paper_small(50_257, None), micro_batch_size=0)  # 512 texts at once
    rows = plan(config, Machine(GPUS["h200"]), ())["memory"]
    assert [row["fits"] for row in rows] == [False, True]
    assert not any(row["fits"] for row in plan(config, Machine(GPUS["a100"]), ())["memory"][:1])


def test_budgets_are_at_the_speed_of_what_the_run_would_do() -> None:
    """Recompute if told to, or if nothing else fits; share as told."""
    small, machine = paper_small(50_257, None), Machine(GPUS["h100"], 8)
    large = replace(small, micro_batch_size=64)
    for config, sharding, activations in [
        (small, "ddp", "kept"),
        (replace(small, checkpoint_activations=True), "ddp", "recomputed"),
        (replace(small, parallel="fsdp"), "fsdp", "kept"),
        (large, "ddp", "kept"),
    ]:
        made = plan(config, machine, (1000,))
        taken = made["taken"]
        assert (taken["sharding"], taken["activations_are"], taken["fits"]) == (sharding, activations, True)
        (budget,) = made["budgets"]
        assert budget["seconds"] == pytest.approx(budget["tokens"] / made["tokens_per_second"][activations])
    crowded = plan(replace(small, micro_batch_size=0), Machine(GPUS["h200"]), (1000,))
    assert crowded["taken"]["activations_are"] == "recomputed" and crowded["taken"]["fits"]


def test_a_measured_speed_is_a_share_of_the_peak(tmp_path: Path) -> None:
    config = tiny(257, None)
    speeds = [{"step": 10 * i, "tokens_per_second": rate} for i, rate in enumerate((1.0, 500.0, 300.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in speeds))
    write_json(tmp_path / "run.json", {"config": to_json(config)})
    flops = total(training_flops(config.model, config.text_length))
    assert measured(tmp_path, config, 600 * flops) == {"tokens_per_second": 300, "utilisation": pytest.approx(0.5)}
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no record of a speed yet"):
        measured(tmp_path, config, 1.0)
    with pytest.raises(
        UserError, match=r"is of another network: 18\.002 MFLOP a token, the plan 18\.003; give its fields"
    ):
        measured(tmp_path, tiny(258, None), 1.0)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Machine(GPUS["h100"], 0), "gpus=0 must be at least 1"),
        (lambda: Machine(GPUS["h100"], 1, 1.5), "utilisation=1.5 must be above 0 and at most 1"),
        (lambda: Machine(GPUS["h100"], 1, 0.4, -1.0), "price_per_hour=-1.0 must be at least 0"),
        (lambda: get_accelerator("abacus"), "gpu='abacus' is unknown; choose one of a100, h100, h200 or cpu"),
        (lambda: plan(tiny(257, None), Machine(GPUS["h100"], 3), ()), "gpus=3 must divide batch_size=16"),
        (
            lambda: plan(replace(tiny(257, None), batch_size=48, micro_batch_size=16), Machine(GPUS["h100"], 2), ()),
            "micro_batch_size=16 must divide the 24 texts of a device",
        ),
    ],
)
def test_mistakes_are_one_line(mistake, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mistake()


def test_the_peak_of_this_cpu_is_measured() -> None:
    cpu = get_accelerator("cpu")
    assert all(1e8 < cpu.peak(precision) < 1e14 for precision in ("bf16", "fp32")) and cpu.memory > 1e8
    assert cpu.faster == ("bf16" if cpu.bf16 > 1.2 * cpu.fp32 else "fp32")
