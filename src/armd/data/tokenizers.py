"""Tokenizers. Whatever its origin, a tokenizer is one `tokenizer.json` of the tokenizers library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from armd.errors import UserError

END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "</s>", "[SEP]", "<eos>")


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        spec: what it was made from: byte, chars:ABC, bpe:4096, gpt2, bert-base-uncased or a file name.
        vocab_size: number of tokens, end of text included.
        eos_id: the end-of-text token, or None.
    """

    def __init__(self, inner: tokenizers.Tokenizer, spec: str) -> None:
        self._inner, self.spec = inner, spec
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # "<|endoftext|>" in a text is text, not the end of it
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        ids = (inner.token_to_id(token) for token in END_TOKENS)
        self.eos_id: int | None = next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> list[int]:
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except TypeError:  # lone surrogates, as from a command line that is not UTF-8
            raise UserError(f"text {text[:40]!a} is not valid Unicode; give UTF-8") from None
        except Exception:  # the library raises plain Exception
            unknown = next((character for character in text if self._inner.token_to_id(character) is None), text[:40])
            raise UserError(f"tokenizer {self.spec} cannot write {unknown!r}") from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception:
            return [self.encode(text) for text in texts]  # which says what is wrong

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text each token adds; together they are `decode(ids)`. A character cut in two goes to its last token."""
        result = []
        for n in range(1, len(ids) + 1):
            start = max(n - 8, 0)  # only the last few tokens can still change how bytes become characters
            before, after = self.decode(ids[start : n - 1]), self.decode(ids[start:n])
            whole = after if n == len(ids) else after.rstrip("\ufffd")
            result.append(whole[len(before.rstrip("\ufffd")) :])
        return result

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(json.loads(self._inner.to_str()), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self._inner.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"tokenizer {path} does not exist")
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")), path.name)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path} is damaged or no tokenizer.json: {str(error).splitlines()[0]}") from None


def get_tokenizer(spec: str, texts: Iterable[str] | None = None, data_dir: str | Path | None = None) -> Tokenizer:
    """A tokenizer by name.

    Args:
        spec: byte; chars:ABC, the characters there are; bpe:SIZE, trained on `texts`; gpt2; bert-base-uncased; or the
            path of a tokenizer.json.
        texts: what bpe:SIZE is trained on.
        data_dir: folder of the vocabulary files of gpt2 (encoder.json or vocab.json, vocab.bpe or merges.txt) and
            bert-base-uncased (vocab.txt), or the parent of such folders; without it they come from the hub.
    """
    name, colon, size = spec.partition(":")
    if spec == "byte":
        return _byte()
    if name == "chars" and colon:
        return _characters(size, spec)
    if name == "bpe" and colon:
        if not size.isdecimal() or int(size) < 257:
            raise UserError(f"tokenizer {spec!r}: the size must be an integer of at least 257 (256 bytes, end of text)")
        if texts is None:
            raise UserError(f"tokenizer {spec!r} is trained on text, and there is none")
        return _trained(int(size), texts, spec)
    if spec == "gpt2":
        return _verified(_gpt2(data_dir), spec, 50257, {"Hello world": [15496, 995], " the\n": [262, 198]})
    if spec == "bert-base-uncased":
        return _verified(_bert(data_dir), spec, 30522, {"hello world": [7592, 2088], "Héllo": [7592]})
    if Path(spec).suffix == ".json" or Path(spec).exists():
        return Tokenizer.load(spec)
    raise UserError(f"tokenizer {spec!r} is unknown; use byte, chars:ABC, bpe:SIZE, gpt2, bert-base-uncased or a .json")


# ---- made here -------------------------------------------------------------------------------------------------------


def _byte_symbols() -> dict[str, int]:
    """The byte-level alphabet: the printable symbol that stands for each byte value."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in symbols)
    symbols.update({byte: chr(256 + i) for i, byte in enumerate(rest)})
    return {symbols[byte]: byte for byte in range(256)}


