"""`landmark add` and `landmark remove`: documents of a collection, each read apart."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from tyro.conf import OmitArgPrefixes, Positional, arg

from landmark.cli.options import MemoryOptions, load, model_of
from landmark.cli.output import counted, print_escaped, tokens_read
from landmark.cli.texts import named_texts, with_names
from landmark.settings import Verification
from landmark.urls import shown

if TYPE_CHECKING:
    from landmark.contexts.collection import Collection


class ReadAll(Protocol):
    """Reads documents, pairs of a name and a text that a collection lacks, and adds them."""

    def __call__(
        self,
        collection: "Collection",
        documents: list[tuple[str, str]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AddOptions:
    """Read texts, each from scratch, and add them to a collection."""

    collection: Annotated[Positional[Path], arg(metavar="COLLECTION")]
    """Folder of a collection, which `landmark read --apart` made, or its URL, such as s3://bucket/library."""
    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")] = ()
    """Texts to add, as for `landmark read`. A text that the collection holds, under whatever name, is left out."""
    replace: bool = False
    """Where a document has the name of a text, put the text in its place."""
    share: tuple[Path, ...] = ()
    """Folders of other collections: documents that they hold are taken from there, not read again."""
    model: Path | None = None
    """Folder of the model that read the collection; default: where it was then."""
    json: bool = False
    """Print one JSON object instead of text."""
    verify: Verification = "landmarks"
    """What of a collection is checked before it opens: docs/contexts.md."""
    memory: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)


@dataclass(frozen=True, kw_only=True)
class RemoveOptions:
    """Remove documents from a collection. Their space comes back, unless another collection shares them."""

    collection: Annotated[Positional[Path], arg(metavar="COLLECTION")]
    """Folder of the collection, or its URL."""
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...")] = ()
    """Names of the documents, as `landmark contexts info` lists them."""
    json: bool = False
    """Print one JSON object instead of text."""


def run_add(options: AddOptions) -> int:
    """Open the collection, and add."""
    from landmark.contexts.collection_manifest import read_collection
    from landmark.contexts.documents import distinct
    from landmark.contexts.remote import local_manifest

    path = local_manifest(options.collection)
    read_collection(path)
    if not options.files:
        raise ValueError("there is nothing to add: name at least one file, or - for standard input")
    documents = distinct(named_texts(options.files))
    from landmark.contexts.collection import Collection

    folder = model_of(path, options.model)
    model, tokenizer = load(folder, lambda config: options.memory.check(config, path), path)
    keywords: dict[str, Any] = {**options.memory.keywords(), "share": options.share}
    collection = Collection.open(options.collection, model, tokenizer, write=True, verify=options.verify, **keywords)
    return add_all(collection, documents, shown(options.collection), replace=options.replace, as_json=options.json)


def add_all(
    collection: "Collection",
    documents: list[tuple[str, str]],
    where: str,
    *,
    replace: bool = False,
    as_json: bool = False,
    read_all: "ReadAll | None" = None,
) -> int:
    """Add the documents that the collection does not hold, and print where and the figures.

    Documents are read one after the other, or all by `read_all`.
    """
    with collection:
        named = with_names(collection, documents)
        new = collection.missing(named, replace=replace)
        started = time.perf_counter()
        if new:
            _read(collection, new, where, read_all)
        seconds = time.perf_counter() - started
        held = collection.documents
        added_names = {name for name, _ in new}
        total = sum(member.tokens for member in held if member.name in added_names)
        there = {name: collection.holder(text) for name, text in named if name not in added_names}
    figures: dict[str, Any] = {
        "documents": len(held),
        "new_documents": len(new),
        "tokens": sum(member.tokens for member in held),
        "new_tokens": total,
        "seconds": seconds,
    }
    if as_json:
        print(json.dumps({"collection": where, **figures, "already_there": there}))
        return 0
    for name, holder in there.items():
        print_escaped(f"{name}: already there" + ("" if name == holder else f" under the name {holder}"))
    added = f"{counted(len(new), 'document')} of {counted(total, 'token')} added in {seconds:.1f} s"
    print_escaped(
        f"{where}: {added if new else 'nothing added'};"
        f" {counted(len(held), 'document')}, {counted(figures['tokens'], 'token')} in all"
    )
    return 0


def _read(collection: "Collection", documents: list[tuple[str, str]], where: str, read_all: "ReadAll | None") -> None:
    """Read the documents with a bar; those that `read_all` reads are tokenized by others, so that it has no end."""
    description = f"reading into {where}"
    if read_all is not None:
        with tokens_read(description) as progress:
            read_all(collection, documents, progress=progress)
        return
    tokenized = collection.tokenized(documents)
    with tokens_read(description, sum(document.member.tokens for document in tokenized)) as progress:
        for document in tokenized:  # each is kept, should the next one fail
            collection.add_tokenized([document], progress)


def run_remove(options: RemoveOptions) -> int:
    """Take the documents out of the manifest, and delete their files. No model is loaded."""
    from landmark.contexts.remote import open_writer

    where = shown(options.collection)
    if not options.names:
        raise ValueError(f"no document is named: `landmark contexts info {where}` lists them")
    with open_writer(options.collection) as writer:
        gone = writer.remove(options.names)
        left = writer.manifest.members
    freed = sum(member.tokens for member in gone)
    if options.json:
        figures = {"documents": len(left), "removed": len(gone), "removed_tokens": freed}
        print(json.dumps({"collection": where, **figures}))
    else:
        removed = f"{counted(len(gone), 'document')} of {counted(freed, 'token')} removed"
        print_escaped(f"{where}: {removed}; {counted(len(left), 'document')} left")
    return 0
