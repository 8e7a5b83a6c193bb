"""Token files: text tokenized once into a memory-mapped file, resumable and verified by checksums.

A folder holds `tokens.bin` (the ids), `documents.jsonl` (a line for each finished document: the journal of an
interrupted run, and later the table of documents) and `manifest.json`, written last: with it, the folder is complete.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from landmark.data.corpora import is_fixed
from landmark.data.encoder import TextEncoder
from landmark.data.text import Document, read_documents
from landmark.files import unfinished, written_whole

VERSION = 2
# Folders of this version may lack most of a text: its tokenizers were allowed to truncate.
TRUNCATING = 1
DATA, JOURNAL, MANIFEST = "tokens.bin", "documents.jsonl", "manifest.json"


@dataclass(frozen=True)
class TokenizedDocument:
    """A finished document: its size and SHA-256 as UTF-8, and its tokens `start:stop` in the file."""

    name: str
    bytes: int
    sha256: str
    start: int
    stop: int


@dataclass(frozen=True)
class TokenFile:
    """A complete token file: `ids` is a read-only 1-d array (uint16 or uint32) mapped from disk."""

    folder: Path
    ids: np.ndarray
    documents: list[TokenizedDocument]
    checksum: str

    @classmethod
    def open(cls, folder: str | Path, *, tokenizer: Tokenizer | None = None, verify: bool = True) -> "TokenFile":
        """Opens a complete folder; `verify` reads the data once and compares its checksum.

        Raises ValueError if the folder is missing or incomplete, if the data differ from the manifest (naming the
        difference), or if they were made with another tokenizer than `tokenizer`.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} holds no complete tokenized text ({MANIFEST} is missing); tokenize again")
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_not_truncating(folder, manifest)
        if manifest["version"] != VERSION:
            raise ValueError(f"{folder} has format version {manifest['version']}, this library reads {VERSION}")
        if tokenizer is not None and manifest["tokenizer"] != tokenizer_fingerprint(tokenizer):
            raise ValueError(f"{folder} was made with another tokenizer; tokenize into another folder")
        found = _measure(folder, verify)
        for item, value in found.items():
            if manifest[item] != value:
                raise ValueError(
                    f"{folder} is damaged: {item} is {value}, the manifest has {manifest[item]}; "
                    "delete the folder and tokenize again"
                )
        ids = np.memmap(folder / DATA, dtype=manifest["dtype"], mode="r")
        return cls(folder, ids, _read_journal(folder), manifest["tokens_sha256"])

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    eos_id: int | None = None,
    on_document: Callable[[TokenizedDocument], None] | None = None,
) -> TokenFile:
    """Tokenizes `sources` (see `read_documents`) into the folder `out`, each document followed by `eos_id`.

    Resumes an interrupted call: its finished documents are kept as far as the sources begin with them. A complete
    folder is only verified: its sources must be unchanged, and those that never change are not read again.
    `on_document` is called after each document, resumed or new.

    Raises ValueError if `out` holds other text or was made with another tokenizer, naming the difference.
    """
    out = Path(out)
    if not sources:
        raise ValueError("there is no text to tokenize; name at least one file")
    settings = _settings(sources, tokenizer, eos_id)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    if (out / MANIFEST).exists() and all(is_fixed(source) for source in sources):
        return TokenFile.open(out, tokenizer=tokenizer)
    complete = (out / MANIFEST).exists()
    finished = _read_journal(out)
    documents = (document for source in sources for document in read_documents(source))
    for number, old in enumerate(finished):
        now = next(documents, None)
        same = now is not None and now.name == old.name and _digest(now) == (old.bytes, old.sha256)
        if not same and complete:
            raise _changed(out, old, now)
        if not same:
            finished = finished[:number]
            documents = chain(() if now is None else (now,), documents)
            break
        if on_document is not None:
            on_document(old)
    if complete:
        extra = next(documents, None)
        if extra is not None:
            raise ValueError(f"{out} does not hold {extra.name}; tokenize into another folder")
        return TokenFile.open(out, tokenizer=tokenizer)
    _append(out, documents, tokenizer, settings, finished, on_document)
    return TokenFile.open(out, verify=False)  # it was measured just now


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 over everything that determines the ids of a text.

    Padding, truncation and the post-processor (which adds special tokens) are left out: token files have none of them,
    and loaders fill them in differently.
    """
    state = json.loads(tokenizer.to_str())
    for item in ("padding", "truncation", "post_processor"):
        state.pop(item, None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _settings(sources: Sequence[str], tokenizer: Tokenizer, eos_id: int | None) -> dict:
    vocab_size = tokenizer.get_vocab_size()
    return {
        "version": VERSION,
        "sources": list(sources),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "eos_id": eos_id,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "uint32",
    }


def _claim(out: Path, settings: dict) -> None:
    """Records the settings of `out`; raises ValueError if it has others.

    An incomplete folder may change its sources, and all settings before its first finished document.
    """
    path = out / "settings.json"
    if not path.exists():
        if any(file != unfinished(path) for file in out.iterdir()):
            raise ValueError(f"{out} holds other files; choose an empty folder for the tokenized text")
        _write_json(path, settings)
        return
    stored = earlier = json.loads(path.read_text(encoding="utf-8"))
    if not (out / MANIFEST).exists():
        earlier = earlier | {"sources": settings["sources"]} if _read_journal(out) else settings
    _check_not_truncating(out, earlier)
    for item, value in settings.items():
        if earlier[item] != value:
            what, before, now = f"another {item}", earlier[item], value
            if item == "sources":
                what, (before, now) = "other sources", _first_difference(before, now)
            raise ValueError(
                f"{out} was made with {what} ({before!r}, now {now!r}); delete it or choose another folder"
            )
    if stored != settings:  # several processes may get here at once: only changes are written
        _write_json(path, settings)


def _write_json(path: Path, fields: dict) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _check_not_truncating(folder: Path, settings: dict) -> None:
    if settings["version"] == TRUNCATING:
        raise ValueError(
            f"{folder} was tokenized by an earlier release, which took special tokens named in texts for such, and cut "
            "texts short where a tokenizer.json says so: delete the folder and tokenize again; a training that began "
            "with it goes on where the tokens are the same"
        )


def _first_difference(before: list[str], now: list[str]) -> tuple[str | None, str | None]:
    """The first differing pair of two lists of sources; None past the end of the shorter."""
    return next(pair for pair in zip_longest(before, now) if pair[0] != pair[1])


def _changed(out: Path, old: TokenizedDocument, now: Document | None) -> ValueError:
    """The error for a document that the sources no longer have."""
    if now is None:
        return ValueError(f"{out} holds {old.name}, which the sources no longer have; use another folder")
    return ValueError(
        f"{old.name} has changed since {out} was made ({old.bytes} bytes then, {len(now.text.encode())} bytes now); "
        "delete the folder or choose another"
    )


def _append(
    out: Path,
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    settings: dict,
    finished: list[TokenizedDocument],
    on_document: Callable[[TokenizedDocument], None] | None,
) -> None:
    """Tokenize what is left of `documents`, then write the manifest."""
    start = finished[-1].stop if finished else 0
    dtype = np.dtype(settings["dtype"])
    encoder = TextEncoder(tokenizer)
    _write_journal(out, finished)
    with open(out / DATA, "ab") as data, open(out / JOURNAL, "a", encoding="utf-8") as journal:
        # Drops the tokens of an interrupted document: the journal ends with the last complete one.
        if data.seek(0, 2) < start * dtype.itemsize:
            raise ValueError(f"{out / DATA} is shorter than {JOURNAL} records; delete {out} and tokenize again")
        data.truncate(start * dtype.itemsize)
        for document in documents:
            stop = start + _write_document(data, document.text, encoder, dtype, settings["eos_id"])
            size, digest = _digest(document)
            line = TokenizedDocument(document.name, size, digest, start, stop)
            data.flush()
            journal.write(json.dumps(asdict(line)) + "\n")
            journal.flush()
            start = stop
            if on_document is not None:
                on_document(line)
    manifest = settings | _measure(out, verify=True)
    _write_json(out / MANIFEST, manifest)


def _write_document(data: BinaryIO, text: str, encoder: TextEncoder, dtype: np.dtype, eos_id: int | None) -> int:
    count = 0
    for tokens in encoder.pieces(text):
        data.write(tokens.ids.astype(dtype).tobytes())
        count += len(tokens)
    if eos_id is not None:
        data.write(np.asarray([eos_id], dtype).tobytes())
        count += 1
    return count


def _digest(document: Document) -> tuple[int, str]:
    data = document.text.encode("utf-8")
    return len(data), hashlib.sha256(data).hexdigest()


def _measure(folder: Path, verify: bool) -> dict[str, int | str]:
    """Size and checksums of the files in `folder`, under their names in the manifest."""
    found: dict[str, int | str] = {"tokens_bytes": (folder / DATA).stat().st_size}
    if verify:
        for item, name in (("tokens_sha256", DATA), ("documents_sha256", JOURNAL)):
            with open(folder / name, "rb") as file:
                found[item] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _read_journal(folder: Path) -> list[TokenizedDocument]:
    if not (folder / JOURNAL).exists():
        return []
    lines = (folder / JOURNAL).read_text(encoding="utf-8").split("\n")
    # Complete lines end in a newline: the last element is empty or an interrupted line.
    return [TokenizedDocument(**json.loads(line)) for line in lines[:-1]]


def _write_journal(folder: Path, documents: list[TokenizedDocument]) -> None:
    """Rewrites the journal without an interrupted line."""
    lines = [json.dumps(asdict(document)) + "\n" for document in documents]
    with written_whole(folder / JOURNAL) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
