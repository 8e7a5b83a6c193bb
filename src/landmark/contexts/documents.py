"""Which documents are the same: those of one name whose texts have the same SHA-256."""

import hashlib
from collections.abc import Iterable


def distinct(documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents, pairs of a name and a text, each once and in order; ValueError for two texts under one name."""
    texts: dict[str, str] = {}
    for name, text in documents:
        if texts.setdefault(name, text) != text:
            raise ValueError(f"two different texts are named {name}: rename one, or leave it out")
    return list(texts.items())


def encoded(name: str, text: str) -> bytes:
    """The text of a document as it is kept, in UTF-8; ValueError if it has none (lone surrogates)."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text of document {name!r} cannot be written as UTF-8: {error}") from error


def digest(data: bytes) -> str:
    """What tells texts apart: SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
