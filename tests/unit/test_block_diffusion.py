"""Block diffusion: all blocks in one pass equal each block alone, nothing leaks, its sampler follows its law."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

import reference
from armd import BlockDiffusion, MaskedDiffusion, Order, UserError, denoise, generate, make_request, nll
from armd.baselines import bound, estimate_bound
from armd.baselines.sampler import reveal, turns
from armd.masks import block_diffusion, dense, flex
from armd.noise import Noise
from armd.sampling import coin
from conftest import ORDERS, chi_square, make_config, make_model

LABELS = torch.tensor([[1, 1, 3, 3, 0, 0, 2, 2]])  # noised, clean; two blocks of two
EVERY_TEXT = torch.tensor([*itertools.product(range(3), repeat=4)])


def test_the_mask_is_the_drawn_one() -> None:
    drawn = """##......
               ##......
               ..####..
               ..####..
               ....##..
               ....##..
               ....####
               ....####"""
    mask = dense(block_diffusion, LABELS, LABELS)[0, 0].tolist()
    assert ["".join("#" if seen else "." for seen in row) for row in mask] == drawn.split()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # compiled on a GPU only
def test_flex_rendering_equals_dense() -> None:
    blocks = torch.arange(75)[None] // 16 * 2
    labels = torch.cat((blocks + 1, blocks), dim=1)
    q, k, v = torch.randn(3, 2, 2, 150, 16, generator=torch.Generator().manual_seed(0))
    with_flex = flex_attention(q, k, v, block_mask=flex(block_diffusion, labels, labels))
    with_dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=dense(block_diffusion, labels, labels)
    )
    torch.testing.assert_close(with_flex, with_dense, rtol=0, atol=1e-5)


