"""MAUVE by hand: the area in closed form and as the published code has it, clusters that can only be one way."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from armd import Armd, Autoregressive, Order, UserError
from armd.data import Document, TokenDataset, get_tokenizer, prepare
from armd.evals import Human, Judge, Writing, held_out_texts, own_judge, quality_protocol
from armd.evals.mauve import buckets_of, check_mauve, frontier_area, mauve
from armd.evals.quality import write_and_judge
from conftest import make_model

BYTE = get_tokenizer("byte")


@pytest.fixture
def clusters() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (armd[evals])")


# ---- the area --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "published"),
    [  # mauve-text 0.4.0
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], 0.6538536633533254),
        ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5], 0.09257236294829274),
        ([0.75, 0.25], [0.25, 0.75], 0.5596114605911457),
    ],
)
def test_the_area_is_that_of_the_published_code(p: list[float], q: list[float], published: float) -> None:
    p, q = np.array(p), np.array(q)
    assert frontier_area(p, q) == pytest.approx(published, rel=1e-12)
    assert frontier_area(q, p) == pytest.approx(published, rel=1e-12)


def test_the_area_of_equal_and_of_disjoint_histograms() -> None:
    """Of disjoint ones the curve is ((1 - w)^c, w^c), whose area is c B(c + 1, c)."""
    p, q = np.array([0.3, 0.7, 0.0]), np.array([0.0, 0.0, 1.0])
    assert frontier_area(p, p) == frontier_area(q, q) == pytest.approx(1, abs=1e-9)
    for c in (1.0, 5.0):
        exact = c * math.gamma(c + 1) * math.gamma(c) / math.gamma(2 * c + 1)
        assert frontier_area(p, q, c, points=4000) == pytest.approx(exact, rel=1e-5)
    assert 0.0039 < frontier_area(p, q) < 0.0042
    between = [frontier_area(p, (1 - share) * p + share * q) for share in (0, 0.2, 0.5, 0.8, 1)]
    assert between == sorted(between, reverse=True) and between[1] > between[2] + 0.1


# ---- clusters --------------------------------------------------------------------------------------------------------


def around(centres: list[int], sizes: list[int], seed: int) -> torch.Tensor:
    """Points at the axes of these numbers, so many at each, with a little noise."""
    axes = torch.eye(8)[torch.tensor(centres).repeat_interleave(torch.tensor(sizes))]
    return axes + 0.01 * torch.randn(axes.shape, generator=torch.Generator().manual_seed(seed))


def test_clusters_are_counted(clusters: None) -> None:
    """Clouds far apart can only be the clusters: MAUVE is the area of their sizes, in whatever order and scale."""
    human, model = around([0, 1, 2, 3], [10, 20, 30, 40], 0), around([3, 2, 1, 0], [10, 20, 30, 40], 1)
    expected = frontier_area(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1]))
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    for a, b in ((human, model), (human[shuffled], 7 * model), (model, human)):
        assert mauve(a, b, buckets=4) == pytest.approx(expected, rel=1e-9)
    assert mauve(human, around([4, 5], [50, 50], 3)) < 0.005
    assert mauve(human, human.flip(0)) == pytest.approx(1, abs=1e-9)
    same = around([0, 1, 2, 3], [10, 20, 30, 40], 5)
    assert 0.5 < mauve(human, same) < 1  # another sample of the same texts is not the same sample


def test_few_and_equal_points(clusters: None) -> None:
    one = torch.ones(5, 3)
    assert mauve(one, 2 * one) == 1 and mauve(one, torch.cat((-one, -one))) == pytest.approx(0.00407, abs=1e-5)
    assert math.isnan(mauve(one[:1], one)) and math.isnan(mauve(one, torch.empty(0, 3)))
    assert buckets_of(5000, 6000) == 500 and buckets_of(64, 7) == 2


def test_the_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"^MAUVE needs scikit-learn; pip install 'armd\[evals\]'$"):
        check_mauve()


# ---- texts as points -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", [Armd, Autoregressive])
def test_a_point_is_the_row_that_has_read_the_text(kind: type) -> None:
    model = make_model(kind, vocab_size=257, max_position_embeddings=16)
    judge, texts = own_judge(model, BYTE, "judge"), ["ab", "", "rage, rage", "against the dying of the light"]
    points = judge.points(texts, batch_size=2)
    assert points.shape == (3, 16)  # the empty text has no point
    for point, text in zip(points, [texts[0], *texts[2:]], strict=True):
        ids = BYTE.encode(text)[:15]  # of a whole window the last token is not read
        hidden = model.hidden(torch.tensor([[*ids, 9]]), Order.left_to_right(1, len(ids) + 1))
        torch.testing.assert_close(point, hidden[0, -1], rtol=0, atol=1e-5)
        logits = model(torch.tensor([[*ids, 9]]), Order.left_to_right(1, len(ids) + 1))
        torch.testing.assert_close(model.head(point), logits[0, -1], rtol=0, atol=1e-4)
    assert not torch.allclose(judge.points(["abc"]), judge.points(["abd"]), atol=1e-3)


@torch.no_grad()
def test_a_point_of_a_transformers_evaluator(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (armd[evals])")
    from armd.evals import load_judge

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_positions=16, n_embd=16, n_layer=2, n_head=2, eos_token_id=256)
    gpt2 = transformers.GPT2LMHeadModel(config).eval()
    gpt2.save_pretrained(tmp_path)
    BYTE.save(tmp_path / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    texts = ["ab", "against the dying of the light", "rage"]
    for point, text in zip(load_judge(str(tmp_path), torch.device("cpu")).points(texts), texts, strict=True):
        alone = gpt2(torch.tensor([BYTE.encode(text)[:16]]), output_hidden_states=True)
        torch.testing.assert_close(point, alone.hidden_states[-1][0, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(gpt2.lm_head(point), alone.logits[0, -1], rtol=0, atol=1e-4)


def test_held_out_texts_are_spread_and_cut(tmp_path: Path) -> None:
    corpus = [Document(f"d{i:02}", f"{i:02} " + chr(97 + i) * 60) for i in range(20)]
    prepare(lambda: iter(corpus), "byte", tmp_path / "data", held_out=0.9, progress=False)
    dataset = TokenDataset(tmp_path / "data", "valid", 30)
    every = held_out_texts(dataset, BYTE, 10**6)
    assert len(every) == dataset.eval_windows() and max(map(len, every)) == 30 > min(map(len, every))
    for text, row in zip(every, dataset.eval_batch(0, len(every)).tolist(), strict=True):
        assert text == bytes(row[: row.index(256)] if 256 in row else row).decode()
    few = held_out_texts(dataset, BYTE, 4)
    third = [every[round(place * (len(every) - 1) / 3)] for place in range(4)]
    assert few == third


def test_a_model_is_close_to_its_own_texts(clusters: None) -> None:
    """Quality has the MAUVE of its texts, and only where there is something to compare with."""
    model = make_model(vocab_size=257, max_position_embeddings=16)
    judge, writing = own_judge(model, BYTE, "judge"), Writing(16, samples=40)
    alone = write_and_judge(model, BYTE, judge, writing, 1.0)
    assert alone.mauve is None and "MAUVE" not in quality_protocol(model, BYTE, judge, writing).line
    human = Human("its own texts", judge.points(alone.texts))
    assert write_and_judge(model, BYTE, judge, writing, 1.0, human).mauve == pytest.approx(1, abs=1e-9)
    repeated = write_and_judge(model, BYTE, judge, writing, 0.0, human)
    assert repeated.mauve is not None and repeated.mauve < 0.2
    protocol = quality_protocol(model, BYTE, judge, writing, human)
    assert "against 40 held-out texts of its own texts" in protocol.line and "4 clusters" in protocol.line
    assert "MAUVE of fewer than 5,000 texts" in protocol.departures


def test_nothing_written_is_close_to_nothing(clusters: None) -> None:
    model = make_model(vocab_size=257, max_position_embeddings=16)
    judge = Judge("deaf", lambda text: [], lambda ids: ids + 0.0, 16, 0, lambda ids, sizes: ids + 0.0)
    human = Human("somewhere", torch.randn(20, 4))
    assert math.isnan(write_and_judge(model, BYTE, judge, Writing(16, samples=3), 1.0, human).mauve or 0)
