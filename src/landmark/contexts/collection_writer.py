"""The one writer of a collection: changes which documents it holds, one manifest after another. Needs no model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from landmark.contexts import disk
from landmark.contexts.collection_folder import creating, remove_others, remove_removed
from landmark.contexts.collection_manifest import (
    CollectionManifest,
    Member,
    collection_bytes,
    collection_place,
    publish_collection,
    read_collection,
)
from landmark.contexts.disk import Folder
from landmark.contexts.documents import check_document, distinct
from landmark.contexts.lock import WriterLock, not_alone, take_lock
from landmark.contexts.segments import encode_text, text_digest


class CollectionWriter:
    """The newest state of a collection, and the lock on it. Made by `create` and `open`; `close` releases the lock."""

    def __init__(self, place: Folder, manifest: CollectionManifest, lock: WriterLock) -> None:
        self.place = place
        self.manifest = manifest
        self._lock = lock
        self._known = collection_bytes(place)
        self._reading: set[str] = set()

    @classmethod
    def create(cls, path: Path, manifest: CollectionManifest) -> Self:
        """Makes an empty collection in `path`; raises ValueError if there is something."""
        with creating(path) as lock:
            publish_collection(lock.folder, manifest)
        return cls(lock.folder, manifest, lock)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens the collection in `path`, and finishes a removal that was interrupted.

        Raises ValueError if there is none, if another writer has it open, or if its manifest is damaged.
        """
        place = collection_place(path)
        read_collection(place)  # before a lock is made where there is no collection
        lock = take_lock(place)
        try:
            disk.sync_folder(place)
            writer = cls(place, read_collection(place), lock)
            remove_removed(place, writer.manifest)
            return writer
        except BaseException:
            lock.close()
            raise

    def remove(self, names: Iterable[str]) -> list[Member]:
        """Removes documents in one step, and returns what they were; ValueError for a name that none has."""
        gone = [self.member(name) for name in dict.fromkeys(names)]
        self.publish(tuple(member for member in self.manifest.members if member not in gone))
        return gone

    def publish(self, members: tuple[Member, ...]) -> None:
        """Makes `members` the documents, and deletes the folders of all others that are not being read.

        Raises ValueError, and changes nothing, if this is not the collection's one writer any more.
        """
        manifest = self.manifest.followed_by(members)
        self._known = publish_collection(self.place, manifest, self._check_alone)
        self.manifest = manifest
        self.discard_unfinished()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wraps the reading of documents: those that it gives to `keep` stay until it ends, whatever is published."""
        try:
            yield
        finally:
            self._reading.clear()

    def keep(self, key: str) -> None:
        """Keeps the folder of a document that is being read."""
        self._reading.add(key)

    def discard_unfinished(self) -> None:
        """Deletes the folders of documents that are neither members nor being read."""
        remove_others(self.place, self.manifest, self._reading)

    @property
    def where(self) -> str:
        """Where the collection lies, for messages."""
        return str(self.place.path)

    def make_room(self, member: Member) -> None:
        """Makes room for a document that is read next, where there is a bound."""

    def member(self, name: str) -> Member:
        """The document of a name; ValueError if there is none."""
        return member_of(self.where, self.manifest, name)

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_alone(self) -> None:
        """Raises ValueError unless the folder, the lock and the newest state are those of this writer."""
        self._lock.check()
        if collection_bytes(self.place) != self._known:
            raise not_alone(f"{self.place.path} was changed by another writer")


def member_of(where: str, manifest: CollectionManifest, name: str) -> Member:
    """The document of a name in the collection that lies there; ValueError if there is none."""
    found = next((member for member in manifest.members if member.name == name), None)
    if found is None:
        names = ", ".join(member.name for member in manifest.members[:20]) or "none"
        more = f" and {len(manifest.members) - 20} more" if len(manifest.members) > 20 else ""
        raise ValueError(f"{where} has no document named {name!r}: there are {names}{more}")
    return found


def missing_from(
    where: object, members: Sequence[Member], documents: Iterable[tuple[str, str]], *, replace: bool = False
) -> list[tuple[str, str]]:
    """Those of `documents`, pairs of a name and a text, whose text no member has, each text once; see
    `Collection.missing`. `where` is what the errors call the collection."""
    found: dict[str, tuple[str, str]] = {}
    names, holders = {member.name for member in members}, {member.sha256: member.name for member in members}
    for name, text in distinct(documents):
        check_document(name, text)
        holder = holders.get(text_digest(encode_text(name, text)))
        if name in names and holder != name:
            if not replace:
                taken = f"{where} holds another text named {name}"
                raise ValueError(f"{taken}: replace it (--replace), or give another name")
            if holder is not None:
                raise ValueError(f"{where} holds this text already, named {holder}: remove {name} instead")
        if holder is None:
            found.setdefault(text, (name, text))
    return list(found.values())