def _byte() -> Tokenizer:
    """Token id = byte value; 256 is the end of text. Reads any text and gives it back exactly."""
    return Tokenizer(_byte_level(models.BPE(vocab=_byte_symbols(), merges=[]), split=False), "byte")


def _characters(alphabet: str, spec: str) -> Tokenizer:
    """One token a character, and no end of text: texts of one length need none. Any other character is an error."""
    if not alphabet or len(set(alphabet)) < len(alphabet):
        raise UserError(f"tokenizer {spec!r}: name at least one character, and each of them once")
    inner = tokenizers.Tokenizer(models.WordLevel({character: i for i, character in enumerate(alphabet)}))
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return Tokenizer(inner, spec)


def _trained(size: int, texts: Iterable[str], spec: str) -> Tokenizer:
    inner = _byte_level(models.BPE(), split=True, end=False)
    alphabet = list(_byte_symbols())
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner, spec)


def _byte_level(model: models.Model, split: bool, end: bool = True) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    inner.decoder = decoders.ByteLevel()
    if end:
        inner.add_special_tokens([END_OF_TEXT])
    return inner


# ---- known vocabularies ----------------------------------------------------------------------------------------------


def _gpt2(data_dir: str | Path | None) -> tokenizers.Tokenizer:
    if data_dir is None:
        return _from_hub("openai-community/gpt2", "gpt2")
    vocab = _find(data_dir, "gpt2-bpe", ("encoder.json", "vocab.json"), "gpt2")
    merges = _find(data_dir, "gpt2-bpe", ("vocab.bpe", "merges.txt"), "gpt2")
    try:
        return _byte_level(models.BPE.from_file(str(vocab), str(merges)), split=True)
    except Exception as error:
        raise UserError(f"{vocab} and {merges} are no GPT-2 vocabulary: {str(error).splitlines()[0]}") from None


def _bert(data_dir: str | Path | None) -> tokenizers.Tokenizer:
    if data_dir is None:
        return _from_hub("google-bert/bert-base-uncased", "bert-base-uncased")
    path = _find(data_dir, "bert-vocab", ("vocab.txt",), "bert-base-uncased")
    vocab = {line: i for i, line in enumerate(path.read_text(encoding="utf-8").splitlines())}
    if "[UNK]" not in vocab:
        raise UserError(f"{path} is no BERT vocabulary: it has no [UNK]")
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens([AddedToken(t, special=True) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")])
    return inner


def _find(data_dir: str | Path, subfolder: str, names: Sequence[str], spec: str) -> Path:
    for folder in (Path(data_dir), Path(data_dir) / subfolder):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise UserError(f"tokenizer {spec}: {data_dir} holds no {' or '.join(names)}")


def _from_hub(path: str, spec: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_pretrained(path)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:100]
        raise UserError(
            f"tokenizer {spec} could not be loaded from the hub ({reason}); give its vocabulary files with "
            "--tokenizer-dir"
        ) from None


def _verified(inner: tokenizers.Tokenizer, spec: str, size: int, known: dict[str, list[int]]) -> Tokenizer:
    tokenizer = Tokenizer(inner, spec)
    if tokenizer.vocab_size != size:
        raise UserError(
            f"the vocabulary given is not that of {spec}: it has {tokenizer.vocab_size} entries, not {size}"
        )
    for text, ids in known.items():
        if tokenizer.encode(text) != ids:
            raise UserError(
                f"the vocabulary given is not that of {spec}: {text!r} is encoded as {tokenizer.encode(text)}"
            )
    return tokenizer


def sample(texts: Iterable[str], most: int = 64 * 2**20) -> Iterator[str]:
    """Texts up to a total of `most` characters, for training a vocabulary on part of a large corpus."""
    used = 0
    for text in texts:
        if used >= most:
            return
        used += len(text)
        yield text[: max(most - used + len(text), 0)]
