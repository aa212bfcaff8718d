"""On an NVIDIA GPU: every path that only runs there computes what the CPU computes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from armd import Armd, Autoregressive, BlockDiffusion, MaskedDiffusion, denoise, generate, nll
from armd.cli import main
from armd.masks import Mask, causal
from armd.model import Transformer
from armd.objective import loss
from armd.orders import generator
from armd.precision import cast
from conftest import ORDERS, QUERIES, make_model
from processes import TINY, make_data
from several import stopping_after

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU here; on one, make test-gpu runs these", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # what torch's compiler warns of differs from card to card
GPU = torch.device("cuda")
N = 160  # long enough for FlexAttention, and no multiple of its blocks of 128
SHAPE = {"hidden_size": 96, "num_attention_heads": 2, "vocab_size": 300, "max_position_embeddings": N}  # heads of 48


def pair(kind: type = Armd, **changes: object) -> tuple[Transformer, Transformer]:
    """The same model on the CPU and on the GPU."""
    model = make_model(kind, **{**SHAPE, **changes})
    return model, copy.deepcopy(model).to(GPU)


def texts(batch: int = 3, length: int = N) -> Tensor:
    return torch.randint(300, (batch, length), generator=generator(1))


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-4) -> None:
    torch.testing.assert_close(found.cpu().to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
def test_likelihood(query: str, family: str) -> None:
    ours, theirs = pair(query=query)
    order = ORDERS[family](3, N, generator(2))
    with torch.no_grad():
        close(nll(theirs, texts().to(GPU), order), nll(ours, texts(), order))


def test_blocks_are_flex_attention_masks() -> None:
    blocks = ORDERS["strided"](1, N, generator(2)).blocks
    assert type(Mask.of(causal, blocks.to(GPU), blocks.to(GPU)).rendered).__name__ == "BlockMask"
    assert isinstance(Mask.of(causal, blocks, blocks).rendered, Tensor)


@pytest.mark.parametrize("family", ["left_to_right", "uniform", "strided"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("query", ["kernel", "aggregate"])
def test_gradients(query: str, compiled: bool, family: str) -> None:
    ours, theirs = pair(query=query)
    if compiled:
        theirs.compile_layers()
    order = ORDERS[family](3, N, generator(2))
    for model in (ours, theirs):
        loss(model, texts().to(model.device), order).backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        size = own.grad.abs().max().clamp(min=1e-6)
        close(other.grad / size.to(GPU), own.grad / size, 1e-3)


@pytest.mark.parametrize("kind", [MaskedDiffusion, BlockDiffusion])
def test_baselines(kind: type) -> None:
    ours, theirs = pair(kind)
    masked = torch.rand(3, N, generator=generator(3)) < 0.5
    with torch.no_grad():
        own, other = (m.predict(texts().to(m.device), masked.to(m.device)) for m in (ours, theirs))
    close(other.cpu()[masked], own[masked])
    assert (denoise(theirs, length=32, steps=8).tokens < 300).all()


@pytest.mark.parametrize("kind", [Armd, Autoregressive])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_decoding(kind: type, compiled: bool) -> None:
    """Exact, one at a time, and the CPU: the same texts, but where a choice was a reported tie."""
    ours, theirs = pair(kind)
    options = {"length": 64, "streams": 4 if kind is Armd else 1, "batch_size": 4, "seed": 5, "stop": False}
    wanted = generate(ours, mode="sequential", **options)
    modes = ("sequential", "exact", "exact") if kind is Armd else ("sequential", "sequential")
    for mode in modes:  # twice: the second time the compiled pass and its graph are there
        found = generate(theirs, mode=mode, compiled=compiled, **options)
        other = (found.tokens.cpu() != wanted.tokens).any(dim=1)
        assert (wanted.ties[other] > 0).all() and other.sum() <= 1
        close(found.log_probs[~other], wanted.log_probs[~other], 1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_decoding_in_few_bits(dtype: str) -> None:
    _, model = pair()
    cast(model, dtype)
    found = generate(model, length=64, streams=4, mode="exact", batch_size=4, seed=5, stop=False)
    again = generate(model, length=64, streams=4, mode="sequential", batch_size=4, seed=5, stop=False)
    other = (found.tokens != again.tokens).any(dim=1).cpu()
    assert (again.ties.cpu()[other] > 0).all()


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def train(data: Path, out: Path, *more: str) -> list[float]:
    """Losses by step of a run of a tiny model on texts that are long enough for FlexAttention."""
    shape = ["--model.hidden-size", "32", "--model.max-position-embeddings", "128", "--eval-texts", "3"]
    run = ["--max-steps", "12", "--orders.sbp-steps", "4", "--save-every", "6", "--eval-every", "6"]
    words = ["train", "tiny", "--data", str(data), "--out", str(out), *TINY, *shape, *run, *more]
    if "--resume" in more:
        with stopping_after(6):
            assert main([word for word in words if word != "--resume"]) != 0
    assert main(words) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if "loss" in r]


@pytest.fixture(scope="module")
def on_cpu(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train(data, tmp_path_factory.mktemp("cpu") / "run", "--device", "cpu")


OPTIONS = {
    "eager": ([], 1e-3),
    "compiled": (["--compile"], 1e-3),
    "checkpointed": (["--checkpoint-activations"], 1e-3),
    "ddp": (["--parallel", "ddp"], 1e-3),
    "fsdp": (["--parallel", "fsdp"], 1e-3),
    "micro-batches": (["--micro-batch-size", "4"], 1e-3),
    "resumed": (["--resume"], 1e-3),
    "fsdp, resumed": (["--parallel", "fsdp", "--resume"], 1e-3),
    "bf16": (["--precision", "bf16"], 1e-2),
    "bf16, compiled": (["--precision", "bf16", "--compile"], 1e-2),
    "bf16, fsdp": (["--precision", "bf16", "--parallel", "fsdp"], 1e-2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_training_is_that_of_the_cpu(data: Path, tmp_path: Path, on_cpu: list[float], name: str) -> None:
    options, tolerance = OPTIONS[name]
    assert train(data, tmp_path / "run", "--device", "cuda", *options) == pytest.approx(on_cpu, rel=tolerance)


def test_muon(data: Path, tmp_path: Path) -> None:
    """Its bfloat16 steps turn the last bit of a gradient into the third digit of an update."""
    muon = ["--optim.name", "muon"]
    wanted = train(data, tmp_path / "cpu", "--device", "cpu", *muon)
    assert train(data, tmp_path / "gpu", "--device", "cuda", *muon) == pytest.approx(wanted, rel=2e-2)
