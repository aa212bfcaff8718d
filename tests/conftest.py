"""Small models whose every weight and gate is away from its initial value, so that nothing hides behind a zero."""

from __future__ import annotations

import copy
import platform
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from armd import Armd, ArmdConfig, Autoregressive, Order
from armd.prefix import PREFIXES

torch.set_num_threads(1)  # models here are tiny: a second thread only waits
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("default", max_examples=150, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=4000, deadline=None, database=None)  # make test-long
settings.load_profile("default")

QUERIES = tuple(PREFIXES)
LINUX = platform.system() == "Linux" and platform.machine() == "x86_64"
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def perturb(model: torch.nn.Module, seed: int = 0, scale: float = 0.15) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))


def remade(good: object, **values: object) -> None:
    """Check a dataclass anew with other values, past the types of its constructor, which only tests compare."""
    changed = copy.copy(good)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    changed.__post_init__()


def make_config(**changes: object) -> ArmdConfig:
    shape: dict[str, object] = dict(  # noqa: C408 (reads better)
        vocab_size=11, hidden_size=16, num_hidden_layers=3, num_two_stream_layers=2, num_attention_heads=2,
        max_position_embeddings=24, query="kernel", kernel_width=3,
    )  # fmt: skip
    return ArmdConfig(**{**shape, **changes})


def make_model(kind: type = Armd, seed: int = 0, **changes: object) -> Armd | Autoregressive:
    torch.manual_seed(seed)
    model = kind(make_config(**changes)).eval()
    perturb(model, seed)
    return model


# name -> (batch, length, generator) -> Order: every family, and blocks of random sizes.
ORDERS: dict[str, Callable[[int, int, torch.Generator], Order]] = {
    "left_to_right": lambda b, n, g: Order.left_to_right(b, n),
    "uniform": lambda b, n, g: Order.uniform(b, n, generator=g),
    "reinsert": lambda b, n, g: Order.reinsert(b, n, 3, generator=g),
    "strided": lambda b, n, g: Order.strided(b, n, 4),
    "infill": lambda b, n, g: Order.infill(b, n, generator=g),
    "spans": lambda b, n, g: Order.spans(b, n, 3, generator=g),
    "random_blocks": lambda b, n, g: Order.from_masking_times(torch.randint(0, 4, (b, n), generator=g)),
    "one_block": lambda b, n, g: Order.from_masking_times(torch.zeros(b, n)),
}


linux = pytest.mark.skipif(not LINUX, reason="a model's programs are contained, and so run, on Linux x86-64 only")


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real corpora and vocabularies are not at {SHARED}")
    return SHARED


def chi_square(counts: torch.Tensor, law: torch.Tensor) -> float:
    """The p-value of counts under a law; cells expected to hold fewer than 5 are pooled."""
    counts, expected = counts.double(), law.double() * counts.sum()
    rare = expected < 5
    if rare.any():
        counts, expected = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (counts, expected))
    keep = expected > 0
    assert counts[~keep].sum() == 0  # nothing impossible was drawn
    counts, expected = counts[keep], expected[keep]
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(expected) - 1
    assert freedom > 10
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), statistic / 2))
