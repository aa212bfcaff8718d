"""Small models whose every weight and gate is away from its initial value, so that nothing hides behind a zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from armd import Armd, ArmdConfig, Autoregressive, Order
from armd.prefix import PREFIXES

torch.set_num_threads(1)  # models here are tiny: a second thread only waits

QUERIES = tuple(PREFIXES)
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
    "random_blocks": lambda b, n, g: Order.from_masking_times(torch.randint(0, 4, (b, n), generator=g)),
    "one_block": lambda b, n, g: Order.from_masking_times(torch.zeros(b, n)),
}


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real corpora and vocabularies are not at {SHARED}")
    return SHARED
