"""Zero-shot numbers against what can be counted by hand: chunks, bytes, words, and nats one chunk at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from armd import Armd, Autoregressive, Order, UserError, loss
from armd.baselines import BlockDiffusion, MaskedDiffusion
from armd.data import get_tokenizer
from armd.evals import PACKINGS, SETS, last_words, pack, read_set, zero_shot, zero_shot_protocol
from armd.evals.detokenize import DETOKENIZERS
from conftest import make_model

BYTE = get_tokenizer("byte")
EOS = 256


def byte_model(kind: type = Armd, length: int = 8, **changes: object) -> Armd | Autoregressive:
    return make_model(kind, vocab_size=257, max_position_embeddings=length, **changes)


# ---- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, chunks, tokens, dropped", [
    ("mdlm", [[EOS, *b"abc", EOS], [EOS, *b"def", EOS]], 7, 1),
    ("mdlm-ar", [[EOS, *b"abc", EOS], [EOS, *b"def", EOS]], 7, 1),
    ("sedd", [[*b"abcd", EOS], [*b"efg", EOS, EOS]], 10, 0),
])  # fmt: skip
def test_chunks_are_the_drawn_ones(family: str, chunks: list[list[int]], tokens: int, dropped: int) -> None:
    packed = pack(["abcd", "efg", ""], "none", BYTE, PACKINGS[family], 5)
    assert packed.ids.tolist() == chunks
    assert (packed.documents, packed.tokens, packed.dropped) == (3, tokens, dropped)
    assert torch.equal(packed.eval_batch(1, 1), packed.ids[1:]) and packed.eval_windows() == 2


def test_words_are_those_of_the_original_and_bytes_those_of_the_text() -> None:
    texts = ["I did n't\n", "café , too"]
    packed = pack(texts, "ptb", BYTE, PACKINGS["sedd"], 4)
    clean = ["I didn't\n", "café , too"]
    assert packed.words == 6 and packed.bytes == sum(len(text.encode()) for text in clean) == 20
    assert packed.tokens == 22 == packed.ids.numel() + packed.dropped


def test_too_little_text_and_no_end_of_text() -> None:
    with pytest.raises(UserError, match="has 2 tokens, too few for one chunk of 5"):
        pack(["ab"], "none", BYTE, PACKINGS["mdlm"], 5)
    with pytest.raises(UserError, match="length=2 must be at least 3"):
        pack(["ab"], "none", BYTE, PACKINGS["mdlm"], 2)
    endless = get_tokenizer("byte")
    endless.eos_id = None
    with pytest.raises(UserError, match="no end-of-text token"):
        pack(["ab"], "none", endless, PACKINGS["sedd"], 2)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, scored, content", [("mdlm", 5, 3), ("mdlm-ar", 4, 3), ("sedd", 5, 5)])
def test_units_by_hand(family: str, scored: int, content: int) -> None:
    """A model that finds all 257 tokens equally likely pays ln 257 nats for each; the rest is counting."""
    model = byte_model(length=5)
    torch.nn.init.zeros_(model.embed.weight)
    chunks = pack(["a b c d e f\n"], "none", BYTE, PACKINGS[family], 5)  # 12 bytes, 6 words
    [result] = zero_shot(model, "ptb", chunks, ["left_to_right"])
    count, tokens = len(chunks.ids), chunks.tokens
    nats = count * scored * math.log(257)
    read = count * content / tokens  # the share of the text that was scored
    assert result.score.tokens == count * scored
    assert result.score.perplexity == pytest.approx(257, rel=1e-5)
    assert result.score.bits_per_byte == pytest.approx(nats / math.log(2) / (12 * read), rel=1e-5)
    assert math.log(result.word_perplexity) == pytest.approx(nats / (6 * read), rel=1e-5)


@pytest.mark.parametrize("family", PACKINGS)
@pytest.mark.parametrize("kind", [Armd, Autoregressive])
def test_nats_equal_those_of_one_chunk_at_a_time(kind: type, family: str) -> None:
    model = byte_model(kind)
    chunks = pack(["do not", "go gentle", "into that good night"] * 3, "none", BYTE, PACKINGS[family], 8)
    [result] = zero_shot(model, "ptb", chunks, ["left_to_right"], batch_size=4)
    first, nats = PACKINGS[family].scored_from, []
    with torch.no_grad():
        for ids in chunks.ids.long():
            laws = model(ids[None], Order.left_to_right(1, 8))[0].double().log_softmax(-1)
            nats += [-laws[i, token].item() for i, token in enumerate(ids.tolist())][first:]
    assert result.score.nats_per_token == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert result.score.tokens == len(nats)


def test_every_order_has_its_row_and_the_given_token_only_one() -> None:
    model = byte_model()
    texts = ["rage, rage against the dying of the light"]
    chunks = pack(texts, "none", BYTE, PACKINGS["mdlm"], 8)
    results = list(zero_shot(model, "ptb", chunks, ["left_to_right", "uniform:3", "strided:4"], texts=2))
    assert [(r.score.order, r.score.blocks) for r in results] == [
        ("left_to_right", "sequential"), ("uniform:3", "sequential"), ("uniform:3", "sequential"),
        ("strided:4", "sequential"), ("strided:4", "parallel"),
    ]  # fmt: skip
    mean, iwae = (results[i].score.nats_per_token for i in (1, 2))
    assert iwae < mean and all(r.score.texts == 2 for r in results)
    given = pack(texts, "none", BYTE, PACKINGS["mdlm-ar"], 8)
    with pytest.raises(UserError, match="the order must be left_to_right"):
        list(zero_shot(model, "ptb", given, ["uniform:2"]))


def test_protocol_says_what_was_not_as_published(shared: Path) -> None:
    gpt2 = get_tokenizer("gpt2", data_dir=shared)
    chunks = pack(["word " * 3000], "wikitext", gpt2, PACKINGS["mdlm"], 1024)
    protocol = zero_shot_protocol("wikitext2", None, "mdlm", gpt2, chunks)
    assert protocol.departures == () and "NOT as published" not in protocol.line
    assert "tokenizer gpt2" in protocol.line and "end of text + 1,022 + end of text" in protocol.line
    small = pack(["word " * 3000], "wikitext", BYTE, PACKINGS["sedd"], 512)
    other = zero_shot_protocol("wikitext2", "test", "sedd", BYTE, small, texts=5)
    assert other.departures == (
        "split test instead of valid", "another tokenizer", "chunks of 512 tokens instead of 1,024",
        "5 chunks of 29, at equal distances",
    )  # fmt: skip


# ---- the sets --------------------------------------------------------------------------------------------------------


def test_sets_are_read_from_files_of_their_own_kind(tmp_path: Path) -> None:
    for name, (split, detokenizer) in SETS.items():
        assert detokenizer in DETOKENIZERS
        folder = tmp_path / name.replace("2", "-2")
        folder.mkdir()
        if name.startswith("wikitext"):
            (folder / f"wiki.{split}.raw").write_text(" \n = One = \n \n text of one \n = Two = \n text of two \n")
        elif name in ("ptb", "lm1b"):
            (folder / f"{name}.{split}.txt").write_text("a sentence \nanother one \n")
        else:
            file = "lambada_test.jsonl" if name == "lambada" else f"{name}.{split}.jsonl"
            (folder / file).write_text(json.dumps({"text": "one\n\ntwo"}) + "\n" + json.dumps({"text": "three"}))
        found = list(read_set(name, None, tmp_path))
        if name.startswith("wikitext"):
            lines = ["", " = One = \n", "", " text of one \n", " = Two = \n", " text of two \n"]
            assert found == lines
        else:
            assert found == (["a sentence", "another one"] if name in ("ptb", "lm1b") else ["one\n\ntwo", "three"])
    with pytest.raises(UserError, match="set 'moby' is unknown"):
        list(read_set("moby"))


def test_published_splits_and_detokenizers() -> None:
    assert SETS == {
        "wikitext2": ("valid", "wikitext"), "wikitext103": ("valid", "wikitext"), "ptb": ("valid", "ptb"),
        "lm1b": ("test", "lm1b"), "lambada": ("test", "lambada"), "ag_news": ("test", "none"),
        "pubmed": ("valid", "scientific"), "arxiv": ("valid", "scientific"),
    }  # fmt: skip


def test_real_wikitext_has_its_known_size(shared: Path) -> None:
    """245,569 words, an end of line for each of its 4,358 lines included."""
    lines = list(read_set("wikitext2", "test", shared))
    assert len(lines) == 4358 and sum(len(line.split()) for line in lines) + len(lines) == 245_569


@pytest.mark.parametrize(
    "name, split, counts",
    [
        ("wikitext2", "test", {"mdlm": (4358, 241_211, 270_438, 264), "sedd": (4358, 241_211, 274_796, 268)}),
        ("lambada", "test", {"mdlm": (5153, 306_006, 423_590, 414), "sedd": (5153, 306_006, 428_743, 418)}),
    ],
)
def test_real_sets_have_the_counts_of_the_page(name: str, split: str, counts: dict[str, tuple], shared: Path) -> None:
    """Those of `docs/evaluation.md`, with GPT-2's tokenizer."""
    gpt2 = get_tokenizer("gpt2", data_dir=shared)
    for protocol, wanted in counts.items():
        found = pack(read_set(name, split, shared), SETS[name][1], gpt2, PACKINGS[protocol], 1024)
        assert (found.documents, found.words, found.tokens, found.eval_windows()) == wanted


