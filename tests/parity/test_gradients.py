"""Gradients written by hand against those of autograd on the plain form, and what the training step keeps in memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from armd import Armd, Autoregressive, Order, loss, objective
from armd.layers import RMSNorm, attend, drop, rotate
from armd.masks import EVERYTHING, TRIANGLE, Mask, causal, dense
from armd.objective import row_nll, weighted_nll
from armd.prefix import Kernel
from conftest import make_model


def random(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_(grad)


def assert_same(fast: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients, for a gradient from above that differs everywhere."""
    ours, theirs = fast(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, theirs)
    above = torch.ones_like(ours) * random(*(ours.shape or (1,)), seed=9, grad=False).view(ours.shape)
    for own, other in zip(
        torch.autograd.grad(ours, inputs, above), torch.autograd.grad(theirs, inputs, above), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_norm() -> None:
    module = RMSNorm(6, eps=1e-3).double()
    assert_same(
        lambda x, w: torch.func.functional_call(module, {"weight": w}, (x,)),
        lambda x, w: F.rms_norm(x, (6,), w, 1e-3),
        random(2, 3, 6),
        random(6, seed=1),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norm_under_autocast_is_that_of_float32(dtype: torch.dtype) -> None:
    module, x = RMSNorm(64, eps=1e-6), torch.randn(4, 64).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    above = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
        out.backward(above.to(dtype))
    wanted = F.rms_norm(wide, (64,), eps=1e-6)
    wanted.backward(above)
    assert x.grad is not None and wide.grad is not None and module.weight.grad is not None
    assert out.dtype == x.grad.dtype == dtype and module.weight.grad.dtype == torch.float32
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 2e-2}
    torch.testing.assert_close(out.float(), wanted, **close)
    torch.testing.assert_close(x.grad.float(), wide.grad, **close)


def test_rotation() -> None:
    angle = random(2, 1, 5, 3, seed=1, grad=False)
    cos, sin = angle.cos(), angle.sin()

    def plain(x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)

    assert_same(lambda x: rotate(x, (torch.cat((cos, cos), dim=-1), sin)), plain, random(2, 4, 5, 6))


@pytest.mark.parametrize("order", [Order.left_to_right(2, 9), Order.uniform(2, 9), Order.strided(2, 9, 3)])
def test_kernel(order: Order) -> None:
    """The window form of training against the gathering form of decoding."""
    module = Kernel(6, 3).double()
    ranks = F.pad(order.text_blocks + 1, (1, 0))
    slots = torch.arange(1, 10).expand(2, -1)

    def at(table: Tensor, kernel: Tensor) -> Tensor:
        return torch.func.functional_call(_At(module), {"module.kernel": kernel}, (table, ranks, slots))

    def windows(table: Tensor, kernel: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"kernel": kernel}, (table, ranks))

    assert_same(windows, at, random(2, 10, 6), random(6, 6, seed=1))


class _At(torch.nn.Module):
    def __init__(self, module: Kernel) -> None:
        super().__init__()
        self.module = module

    def forward(self, table: Tensor, ranks: Tensor, slots: Tensor) -> Tensor:
        return self.module.at(table, ranks, slots, ranks[:, 1:])


# ---- the loss --------------------------------------------------------------------------------------------------------

