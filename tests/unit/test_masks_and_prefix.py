"""Each rule has two renderings; both are the same."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from armd import Order, generate
from armd.masks import HIDDEN, Visibility, causal, dense, flex, strictly_causal
from armd.prefix import PREFIXES
from conftest import ORDERS, QUERIES, make_model


def test_masks_are_the_drawn_ones() -> None:
    content, prediction = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 1, 2]])
    drawn = """#...
               ###.
               ###.
               ####"""
    assert _picture(dense(causal, content, content)) == drawn.split()
    drawn = """#...
               #...
               ###."""
    assert _picture(dense(strictly_causal, prediction, content)) == drawn.split()


def test_masks_of_drafts_are_the_drawn_ones() -> None:
    see = Visibility.of_drafts(torch.tensor([[0, 0, 2, 2]]))
    assert _picture(see.strict.rendered) == ["#...", "##..", "###.", "####", "#...", "#...", "###.", "###."]
    drawn = """#.......
               ##......
               ###.....
               ####....
               ....#...
               ....##..
               ##....#.
               ##....##"""
    assert _picture(see.prediction.rendered) == drawn.split() and see.content.triangle


def _picture(mask: torch.Tensor) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in mask[0, 0].tolist()]


def test_blocks_of_one_are_the_plain_triangle() -> None:
    blocks = torch.arange(7).expand(1, 7)
    see = Visibility.of_blocks(blocks, blocks + 1)
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()
    for mask in (see.content, see.strict, see.prediction):
        assert torch.equal(mask.rendered[0, 0], triangle)
    plain = Visibility.sequential()
    assert all(m.triangle and m.rendered is None for m in (plain.content, plain.strict, plain.prediction))


def test_padding_rows_are_seen_by_no_real_row() -> None:
    keys = torch.tensor([[0, 1, HIDDEN, 2]])
    assert not dense(causal, torch.tensor([[0, 5, 10**6]]), keys)[..., 2].any()


def test_dropout_of_attention_takes_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention, which `of_blocks` may choose on a GPU, knows no dropout."""
    model, order, chosen = make_model(dropout=0.1), Order.strided(2, 12, 4), []
    tokens, of_blocks = torch.randint(0, 11, (2, 12)), Visibility.of_blocks
    monkeypatch.setattr(Visibility, "of_blocks", lambda *blocks: chosen.append(blocks) or of_blocks(*blocks))
    model.train()(tokens, order)
    assert not chosen
    evaluated = model.eval()(tokens, order)
    assert len(chosen) == 1
    monkeypatch.setattr("armd.model.drop", lambda x, _: x)
    for layer in model.layers:
        layer.dropout = 0.0
    torch.testing.assert_close(model.train()(tokens, order), evaluated)  # the same masks


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # compiled on a GPU only
@pytest.mark.parametrize("see", [causal, strictly_causal])
def test_flex_rendering_equals_dense(see: object) -> None:
    g = torch.Generator().manual_seed(0)
    N = 150
    order = Order.from_masking_times(torch.randint(0, 6, (2, N), generator=g))
    queries, keys = order.blocks + 1, order.blocks
    q, k, v = torch.randn(3, 2, 2, N, 16, generator=g)
    with_flex = flex_attention(q, k, v, block_mask=flex(see, queries, keys))
    with_dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense(see, queries, keys))
    torch.testing.assert_close(with_flex, with_dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order_name", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
def test_training_form_equals_decoding_form(query: str, order_name: str) -> None:
    """`forward` over a whole text against `at`, target by target over a table that holds only what is known."""
    model = make_model(query=query)
    g = torch.Generator().manual_seed(0)
    order = ORDERS[order_name](1, 12, g)
    table = torch.randn(1, 13, 16, generator=g)
    ranks = torch.nn.functional.pad(order.text_blocks + 1, (1, 0))
    whole = model.prefix(table, ranks)
    for slot in range(1, 13):
        rank = ranks[:, slot : slot + 1]
        known = ranks < rank
        so_far = torch.where(known[..., None], table, 0.0)
        one = model.prefix.at(so_far, torch.where(known, ranks, HIDDEN), torch.tensor([[slot]]), rank)
        torch.testing.assert_close(one[:, 0], whole[:, slot - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("query", QUERIES)
def test_a_full_context_is_decoded(query: str, streams: int) -> None:
    """The longest text there is: the cache's row for padding comes on top."""
    model = make_model(query=query)
    out = generate(model, length=model.config.max_position_embeddings, streams=streams)
    assert out.tokens.shape == (1, 24)


def test_kernel_starts_as_sharp_delays() -> None:
    prefix = PREFIXES["kernel"](16, 25, 4)
    table = torch.zeros(1, 25, 16)
    table[0, :, :] = torch.arange(25.0)[:, None] + 1  # a token's embedding is its slot + 1
    ranks = torch.arange(25)[None]
    row = prefix(table, ranks)[0, 9]  # slot 10 reads slots 9 and 8, each in a quarter of the channels
    read = torch.tensor([10.0, 9.0, 0.0, 0.0]).repeat_interleave(4)
    torch.testing.assert_close(row, read / read.square().mean().sqrt())


@pytest.mark.parametrize("query", ["aggregate", "kernel"])
def test_no_kernel_repeats_within_the_context(query: str) -> None:
    """The weight of a token a long way off never reaches that of a near one: periodic kernels take far for near."""
    slots = 1024
    prefix = PREFIXES[query](64, slots + 1, 8)
    if query == "aggregate":
        weight = prefix.P[:slots] @ prefix.P[0]
        assert weight[:4].min() > weight[64:].max() + 0.02
    else:
        table = torch.zeros(1, slots + 1, 64)
        table[0, 500] = 1.0
        response = prefix(table, torch.arange(slots + 1)[None])[0].norm(dim=1)
        assert set((response > 1e-6).nonzero()[:, 0].tolist()) <= set(range(499 - 8, 500 + 8))
