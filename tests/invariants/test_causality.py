"""Nothing leaks: logits are bitwise the same whatever a token of the same or a later block is."""

from __future__ import annotations

import pytest
import torch

from armd import Order
from conftest import ORDERS, QUERIES, make_model


@pytest.mark.parametrize("order_name", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("two_stream", [1, 3])
def test_strictly_causal_by_block(query: str, two_stream: int, order_name: str) -> None:
    model = make_model(query=query, num_two_stream_layers=two_stream)
    g = torch.Generator().manual_seed(0)
    N = 12
    tokens = torch.randint(0, 11, (1, N), generator=g)
    order = ORDERS[order_name](1, N, g)
    block = order.text_blocks[0]
    # Row p of the batch has token p changed; all rows share the order.
    changed = tokens.repeat(N, 1)
    changed[torch.arange(N), torch.arange(N)] = (changed[torch.arange(N), torch.arange(N)] + 1 + torch.arange(N)) % 11
    base = model(tokens.repeat(N, 1), order.rows(torch.zeros(N, dtype=torch.long)))
    moved = model(changed, order.rows(torch.zeros(N, dtype=torch.long)))
    same = (base == moved).all(dim=2)  # (changed position, scored position)
    hidden = block[None, :] <= block[:, None]
    assert same[hidden].all()
    if order_name != "one_block":
        assert not same[~hidden].all()  # and what may be seen is seen


@pytest.mark.parametrize("query", [q for q in QUERIES if q != "shift"])
@pytest.mark.parametrize("two_stream", [1, 3])
def test_order_inside_a_block_of_evidence_does_not_matter(query: str, two_stream: int) -> None:
    """Permutation-equivariance: tokens of one block may come in any order."""
    model = make_model(query=query, num_two_stream_layers=two_stream)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (1, 12), generator=g)
    order = Order.from_masking_times(torch.tensor([[3, 3, 1, 2, 3, 1, 1, 2, 3, 2, 1, 3]]))
    shuffled = order.positions.clone()
    for b in range(3):
        members = (order.blocks[0] == b).nonzero()[:, 0]
        shuffled[0, members] = order.positions[0, members[torch.randperm(len(members), generator=g)]]
    assert not torch.equal(shuffled, order.positions)
    torch.testing.assert_close(model(tokens, Order(shuffled, order.blocks)), model(tokens, order), rtol=0, atol=2e-5)


@pytest.mark.parametrize("query", QUERIES)
def test_a_batch_row_equals_the_row_alone(query: str) -> None:
    model = make_model(query=query)
    g = torch.Generator().manual_seed(4)
    tokens, order = torch.randint(0, 11, (4, 12), generator=g), ORDERS["random_blocks"](4, 12, g)
    together = model(tokens, order)
    for b in range(4):
        row = torch.tensor([b])
        torch.testing.assert_close(model(tokens[row], order.rows(row)), together[row], rtol=0, atol=2e-5)


def test_no_nan_where_nothing_is_known() -> None:
    for query in QUERIES:
        model = make_model(query=query)
        tokens = torch.randint(0, 11, (2, 12))
        assert model(tokens, Order.from_masking_times(torch.zeros(2, 12))).isfinite().all()
        assert model(tokens[:, :1], Order.left_to_right(2, 1)).isfinite().all()
