"""Where text comes from: files, folders, globs, archives, named data sets. A part at a time, never a corpus."""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import lzma
import re
import sysconfig
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from armd.errors import UserError

SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
ARCHIVES = (".tar", ".tar.gz", ".tar.xz", ".tgz", ".txz")
CUT = (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
PART_BYTES = 2**20
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class Document:
    """A named text. That of a long file comes in parts, one right after the other, of which only the last is `last`."""

    name: str
    text: str
    last: bool = True


# ---- files -----------------------------------------------------------------------------------------------------------


def documents(inputs: Sequence[str | Path]) -> Iterator[Document]:
    """The documents of files, folders (recursively, sorted) and globs, in the order given.

    A text file is one document; so is a line of .jsonl (field `text`), a row of .parquet (column `text`) and a text
    member of a .tar. All but .parquet may be compressed as .gz or .xz. UTF-8, with or without BOM; CRLF becomes LF.
    A text file or member of more than a megabyte comes in parts.

    Raises:
        UserError: a path does not exist or a glob matches nothing; a file is empty, binary, not UTF-8 or damaged.
            In folders, hidden and empty files and files that are not text are passed over.
    """
    if isinstance(inputs, (str, Path)):
        inputs = [inputs]
    if not inputs:
        raise UserError("input is empty: name at least one file, folder or glob")
    for path in [path for item in inputs for path in _expand(str(item))]:
        yield from _folder(path) if path.is_dir() else _file(path, path.name)


def _expand(item: str) -> list[Path]:
    """The paths a file, folder or glob stands for."""
    if Path(item).exists():
        return [Path(item)]
    matches = sorted(glob.glob(item, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not matches:
        raise UserError(f"input {item} does not exist, or matches nothing")
    return [Path(match) for match in matches]


def _folder(folder: Path) -> Iterator[Document]:
    found = False
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not _is_hidden(name) and _looks_like_text(path):
            found = True
            yield from _file(path, name.as_posix())
    if not found:
        raise UserError(f"folder {folder} holds no text file")


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _looks_like_text(path: Path) -> bool:
    if _ending(path.name).endswith((*ARCHIVES, ".gz", ".xz", ".parquet")):
        return True
    with path.open("rb") as file:
        head = file.read(4096)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely a character cut in half
            return False
    return bool(head.strip()) and b"\0" not in head


def _ending(name: str) -> str:
    return "".join(Path(name.lower()).suffixes[-2:])


def _file(path: Path, name: str) -> Iterator[Document]:
    ending = _ending(path.name)
    if ending.endswith(".parquet"):
        yield from _parquet(path, name)
        return
    try:
        with _open(path) as file:
            yield from _tar(path, file) if ending.endswith(ARCHIVES) else _stream(file, str(path), name)
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> IO[bytes]:
    ending = path.suffix.lower()
    if ending in (".gz", ".tgz"):
        return gzip.open(path)  # type: ignore[return-value]
    return lzma.open(path) if ending in (".xz", ".txz") else path.open("rb")


def _stream(file: IO[bytes], source: str, name: str) -> Iterator[Document]:
    """The documents of one opened text file: its lines if it is .jsonl, else itself."""
    if ".jsonl" in _ending(name):
        yield from _jsonl(file, source, name)
    else:
        held: str | None = None
        for text in _parts(file, source):
            if held is not None:
                yield Document(name, held, last=False)
            held = text
        if held is not None:
            yield Document(name, held)


def _parts(file: IO[bytes], source: str) -> Iterator[str]:
    """The text of a file, about a megabyte at a time."""
    decoder, read, blank = codecs.getincrementaldecoder("utf-8")(), 0, True
    raw = None
    while raw != b"":
        raw = file.read(PART_BYTES)
        while raw.endswith(b"\r") and (more := file.read(1)):  # so that a CRLF is never cut
            raw += more
        if b"\0" in raw:
            raise UserError(f"{source} is a binary file (a NUL byte at offset {read + raw.index(0)}); give text")
        cut = len(decoder.getstate()[0])  # bytes of a character whose end was not read yet
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            place = read - cut + error.start
            raise UserError(f"{source} is not UTF-8 (byte {place}); convert it, for example with iconv") from None
        text = (text if read else text.removeprefix("\ufeff")).replace("\r\n", "\n")
        read += len(raw)
        blank = blank and not text.strip()
        if text:
            yield text
    if blank:
        raise UserError(f"{source} is empty")


def _jsonl(file: IO[bytes], source: str, name: str) -> Iterator[Document]:
    found = False
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        found = True
        try:
            text = json.loads("".join(_parts(io.BytesIO(line), f"{source} line {number}")))["text"]
            text.encode()  # an escape such as \ud800 alone is no character
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError, UnicodeEncodeError):
            raise UserError(f'{source} line {number} is no JSON object with a valid string "text"') from None
        if text.strip():
            yield Document(f"{name}:{number}", text.replace("\r\n", "\n"))
    if not found:
        raise UserError(f"{source} is empty")


def _parquet(path: Path, name: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading .parquet needs pyarrow; pip install 'armd[data]'") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        kinds = (pyarrow.string(), pyarrow.large_string())
        if "text" not in schema.names or schema.field("text").type not in kinds:
            raise UserError(f'{path} has no string column "text"; it has {", ".join(schema.names)}')
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                row += 1
                if text and text.strip():
                    yield Document(f"{name}:{row}", text.replace("\r\n", "\n"))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


class _StrictInfo(tarfile.TarInfo):
    """Refuses an archive that ends without its end mark; tarfile by itself takes a cut archive for a short one."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except CUT as error:
            raise tarfile.ReadError(f"the archive is cut or damaged ({error})") from None


def _tar(path: Path, file: IO[bytes]) -> Iterator[Document]:
    found = False
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictInfo) as archive:
        for member in archive:
            if member.isfile() and member.size and not _is_hidden(Path(member.name)):
                content = archive.extractfile(member)
                assert content is not None  # a regular file always opens
                found = True
                yield from _stream(content, f"{path}:{member.name}", member.name)
    while file.read(2**20):  # to the end, so that a checksum is checked
        pass
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

Patterns = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class NamedSet:
    """Where a named data set is, and what a document of it is.

    Attributes:
        hub, configuration, column, revision: on the Hugging Face hub.
        unit: row (a row of the hub, a line or record of a file), article (lines up to the next title) or file.
        files: split -> file names looked for in a data folder.
    """

    hub: str
    configuration: str | None
    column: str
    unit: str
    files: Patterns
    revision: str | None = None


def _named(name: str) -> Patterns:
    return {split: (f"{name}.{split}.*", f"{split}.*") for split in ("train", "valid", "test")}


_WIKI: Patterns = {s: (f"wiki.{s}.raw", f"wiki.{s}.tokens", f"{s}.txt") for s in ("train", "valid", "test")}
_ANY: Patterns = {"train": ("*.parquet", "*.jsonl*", "*.txt*", "*train*", "news.en-*")}
NAMED: dict[str, NamedSet] = {
    "openwebtext": NamedSet("Skylion007/openwebtext", None, "text", "file", _ANY),
    "lm1b": NamedSet("dvruette/lm1b", None, "text", "row", {**_ANY, "test": ("*heldout*", "*test*")}),
    "wikitext2": NamedSet("Salesforce/wikitext", "wikitext-2-raw-v1", "text", "article", _WIKI),
    "wikitext103": NamedSet("Salesforce/wikitext", "wikitext-103-raw-v1", "text", "article", _WIKI),
    "ptb": NamedSet(
        "ptb-text-only/ptb_text_only",
        None,
        "sentence",
        "row",
        {s: (f"ptb.{s}.txt", f"{s}.txt") for s in _WIKI},
        "refs/convert/parquet",  # `datasets` no longer runs the script that the set itself is
    ),
    "lambada": NamedSet("EleutherAI/lambada_openai", None, "text", "row", {"test": ("lambada_test*.jsonl*",)}),
    "text8": NamedSet("afmck/text8", None, "text", "file", {"train": ("text8*",)}),
    "ag_news": NamedSet("fancyzhx/ag_news", None, "text", "row", _named("ag_news")),
    "pubmed": NamedSet("ccdv/pubmed-summarization", None, "article", "row", _named("pubmed")),
    "arxiv": NamedSet("ccdv/arxiv-summarization", None, "article", "row", _named("arxiv")),
}

NAMED["wikitext"] = NAMED["wikitext103"]


def named_documents(name: str, split: str = "train", data_dir: str | Path | None = None) -> Iterator[Document]:
    """A data set by name: from files in `data_dir`, or through Hugging Face `datasets` where there is a network.

    File names looked for: text8 `text8*`; wikitext `wiki.SPLIT.raw` or `SPLIT.txt`; ptb `ptb.SPLIT.txt`; lambada
    `lambada_test*.jsonl`; ag_news, pubmed and arxiv `NAME.SPLIT.jsonl` or `SPLIT.jsonl`, also .parquet; openwebtext and
    lm1b any .parquet, .jsonl or .txt.
    """
    if name not in NAMED:
        raise UserError(f"data set {name!r} is unknown; choose one of {', '.join(NAMED)}")
    known = NAMED[name]
    if data_dir is None:
        rows: Iterable[Document] = _hub(name, known, split)
        yield from _articles(row.text for row in rows) if known.unit == "article" else rows
        return
    if split not in known.files:
        raise UserError(f"data set {name} has no split {split!r} in files; it has {', '.join(known.files)}")
    for pattern in known.files[split]:
        matches = sorted(Path(data_dir).glob(pattern))
        if matches:
            yield from _divide(documents(matches), known.unit)
            return
    raise UserError(f"data_dir {data_dir} holds no {' or '.join(known.files[split])} for {name} {split}")


def _divide(found: Iterator[Document], unit: str) -> Iterator[Document]:
    """Files of a named set as documents of its unit; a record of .jsonl or .parquet is one already."""
    if unit == "file":
        yield from found
    elif unit == "article":
        yield from _articles(line.text for line in _lines(found))
    else:
        yield from (Document(line.name, line.text.strip()) for line in _lines(found) if line.text.strip())


def _lines(found: Iterator[Document]) -> Iterator[Document]:
    """The lines of files, which may come in parts; a record stays whole."""
    number, rest = 0, ""
    for document in found:
        if re.search(r":\d+$", document.name):
            yield document
            continue
        lines = (rest + document.text).splitlines(keepends=True)
        rest = "" if document.last else lines.pop()  # it may go on in the next part
        for number, line in enumerate(lines, number + 1):  # noqa: B020 (counts on)
            yield Document(f"{document.name}:{number}", line)
        number = 0 if document.last else number


def _articles(lines: Iterable[str]) -> Iterator[Document]:
    """WikiText lines grouped into articles; a title stands alone between single equals signs."""
    article: list[str] = []
    number = 0
    for line in lines:
        if re.match(r"^ = [^=].*[^=] = \n?$", line) and "".join(article).strip():
            number += 1
            yield Document(f"article:{number}", "".join(article))
            article = []
        article.append(line)
    if "".join(article).strip():
        yield Document(f"article:{number + 1}", "".join(article))


def _hub(name: str, known: NamedSet, split: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name}: loading by name needs `datasets`; pip install 'armd[data]' or --data-dir") from None
    part = "validation" if split == "valid" else split
    try:
        options = {"split": part, "streaming": True, "revision": known.revision}
        for i, row in enumerate(datasets.load_dataset(known.hub, known.configuration, **options)):
            if row[known.column].strip() or known.unit == "article":
                yield Document(f"{name}:{i}", row[known.column])
    except Exception as error:  # the hub client raises whatever its transport raised
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"{name} could not be loaded from the hub ({reason}); give its files with --data-dir"
        ) from error
