"""Where text comes from: files, folders, globs, archives, named data sets. One document at a time, never a corpus."""

from __future__ import annotations

import glob
import gzip
import json
import lzma
import sysconfig
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from armd.errors import UserError

SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class Document:
    """A named text."""

    name: str
    text: str


# ---- files -----------------------------------------------------------------------------------------------------------


def documents(inputs: Sequence[str | Path]) -> Iterator[Document]:
    """The documents of files, folders (recursively, sorted) and globs, in the order given.

    A text file is one document; so is a line of .jsonl (field `text`), a row of .parquet (column `text`) and a member
    of a .tar. All but .parquet may be compressed as .gz or .xz. UTF-8, with or without BOM; CRLF becomes LF.

    Raises:
        UserError: a path does not exist or a glob matches nothing; a file is empty, binary, not UTF-8 or damaged.
            In folders, hidden files and files that are not text are passed over.
    """
    if not inputs:
        raise UserError("input is empty: name at least one file, folder or glob")
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            yield from _folder(path)
        elif path.exists():
            yield from _file(path)
        else:
            matches = sorted(glob.glob(str(item), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute one)
            if not matches:
                raise UserError(f"input {item} does not exist, or matches nothing")
            for match in matches:
                yield from _folder(Path(match)) if Path(match).is_dir() else _file(Path(match))


def _folder(folder: Path) -> Iterator[Document]:
    found = False
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if _looks_like_text(path):
            found = True
            yield from _file(path)
    if not found:
        raise UserError(f"folder {folder} holds no text file")


def _looks_like_text(path: Path) -> bool:
    if path.suffix in (".gz", ".xz", ".tar", ".parquet"):
        return True
    with path.open("rb") as file:
        head = file.read(4096)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely a character cut in half
            return False
    return bool(head) and b"\0" not in head


def _file(path: Path) -> Iterator[Document]:
    suffixes = path.suffixes
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif suffixes[-1:] == [".tar"] or suffixes[-2:] in ([".tar", ".gz"], [".tar", ".xz"]) or path.suffix == ".tgz":
        yield from _tar(path)
    else:
        try:
            with _open(path) as file:
                if ".jsonl" in suffixes[-2:]:
                    yield from _jsonl(path, file)
                else:
                    yield Document(path.name, _decode(file.read(), str(path)))
        except DAMAGED as error:
            raise UserError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")  # type: ignore[return-value]


def _decode(raw: bytes, name: str) -> str:
    if not raw.strip():
        raise UserError(f"{name} is empty")
    if b"\0" in raw:
        raise UserError(f"{name} is a binary file (a NUL byte at offset {raw.index(0)}); give text")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from None


def _jsonl(path: Path, file: BinaryIO) -> Iterator[Document]:
    number = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(_decode(line, f"{path} line {number}"))["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise UserError(f'{path} line {number} is no JSON object with a string field "text"')
        yield Document(f"{path.name}:{number}", text)
    if number == 0:
        raise UserError(f"{path} is empty")


def _parquet(path: Path) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading .parquet needs pyarrow; pip install 'armd[data]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise UserError(f'{path} has no column "text"; it has {", ".join(file.schema_arrow.names)}')
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text:
                    yield Document(f"{path.name}:{row}", text)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _tar(path: Path) -> Iterator[Document]:
    found = False
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and not Path(member.name).name.startswith("."):
                    file = archive.extractfile(member)
                    assert file is not None  # a regular file always opens
                    found = True
                    yield Document(member.name, _decode(file.read(), f"{path}:{member.name}"))
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not found:
        raise UserError(f"{path} holds no file")


# ---- the text every Python carries -----------------------------------------------------------------------------------


def python_documents() -> Iterator[Document]:
    """The language reference in `pydoc_data.topics` and the source of the standard library, without its tests."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Document(f"topics/{name}", text)
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library)
        if SKIPPED_FOLDERS.isdisjoint(parts.parts[:-1]) and parts.parts[0] != "pydoc_data":
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if text.strip():
                yield Document(f"stdlib/{parts.as_posix()}", text)


# ---- named data sets -------------------------------------------------------------------------------------------------

# name -> (hub path, hub configuration, column, split -> file patterns looked for in a data folder)
_Patterns = dict[str, tuple[str, ...]]
_WIKI: _Patterns = {
    split: (f"wiki.{split}.raw", f"wiki.{split}.tokens", f"{split}.txt") for split in ("train", "valid", "test")
}
_ONE: _Patterns = {"train": ("*.parquet", "*.jsonl*", "*.txt*")}
NAMED: dict[str, tuple[str, str | None, str, _Patterns]] = {
    "openwebtext": ("Skylion007/openwebtext", None, "text", _ONE),
    "lm1b": ("dvruette/lm1b", None, "text", {**_ONE, "test": ("*heldout*", "*test*")}),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text", _WIKI),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1", "text", _WIKI),
    "ptb": ("ptb-text-only/ptb_text_only", None, "sentence", {s: (f"ptb.{s}.txt", f"{s}.txt") for s in _WIKI}),
    "lambada": ("EleutherAI/lambada_openai", None, "text", {"test": ("lambada_test*.jsonl*", "test.jsonl*")}),
    "text8": ("afmck/text8", None, "text", {"train": ("text8*",)}),
}


def named_documents(name: str, split: str = "train", data_dir: str | Path | None = None) -> Iterator[Document]:
    """A data set by name: from files in `data_dir`, or through Hugging Face `datasets` where there is a network.

    File names looked for: text8 `text8*`; wikitext `wiki.SPLIT.raw` or `SPLIT.txt`; ptb `ptb.SPLIT.txt`; lambada
    `lambada_test*.jsonl`; openwebtext and lm1b any .parquet, .jsonl or .txt.
    """
    if name not in NAMED:
        raise UserError(f"data set {name!r} is unknown; choose one of {', '.join(NAMED)}")
    hub, configuration, column, patterns = NAMED[name]
    if data_dir is None:
        yield from _hub(name, hub, configuration, column, split)
        return
    if split not in patterns:
        raise UserError(f"data set {name} has no split {split!r} in files; it has {', '.join(patterns)}")
    for pattern in patterns[split]:
        matches = sorted(Path(data_dir).glob(pattern))
        if matches:
            yield from documents(matches)
            return
    raise UserError(f"data_dir {data_dir} holds no {' or '.join(patterns[split])} for {name} {split}")


def _hub(name: str, hub: str, configuration: str | None, column: str, split: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name}: loading by name needs `datasets`; pip install 'armd[data]' or --data-dir") from None
    try:
        rows = datasets.load_dataset(
            hub, configuration, split="validation" if split == "valid" else split, streaming=True
        )
        for i, row in enumerate(rows):
            if row[column].strip():
                yield Document(f"{name}:{i}", row[column])
    except Exception as error:  # the hub client raises whatever its transport raised
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"{name} could not be loaded from the hub ({reason}); give its files with --data-dir"
        ) from error
