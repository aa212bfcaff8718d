"""Measures of written texts, by hand; evaluators against the loss they stand for."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from armd import Armd, Autoregressive, BlockDiffusion, MaskedDiffusion, Order, UserError, denoise, generate, nll, save
from armd.baselines import Denoiser
from armd.data import get_tokenizer
from armd.evals import Judge, Writing, frontier, load_judge, own_judge, plot, quality_protocol
from armd.evals.quality import distinct, entropy, judge_texts, mean, repetition, write_and_judge
from armd.evals.rouge import longest_common_subsequence, rouge_l, rouge_n
from conftest import make_model

BYTE = get_tokenizer("byte")
TEXTS = ["do not go gentle", "", "x", "into that good night, old age should burn and rave"]


@pytest.fixture(scope="module")
def model() -> Armd:
    return make_model(vocab_size=257, max_position_embeddings=16)


# ---- measures --------------------------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    assert entropy([7, 7, 8, 8]) == pytest.approx(math.log(2)) and entropy([7] * 9) == 0 == entropy([])
    assert entropy(range(10)) == pytest.approx(math.log(10))
    assert entropy([1, 2, 2, 2]) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert repetition([1, 2, 1, 2, 1, 2], n=2) == pytest.approx(1 - 2 / 5) and repetition(range(9)) == 0
    assert math.isnan(repetition([1, 2, 3])) and mean([1.0, math.nan, 3.0]) == 2 and math.isnan(mean([]))
    assert distinct([[1, 2, 3], [1, 2]], 1) == 3 / 5 and distinct([[1, 2, 3], [1, 2]], 2) == 2 / 3
    assert math.isnan(distinct([[1], [2]], 2))  # no run goes from one text into the next


def test_texts_are_measured_up_to_their_end(model: Armd) -> None:
    judge, eos = own_judge(model, BYTE, "judge"), 256
    cut = judge_texts([[], [eos], [97, 98, eos], [97, 97, eos, 98, 98]], eos, BYTE, judge)
    assert cut.texts == ["", "", "ab", "aa"] and cut.tokens == cut.judged == 4
    assert cut.entropy == pytest.approx(math.log(2) / 4) and cut.distinct[0] == 2 / 4
    nats = torch.cat(judge.nats(["ab", "aa"]))
    assert cut.generative_perplexity == pytest.approx(nats.mean().exp().item())
    assert judge_texts([[97, 98]], None, BYTE, judge).tokens == 2


def test_rouge_by_hand() -> None:
    text, reference = "The cat, the cat sat!", "the cat lay"
    assert rouge_n(text, reference, 1) == pytest.approx(2 * 2 / (5 + 3))
    assert rouge_n(text, reference, 2) == pytest.approx(2 * 1 / (4 + 2))
    assert rouge_l(text, reference) == pytest.approx(2 * 2 / (5 + 3))
    assert rouge_n("a b", "a b", 2) == rouge_l("A-b", "a b") == 1 and rouge_l("", "a") == rouge_n("x", "y z", 2) == 0
    assert rouge_n("the the cat", "the the dog", 1) == pytest.approx(2 * 2 / (3 + 3))  # as often as both have it
    assert rouge_l("b a", "a b") == 0.5 and rouge_n("b a", "a b", 1) == 1


def test_longest_common_subsequence_equals_enumeration() -> None:
    def slow(a: str, b: str) -> int:
        subsets = {s for n in range(len(a) + 1) for s in itertools.combinations(a, n)}
        return max(len(s) for s in subsets if s in set(itertools.combinations(b, len(s))))

    for a, b in [("abcab", "bacba"), ("aab", "aba"), ("abc", "xyz"), ("", "a"), ("aaaa", "aa"), ("a", "aa")]:
        assert longest_common_subsequence(a, b) == slow(a, b)


# ---- evaluators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Armd, Autoregressive])
def test_our_own_evaluator_equals_our_own_nll(kind: type, tmp_path: Path) -> None:
    model = make_model(kind, vocab_size=257, max_position_embeddings=16)
    save(model, tmp_path / "judge", BYTE)
    judge = load_judge(str(tmp_path / "judge"), torch.device("cpu"))
    assert judge.first == 0 and judge.window == 16
    for text, nats in zip(TEXTS, judge.nats(TEXTS, batch_size=3), strict=True):
        ids = torch.tensor(BYTE.encode(text), dtype=torch.long)
        with torch.no_grad():
            alone = [nll(model, part[None], Order.left_to_right(1, len(part)))[0] for part in ids.split(16) if len(ids)]
        torch.testing.assert_close(nats, torch.cat([torch.empty(0), *alone]).double(), rtol=1e-5, atol=1e-5)


def test_a_transformers_evaluator_equals_its_own_loss(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (armd[evals])")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_positions=16, n_embd=16, n_layer=2, n_head=2, eos_token_id=256)
    gpt2 = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in gpt2.parameters():
            p.add_(0.1 * torch.randn_like(p))
    gpt2.save_pretrained(tmp_path)
    BYTE.save(tmp_path / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    judge = load_judge(str(tmp_path), torch.device("cpu"))
    assert judge.first == 1 and judge.window == 16
    for text, nats in zip(TEXTS, judge.nats(TEXTS, batch_size=3), strict=True):
        parts = [p[None] for p in torch.tensor(BYTE.encode(text), dtype=torch.long).split(16) if len(p) > 1]
        assert len(nats) == sum(part.shape[1] - 1 for part in parts)
        with torch.no_grad():
            total = sum(gpt2(part, labels=part).loss.item() * (part.shape[1] - 1) for part in parts)
        assert nats.sum().item() == pytest.approx(total, rel=1e-5)


def test_a_missing_evaluator_is_one_line(tmp_path: Path, model: Armd) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"could not be loaded|needs transformers"):
        load_judge(str(tmp_path), torch.device("cpu"))
    save(model, tmp_path / "mute")
    with pytest.raises(UserError, match=r"has no tokenizer\.json, so it cannot read text"):
        load_judge(str(tmp_path / "mute"), torch.device("cpu"))


@pytest.mark.parametrize("fault", ["", "is no causal model", "has no embedding of some tokens", "reads 1 tokens"])
def test_an_evaluator_that_cannot_judge_is_one_line(fault: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (armd[evals])")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 1.0}
    size |= {"vocab_size": 99 if "embedding" in fault else 257, "intermediate_size": 32}
    config = transformers.BertConfig(**size, is_decoder="causal" not in fault)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    BYTE.save(tmp_path / "tokenizer.json")
    if "reads" in fault:  # it takes the sentence for one unknown word
        words = {"model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **words}))
    reader = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    reader.save_pretrained(tmp_path)
    if not fault:
        assert load_judge(str(tmp_path), torch.device("cpu")).name == tmp_path.name
        return
    with pytest.raises(UserError, match=fault):
        load_judge(str(tmp_path), torch.device("cpu"))


def test_a_model_that_reads_what_comes_after_is_no_evaluator(tmp_path: Path) -> None:
    save(make_model(MaskedDiffusion, vocab_size=257, max_position_embeddings=64), tmp_path, BYTE)
    with pytest.raises(UserError, match="is no causal model"):
        load_judge(str(tmp_path), torch.device("cpu"))


def last_rows(tokens: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    raise AssertionError("no points were asked for")


# ---- the frontier ----------------------------------------------------------------------------------------------------


def test_both_perplexities_by_hand(model: Armd) -> None:
    """An evaluator that pays 1 nat a token for the first text and 3 for the others, the first cut short by hand."""
    seen: list[str] = []

    def score(tokens: torch.Tensor) -> torch.Tensor:
        start = len(seen) - 3
        return torch.stack([torch.full((tokens.shape[1],), 1.0 if start + i == 0 else 3.0) for i in range(len(tokens))])

    def encode(text: str) -> list[int]:
        seen.append(text)
        return [0] * (2 if len(seen) == 1 else 4)

    quality = write_and_judge(model, BYTE, Judge("mine", encode, score, 100, 0, last_rows), Writing(8, samples=3), 1.0)
    assert quality.judged == 2 + 4 + 4
    assert math.log(quality.generative_perplexity) == pytest.approx((2 * 1 + 8 * 3) / 10)
    assert quality.perplexity_by_text == pytest.approx((math.e + 2 * math.e**3) / 3)
    assert quality.texts == seen


def test_a_text_ends_before_its_end_of_text() -> None:
    """Of what is written only that part is decoded, counted and judged."""
    model = make_model(vocab_size=3, max_position_embeddings=16, eos_token_id=2)

    class Letters:
        vocab_size = 3

        def decode(self, ids: list[int]) -> str:
            return "".join("ab!"[i] for i in ids)

    judge = Judge("length", lambda text: [0] * len(text), lambda tokens: tokens + 1.0, 16, 0, last_rows)
    quality = write_and_judge(model, Letters(), judge, Writing(16, samples=8), 1.0)
    out = generate(model, length=16, batch_size=8)
    ends = [row.tolist().index(2) if 2 in row else 16 for row in out.tokens]
    assert [len(text) for text in quality.texts] == ends and min(ends) < 16
    assert quality.tokens == quality.judged == sum(ends) and "!" not in "".join(quality.texts)
    rows = [row[:n].tolist() for row, n in zip(out.tokens, ends, strict=True)]
    assert quality.entropy == pytest.approx(sum(map(entropy, rows)) / 8)


def test_frontier_and_its_plot(model: Armd) -> None:
    judge, writing = own_judge(model, BYTE, "self"), Writing(16, streams=4, samples=4, rows=2)
    rows = list(frontier(model, BYTE, judge, writing, [0.0, 0.05, 1.0]))
    assert [row.temperature for row in rows] == [0.0, 0.05, 1.0]
    assert rows[0].entropy < rows[1].entropy < rows[2].entropy
    assert rows[1] == write_and_judge(model, BYTE, judge, writing, 0.05) and rows[0].tokens == 64
    protocol = quality_protocol(model, BYTE, judge, writing)
    assert "another evaluator than gpt2-large" in protocol.departures and "every token scored" in protocol.line
    assert "mode exact, streams 4" in protocol.line
    drawn = ElementTree.fromstring(plot({"run": rows}, protocol))
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 3
    assert drawn.find("{http://www.w3.org/2000/svg}desc").text == protocol.line
    for wrong in ([], [-1.0], [math.nan]):
        with pytest.raises(UserError, match="temperature"):
            list(frontier(model, BYTE, judge, writing, wrong))


@pytest.mark.parametrize(("kind", "fields", "words", "passes"), [
    (Armd, {"streams": 4, "mode": "parallel"}, "; mode parallel, streams 4", None),
    (Autoregressive, {}, "; mode exact, streams 1", 16),
    (MaskedDiffusion, {"steps": 8}, "; 8 steps of the even schedule, top-k 5", 8),
    (MaskedDiffusion, {}, "; 16 steps of the even schedule, top-k 5", 16),
    (MaskedDiffusion, {"steps": 99, "schedule": "ancestral"}, "; 99 steps of the ancestral schedule, idle ones", None),
    (BlockDiffusion, {"steps": 2}, "; blocks of 4, each in 2 steps of the even schedule", 4 * 2),
])  # fmt: skip
def test_every_architecture_is_written_with_and_counted_alike(
    kind: type, fields: dict, words: str, passes: int | None
) -> None:
    """Texts and passes are those of generate and denoise; the protocol says how they were written."""
    model = make_model(kind, vocab_size=257, max_position_embeddings=16, block_size=4)
    judge, writing = own_judge(model, BYTE, "judge"), Writing(16, top_k=5, seed=3, samples=3, rows=2, **fields)
    quality = write_and_judge(model, BYTE, judge, writing, 0.5)
    write = denoise if issubclass(kind, Denoiser) else generate
    out = write(model, length=16, top_k=5, seed=3, temperature=0.5, batch_size=3, rows=2, **fields)
    assert quality.texts == [BYTE.decode(row.tolist()) for row in out.tokens]
    assert quality.forward_passes == out.forward_passes and quality.passes == out.passes.double().mean()
    assert quality.passes < quality.forward_passes < 3 * quality.passes  # two at once, then the third
    assert quality.passes * quality.tokens_per_pass == pytest.approx(16)
    assert quality.passes == passes or (passes is None and quality.passes < 16)
    assert words in quality_protocol(model, BYTE, judge, writing).line


def test_several_writers_in_one_plot(model: Armd) -> None:
    judge, name = own_judge(model, BYTE, "self"), "{http://www.w3.org/2000/svg}"
    rows = list(frontier(model, BYTE, judge, Writing(16, samples=2), [0.5, 1.0]))
    terms = [quality_protocol(model, BYTE, judge, Writing(16, streams=s)) for s in (1, 2)]
    drawn = ElementTree.fromstring(plot({"S < 1": rows, "two": rows[:1]}, *terms))
    assert drawn.find(f"{name}desc").text == "\n".join(each.line for each in terms)
    assert {"S < 1", "two"} <= {text.text for text in drawn.iter(f"{name}text")}  # the legend
    assert len(list(drawn.iter(f"{name}circle"))) == 2 + 1  # its marks, and that of the legend
    assert {"r0", "r1"} <= {group.get("class") for group in drawn.iter(f"{name}g")}
    alone = ElementTree.fromstring(plot({"S < 1": rows}, terms[0]))
    assert "S < 1" not in {text.text for text in alone.iter(f"{name}text")}
    assert int(alone.get("viewBox").split()[3]) < int(drawn.get("viewBox").split()[3])
