"""`Collection`: a set of documents, each read apart; adding and removing one costs that document alone."""

import json
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from landmark.contexts import compatibility, disk
from landmark.contexts.apart import ApartReader, UnreadDocument
from landmark.contexts.caches import beginning, cache_of
from landmark.contexts.collection_folder import document_folder, is_whole, open_set, verify_collection
from landmark.contexts.collection_manifest import (
    DOCUMENTS,
    CollectionManifest,
    Member,
    collection_place,
    read_collection,
)
from landmark.contexts.collection_writer import CollectionWriter, member_of, missing_from
from landmark.contexts.context import Answer, Context
from landmark.contexts.disk import Folder
from landmark.contexts.documents import DocumentStore, free_name
from landmark.contexts.folder import fork
from landmark.contexts.manifest import has_manifest, read_manifest, to_json
from landmark.contexts.remote import create_writer, local_copy, mending, open_writer
from landmark.contexts.segments import encode_text, text_digest
from landmark.contexts.snapshot import Snapshot, open_reader
from landmark.data.text import read_text
from landmark.hf.cache import CacheOptions
from landmark.hf.config import landmark_settings
from landmark.settings import Verification, check_verification
from landmark.urls import path_of, url_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Collection:
    """A set of documents on disk, each read from scratch, and the memory of all of them. Made by `create` and `open`.

    A `Context` reads its documents one after another, each with all earlier ones in reach, and can only grow. Here no
    document knows of another: one is added, replaced or removed at the cost of reading it alone, and the order of
    adding changes nothing. A question has the blocks of all of them in memory.

    One process may write to it while others read. A change that was interrupted was made or was not; reading a document
    goes on where it was interrupted when the same text is added again. Use it in a `with` statement, or `close` it.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        place: Folder,
        manifest: CollectionManifest,
        options: CacheOptions,
        *,
        share: Iterable[str | PathLike[str]] = (),
        writer: CollectionWriter | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._place = place
        self._manifest = manifest
        self._options = options
        self._share = [path_of(other) for other in share]
        self._writer = writer
        self._url = None if writer is None else url_of(writer.where)
        self._checks_landmarks = True
        self._context: Context | None = None
        # Without documents, to see whether the model is still the one whose fingerprint was compared.
        self._of_model = self._context_over(Snapshot.empty(place, manifest.header, manifest.layout))

    def __repr__(self) -> str:
        tokens = sum(member.tokens for member in self.documents)
        return f"Collection(path={self.where!r}, documents={len(self.documents)}, tokens={tokens:,})"

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        share: Iterable[str | PathLike[str]] = (),
        **options: Unpack[CacheOptions],
    ) -> "Collection":
        """Makes an empty collection in the folder `path`, or at a URL, open for writing.

        `model` is a converted model, `tokenizer` its own (by default the one saved beside it). `share` and `options`:
        see `open`. Raises ValueError if `path` exists, or for settings under which documents cannot be put together.
        """
        tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer
        if options.get("positions", landmark_settings(model.config).reading.positions) == "true":
            raise ValueError(
                "positions is 'true': documents read apart have no places in one text; use positions='stingy'"
            )
        header, layout = beginning(model, tokenizer, **options)
        manifest = CollectionManifest(0, json.loads(to_json(header, "the header")), layout)
        writer = create_writer(path, manifest)
        return cls(model, tokenizer, writer.place, manifest, options, share=share, writer=writer)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        write: bool = False,
        verify: Verification = "landmarks",
        share: Iterable[str | PathLike[str]] = (),
        **options: Unpack[CacheOptions],
    ) -> "Collection":
        """Opens the collection in the folder `path`; with `write` documents can be added and removed.

        `path` may be a URL of another file system, such as s3://bucket/library (docs/contexts.md): documents are then
        fetched into a copy on this machine, and changes put there, documents before the manifest.

        `share` are folders of other collections: a document that one of them holds, read by the same model with the
        same settings, is taken from there by hard links and not read again. `verify` and `options` are those of
        `Context.open`; settings that are given change how questions are read, not how documents are.

        Raises ValueError if this is no collection, if another process writes to it, if it was read by another model,
        adapters, tokenizer or block size (naming the difference), or if it is damaged. One opened with `write` opens
        with damaged documents too, so that they can be removed.
        """
        check_verification(verify)
        tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer
        writer = open_writer(path) if write else None
        try:
            place = collection_place(local_copy(path)) if writer is None else writer.place
            manifest = read_collection(place) if writer is None else writer.manifest
            compatibility.check_header(Snapshot.empty(place, manifest.header, manifest.layout), model, tokenizer)
            found = cls(model, tokenizer, place, manifest, options, share=share, writer=writer)
            found._checks_landmarks = verify != "manifest"
            if verify == "all":
                mending(found._verify)
            if writer is None:
                found.context  # noqa: B018 - opens all documents
            return found
        except BaseException:
            if writer is not None:
                writer.close()
            raise

    # Contents.

    @property
    def path(self) -> Path:
        """Its folder; one of this machine, if it lies on another file system."""
        return self._place.path

    @property
    def header(self) -> dict[str, Any]:
        """Settings and fingerprint of the model that reads its documents, as JSON values."""
        return self._manifest.header

    @property
    def documents(self) -> list[Member]:
        """Names and sizes of the documents, in the order in which they were added."""
        return list(self._manifest.members)

    @property
    def nbytes(self) -> int:
        """Bytes of its documents on disk, those that it shares with other collections too."""
        place = self._completed()
        folders = [document_folder(place, member.key) for member in self.documents]
        return sum(read_manifest(folder).committed_bytes for folder in folders)

    @property
    def context(self) -> Context:
        """The set of documents as a context to ask, made anew after each change.

        It cannot grow on disk. One that was taken before a change goes on with the documents from before.
        """
        if self._context is None:
            self._context = mending(lambda: self._context_over(open_set(self._completed())))
        return self._context

    def text(self, name: str) -> str:
        """The text of the document `name`; ValueError if there is none."""
        member = self._member(name)

        def read() -> str:
            snapshot = open_reader(document_folder(self._completed(), member.key))
            return snapshot.text(snapshot.documents()[0])

        return mending(read)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        sources: int = 5,
        write: Callable[[str], object] | None = None,
    ) -> Answer:
        """Decodes a continuation of `prompt`, with the blocks of all documents in memory; see `Context.generate`."""
        return self.context.generate(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, sources=sources, write=write
        )

    # Changes.

    def add(
        self,
        source: str | PathLike[str],
        name: str | None = None,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> bool:
        """Reads a document and adds it: a str is the text itself, a Path the UTF-8 file that has it.

        A file is named by its path unless it gets a `name`; a text needs one. `progress` is called with the number of
        tokens of each chunk. Returns False, and does nothing, if the text is held already, under whatever name: equal
        texts, by SHA-256, are one document. Raises ValueError for another text under a known name, for an empty text,
        and for a collection that is not open for writing, before anything is read.
        """
        return bool(self.add_all([_named(source, name)], progress=progress))

    def add_all(
        self,
        documents: Iterable[tuple[str, str]],
        *,
        replace: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> list[str]:
        """Reads documents, pairs of a name and a text, and adds all of them in one step; the names of those it read.

        With `replace` they take the places of other texts under their names. Those that `missing` leaves out stay out,
        and it raises what that raises. `progress` is called as by `add`, and with 0 while a text is tokenized. If it
        raises, nothing is added; `discard_unfinished` then removes what was read.
        """
        new = self.missing(documents, replace=replace)
        self._opened_writer()
        return self.add_tokenized(self.tokenized(new, progress), progress)

    def tokenized(
        self, documents: Iterable[tuple[str, str]], progress: Callable[[int], object] | None = None
    ) -> list[UnreadDocument]:
        """Those of `missing`, for `add_tokenized`; `progress` is called with 0 after each piece of a text."""
        return [self.reader.tokenized(name, text, progress) for name, text in documents]

    def add_tokenized(
        self, documents: Iterable[UnreadDocument], progress: Callable[[int], object] | None = None
    ) -> list[str]:
        """Reads documents and adds all of them in one step, in the places of others under their names; the names."""
        with self._opened_writer().reading():
            brought = {document.member.name: self._brought(document, progress) for document in documents}
            names = list(brought)
            if brought:
                kept = [brought.pop(member.name, member) for member in self.documents]
                self._publish((*kept, *brought.values()))
            return names

    def discard_unfinished(self) -> None:
        """Removes what was read of documents that are not part of the collection, and were not read to their end."""
        self._opened_writer().discard_unfinished()

    def missing(self, documents: Iterable[tuple[str, str]], *, replace: bool = False) -> list[tuple[str, str]]:
        """Those of `documents`, pairs of a name and a text, whose text the collection lacks, each text once.

        Raises ValueError for two texts under one name, for an empty text, for another text under a known name unless it
        is to `replace` that, and for a text that would replace one and is held under another name.
        """
        return missing_from(self.where, self.documents, documents, replace=replace)

    def holder(self, text: str) -> str | None:
        """The name of the document with this very text; None if there is none."""
        sha256 = text_digest(encode_text("", text))
        return next((member.name for member in self.documents if member.sha256 == sha256), None)

    def name_for(self, name: str, text: str) -> str:
        """A free name for a text without one: the first of `name`, `name 2`, `name 3` ... that no other text has."""
        sha256 = text_digest(encode_text(name, text))
        others = {member.name for member in self.documents if member.sha256 != sha256}
        return free_name(name, others.__contains__)

    def replace(
        self, name: str, source: str | PathLike[str], *, progress: Callable[[int], object] | None = None
    ) -> bool:
        """Reads another text for the document `name`, and puts it in its place in one step.

        Returns False, and does nothing, if this is its text already. Raises ValueError as `add` does, for an unknown
        name, and for a text that is held under another name.
        """
        self._member(name)
        return bool(self.add_all([_named(source, name)], replace=True, progress=progress))

    def remove(self, name: str) -> None:
        """Removes the document `name`: its space comes back unless another collection shares it.

        Contexts that were taken before go on answering from it. Raises ValueError for an unknown name.
        """
        writer = self._opened_writer()
        writer.remove([name])
        self._changed(writer)

    def close(self) -> None:
        """Releases the writer's lock."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_read(self, members: Iterable[Member]) -> None:
        """Adds documents that other processes read where this one expects them (`reader`), all in one change."""
        self._publish((*self.documents, *members))

    @property
    def reader(self) -> ApartReader:
        """What reads a document as those of this collection are read."""
        allow_nonfinite = self._options.get("allow_nonfinite", False)
        return ApartReader(self.model, self.tokenizer, self.header, self._manifest.layout, allow_nonfinite)

    def _brought(self, document: UnreadDocument, progress: Callable[[int], object] | None) -> Member:
        """The document in its folder: there already, taken from a collection that shares it, or read now."""
        self._of_model.check()
        member, writer = document.member, self._opened_writer()
        writer.keep(member.key)
        path = self.path / DOCUMENTS / member.key
        shared = (other / DOCUMENTS / member.key for other in self._share)
        holder = None if has_manifest(path) else next(filter(is_whole, shared), None)
        if holder is not None:
            fork(holder, path)
        else:
            writer.make_room(member)
            self.reader.read(disk.open_inner(self._place / DOCUMENTS), document, progress)
        return member

    def _completed(self) -> Folder:
        """The folder with all documents; those of a URL that it was opened at for writing are fetched first."""
        return self._place if self._url is None else disk.open_folder(local_copy(self._url))

    def _verify(self) -> None:
        for damage in verify_collection(self._completed().path):
            raise damage

    @property
    def where(self) -> str:
        """Its folder, or its URL where it is open for writing."""
        return str(self.path) if self._writer is None else self._writer.where

    def _opened_writer(self) -> CollectionWriter:
        if self._writer is None:
            raise ValueError(f"{self.where} is open for reading: open it with write=True")
        return self._writer

    def _publish(self, members: tuple[Member, ...]) -> None:
        writer = self._opened_writer()
        writer.publish(members)
        self._changed(writer)

    def _changed(self, writer: CollectionWriter) -> None:
        self._manifest, self._context = writer.manifest, None

    def _member(self, name: str) -> Member:
        return member_of(self.where, self._manifest, name)

    def _context_over(self, snapshot: Snapshot) -> Context:
        snapshot.checks_landmarks = self._checks_landmarks
        cache = cache_of(snapshot, self.model, **self._options)
        return Context(self.model, self.tokenizer, DocumentStore(snapshot), cache, self._options, growing=False)


def _named(source: str | PathLike[str], name: str | None) -> tuple[str, str]:
    """Name and text of a document."""
    if isinstance(source, PathLike):
        return (str(Path(source)) if name is None else name), read_text(Path(source))
    if name is None:
        raise ValueError("a text has no name of its own: give name=..., or a Path for a file")
    return name, source
