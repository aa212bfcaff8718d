"""Likelihoods are likelihoods: they sum to one, and Eq. (1) and Eq. (2) agree in expectation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from armd import Order, UserError, any_order_nll, loss, nll
from armd import objective as objectives
from armd.objective import WEIGHTINGS, mdm_loss
from conftest import ORDERS, QUERIES, make_model

V, N = 3, 4
EVERY_TEXT = torch.tensor(list(itertools.product(range(V), repeat=N)))


@pytest.mark.parametrize("order_name", ORDERS)
@pytest.mark.parametrize("query", QUERIES)
def test_probabilities_of_all_texts_sum_to_one(query: str, order_name: str) -> None:
    model = make_model(query=query, vocab_size=V)
    order = ORDERS[order_name](1, N, torch.Generator().manual_seed(5))
    every = order.rows(torch.zeros(len(EVERY_TEXT), dtype=torch.long))
    with torch.no_grad():
        total = nll(model, EVERY_TEXT, every).double().sum(dim=1)
    assert torch.exp(-total).sum().item() == pytest.approx(1.0, abs=1e-5)
    assert total.std() > 0.1  # not the uniform law


def test_equation_1_equals_equation_2_in_expectation() -> None:
    """Enumerate every draw of the masking process (3 tokens, 3 times) for a network that reads evidence as a set."""
    model = make_model(query="kernel", vocab_size=V, num_hidden_layers=1, num_two_stream_layers=1).double()
    steps, length = 3, 3
    draws = torch.tensor(list(itertools.product(range(1, steps + 1), repeat=length)))
    text = torch.tensor([[2, 0, 1]]).expand(len(draws), -1)
    with torch.no_grad():
        equation_2 = nll(model, text, Order.from_masking_times(draws)).sum(dim=1).mean()
        terms = [mdm_loss(model, text, draws, t, steps).mean() for t in range(1, steps + 1)]
    equation_1 = torch.stack(terms).sum()
    assert equation_1.item() == pytest.approx(equation_2.item(), rel=1e-6)
    assert all(term > 0 for term in terms)


def test_equation_1_weight_is_the_chance_to_be_unmasked() -> None:
    """`mdm_loss` is the NLL of all masked tokens given the others, times that chance, counted over draws of tau."""
    model, steps = make_model(vocab_size=V), 5
    text, tau = torch.tensor([[2, 0, 1, 1]]), torch.tensor([[4, 1, 5, 2]])
    for t in range(1, steps + 1):
        masked = tau <= t
        with torch.no_grad():
            log_probs = model(text, Order.from_masking_times((~masked).long())).log_softmax(-1)
            value = mdm_loss(model, text, tau, t, steps).item()
        nats = -log_probs.gather(2, text[..., None])[..., 0][masked].sum().item()
        masked_at_t = [draw for draw in range(1, steps + 1) if draw <= t]
        unmasked_before = [draw for draw in masked_at_t if draw > t - 1]
        assert value == pytest.approx(nats * len(unmasked_before) / len(masked_at_t), rel=1e-5) and value > 0


def test_nll_equals_cross_entropy_of_logits() -> None:
    model = make_model()
    g = torch.Generator().manual_seed(0)
    tokens, order = torch.randint(0, 11, (3, 12), generator=g), ORDERS["random_blocks"](3, 12, g)
    expected = -model(tokens, order).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    torch.testing.assert_close(nll(model, tokens, order), expected)
    assert nll(model, tokens, order).dtype == torch.float32


def test_chunked_loss_and_gradient_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    tokens = torch.randint(0, 11, (3, 12))
    order = Order.uniform(3, 12)

    def value_and_gradient() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        value = loss(model, tokens, order)
        value.backward()
        return value.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = value_and_gradient()
    monkeypatch.setattr(objectives, "CHUNK_LOGITS", 11 * 5)  # 36 rows in chunks of 5
    chunked = value_and_gradient()
    assert chunked[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(chunked[1], whole[1], rtol=1e-4, atol=1e-6)


def test_reweightings() -> None:
    order = Order.strided(1, 6, 2)  # blocks 0 1 2 2 3 3
    assert order.to_generation(WEIGHTINGS["per_block"](order)).tolist() == [[1.0, 1.0, 0.5, 0.5, 0.5, 0.5]]
    late = order.to_generation(WEIGHTINGS["late"](order))[0]
    assert late.tolist() == pytest.approx([0.4, 0.8, 1.2, 1.2, 1.6, 1.6])
    model, tokens = make_model(), torch.randint(0, 11, (1, 6))
    expected = (nll(model, tokens, order) * WEIGHTINGS["per_block"](order)).mean()
    torch.testing.assert_close(loss(model, tokens, order, "per_block"), expected)
    with pytest.raises(UserError, match="weighting='loud' is unknown"):
        loss(model, tokens, order, "loud")


def test_any_order_bounds() -> None:
    """IWAE is at most the mean, tightens with K, and with every order enumerated is the exact mixture likelihood."""
    model = make_model(vocab_size=V)
    text = torch.tensor([[2, 0, 1, 1]])
    permutations = torch.tensor(list(itertools.permutations(range(N))))
    each = Order(permutations, torch.arange(N).expand_as(permutations))
    with torch.no_grad():
        exact = nll(model, text.expand(len(permutations), -1), each).double().sum(dim=1)
        average = any_order_nll(model, text, 400, generator=torch.Generator().manual_seed(0))
    mixture = (math.log(len(exact)) - torch.logsumexp(-exact, 0)).item()
    assert average.iwae.item() == pytest.approx(mixture, abs=0.1)
    assert abs(average.mean.item() - exact.mean().item()) < 4 * average.stderr.item()
    assert average.iwae.item() < average.mean.item()