def block_alone(model: BlockDiffusion, text: list[int], masked: list[bool], start: int) -> Tensor:
    """(L, V): the log-probabilities of one block in float64 loops, from the tokens before it and what it shows."""
    w = {name: value.double() for name, value in model.state_dict().items()}
    end = min(start + model.config.block_size, len(text))
    clean = [(w["embed.weight"][text[p]], p, p // model.config.block_size) for p in range(start)]
    noised = [
        (w["mask"] if masked[p] else w["embed.weight"][text[p]], p, start // model.config.block_size)
        for p in range(start, end)
    ]
    for i in range(model.config.num_hidden_layers):
        layer = reference.Layer(model, w, f"layers.{i}.")
        noised, clean = (
            [(layer(x, slot, clean + noised), slot, block) for x, slot, block in noised],
            [(layer(x, slot, [row for row in clean if row[2] <= block]), slot, block) for x, slot, block in clean],
        )
    rows = torch.stack([reference.norm(model, w, "norm", x) for x, _, _ in noised])
    return (rows @ w["embed.weight"].T).log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_all_blocks_in_one_pass_equal_each_block_alone(block_size: int) -> None:
    model, g = make_model(BlockDiffusion, block_size=block_size).double(), torch.Generator().manual_seed(0)
    tokens, N = torch.randint(11, (2, 18), generator=g), 18  # the last block is a short one
    noise = Noise.draw(2, N, block_size=block_size, generator=g)
    fast = model.head(model.predict(tokens, noise.masked)).log_softmax(-1)
    nats = bound(model, tokens, noise)
    for b in range(2):
        for start in range(0, N, block_size):
            block = slice(start, start + block_size)
            slow = block_alone(model, tokens[b].tolist(), noise.masked[b].tolist(), start)
            torch.testing.assert_close(fast[b, block], slow, rtol=0, atol=2e-6)  # RoPE tables are float32
            picked = -slow.gather(1, tokens[b, block, None])[:, 0]
            weighed = picked * noise.masked[b, block] / noise.times[b, block]
            torch.testing.assert_close(nats[b, block].double(), weighed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_clean_token_of_its_own_block_or_a_later_one_leaks() -> None:
    model, g = make_model(BlockDiffusion, block_size=4), torch.Generator().manual_seed(1)
    tokens, everything = torch.randint(11, (2, 14), generator=g), torch.ones(2, 14, dtype=torch.bool)
    before = model.predict(tokens, everything)
    for block in range(4):
        here = torch.arange(14) // 4
        changed = torch.where(here >= block, (tokens + 1) % 11, tokens)
        after = model.predict(changed, everything)
        assert torch.equal(after[:, here <= block], before[:, here <= block])
        assert block == 3 or not torch.equal(after[:, here == block + 1], before[:, here == block + 1])
    shown = everything.clone()
    shown[:, 5] = False  # what a block shows is seen by its own masks
    assert not torch.equal(model.predict(tokens, shown)[:, 4], before[:, 4])


def left_to_right(model: BlockDiffusion, text: Tensor) -> Tensor:
    """(N,) nats of the AR model that blocks of one token are: token by token, from the tokens before it."""
    N = len(text)
    rows = [block_alone(model, text.tolist(), [p == n for p in range(N)], n) for n in range(N)]
    return -torch.cat(rows).gather(1, text[:, None])[:, 0]


@torch.no_grad()
def test_blocks_of_one_token_are_an_autoregressive_model() -> None:
    """The bound at a time t, where it masks the token, is the token's NLL over t: in the mean the likelihood."""
    model, g = make_model(BlockDiffusion, block_size=1).double(), torch.Generator().manual_seed(2)
    tokens = torch.randint(11, (1, 12), generator=g)
    expected = left_to_right(model, tokens[0])[None]
    exact = nll(model, tokens, Order.left_to_right(1, 12)).double()
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-5)
    noise = Noise(torch.ones(1, 12, dtype=torch.bool), torch.rand(1, 12, generator=g) + 0.1)
    torch.testing.assert_close(bound(model, tokens, noise) * noise.times, exact.float(), rtol=0, atol=1e-5)
    found = estimate_bound(model, tokens, 2, generator=g)  # a block of one token has one number of masks
    assert found.mean.item() == pytest.approx(exact.sum().item(), rel=1e-5)
    assert found.stderr.item() == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_one_block_for_the_whole_text_is_the_mean_over_all_orders() -> None:
    """And with several blocks over all orders that write them in turn: here 2 x 2 orders of two blocks of two."""
    model, text = make_model(BlockDiffusion, block_size=2, vocab_size=3), torch.tensor([[1, 2, 0, 2]])
    positions = torch.tensor([[*a, *b] for a in ((0, 1), (1, 0)) for b in ((2, 3), (3, 2))])
    order = Order(positions, torch.arange(4).repeat(4, 1))
    orders = nll(model, text.expand(4, -1), order).sum(dim=1).mean().item()
    half, whole = torch.tensor([[True, False], [False, True]]), torch.tensor([[True, True]])
    sets, weights = torch.cat((half, whole)), torch.tensor([0.25, 0.25, 0.5])  # counted noise, enumerated
    total = 0.0
    for (a, p), (b, q) in itertools.product(zip(sets, weights, strict=True), repeat=2):
        masked = torch.cat((a, b))[None]
        shares = torch.cat((a.float().mean().expand(2), b.float().mean().expand(2)))[None]
        total += float(p * q * bound(model, text, Noise(masked, shares)).sum())
    assert total == pytest.approx(orders, rel=1e-5)
    found = estimate_bound(model, text.expand(300, -1), 4, generator=torch.Generator().manual_seed(0)).mean
    assert abs(found.mean().item() - orders) < 4 * found.std().item() / 300**0.5


@torch.no_grad()
def test_probabilities_sum_to_one_and_only_orders_of_blocks_in_turn_are_scored() -> None:
    model, every = make_model(BlockDiffusion, block_size=2, vocab_size=3), EVERY_TEXT
    for positions, blocks in (([1, 0, 3, 2], [0, 1, 2, 3]), ([0, 1, 3, 2], [0, 0, 1, 1]), ([0, 1, 3, 2], [0, 0, 1, 2])):
        order = Order(torch.tensor([positions]).repeat(81, 1), torch.tensor([blocks]).repeat(81, 1))
        total = nll(model, every, order).double().sum(dim=1)
        assert torch.exp(-total).sum().item() == pytest.approx(1, abs=1e-5) and total.std() > 0.1
    for positions, blocks in (([2, 3, 0, 1], [0, 1, 2, 3]), ([0, 2, 1, 3], [0, 1, 2, 3]), ([0, 1, 2, 3], [0, 1, 1, 2])):
        with pytest.raises(UserError, match="block_size=2 writes blocks of 2 tokens from left to right"):
            nll(model, every[:1], Order(torch.tensor([positions]), torch.tensor([blocks])))


@torch.no_grad()
def test_one_block_is_masked_diffusion() -> None:
    model, other = make_model(BlockDiffusion, block_size=24), make_model(MaskedDiffusion, seed=1)
    other.load_state_dict(model.state_dict())
    tokens, masked = torch.randint(11, (2, 20)), torch.rand(2, 20) < 0.5
    torch.testing.assert_close(model.predict(tokens, masked), other.predict(tokens, masked), rtol=0, atol=1e-5)


# ---- the sampler -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def naive(model: BlockDiffusion, prompt: list[int], length: int, steps: int, schedule: str, seed: int) -> Tensor:
    """The sampler without a cache: every pass is over the whole doubled text."""
    size, samples = model.config.block_size, torch.zeros(1, 1, dtype=torch.long)
    request = make_request(model, prompt=prompt, length=length, seed=seed)
    text = request.tokens
    for start in range(0, text.shape[1], size):
        at = torch.arange(start, min(start + size, text.shape[1]))[None]
        turn = turns(coin(seed, samples, at, draw=1), text[:, at[0]] < 0, steps, schedule)
        for step in range(steps):
            chosen = torch.zeros_like(text, dtype=torch.bool).scatter(1, at, turn == step)
            rows = model.predict(text.clamp(min=0), text < 0)
            text, _ = reveal(model, rows, text, chosen, request, samples, torch.arange(text.shape[1])[None])
    return text


@torch.no_grad()
@pytest.mark.parametrize("taken", [1, 2])  # blocks taken in at once
def test_rows_on_top_of_the_store_equal_those_of_the_whole_text(taken: int) -> None:
    model, g = make_model(BlockDiffusion, block_size=4).double(), torch.Generator().manual_seed(3)
    tokens, masked = torch.randint(11, (2, 22), generator=g), torch.rand(2, 22, generator=g) < 0.6
    whole, store, stored = model.predict(tokens, masked), model.new_store(2, 22), 0
    block = tokens.where(~masked, -1)
    for start in range(0, 22, 4 * taken):
        for clean in (tokens[:, stored:start], tokens[:, start:start]):  # once taken in, it is there
            rows = model.predict_next(store, clean, block[:, start : start + 4], start)
            torch.testing.assert_close(rows, whole[:, start : start + 4], rtol=0, atol=1e-9)
        stored = start


def test_every_token_is_taken_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, taken, predict_next = make_model(BlockDiffusion, block_size=4), [], BlockDiffusion.predict_next

    def watch(model: BlockDiffusion, store: object, clean: Tensor, block: Tensor, start: int) -> Tensor:
        taken.append((clean.shape[1], block.shape[1]))
        return predict_next(model, store, clean, block, start)

    monkeypatch.setattr(BlockDiffusion, "predict_next", watch)
    denoise(model, length=8, prompt=[1] * 9, steps=2)  # the prompt's blocks, then each that was written
    assert taken == [(8, 4), (0, 4), (4, 4), (0, 4), (4, 1)]


@pytest.mark.parametrize(
    ("steps", "schedule"), [(4, "even"), (2, "even"), (1, "even"), (3, "ancestral"), (9, "ancestral")]
)
@pytest.mark.parametrize("prompt", [[], [3], [5, 6, 7, 8, 9]])
def test_cached_equals_uncached(prompt: list[int], steps: int, schedule: str) -> None:
    model = make_model(BlockDiffusion, block_size=4, learned_positions=steps == 2)
    for length in (1, 3, 10):
        count = min(steps, length) if schedule == "even" else steps
        options = {"length": length, "prompt": prompt, "steps": count, "schedule": schedule, "seed": 7}
        out = denoise(model, batch_size=2, **options)
        slow = naive(model, prompt, length, count, schedule, seed=7)
        assert torch.equal(out.tokens[:1], slow) and slow[0, : len(prompt)].tolist() == prompt
        assert out.tokens.shape == (2, len(prompt) + length) and not (out.tokens < 0).any()
        assert out.steps.unique()[-out.forward_passes :].tolist() == list(
            range(1, out.forward_passes + 1)
        )  # each wrote
        every = denoise(model, skip_idle=False, batch_size=2, **options)
        assert torch.equal(every.tokens, out.tokens) and every.forward_passes >= out.forward_passes


def test_passes_are_counted() -> None:
    model = make_model(BlockDiffusion, block_size=4)

    def passes(length: int, **options: object) -> int:
        return denoise(model, length=length, **options).forward_passes

    assert passes(10) == 10  # one token a pass
    assert passes(10, steps=2) == 6  # blocks of 4, 4 and 2
    assert passes(10, steps=1) == 3
    assert passes(9, prompt=[1, 2, 3], steps=2) == 5  # the first has one left
    assert passes(8, steps=9, schedule="ancestral", skip_idle=False) == 18


def test_writing_ends_with_the_last_text() -> None:
    """A text that met its end of text takes part in no later block; when all have, no block is written."""
    model = make_model(BlockDiffusion, block_size=4, eos_token_id=2)
    out, whole = (denoise(model, length=20, batch_size=3, seed=2, stop=stop) for stop in (True, False))
    ends = [row.tolist().index(2) + 1 if 2 in row else 20 for row in whole.tokens]
    assert out.lengths.tolist() == ends and min(ends) < max(ends) < 17
    assert out.passes.tolist() == [-(-end // 4) * 4 for end in ends] and out.forward_passes == out.passes.max() < 20
    for row, full, end in zip(out.tokens, whole.tokens, ends, strict=True):
        assert torch.equal(row[:end], full[:end]) and (row[end:] == 2).all()
    given, whole = (denoise(model, length=12, prompt=[2] * 5, stop=stop) for stop in (True, False))
    assert given.lengths[0] == 5 + whole.tokens[0, 5:].tolist().index(2) + 1 > 8  # that of a prompt ends nothing


@torch.no_grad()
@pytest.mark.parametrize(("steps", "schedule"), [(2, "even"), (1, "even"), (2, "ancestral")])
def test_samples_follow_the_enumerated_law(steps: int, schedule: str) -> None:
    """Two blocks of two: the law of a text is the mean, block by block, over the steps of its tokens."""
    model, every = make_model(BlockDiffusion, block_size=2, vocab_size=3), EVERY_TEXT
    in_block = {(2, "even"): [[0, 1], [1, 0]], (1, "even"): [[0, 0]]}.get(
        (steps, schedule), [[0, 0], [0, 1], [1, 0], [1, 1]]
    )
    law = torch.zeros(81, dtype=torch.float64)
    for a, b in itertools.product(in_block, repeat=2):
        step = torch.tensor([[*a, *(2 + s for s in b)]])
        order = Order.from_masking_times(-step.repeat(81, 1))  # masked last, revealed first
        law += (-nll(model, every, order).double().sum(dim=1)).exp() / len(in_block) ** 2
    assert law.sum().item() == pytest.approx(1, abs=1e-5)
    found = denoise(model, length=4, steps=steps, schedule=schedule, seed=steps, batch_size=10_000)
    counts = torch.bincount(found.tokens @ torch.tensor([27, 9, 3, 1]), minlength=81)
    assert chi_square(counts, law) > 0.001
    assert law.max() > 3 * law.min()


def test_mistakes() -> None:
    model = make_model(BlockDiffusion, block_size=4)
    with pytest.raises(UserError, match="block_size=0 must be at least 1"):
        make_config(block_size=0)
    with pytest.raises(UserError, match="BlockDiffusion does not write with generate"):
        generate(model, length=4)
    for options, message in (
        ({"steps": 5}, "steps=5 must be at least 1 and at most 4"),
        ({"prompt": [11]}, r"prompt holds token 11 or 11; allowed: 0..10"),
        ({"prompt": [1] * 20}, "prompt 20 . length 8 tokens exceed max_position_embeddings=24"),
        ({"length": 0, "prompt": [1]}, "length=0 must be"),
        ({"length": None, "template": [1, -1, -1, 2, -1]}, "a template may have no text behind a hole"),
    ):
        with pytest.raises(UserError, match=message):
            denoise(model, **{"length": 8, **options})
    with pytest.raises(UserError, match="from left to right"):
        nll(model, torch.zeros(2, 8, dtype=torch.long), ORDERS["uniform"](2, 8, torch.Generator().manual_seed(0)))
    with pytest.raises(UserError, match="times=0 must be"):
        estimate_bound(model, torch.zeros(2, 8, dtype=torch.long), 0)
    with pytest.raises(UserError, match=r"tokens are \(2, 8\) but the noise is \(2, 9\)"):
        bound(model, torch.zeros(2, 8, dtype=torch.long), Noise.draw(2, 9))