ROWS, V, D = (3, 10), 13, 6
GOALS = torch.randint(V, ROWS, generator=torch.Generator().manual_seed(0))
GAMMA = torch.rand(ROWS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunk", [7 * V, 10**6])  # rows in chunks of 7, or all at once
def test_loss(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(objective, "CHUNK_LOGITS", chunk)
    assert_same(
        lambda x, w: weighted_nll(x, w, GOALS, GAMMA.double()),
        lambda x, w: (GAMMA * F.cross_entropy((x @ w.T).flatten(0, 1), GOALS.flatten(), reduction="none").view(ROWS))
        .sum(),
        random(*ROWS, D), random(V, D, seed=1),
    )  # fmt: skip


def test_a_head_padded_for_the_gpu_computes_the_same() -> None:
    V, rows, weight, gamma = 13, random(7, 6, grad=False), random(13, 6, seed=1, grad=False), random(7, grad=False)
    targets = torch.randint(V, (7,), generator=torch.Generator().manual_seed(2))
    wanted = objective._chunk_loss(rows, weight, targets, gamma, V)
    value, to_rows, to_weight = objective._chunk_loss(rows, F.pad(weight, (0, 0, 0, 3)), targets, gamma, V)
    torch.testing.assert_close((value, to_rows, to_weight[:V]), wanted)
    assert not to_weight[V:].any()


def test_loss_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As exact as the plain form, in float32, and it leaves no cast behind that would cut off later gradients."""
    monkeypatch.setattr(objective, "CHUNK_LOGITS", 7 * V)
    x, w = (random(*shape, seed=i).detach().float().requires_grad_() for i, shape in enumerate([(*ROWS, D), (V, D)]))
    exact = torch.autograd.grad(weighted_nll(x, w, GOALS, GAMMA), (x, w))
    with torch.autocast("cpu", torch.bfloat16):
        value = weighted_nll(x, w, GOALS, GAMMA)
        rough = torch.autograd.grad(value, (x, w))
        plain = torch.autograd.grad((GAMMA * row_nll(x, w, GOALS)).sum(), (x, w))
    assert value.dtype == torch.float32
    for ours, theirs, wanted in zip(rough, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        error, other = ((g - wanted).norm() / wanted.norm() for g in (ours, theirs))
        assert error < 0.02 and other < 0.02, (error, other)


class Witness(TorchDispatchMode):
    """The largest tensor made, and how many matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        made = (t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))
        self.largest = max([self.largest, *(t.numel() for t in made)])
        return out


def test_loss_holds_no_more_than_a_chunk_of_logits_and_makes_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary = 64, 200
    monkeypatch.setattr(objective, "CHUNK_LOGITS", 8 * vocabulary)
    x, w = random(1, rows, 4), random(vocabulary, 4, seed=1)
    with Witness() as seen:
        weighted_nll(x, w, torch.zeros(1, rows, dtype=torch.long), torch.ones(1, rows)).backward()
    assert seen.largest == 8 * vocabulary < rows * vocabulary
    assert seen.products == 3 * rows / 8


# ---- the whole step --------------------------------------------------------------------------------------------------


def gradients(model: torch.nn.Module, tokens: Tensor, order: Order) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    value = loss(model, tokens, order)
    value.backward()
    return value.item(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 1_000_003  # four values share a draw, the last one is cut
    x = torch.ones(count, dtype=dtype, requires_grad=True)
    dropped = drop(x, dropout)
    off = 5 * (dropout * (1 - dropout) / count) ** 0.5
    assert (dropped == 0).double().mean() == pytest.approx(dropout, abs=off + 2**-17)
    torch.testing.assert_close(
        dropped[dropped > 0], torch.full_like(x, 1 / (1 - dropout))[dropped > 0], rtol=0.01, atol=0
    )
    together = dropped.double().detach()[: count // 4 * 4].view(-1, 4).T.corrcoef() - torch.eye(4)
    assert together.abs().max() < 5 * (count / 4) ** -0.5  # values of one draw know nothing of each other
    (grad,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(grad, dropped)


def test_dropout_is_the_same_from_the_same_seed_and_none_at_zero() -> None:
    x, found = random(5, 7), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(drop(x, 0.3))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert drop(x, 0.0) is x
    assert (drop(x, 1 - 1e-9) == 0).all()  # not a number would not be


BLOCKS = torch.arange(150)[None] // 4


@pytest.mark.parametrize("mask", [TRIANGLE, EVERYTHING, Mask(rendered=dense(causal, BLOCKS, BLOCKS))], ids="tea")
def test_attention_that_drops_nothing_is_that_of_torch(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 rows: more than one chunk, the last one shorter."""
    q, k, v = (random(2, 2, 150, 4, seed=seed) for seed in range(3))
    monkeypatch.setattr("armd.layers.drop", lambda x, _: x)
    assert_same(lambda *qkv: attend(*qkv, mask, 0.5), lambda *qkv: attend(*qkv, mask, 0.0), q, k, v)


def test_attention_drops_weights_and_scales_the_others() -> None:
    q, k = (random(4, 2, 150, 4, seed=seed, grad=False) for seed in range(2))
    v = torch.eye(150, dtype=q.dtype).expand(4, 2, -1, -1)  # so that what is seen are the weights
    torch.manual_seed(0)
    whole, dropped = attend(q, k, v, TRIANGLE, 0.0), attend(q, k, v, TRIANGLE, 0.25)
    kept, visible = dropped > 0, whole > 0
    assert not dropped[~visible].any()
    assert (kept & visible).sum() / visible.sum() == pytest.approx(0.75, abs=0.01)  # of 90,600: 0.0014
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)


def test_attention_that_drops_rounds_scores_to_bfloat16_and_no_more() -> None:
    q, k = (random(4, 2, 150, 4, seed=seed, grad=False).bfloat16() for seed in range(2))
    v = torch.eye(150, dtype=q.dtype).expand(4, 2, -1, -1)
    scores = q.double() @ k.double().transpose(-2, -1) / 2
    assert attend(q[:, :, :1], k, v, EVERYTHING, 0.2).shape == (4, 2, 1, 150)  # one row stays one
    dropped = attend(q, k, v, EVERYTHING, 0.2).double()
    kept = dropped > 0
    off = (dropped * 0.8 / scores.softmax(dim=-1) - 1).abs()[kept]
    rounding = torch.finfo(q.dtype).eps / 2
    # Of its own score, of the others of its row, of the weight, of the noise 1 / 0.8, and of the weight times that.
    assert (off <= rounding * (scores.abs() + scores.abs().amax(dim=-1, keepdim=True) + 3)[kept] * 1.05).all()


def saved_bytes(model: torch.nn.Module, tokens: Tensor, order: Order) -> int:
    """What the forward pass keeps for the backward pass, weights and repetitions left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model, tokens, order)
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    assert value.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("kind", [Armd, Autoregressive])
def test_checkpointed_layers_keep_less_and_change_nothing(kind: type) -> None:
    model = make_model(kind, num_hidden_layers=4, hidden_size=32, dropout=0.2).train()
    tokens, order = torch.randint(11, (4, 24)), Order.left_to_right(4, 24)

    def measured() -> tuple[int, float, list[Tensor]]:
        torch.manual_seed(0)
        kept = saved_bytes(model, tokens, order)
        torch.manual_seed(0)
        return kept, *gradients(model, tokens, order)

    whole = measured()
    model.checkpoint_activations = True
    less = measured()
    assert less[0] < 0.4 * whole[0] and less[1] == whole[1]
    assert all(torch.equal(a, b) for a, b in zip(less[2], whole[2], strict=True))


def test_a_second_stream_costs_memory_in_its_layers_only() -> None:
    tokens, order = torch.randint(11, (4, 24)), Order.uniform(4, 24)
    shape = {"num_hidden_layers": 8, "hidden_size": 32}
    ar = saved_bytes(make_model(Autoregressive, **shape), tokens, Order.left_to_right(4, 24))
    one, half = (saved_bytes(make_model(**shape, num_two_stream_layers=n), tokens, order) for n in (1, 4))
    assert one < 1.15 * ar and ar < half < 1.5 * ar


COMPILED = """
import sys, torch
from armd import Armd, ArmdConfig, Order, loss
from armd.objective import _chunk_loss
torch.set_num_threads(1)
def gradients(order, dtype=torch.float32):
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = loss(model, tokens, order)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters())]
torch.manual_seed(0)
# A layer of each kind: content only, both streams, prediction only.
model = Armd(ArmdConfig(11, 32, 3, 2, max_position_embeddings=16, kernel_width=2))
tokens, uniform, blocks = torch.randint(11, (2, 16)), Order.uniform(2, 16), Order.strided(2, 16, 4)
names = list(model.state_dict())
wanted, narrow = [gradients(order) for order in (uniform, blocks)], gradients(uniform, torch.bfloat16)
model.compile_layers()
for order, value in zip((uniform, blocks), wanted):
    torch.testing.assert_close(gradients(order), value, rtol=1e-3, atol=1e-5)
assert len(torch._dynamo.utils.compilation_time_metrics) > 0  # something was compiled
model.checkpoint_activations = True
torch.testing.assert_close(gradients(blocks), wanted[1], rtol=1e-3, atol=1e-5)
for found, value, exact in zip(gradients(uniform, torch.bfloat16)[1:], narrow[1:], wanted[0][1:]):
    # The compiler rounds less often: it may differ from eager bfloat16 by as much as that does from float32.
    assert (found - exact).norm() <= 1.5 * (value - exact).norm() + 1e-6, (found, value, exact)
for layer in model.layers:
    layer.dropout = 0.2
dropped = gradients(blocks)
assert not torch.equal(dropped[0], wanted[1][0])
model.checkpoint_activations = False
torch.testing.assert_close(dropped, gradients(blocks), rtol=1e-3, atol=1e-5)  # computed again, it drops the same
assert list(model.state_dict()) == names
# The head, padded by five rows as it would be on a GPU.
chunk = torch.randn(6, 8), torch.randn(16, 8), torch.randint(11, (6,)), torch.rand(6), 11
torch.testing.assert_close(torch.compile(_chunk_loss)(*chunk), _chunk_loss(*chunk))
"""


VARIANTS = """
import torch
from armd import Armd, ArmdConfig, Order, loss, nll
compile, torch.compile = torch.compile, lambda function, **_: compile(function, backend="aot_eager")  # fast
torch.compiler.config.fail_on_recompile_limit_hit = True
model = Armd(ArmdConfig(11, 32, 3, 2, max_position_embeddings=16))
model.compile_layers()
tokens = torch.randint(11, (2, 16))
for order in Order.left_to_right(2, 16), Order.strided(2, 16, 4):
    loss(model.train(), tokens, order).backward()
    with torch.no_grad():
        nll(model.eval(), tokens, order)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


def test_a_whole_run_stays_compiled() -> None:
    """All kinds of layer and masks of a run: none falls back to eager because there are too many."""
    done = subprocess.run([sys.executable, "-c", VARIANTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8  # the limit of torch


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_layers_compute_the_same() -> None:
    """In a process of its own: here shapes are checked at run time, which the compiler cannot read."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
