"""Text sources: plain files, tables on disk and Hugging Face data sets, read as named documents."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from landmark.data.corpora import corpus_rows
from landmark.data.hub import check_reachable, load

TABLE_KINDS = ("json", "csv", "parquet")
STDIN = "-"  # names standard input, where a text file may be named
DATASET_FORM = "hf:NAME[:CONFIG]:SPLIT:COLUMN"
# Tokenization takes some hundred bytes of memory a token, so long documents are tokenized in pieces (see `encoder`).
PIECE_CHARACTERS = 1 << 18
# What is taken for a text: how it begins, what it is, and what makes a text of it. The bytes of some PDFs are UTF-8.
OTHER_FORMATS = (
    (b"%PDF-", "a PDF", "pdftotext"),
    (b"PK\x03\x04", "a zip archive, as Word files and e-books are", "pandoc --to plain"),
    (b"\x1f\x8b", "compressed", "gunzip"),
)


@dataclass(frozen=True)
class Document:
    """A text and its name, for messages and manifests."""

    name: str
    text: str


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of standard input if `path` is "-", with its line ends unchanged.

    Raises ValueError if the file is missing, a directory, or no text (see `decoded`).
    """
    path = Path(path)
    if str(path) == STDIN:
        return decoded("standard input", _standard_input())
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; name its text files, e.g. {path}/*.txt") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return decoded(str(path), data)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("standard input is closed: name a file, or pipe a text into the command")
    return sys.stdin.buffer.read()


def decoded(name: str, data: bytes) -> str:
    """The text that UTF-8 `data` holds; `name` is for messages.

    Raises ValueError for no text at all, for a PDF, an archive or compressed data (naming a program that makes a text
    of it), and for what is not UTF-8 (naming the first bad byte).
    """
    for beginning, kind, program in OTHER_FORMATS:
        if data.startswith(beginning):
            raise ValueError(f"{name} is {kind}, not a text: take the text out of it first, e.g. with {program}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it, e.g. with iconv -t UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{name} is empty; there is nothing to read in it")
    return text


def encoded(name: str, text: object) -> bytes:
    """`text` in UTF-8; `name` is for messages. Raises ValueError for no str, and for lone surrogates."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r:.40}: give a str")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} cannot be written as UTF-8 ({error}): leave that character out") from error


def check_files(sources: Iterable[str]) -> None:
    """Raises ValueError for the first source whose file does not exist, before any is read."""
    for source in sources:
        kind, colon, rest = source.partition(":")
        if colon and kind in TABLE_KINDS:
            _check_table(source, kind, *rest.rpartition(":")[::2])
        elif not (colon and kind in ("hf", "corpus")) and source != STDIN and not Path(source).exists():
            raise ValueError(f"{source} does not exist")


def _check_table(source: str, kind: str, path: str, column: str) -> None:
    if not path or not column:
        raise ValueError(f"{source!r} does not say which column to read; write {kind}:PATH:COLUMN")
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist or is not a file")


def read_documents(source: str) -> Iterator[Document]:
    """The documents of one source, always in the same order.

    A source is the path of a text file (one document), `-` for standard input (one document, `stdin`),
    `json:PATH:COLUMN`, `csv:PATH:COLUMN` or `parquet:PATH:COLUMN` (a document a row), `hf:NAME[:CONFIG]:SPLIT:COLUMN`
    (a document a row of a dataset on the Hugging Face hub, or of one in the folder NAME), or `corpus:NAME:SPLIT` (a
    corpus of the paper, see `landmark.data.corpora`). Rows with an empty text are left out. All but text files need the
    `data` extra.

    Raises ValueError for anything that cannot be read, naming the source and the remedy.
    """
    kind, colon, rest = source.partition(":")
    if colon and kind == "hf":
        yield from _hub_rows(source, rest.split(":"))
    elif colon and kind in TABLE_KINDS:
        path, _, column = rest.rpartition(":")
        _check_table(source, kind, path, column)
        yield from _rows(source, column, kind, data_files=path, split="train")
    elif colon and kind == "corpus":
        yield from (Document(f"{source}#{row}", text) for row, text in corpus_rows(source) if text.strip())
    else:
        yield Document("stdin" if source == STDIN else source, read_text(source))


def _hub_rows(source: str, parts: list[str]) -> Iterator[Document]:
    if len(parts) not in (3, 4) or not all(parts):
        raise ValueError(f"{source!r} is not of the form {DATASET_FORM}")
    *name, split, column = parts
    check_reachable(name[0], "dataset")
    yield from _rows(source, column, *name, split=split)


def _rows(source: str, column: str, *args: str, **kwargs: str) -> Iterator[Document]:
    table = load(source, *args, **kwargs)
    if column not in table.column_names:
        raise ValueError(f"{source!r} has no column {column!r}; it has {', '.join(table.column_names)}")
    for row, text in enumerate(table[column]):  # streamed from disk
        if not isinstance(text, str):
            raise ValueError(f"{source!r}, row {row}: column {column!r} holds {type(text).__name__}, not text")
        if text.strip():
            yield Document(f"{source}#{row}", text)
