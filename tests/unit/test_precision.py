"""Casting a model for decoding: tables of angles stay float32, int8 weights are within half a step."""

from __future__ import annotations

import pytest
import torch

from armd import Order, UserError, generate, nll
from armd.precision import Int8Linear, cast
from conftest import make_model


@pytest.mark.parametrize("query", ["aggregate", "kernel"])
def test_tables_of_angles_stay_float32(query: str) -> None:
    model = make_model(query=query)
    before = {name: table.clone() for name, table in model.named_buffers()}
    assert len(before) >= 2
    cast(model, "bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, table in model.named_buffers():
        assert torch.equal(table, before[name]), name


def test_int8_is_close_and_generates() -> None:
    tokens = torch.randint(0, 11, (4, 24), generator=torch.Generator().manual_seed(0))
    order = Order.left_to_right(4, 24)
    dense, small, half = make_model(), cast(make_model(), "int8"), cast(make_model(), "bfloat16")
    assert sum(isinstance(m, Int8Linear) for m in small.modules()) == 5 * 3
    linear = dense.layers[0].up
    packed = Int8Linear(linear)
    step = packed.scale[:, None]
    assert ((packed.weight.float() * step - linear.weight).abs() <= step / 2 + 1e-6).all()
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(
        packed(x), torch.nn.functional.linear(x, packed.weight.float() * step), rtol=0, atol=1e-4
    )
    with torch.no_grad():
        exact, rounded, packed_nll = (nll(m, tokens, order).mean() for m in (dense, half, small))
    assert abs(rounded - exact) < 0.02 and abs(packed_nll - exact) < 0.03
    out = generate(small, length=12, streams=3)
    assert not (out.tokens < 0).any()


def test_unknown_dtype() -> None:
    with pytest.raises(UserError, match="dtype='fp4' is unknown; choose one of auto"):
        cast(make_model(), "fp4")
    assert next(cast(make_model(), "auto").parameters()).dtype in (torch.float32, torch.bfloat16)
