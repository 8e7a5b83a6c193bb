"""A collection on another file system (fsspec): its manifests and the folders of its documents, by their names.

Whatever a file system raises becomes a ValueError of one line; NotInStore and FileExistsError keep their meaning, which
is part of how a collection changes.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from landmark.contexts import disk
from landmark.contexts.collection_manifest import COLLECTION, DOCUMENTS, CollectionManifest, parse_collection
from landmark.contexts.disk import Damage
from landmark.contexts.manifest import MANIFEST, SEGMENTS, Manifest, has_manifest, read_manifest, segment_name

_MANIFEST = re.compile(r"collection-([0-9]{1,16})\.json")
_NEEDS = "pip install 'landmark-attention[remote]', or the package of fsspec for this file system"


class NotInStore(FileNotFoundError):
    """Raised where a store lacks a file that a manifest counts on."""


def manifest_name(generation: int) -> str:
    """Name of the manifest after so many changes."""
    return f"collection-{generation}.json"


class Store:
    """What lies at a URL. Names are relative to it.

    Manifests have a number each, and the one with the highest counts. One is made only where there is none of its
    number, so that of two writers at a time one fails.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs

            # What was listed is not kept: others change it.
            self._files, self._root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ValueError(f"{url} cannot be opened ({error}): {_NEEDS}") from error
        except Exception as error:
            raise ValueError(f"{url} cannot be opened ({_first_line(error)}): check the address") from error
        self.url = url

    def check_writable(self) -> None:
        """Raises ValueError for a file system that is for reading."""
        kinds = self._files.protocol
        if {"http", "https"} & {*([kinds] if isinstance(kinds, str) else kinds)}:
            raise self._read_only()

    def _read_only(self) -> ValueError:
        return ValueError(
            f"{self.url} is read-only: its collection can be asked; write to a folder, or to a URL such as"
            " s3://bucket/library"
        )

    def newest(self) -> int:
        """The number of the newest manifest; ValueError if there is none."""
        if not (numbers := self.generations()):
            raise ValueError(
                f"there is no collection at {self.url}: `landmark read --apart FILE ... --out {self.url}` makes one"
            )
        return numbers[-1]

    def generations(self) -> list[int]:
        """The numbers of all manifests, sorted."""
        found = (_MANIFEST.fullmatch(name) for name in self._names(self._root))
        return sorted(int(name[1]) for name in found if name)

    def documents(self) -> set[str]:
        """The keys of all documents that have a folder, whole or not."""
        return {*self._names(self._at(DOCUMENTS))}

    def _names(self, folder: str) -> list[str]:
        """What lies in a folder, which need not be there."""
        try:
            with self._reached():
                found = self._files.ls(folder, detail=False)
        except NotInStore:
            return []
        return [str(path).rstrip("/").rsplit("/", 1)[-1] for path in found]

    def manifest(self, number: int) -> CollectionManifest:
        """The manifest of a number; NotInStore if there is none, ValueError if it is damaged."""
        with self._reached():
            data = self._files.cat_file(self._at(manifest_name(number)))
        try:
            return parse_collection(data, Path(COLLECTION))
        except Damage as damage:
            raise ValueError(f"the manifest {number} of {self.url} {damage.what}: restore it from a copy") from damage

    def create(self, name: str, data: bytes) -> None:
        """Makes a file in one step; FileExistsError if there is one."""
        with self._reached(writing=True):
            self._files.pipe_file(self._at(name), data, mode="create")

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it, if there is one."""
        try:
            with self._reached():
                self._files.rm(self._at(name), recursive=True)
        except NotInStore:
            pass

    def has_document(self, key: str) -> bool:
        """Whether the folder of a document is whole."""
        with self._reached():
            return self._files.exists(self._at(f"{DOCUMENTS}/{key}/{MANIFEST}"))

    def put_document(self, folder: Path) -> None:
        """Writes the folder of a document that was read, its manifest last; nothing if it is there."""
        key = folder.name
        if self.has_document(key):
            return
        names = _files_of(read_manifest(folder))
        targets = [self._at(f"{DOCUMENTS}/{key}/{name}") for name in (*names, MANIFEST)]
        sources = [str(folder / name) for name in (*names, MANIFEST)]
        with self._reached(writing=True):
            self._files.put(sources[:-1], targets[:-1])
            self._files.put(sources[-1:], targets[-1:])

    def get_documents(self, keys: Sequence[str], to: Path) -> None:
        """Fetches folders of documents into the folder `to`: unchecked; NotInStore if a file is missing."""
        for key in keys:
            disk.make_folder(disk.open_folder(to) / key)
            disk.make_folder(disk.open_folder(to / key) / SEGMENTS)
        names = [f"{key}/{MANIFEST}" for key in keys]
        self._get(names, to)
        manifests = {key: _fetched_manifest(to / key, self.url) for key in keys}
        self._get([f"{key}/{name}" for key in keys for name in _files_of(manifests[key])], to)

    def _get(self, names: list[str], to: Path) -> None:
        with self._reached():
            self._files.get([self._at(f"{DOCUMENTS}/{name}") for name in names], [str(to / name) for name in names])

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _reached(self, *, writing: bool = False) -> Iterator[None]:
        """Puts what a file system raises on one line. Libraries of file systems raise errors of any kind."""
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not writing:
                raise NotInStore(*error.args) from error
            if isinstance(error, NotImplementedError) and writing:
                raise self._read_only() from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # of this machine
            raise ValueError(
                f"{self.url} cannot be reached ({_first_line(error)}): check the address, the credentials and the"
                " connection"
            ) from error


def _files_of(manifest: Manifest) -> list[str]:
    """The names of the files that the manifest of a document counts on."""
    segments = [
        f"{SEGMENTS}/{segment_name(number, kind)}"
        for number, entry in enumerate(manifest.segments, start=1)
        for kind in entry.sizes(manifest.layout)
    ]
    return segments if manifest.state is None else [manifest.state_name, *segments]


def check_fetched(folder: Path, url: str) -> None:
    """Raises ValueError where somebody deleted the folder of a document from `url` since it was fetched."""
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} was deleted while {url} was fetched: open that again")


def _fetched_manifest(folder: Path, url: str) -> Manifest:
    """That of a document; Damage if it is none, ValueError if it is gone."""
    check_fetched(folder, url)
    if not has_manifest(folder):
        raise Damage(folder / MANIFEST, "is not the manifest of a document")
    return read_manifest(folder)


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
