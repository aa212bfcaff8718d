"""Sources, tokenizers, shards and windows."""

from __future__ import annotations

import copy
import gc
import gzip
import itertools
import json
import lzma
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armd.data import (
    Document,
    Manifest,
    TokenDataset,
    Tokenizer,
    documents,
    get_tokenizer,
    named_documents,
    prepare,
    python_documents,
)
from armd.errors import UserError

preparing, sources = sys.modules["armd.data.prepare"], sys.modules["armd.data.sources"]  # `prepare` names the function
TEXTS = [f"Chapter {i}.\n" + "The quick brown fox jumps over the lazy dog. " * (i + 3) for i in range(30)]
CORPUS = [Document(f"doc{i}", text) for i, text in enumerate(TEXTS)]
BYTE = get_tokenizer("byte")
BPE = get_tokenizer("bpe:300", TEXTS)


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = ["one\ntwo\n", "drei", "quatre é\n"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    for suffix in ("tar", "tar.gz", "tar.xz"):
        with tarfile.open(tmp_path / f"a.{suffix}", "w:" + suffix.partition(".")[2]) as archive:
            for i in range(3):
                archive.add(tmp_path / f"{i}.txt", f"book/{i}.txt")
    files = sorted(tmp_path.glob("a.*"))
    assert len(files) == 7
    for file in files:
        assert [d.text for d in documents([file])] == texts, file.name
    assert [d.text for d in documents([str(tmp_path / "?.txt")])] == texts  # a glob
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "x.md").write_bytes(b"\xef\xbb\xbfwith\r\nBOM")
    (tmp_path / "folder" / ".hidden").write_text("not me")
    (tmp_path / "folder" / "picture.png").write_bytes(b"\x89PNG\0\0")
    assert [d.text for d in documents([tmp_path / "folder"])] == ["with\nBOM"]


BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b"  \n", "is empty"),
    "binary.txt": (b"abc\0def", "binary file"),
    "latin.txt": ("café".encode("latin-1"), "not UTF-8 (byte 3)"),
    "surrogate.jsonl": (b'{"text": "a\\ud800b"}\n', "line 1"),
    "deep.jsonl": (b'{"text":' + b"[" * 100_000, "line 1"),
    "blank.jsonl": (b"\n\n", "is empty"),
    "bom.txt": (b"\xef\xbb\xbf", "is empty"),
    "cut.gz": (gzip.compress(b"hello" * 100)[:-12], "cannot be read"),
    "cut.txt.xz": (lzma.compress(b"hello" * 100)[:-12], "cannot be read"),
    "fake.gz": (b"not gzip", "cannot be read"),
    "fake.tar": (b"not a tar" * 100, "cannot be read"),
    "fake.parquet": (b"PAR1 no", "cannot be read"),
    "lines.jsonl": (b'{"text": "fine"}\n{"txt": 1}\n', "line 2"),
    "broken.jsonl": (b"{oops\n", "line 1"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(documents([tmp_path / name]))
    assert name in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    """At a member's boundary, inside a header, inside a member, and in the checksum of its compression."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("text " * 200)
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for i in range(3):
            archive.add(tmp_path / f"{i}.txt", f"{i}.txt")
    raw = (tmp_path / "whole.tar").read_bytes()
    assert len(list(documents(tmp_path / "whole.tar"))) == 3
    for cut in (512, 1536, 1536 + 100, 1536 + 600):
        (tmp_path / "cut.tar").write_bytes(raw[:cut])
        with pytest.raises(UserError, match=r"cut\.tar cannot be read"):
            list(documents([tmp_path / "cut.tar"]))
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(raw)[:-6])
    with pytest.raises(UserError, match=r"cut\.tar\.gz cannot be read"):
        list(documents([tmp_path / "cut.tar.gz"]))


def test_wikitext_is_split_into_articles(tmp_path: Path) -> None:
    first, second = " = One = \n \n = = Part = = \n text \n", " = Two = \n more = text \n"
    (tmp_path / "wiki.test.raw").write_text(" \n" + first + second)
    texts = [d.text for d in named_documents("wikitext2", "test", tmp_path)]
    assert texts == [" \n" + first, second]
    (tmp_path / "ptb.test.txt").write_text(" one sentence \n another \n")
    assert [d.text for d in named_documents("ptb", "test", tmp_path)] == ["one sentence", "another"]


def test_missing_inputs_are_one_line(tmp_path: Path) -> None:
    for inputs in (["nowhere.txt"], ["no*where"], [tmp_path], []):
        with pytest.raises(UserError) as caught:
            list(documents(inputs))
        assert "\n" not in str(caught.value)


def test_named_sets_read_files_and_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "text8.part").write_text("anarchism originated as a term")
    assert [d.text for d in named_documents("text8", data_dir=tmp_path)] == ["anarchism originated as a term"]
    for name, split, message in [("text9", "train", "choose one of"), ("wikitext2", "valid", "wiki.valid.raw"),
                                 ("text8", "test", "no split 'test'")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            list(named_documents(name, split, tmp_path))


def test_python_carries_text() -> None:
    names = [d.name for d in python_documents()]
    assert any(n.startswith("topics/") for n in names) and "stdlib/argparse.py" in names
    assert not any("/test/" in n or "site-packages" in n for n in names) and len(names) == len(set(names))


# ---- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
@given(text=st.text(max_size=60))
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == [ids]
    assert "".join(tokenizer.pieces(ids)) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids) and tokenizer.eos_id not in ids


def test_the_name_of_the_end_token_is_text() -> None:
    for tokenizer in (BYTE, BPE):
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.decode(ids) == "a<|endoftext|>b" and tokenizer.eos_id not in ids
    with pytest.raises(UserError, match="not valid Unicode"):
        BYTE.encode("a\ud800")


def test_byte_ids_are_byte_values() -> None:
    assert BYTE.encode("Aé") == [65, 0xC3, 0xA9] and BYTE.vocab_size == 257 and BYTE.eos_id == 256


def test_bpe_is_trained_to_size_and_deterministic() -> None:
    assert BPE.vocab_size == 300 and len(BPE.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert BPE.sha256 == get_tokenizer("bpe:300", TEXTS).sha256 != get_tokenizer("bpe:290", TEXTS).sha256


def test_tokenizer_survives_its_file(tmp_path: Path) -> None:
    BPE.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(TEXTS[3]) == BPE.encode(TEXTS[3]) and loaded.sha256 == BPE.sha256
    assert (loaded.vocab_size, loaded.eos_id) == (BPE.vocab_size, BPE.eos_id)


def test_known_vocabularies(shared: Path) -> None:
    gpt2, bert = (get_tokenizer(name, data_dir=shared) for name in ("gpt2", "bert-base-uncased"))
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256) and (bert.vocab_size, bert.eos_id) == (30522, 102)
    assert gpt2.encode("Hello world, it's 2026!") == [15496, 995, 11, 340, 338, 1160, 2075, 0]
    assert bert.decode(bert.encode("Hello, world!")) == "hello, world!"
    text = "Any text — round-trips, naïvely: 日本\n\t x"
    assert gpt2.decode(gpt2.encode(text)) == text


def test_bad_tokenizers_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\nhello\nworld\n")
    (tmp_path / "bad.json").write_text("{}")
    for spec, folder, message in [
        ("wordpiece", None, "unknown"), ("bpe:12", None, "at least 257"), ("bpe:x", None, "at least 257"),
        ("gpt2", tmp_path, "holds no encoder.json"), ("bert-base-uncased", tmp_path, "not that of bert-base-uncased"),
        (str(tmp_path / "bad.json"), None, "damaged"), (str(tmp_path / "no.json"), None, "does not exist"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            get_tokenizer(spec, TEXTS, folder)
        assert "\n" not in str(caught.value)


# ---- shards ----------------------------------------------------------------------------------------------------------


def make(out: Path, corpus: list[Document] = CORPUS, spec: str = "byte", **options: object) -> Manifest:
    return prepare(lambda: iter(corpus), spec, out, progress=False, **{"held_out": 0.2, **options})


def test_shards_hold_the_documents_end_to_end(tmp_path: Path) -> None:
    manifest = make(tmp_path / "out", shard_tokens=1000)
    assert manifest == Manifest.load(tmp_path / "out") and manifest.dtype == "uint16"
    seen = []
    for name, split in manifest.splits.items():
        stream = np.concatenate([np.fromfile(tmp_path / "out" / s.file, "uint16") for s in split.shards])
        texts = [BYTE.decode(part[:-1]) for part in np.split(stream, np.flatnonzero(stream == 256) + 1) if len(part)]
        assert len(texts) == split.documents and sum(len(t.encode()) for t in texts) == split.bytes
        assert len(stream) == split.tokens and all(s.tokens == 1000 for s in split.shards[:-1]), name
        seen += texts
    assert sorted(seen) == sorted(TEXTS)
    assert 0 < manifest.splits["valid"].documents < 15


def test_prepare_is_deterministic_and_the_split_does_not_depend_on_other_documents(tmp_path: Path) -> None:
    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    assert first == again and first.digest == again.digest
    fewer = make(tmp_path / "c", CORPUS[:20])
    held = [{d.text for d in held_out_texts(tmp_path / n)} for n in "ac"]
    assert held[1] == {t for t in held[0] if t in TEXTS[:20]} and fewer.digest != first.digest


def held_out_texts(folder: Path) -> list[Document]:
    stream = np.concatenate([np.fromfile(p, "uint16") for p in sorted(folder.glob("valid-*.bin"))])
    parts = np.split(stream, np.flatnonzero(stream == 256) + 1)
    return [Document("", BYTE.decode(part[:-1])) for part in parts if len(part)]


def test_small_corpora_still_get_a_held_out_part(tmp_path: Path) -> None:
    two = make(tmp_path / "two", CORPUS[:2], held_out=0.001)
    assert two.splits["train"].documents == two.splits["valid"].documents == 1 and "smallest hash" in two.held_out
    one = make(tmp_path / "one", [Document("only", "line\n" * 100)], held_out=0.1)
    assert one.splits["valid"].bytes == 50 and one.splits["train"].bytes == 450 and "last 0.1" in one.held_out
    twins = make(tmp_path / "twins", [Document("same", "text\n" * 9)] * 2, held_out=0.001)
    assert twins.splits["train"].documents == twins.splits["valid"].documents == 1
    long_line = make(tmp_path / "long", [Document("only", "title\n" + "x" * 10_000)], held_out=0.1)
    assert 900 < long_line.splits["valid"].bytes < 1100
    apart = prepare(
        lambda: iter(CORPUS[:5]), "byte", tmp_path / "apart", valid=lambda: iter(CORPUS[5:7]), progress=False
    )
    assert (apart.splits["train"].documents, apart.splits["valid"].documents) == (5, 2)


def test_an_empty_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount point or the current folder, so it is never replaced; what a killed process left in it goes."""
    (tmp_path / "here" / ".partial").mkdir(parents=True)
    (tmp_path / "here" / ".partial" / "train-00007.bin").write_text("")
    node = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="held_out"):
        make(Path(), held_out=2.0)
    make(Path())
    names = ["manifest.json", "tokenizer.json", "train-00000.bin", "valid-00000.bin"]
    assert sorted(p.name for p in Path().iterdir()) == names and (tmp_path / "here").stat().st_ino == node


