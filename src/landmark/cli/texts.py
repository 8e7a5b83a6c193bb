"""The texts that a command line names."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from landmark.contexts.collection import Collection
    from landmark.contexts.context import Context


def named_texts(files: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names and texts of all documents of the sources; raises ValueError for one that cannot be read.

    Standard input is named `-` until the context is open and a free name can be found.
    """
    from landmark.data.text import STDIN, read_documents

    for source in files:
        for document in read_documents(source):
            yield STDIN if source == STDIN else document.name, document.text


def with_names(target: "Context | Collection", documents: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents; standard input is named stdin, or stdin 2, stdin 3 and so on where another text is."""
    from landmark.data.text import STDIN

    return [(target.name_for("stdin", text) if name == STDIN else name, text) for name, text in documents]
