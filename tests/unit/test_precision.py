"""Casting a model for decoding: tables of angles stay float32, int8 weights are within half a step."""

from __future__ import annotations

import pytest
import torch

from armd import Order, UserError, generate, nll
from armd.precision import Int8Linear, PackedLinear, cast
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_are_the_same_numbers(dtype: str, tied: bool) -> None:
    """Laid out anew they give the same products, up to the order of summation, for any number of rows."""
    packed = cast(make_model(tie_word_embeddings=tied), dtype)
    plain = make_model(tie_word_embeddings=tied).to(next(packed.parameters()).dtype)
    if packed.packed_head is None:
        pytest.skip(f"this processor does not multiply in {dtype}: nothing is packed")
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) == 5 * 3 + 1
    tolerance = 1e-5 if dtype == "float32" else 0.05
    with torch.no_grad():
        for rows in (0, 1, 5, 64):
            x = torch.randn(2, rows, 16, dtype=plain.bos.dtype)
            for a, b in ((packed.layers[0].up, plain.layers[0].up), (packed.head, plain.head)):
                torch.testing.assert_close(a(x), b(x), rtol=tolerance, atol=tolerance)
    if dtype == "float32":
        one, other = (generate(model, length=12, streams=3, batch_size=2, seed=4) for model in (packed, plain))
        assert torch.equal(one.tokens, other.tokens)


def test_compilers_leave_packed_weights_alone() -> None:
    """They cannot lower the layout; a pass compiled around it must run all the same."""
    model = cast(make_model(), "float32")
    if model.packed_head is None:
        pytest.skip("this processor packs nothing")
    up, x = model.layers[0].up, torch.randn(1, 3, 16)
    with torch.no_grad():
        doubled = torch.compile(lambda rows: 2 * up(2 * rows), backend="eager")(x)
        torch.testing.assert_close(doubled, 4 * up(x))