@pytest.mark.parametrize("place", ["file/d", "file", "x" * 300, "/proc/d"])
def test_an_impossible_folder_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write|is not empty") as caught:
        make(tmp_path / place)
    assert "\n" not in str(caught.value)


def test_prepare_leaves_nothing_half_made(tmp_path: Path) -> None:
    def fails() -> object:
        yield CORPUS[0]
        raise UserError("the second document is bad")

    for corpus, options, message in [
        (fails, {}, "second document"), (lambda: iter([]), {}, "empty"),
        (lambda: iter([CORPUS[0]]), {"held_out": 2.0}, "held_out"),
        (lambda: iter([Document("x", "a")]), {}, "too short"),
        (lambda: iter(CORPUS), {"shard_tokens": 0}, "shard_tokens=0"),
        (lambda: iter(CORPUS), {"valid": lambda: iter([])}, "valid is empty"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            prepare(corpus, "byte", tmp_path / "out", progress=False, **options)
        assert list(tmp_path.iterdir()) == []
    make(tmp_path / "out")
    with pytest.raises(UserError, match="not empty"):
        make(tmp_path / "out")


# ---- long documents --------------------------------------------------------------------------------------------------


def ids_of(folder: Path) -> np.ndarray:
    """All tokens of a prepared folder, training part first."""
    dtype = Manifest.load(folder).dtype
    return np.concatenate(
        [np.fromfile(p, dtype) for name in ("train", "valid") for p in sorted(folder.glob(f"{name}-*"))]
    )


def long_text(megabytes: float) -> str:
    """Real prose and code, every Python has it, with long runs of white space and of none."""
    text = "".join(d.text for d in python_documents())[: int(megabytes * 2**20)]
    return text[: len(text) // 2] + " \n\t\n  \u2003é" * 500 + "x" * 3000 + text[len(text) // 2 :]


@pytest.mark.parametrize("size", [997, 4096, 2**16])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "gpt2", "bert-base-uncased"])
def test_ids_of_pieces_are_those_of_the_whole(
    tokenizer: str, size: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    known = {"byte": BYTE, "bpe": BPE}
    codec = (
        known[tokenizer] if tokenizer in known else get_tokenizer(tokenizer, None, request.getfixturevalue("shared"))
    )
    monkeypatch.setattr(preparing, "PIECE_CHARACTERS", size)
    texts = [long_text(0.25), "\n" * 3 * size + "word", "a b" * size, "no\n" * size, ""]
    if tokenizer != "byte":  # whose tokens know no words, so that any cut will do
        texts = [text for text in texts if not re.search(rf"\S{{{size // 2}}}|\s{{{size // 2}}}", text)]
    for text in texts:
        cut = list(preparing.pieces([Document("d", text)]))
        assert "".join(p.text for p in cut) == text and [p.last for p in cut] == [False] * (len(cut) - 1) + [True]
        assert all(len(p.text) <= size for p in cut) and [p.start for p in cut] == [
            0,
            *np.cumsum([len(p.text) for p in cut])[:-1],
        ]
        assert [i for p in cut for i in codec.encode(p.text)] == codec.encode(text)


def test_ids_of_real_books_are_those_of_the_whole(shared: Path, tmp_path: Path) -> None:
    books = "\n".join(d.text for d in itertools.islice(documents([shared / "english-novels" / "subset20.tar.xz"]), 12))
    assert len(books) > 3 * 2**20
    codec = get_tokenizer("gpt2", None, shared)
    cut = list(preparing.pieces([Document("books", books)]))
    assert len(cut) > 3 and np.array_equal(np.concatenate([codec.encode(p.text) for p in cut]), codec.encode(books))


def test_where_a_document_is_cut_depends_on_its_text_alone(tmp_path: Path) -> None:
    text = "\ufeff" + "Zeile é\r\nline \r\r\nlast " * 150_000
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(text.encode(), preset=0))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    wanted = text.removeprefix("\ufeff").replace("\r\n", "\n")
    whole = [(p.text, p.start, p.last) for p in preparing.pieces([Document("a.txt", wanted)])]
    assert len(whole) > 2
    for name in ("a.txt", "a.txt.xz", "a.tar"):
        parts = list(documents([tmp_path / name]))
        assert len(parts) > 2 and "".join(p.text for p in parts) == wanted
        assert [(p.text, p.start, p.last) for p in preparing.pieces(parts)] == whole


@pytest.mark.parametrize(("content", "message"), [
    (b"a" * 2**20 + b"\0", f"a NUL byte at offset {2**20}"),
    (b"a" * (2**20 - 1) + "é".encode() + b"\xff", f"(byte {2**20 + 1})"),
    (b"\r" * 2**20 + b" " * 2**20, "is empty"), (b"a" * 2**20 + b"\xc3", f"(byte {2**20})"),
])  # fmt: skip
def test_a_bad_byte_of_a_long_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(documents([tmp_path / "a.txt"]))
    assert message in str(caught.value)


def test_a_long_document_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pieces go the same way, end once, and the last part of an only document is held out as ever."""
    whole = [make(tmp_path / f"whole-{n}", CORPUS[:n]) for n in (30, 1)]
    monkeypatch.setattr(preparing, "PIECE_CHARACTERS", 1500)
    parts = [make(tmp_path / f"parts-{n}", CORPUS[:n]) for n in (30, 1)]
    assert whole == parts
    for n in (30, 1):
        assert np.array_equal(ids_of(tmp_path / f"whole-{n}"), ids_of(tmp_path / f"parts-{n}"))
    for size in (7, 64, 300):
        monkeypatch.setattr(preparing, "PIECE_CHARACTERS", size)
        only = make(tmp_path / f"only-{size}", CORPUS[20:21], held_out=0.1)
        assert only.splits["train"].documents == only.splits["valid"].documents == 1
        text = BYTE.decode(ids_of(tmp_path / f"only-{size}").tolist())
        assert text == TEXTS[20] and only.splits["valid"].bytes == pytest.approx(len(text) * 0.1, abs=2)


def test_wikitext_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    article = " = Title = \n \n text of it \n"
    (tmp_path / "wiki.train.raw").write_text(article * 9)
    (tmp_path / "ptb.train.txt").write_text(" one sentence \n another \n" * 9)
    monkeypatch.setattr(sources, "PART_BYTES", 7)
    assert [d.text for d in named_documents("wikitext", data_dir=tmp_path)] == [article] * 9
    sentences = list(named_documents("ptb", data_dir=tmp_path))
    assert [d.text for d in sentences] == ["one sentence", "another"] * 9
    assert sentences[-1].name == "ptb.train.txt:18" and all(d.last for d in sentences)


@pytest.mark.timeout(280)
def test_memory_does_not_grow_with_a_document(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from armd.data import documents, prepare\n"
        "prepare(lambda: documents([sys.argv[1]]), 'byte', sys.argv[2], progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak(megabytes: int) -> int:
        (tmp_path / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * (megabytes * 23_301))
        words = [sys.executable, "-c", program, tmp_path / "text.txt", tmp_path / f"out{megabytes}"]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) // 1024

    assert peak(30) - peak(3) < 40  # MiB; a document held whole costs more than that a megabyte


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_window_once(tmp_path: Path) -> None:
    """Over a stream of distinct tokens, so that a window says where it came from."""
    make(tmp_path / "d", shard_tokens=700)
    files, T = sorted((tmp_path / "d").glob("train*.bin")), TokenDataset(tmp_path / "d", "train", 64).tokens
    sizes = [file.stat().st_size // 2 for file in files]
    for file, part in zip(files, np.split(np.arange(T, dtype=np.uint16), np.cumsum(sizes)[:-1]), strict=True):
        part.tofile(file)
    dataset = TokenDataset(tmp_path / "d", "train", 64)
    dataset.vocab_size = T
    windows = T // 64
    batches = torch.cat([dataset.batch(step, 4, seed=5) for step in range(windows // 4 + 1)])[:windows]
    assert ((batches.diff(dim=1) % T) == 1).all()  # windows straddle shards, and the end, without a seam
    assert len(torch.unique(batches)) == windows * 64 > T - 64
    second = torch.cat([dataset.batch(s, 1, seed=5) for s in range(windows, 2 * windows)])
    assert len(torch.unique(second)) == windows * 64 and not torch.equal(second, batches)


def test_a_copy_of_a_data_set_reads_its_own_files(tmp_path: Path) -> None:
    make(tmp_path / "d")
    dataset = TokenDataset(tmp_path / "d", "train", 32)
    wanted, twin = dataset.batch(3, 4, seed=1), copy.deepcopy(dataset)
    sent = pickle.dumps(dataset)
    del dataset
    gc.collect()
    with (tmp_path / "d" / "manifest.json").open() as _:  # takes the descriptor that the first one closed
        assert all(torch.equal(each.batch(3, 4, seed=1), wanted) for each in (twin, pickle.loads(sent)))


def test_a_window_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    make(tmp_path / "d")
    one, other = (TokenDataset(tmp_path / "d", "train", 32) for _ in range(2))
    for step in (17, 3, 900):
        assert torch.equal(one.batch(step, 3, seed=1), other.batch(step, 3, seed=1))
    assert not torch.equal(one.batch(0, 3, seed=1), one.batch(0, 3, seed=2))
    assert one.eval_batch(1, 2).shape == (2, 32) and one.eval_windows() == one.tokens // 32


MANIFESTS = {
    "vocab_size='257' must be an integer": lambda m: m.update(vocab_size="257"),
    "eos_id=999 of vocab_size=257": lambda m: m.update(eos_id=999),
    "dtype='int8'": lambda m: m.update(dtype="int8"),
    "tokens are not those of its shards": lambda m: m["splits"]["train"].update(tokens=9),
    "bytes='1' must be an integer": lambda m: m["splits"]["train"].update(bytes="1"),
    "sha256=None must be a string": lambda m: m["splits"]["valid"]["shards"][0].update(sha256=None),
    "shard '../x' of": lambda m: m["splits"]["valid"]["shards"][0].update(file="../x"),
    "has no attribute": lambda m: m.update(splits=[]),
    "unexpected keyword": lambda m: m.update(surprise=1),
}


@pytest.mark.parametrize("message", MANIFESTS)
def test_a_damaged_manifest_is_one_line(message: str, tmp_path: Path) -> None:
    make(tmp_path / "d")
    values = json.loads((tmp_path / "d" / "manifest.json").read_text())
    MANIFESTS[message](values)
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        Manifest.load(tmp_path / "d")
    assert message in str(caught.value) and "prepare the data again" in str(caught.value)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "d")
    shard = tmp_path / "d" / "valid-00000.bin"
    raw = bytearray(shard.read_bytes())
    raw[21] = 200
    shard.write_bytes(raw)
    dataset = TokenDataset(tmp_path / "d", "valid", 8)
    dataset.eval_batch(0, 1)
    with pytest.raises(UserError, match=r"tokens 8..15 of .* hold id 51\d\d\d, above the vocabulary of 257"):
        dataset.eval_batch(1, 1)
    dataset.verify(most=dataset.tokens - 1)  # larger than what is hashed
    with pytest.raises(UserError, match="was changed"):
        dataset.verify()


def test_damaged_data_is_named(tmp_path: Path) -> None:
    make(tmp_path / "d")
    with pytest.raises(UserError, match="too few for one text of 99999"):
        TokenDataset(tmp_path / "d", "train", 99999)
    with pytest.raises(UserError, match="split 'test'"):
        TokenDataset(tmp_path / "d", "test", 8)
    for start, count in ((-1, 1), (0, 0), (0, 10**6)):
        with pytest.raises(UserError, match="are not among"):
            TokenDataset(tmp_path / "d", "train", 8).eval_batch(start, count)
    with pytest.raises(UserError, match="length=0"):
        TokenDataset(tmp_path / "d", "train", 0)
    shard = tmp_path / "d" / "train-00000.bin"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(UserError, match="was changed"):
        TokenDataset(tmp_path / "d", "train", 8).verify()
    shard.write_bytes(raw[:-2])
    with pytest.raises(UserError, match=r"train-00000.bin has \d+ bytes"):
        TokenDataset(tmp_path / "d", "train", 8)
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        TokenDataset(tmp_path / "d", "train", 8)
    for content in ("", "{}", "[]", '{"format": 99}'):
        (tmp_path / "d" / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="prepare"):
            Manifest.load(tmp_path / "d")
    with pytest.raises(UserError, match="armd prepare"):
        Manifest.load(tmp_path / "nowhere")