# ---- LAMBADA ---------------------------------------------------------------------------------------------------------


def test_last_words_equal_one_passage_and_one_token_at_a_time() -> None:
    """A model that has learned one rhyme knows its next words, and not others."""
    model, rhyme = byte_model(length=24, hidden_size=32), "\ngo up go up go up go up"
    ids = torch.tensor([BYTE.encode(rhyme)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        loss(model, ids, Order.left_to_right(*ids.shape)).backward()
        optimizer.step()
    passages = ["go up go up", "go up go up go up  ", "go up go no", "up", "go up go up go up go up go up go no"]
    result = last_words(model, BYTE, passages, batch_size=3)

    right, nats = [], []
    for passage in passages:
        text = "\n" + passage.strip()
        known, word = text[: text.rfind(" ")] if " " in text else "", text[text.rfind(" ") :] if " " in text else text
        tokens = (BYTE.encode(known) + BYTE.encode(word))[-24:]
        n, hits, total = len(BYTE.encode(word)), [], 0.0
        for i in range(len(tokens) - n, len(tokens)):
            part = torch.tensor([tokens[: i + 1]])
            with torch.no_grad():
                law = model(part, Order.left_to_right(*part.shape))[0, i].double().log_softmax(-1)
            hits.append(law.argmax().item() == tokens[i])
            total -= law[tokens[i]].item()
        right.append(all(hits))
        nats.append(total)
    assert right[:3] == [True, True, False]
    assert result.accuracy == sum(right) / 5 and result.passages == 5 and result.cut == 1
    assert math.log(result.perplexity) == pytest.approx(sum(nats) / 5, rel=1e-4)
    assert result.protocol.departures == (
        "5,148 of 5,153 passages left out",
        "another tokenizer",
        "1 passages cut to their last 24 tokens",
    )
    with pytest.raises(UserError, match="no passage"):
        last_words(model, BYTE, [])


@pytest.mark.parametrize("kind", [Armd, MaskedDiffusion, BlockDiffusion])
def test_last_words_do_not_depend_on_the_passages_beside(kind: type) -> None:
    model, passages = byte_model(kind, length=24), ["go up go up", "up", "go up go up go up"]
    together, alone = (last_words(model, BYTE, passages, batch_size=size).perplexity for size in (3, 1))
    assert together == pytest.approx(alone, rel=1e-5)
