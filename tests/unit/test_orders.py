"""Orders, families and schedules."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armd import Family, Order, OrderSchedule, UserError
from armd.families import FAMILIES, TAKES_ARGUMENT
from armd.orders import generator, take_rows
from conftest import remade


def test_strided_is_the_papers_example() -> None:
    order = Order.strided(1, 8, 2)
    assert (order.positions[0] + 1).tolist() == [1, 5, 2, 6, 3, 7, 4, 8]
    assert order.blocks[0].tolist() == [0, 1, 2, 2, 3, 3, 4, 4]  # heads one by one, then groups: S + N/S - 1 steps


def test_strided_after_a_prompt() -> None:
    order = Order.strided(1, 8, 2, prompt=2)
    assert order.positions[0].tolist() == [0, 1, 2, 5, 3, 6, 4, 7]
    assert order.blocks[0].tolist() == [0, 1, 2, 3, 4, 4, 5, 5]


def test_template_makes_every_hole_a_stream() -> None:
    order = Order.template(torch.tensor([0, 1, 1, 0, 1, 1, 1, 0]).bool())
    assert order.positions[0].tolist() == [0, 3, 7, 1, 4, 2, 5, 6]
    assert order.blocks[0].tolist() == [0, 1, 2, 3, 4, 5, 5, 6]


def test_from_masking_times_sorts_by_descending_time_and_blocks_ties() -> None:
    order = Order.from_masking_times(torch.tensor([[2, 5, 2, 7, 5]]))
    assert order.positions[0].tolist() == [3, 1, 4, 0, 2]
    assert order.blocks[0].tolist() == [0, 1, 1, 2, 2]


def test_reinsert_moves_rho_tokens_and_keeps_the_rest_in_order() -> None:
    order = Order.reinsert(200, 12, 2, generator=torch.Generator().manual_seed(0))
    for row in order.positions.tolist():
        # Removing some 2 tokens must leave an ascending sequence: the longest one has at least 10 tokens.
        best: list[int] = []
        for n, p in enumerate(row):
            best.append(1 + max((best[i] for i in range(n) if row[i] < p), default=0))
        assert max(best) >= 10
    assert len({tuple(row) for row in order.positions.tolist()}) > 150


def test_reinsert_draws_ranks_uniformly() -> None:
    order = Order.reinsert(6000, 4, 1, generator=torch.Generator().manual_seed(0))
    # One token of 4 taken, put at one of 4 ranks: each (token, rank) has probability 1/16; 4 of 16 give the identity,
    # and adjacent swaps arise in two ways.
    counts: dict[tuple[int, ...], int] = {}
    for row in order.positions.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert len(counts) == 10
    assert counts[(0, 1, 2, 3)] / 6000 == pytest.approx(4 / 16, abs=0.02)
    assert counts[(1, 0, 2, 3)] / 6000 == pytest.approx(2 / 16, abs=0.02)
    assert counts[(3, 0, 1, 2)] / 6000 == pytest.approx(1 / 16, abs=0.02)


def test_subset_permutes_rho_tokens_in_place() -> None:
    order = Order.subset(100, 12, 3, generator=torch.Generator().manual_seed(0))
    moved = (order.positions != torch.arange(12)).sum(dim=1)
    assert moved.max() == 3 and (moved == 0).any()
    assert torch.equal(Order.subset(3, 12, 1).positions, Order.left_to_right(3, 12).positions)  # one token: a no-op


def test_uniform_draws_every_permutation_equally() -> None:
    order = Order.uniform(6000, 3, generator=torch.Generator().manual_seed(0))
    keys = order.positions @ torch.tensor([9, 3, 1])
    counts = torch.unique(keys, return_counts=True)[1]
    assert len(counts) == 6 and (counts / 6000 - 1 / 6).abs().max() < 0.02


def test_infill_writes_one_span_last() -> None:
    order = Order.infill(300, 10, generator=torch.Generator().manual_seed(0))
    assert order.is_sequential
    sizes = set()
    for row in order.positions.tolist():
        falls = [n for n in range(1, 10) if row[n] < row[n - 1]]
        assert len(falls) <= 1
        span = row[falls[0] :] if falls else []
        assert span == list(range(span[0], span[0] + len(span))) if span else True
        sizes.add(len(span))
    assert max(sizes) == 5 and len(sizes) >= 5


def test_spans_are_many_short_holes_written_last() -> None:
    order = Order.spans(300, 40, 4, generator=torch.Generator().manual_seed(0))
    assert order.is_sequential
    sizes, share, opening = set(), 0.0, set()
    for row in order.positions.tolist():
        known = next((n for n in range(1, 40) if row[n] < row[n - 1]), 40)  # ranks of what is not in a hole
        holes = sorted(row[known:])
        runs = [place for place in holes if place - 1 not in holes]
        sizes |= {next(k for k in range(1, 41) if first + k not in holes) for first in runs}
        share, opening = share + len(holes) / 40 / 300, opening | {row[0] > 0}
    assert sizes == {1, 2, 3, 4} and opening == {True, False} and share == pytest.approx(0.5, abs=0.03)


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([4, 8, 12]), st.sampled_from(sorted(FAMILIES)))
def test_every_family_gives_valid_orders(seed: int, batch: int, length: int, name: str) -> None:
    order = Family(name, 4 if name in TAKES_ARGUMENT else 0).order(batch, length, generator(seed))
    assert order.positions.shape == order.blocks.shape == (batch, length)  # __post_init__ checks the rest
    ranks = torch.arange(length).expand(batch, length)
    assert torch.equal(order.positions.gather(1, order.inverse), ranks)
    values = torch.rand(batch, length, 2)
    assert torch.equal(order.to_text(order.to_generation(values)), values)
    again = Family(name, 4 if name in TAKES_ARGUMENT else 0).order(batch, length, generator(seed))
    assert torch.equal(order.positions, again.positions)


@pytest.mark.parametrize(("positions", "blocks", "message"), [
    ([[0, 0]], [[0, 1]], "permutation"), ([[0, 2]], [[0, 1]], "permutation"), ([[0, 1]], [[1, 2]], "start at 0"),
    ([[0, 1]], [[0, 2]], "rise by 0 or 1"), ([[0, 1, 2]], [[0, 1, 0]], "rise by 0 or 1"), ([[]], [[]], "length >= 1"),
])  # fmt: skip
def test_invalid_orders_are_refused(positions: list[list[int]], blocks: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Order(torch.tensor(positions, dtype=torch.long), torch.tensor(blocks, dtype=torch.long))


LONG = torch.zeros(1, 1, dtype=torch.long)


@pytest.mark.parametrize(("positions", "blocks", "message"), [
    ([[0]], LONG, "positions must be a tensor of shape .*, not a list"),
    (LONG, LONG[0], r"blocks must be a tensor of shape \(batch, length\), not \(1,\)"),
    (LONG.float(), LONG, r"positions are torch.float32; they must be torch.int64"),
    (LONG, LONG.int(), r"blocks are torch.int32; they must be torch.int64"),
])  # fmt: skip
def test_what_is_no_order_is_refused(positions: object, blocks: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        remade(Order(LONG, LONG), positions=positions, blocks=blocks)


@pytest.mark.parametrize(("tau", "message"), [
    (torch.zeros(3), r"tau must be a tensor of shape \(batch, length\), not \(3,\)"), ([[1, 2]], "not a list"),
    (torch.tensor([[1.0, math.nan]]), "tau holds NaN"),
])  # fmt: skip
def test_what_are_no_masking_times_is_refused(tau: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect.unwrap(Order.from_masking_times.__func__)(Order, tau)


@pytest.mark.parametrize("left_out", [0, 2])
def test_rows_and_their_gradients_are_those_of_gather(left_out: int) -> None:
    order = Order.uniform(3, 7, generator=generator(0))
    index = order.positions[:, : 7 - left_out]
    values, changed = torch.randn(3, 7, 2, 5, dtype=torch.double, requires_grad=True), torch.randn(3, 7, 2, 5)
    gathered = values.gather(1, index[:, :, None, None].expand(-1, -1, 2, 5))
    taken = take_rows(values, index, order.inverse)
    assert torch.equal(taken, gathered)
    slopes = [torch.autograd.grad(rows, values, changed[:, : 7 - left_out].double()) for rows in (taken, gathered)]
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert torch.autograd.gradgradcheck(lambda x: take_rows(x, index, order.inverse).square(), values)
    for wrong in (torch.zeros(3, 9), torch.zeros(1, 7)):
        with pytest.raises(UserError, match="must start with"):
            order.to_generation(wrong)


def test_bad_sizes_are_named() -> None:
    for call, message in [
        (lambda: Order.left_to_right(0, 4), "batch=0"),
        (lambda: Order.uniform(1, 0), "length=0"),
        (lambda: Order.reinsert(1, 4, 5), "rho=5"),
        (lambda: Order.subset(1, 4, -1), "rho=-1"),
        (lambda: Order.strided(1, 8, 9), "streams=9"),
        (lambda: Order.strided(1, 8, 3), "streams=3 does not divide the 8 new tokens; use a length of 6 or 9"),
        (lambda: Order.strided(1, 8, 2, prompt=8), "prompt=8"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_family_names() -> None:
    assert str(Family.parse("strided:4")) == "strided:4" and Family.parse("uniform") == Family("uniform")
    for text in ("spiral", "strided", "uniform:3", "reinsert:x", "reinsert:0"):
        with pytest.raises(UserError, match=text.partition(":")[0]):
            Family.parse(text)


def test_the_order_of_a_text_does_not_depend_on_its_batch() -> None:
    for name in FAMILIES:
        family = Family(name, 4 if name in TAKES_ARGUMENT else 0)
        batch = family.orders(12, [generator(0, i) for i in range(5)])
        alone = family.orders(12, [generator(0, 3)])
        assert torch.equal(batch.positions[3:4], alone.positions) and torch.equal(batch.blocks[3:4], alone.blocks)


@pytest.mark.parametrize(("name", "message"), [
    ("reinsert:13", "floors reinsert:13: rho=13 exceeds the 12 tokens of a text"), ("subset:99", "rho=99 exceeds"),
    ("spans:13", "size=13 exceeds"),
    ("strided:5", "streams=5 does not divide the 12 tokens"), ("strided_sequential:24", "streams=24 does not divide"),
])  # fmt: skip
def test_an_argument_must_fit_the_text(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Family.parse(name).check(12, "floors")
    Family.parse(f"{name.partition(':')[0]}:12").check(12)


# ---- schedules -------------------------------------------------------------------------------------------------------


def test_progressive_schedule_grows_from_one_to_rho() -> None:
    schedule = OrderSchedule(ar_steps=100, perm_steps=500, rho=32)
    assert [schedule.shuffled(s) for s in (0, 99, 100, 300, 500, 10_000)] == [0, 0, 1, 16, 32, 32]
    grown = [schedule.shuffled(s) for s in range(600)]
    assert grown == sorted(grown) and set(grown) == set(range(33))


def test_schedule_is_a_function_of_step_and_seed() -> None:
    schedule = OrderSchedule(ar_steps=2, perm_steps=6, rho=4, sbp_steps=5, floors={"uniform": 0.3})
    first, again = ([schedule.order(s, 1, 20, 3, 16) for s in steps] for steps in (range(20), range(20)))
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(first, again, strict=True))
    late = schedule.order(13, 1, 20, 3, 16)  # asked for alone, without the steps before it
    assert torch.equal(late.positions, first[13].positions)
    assert any(not torch.equal(a.positions, schedule.order(s, 2, 20, 3, 16).positions) for s, a in enumerate(first))


def test_sbp_phase_draws_streams_from_the_set() -> None:
    schedule = OrderSchedule(ar_steps=10, sbp_steps=300, sbp_streams=(1, 2, 4))
    families = [schedule.family(s, 0, 400) for s in range(400)]
    assert {f.name for f in families[:100]} == {"left_to_right"}
    drawn = [f.argument for f in families[100:]]
    assert {f.name for f in families[100:]} == {"strided"} and all(70 < drawn.count(s) < 130 for s in (1, 2, 4))


def test_floors_hold_in_every_phase() -> None:
    schedule = OrderSchedule(
        ar_steps=1000, perm_steps=2000, rho=8, sbp_steps=1000, floors={"uniform": 0.2, "infill": 0.1}
    )
    families = [schedule.family(s, 0, 3000).name for s in range(3000)]
    for phase in (families[:1000], families[1000:2000], families[2000:]):
        assert phase.count("uniform") / 1000 == pytest.approx(0.2, abs=0.05)
        assert phase.count("infill") / 1000 == pytest.approx(0.1, abs=0.05)
    assert "reinsert" in families[1000:2000] and "strided" in families[2000:]


@pytest.mark.parametrize(("fields", "message"), [
    ({"ar_steps": -1}, "ar_steps=-1"), ({"ar_steps": 9, "perm_steps": 3, "rho": 2}, "perm_steps=3"),
    ({"shuffle": "riffle"}, "shuffle='riffle'"), ({"sbp_streams": ()}, "sbp_streams"),
    ({"floors": {"uniform": math.nan}}, "floors"),
    ({"floors": {"uniform": 0.7, "infill": 0.5}}, "floors"), ({"floors": {"spiral": 0.1}}, "spiral"),
])  # fmt: skip
def test_bad_schedules_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OrderSchedule(**fields)


@pytest.mark.parametrize(("field", "value"), [("rho", 2.5), ("sbp_streams", (2, "x")), ("floors", {"uniform": "half"})])
def test_schedule_fields_of_the_wrong_type_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{field}="):
        remade(OrderSchedule(), **{field: value})


def test_rows_of_an_order_keep_what_was_decided_of_it() -> None:
    """No part of a batch asks its device again."""
    for order, sequential, plain in [
        (Order.left_to_right(3, 6), True, True),
        (Order.uniform(3, 6), True, False),
        (Order.strided(3, 6, streams=2), False, False),
        (Order(torch.arange(6)[None], torch.tensor([[0, 0, 1, 2, 3, 4]])), False, False),
    ]:
        assert (order.is_sequential, order.is_left_to_right) == (sequential, plain)
        part = order.rows(torch.tensor([0]))
        assert torch.equal(part.positions, order.positions[:1]) and torch.equal(part.blocks, order.blocks[:1])
        assert {"is_sequential": sequential, "is_left_to_right": plain}.items() <= vars(part).items()
