"""The rows the likelihood meter reads in one pass are those that decoding meets pass by pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from armd import Order, make_request
from armd.writer import Writer
from conftest import QUERIES, make_model
from reference import log_probs

B, N, S = 2, 24, 4


def draft_order(batch: int, length: int, streams: int) -> Order:
    """Strided positions, `streams` ranks a pass, heads included."""
    return Order(Order.strided(batch, length, streams).positions, torch.arange(length).expand(batch, -1) // streams)


class Rereading:
    """A check that finds every draft right and chooses the tokens of a given text."""

    def __init__(self, writer: Writer, text: torch.Tensor) -> None:
        self.writer, self.text, self.check = writer, text, writer.check
        self.met: list[tuple[int, int, torch.Tensor]] = []  # first rank, frontier, logits

    def __call__(self, logits, samples, positions, drafts, tested, age):  # type: ignore[no-untyped-def]
        self.met.append((int(self.writer.done[0]), int(self.writer.frontier[0]), logits))
        verdict = self.check(logits, samples, positions, drafts, tested, age)
        return replace(verdict, chosen=self.text.gather(1, positions), run=tested.sum(dim=1))

    def keep(self, rows: torch.Tensor) -> None:
        pass


@pytest.mark.parametrize("two_stream", [1, 2, 3])
@pytest.mark.parametrize("query", QUERIES)
def test_equal_those_of_cached_decoding(query: str, two_stream: int) -> None:
    model = make_model(query=query, num_two_stream_layers=two_stream)
    text = torch.randint(0, 11, (B, N), generator=torch.Generator().manual_seed(0))
    writer = Writer(model, make_request(model, length=N, streams=S, batch_size=B), B)
    writer.check = reread = Rereading(writer, text)
    while writer.make_room():
        writer.step()
    order = draft_order(B, N, S)
    with torch.no_grad():
        checked, drafted = (rows @ model.head_weight.T for rows in model.draft_rows(text, order))
        torch.testing.assert_close(model.hidden(text, order.sequential()) @ model.head_weight.T, checked)
    seen = set()
    for done, frontier, logits in reread.met:
        exact = min(frontier + 1, N) - done
        torch.testing.assert_close(logits[:, :exact], checked[:, done : done + exact], rtol=0, atol=2e-5)
        if frontier % S == 0 and frontier < N:
            rows = logits[:, frontier - done : frontier - done + S]
            torch.testing.assert_close(rows, drafted[:, frontier : frontier + S], rtol=0, atol=2e-5)
            seen.add(frontier)
    assert seen == {0, 8, 16}
    assert (checked - drafted).abs().max() > 0.01


@pytest.mark.parametrize("two_stream", [2, 3])
def test_equal_the_specification(two_stream: int) -> None:
    """With at most one layer of predictions alone, row n is that of an order whose block ends with n."""
    model = make_model(num_two_stream_layers=two_stream).double()
    g = torch.Generator().manual_seed(1)
    text, order = torch.randint(0, 11, (1, 8), generator=g), draft_order(1, 8, 4)
    with torch.no_grad():
        rows = (model.draft_rows(text, order)[1] @ model.head_weight.T).log_softmax(-1)[0]
    positions = order.positions[0].tolist()
    for n, start in enumerate(order.block_starts[0].tolist()):
        blocks = [rank if rank < start else start if rank <= n else start + 1 for rank in range(8)]
        slow = log_probs(model, text[0].tolist(), positions, blocks)[positions[n]]
        torch.testing.assert_close(rows[n], slow, rtol=0, atol=2e-6)
