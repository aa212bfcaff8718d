"""The fast model against the specification in loops, and against a plain autoregressive transformer."""

from __future__ import annotations

import pytest
import torch

from armd import Armd, Autoregressive, Order, nll
from conftest import ORDERS, QUERIES, make_config, make_model
from reference import log_probs


@pytest.mark.parametrize("order_name", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
def test_model_equals_specification(query: str, order_name: str) -> None:
    model = make_model(query=query).double()
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 11, (2, 8), generator=g)
    order = ORDERS[order_name](2, 8, g)
    fast = model(tokens, order).log_softmax(-1)
    for b in range(2):
        slow = log_probs(model, tokens[b].tolist(), order.positions[b].tolist(), order.blocks[b].tolist())
        torch.testing.assert_close(fast[b], slow, rtol=0, atol=2e-6)  # RoPE tables are float32


@pytest.mark.parametrize("changes", [
    {"num_two_stream_layers": 1}, {"num_two_stream_layers": 3}, {"norm": "layernorm"}, {"qk_norm": True},
    {"activation": "relu2"}, {"learned_positions": True}, {"learned_positions": True, "query": "position"},
    {"tie_word_embeddings": False}, {"intermediate_size": 24}, {"num_hidden_layers": 1, "num_two_stream_layers": 1},
])  # fmt: skip
def test_every_config_equals_specification(changes: dict[str, object]) -> None:
    model = make_model(**changes).double()
    g = torch.Generator().manual_seed(2)
    tokens, order = torch.randint(0, 11, (1, 9), generator=g), ORDERS["random_blocks"](1, 9, g)
    slow = log_probs(model, tokens[0].tolist(), order.positions[0].tolist(), order.blocks[0].tolist())
    torch.testing.assert_close(model(tokens, order).log_softmax(-1)[0], slow, rtol=0, atol=2e-6)
    picked = -slow.gather(1, tokens[0, :, None])[:, 0]
    torch.testing.assert_close(nll(model, tokens, order)[0].double(), picked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("two_stream", [1, 2, 3])
@pytest.mark.parametrize("query", ["anchor", "anchor+aggregate", "shift"])
def test_left_to_right_equals_autoregressive(query: str, two_stream: int) -> None:
    """Copied weights, prefix parameters perturbed (the aggregate's gate closed): the model is an AR transformer."""
    baseline = make_model(Autoregressive)
    model = make_model(Armd, seed=3, query=query, num_two_stream_layers=two_stream)
    missing, unexpected = model.load_state_dict(baseline.state_dict(), strict=False)
    assert all(name.startswith("prefix.") for name in missing) and not unexpected
    if query == "anchor+aggregate":
        torch.nn.init.zeros_(model.prefix.gate)
    tokens = torch.randint(0, 11, (3, 20), generator=torch.Generator().manual_seed(0))
    order = Order.left_to_right(3, 20)
    difference = (model(tokens, order) - baseline(tokens, order)).abs().max().item()
    assert difference < 1e-5
    assert baseline(tokens, order).std() > 0.1  # the weights say something


@pytest.mark.parametrize("kind", [Armd, Autoregressive])
def test_layers_that_start_at_zero_change_nothing(kind: type) -> None:
    tokens, order = torch.randint(0, 11, (2, 9)), Order.left_to_right(2, 9)
    torch.manual_seed(0)
    whole = kind(make_config(zero_init_residual=True))
    changed = kind(make_config())
    changed.load_state_dict(whole.state_dict())
    torch.nn.init.normal_(changed.layers[1].down.weight)
    rows = whole.hidden(tokens, order)
    whole.layers = torch.nn.ModuleList() if kind is Autoregressive else whole.layers[:1]
    assert torch.equal(whole.hidden(tokens, order), rows)
    assert not torch.equal(changed.hidden(tokens, order), rows)
