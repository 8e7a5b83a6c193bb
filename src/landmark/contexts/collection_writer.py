"""The one writer of a collection: changes which documents it holds, one manifest after another. Needs no model."""

from collections.abc import Iterable
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
from landmark.contexts.lock import WriterLock, not_alone, take_lock


class CollectionWriter:
    """The newest state of a collection, and the lock on it. Made by `create` and `open`; `close` releases the lock."""

    def __init__(self, place: Folder, manifest: CollectionManifest, lock: WriterLock) -> None:
        self.place = place
        self.manifest = manifest
        self._lock = lock
        self._known = collection_bytes(place)

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
        """Makes `members` the documents, and deletes the folders of all others.

        Raises ValueError, and changes nothing, if this is not the collection's one writer any more.
        """
        manifest = self.manifest.followed_by(members)
        self._known = publish_collection(self.place, manifest, self._check_alone)
        self.manifest = manifest
        remove_others(self.place, manifest)

    @property
    def where(self) -> str:
        """Where the collection lies, for messages."""
        return str(self.place.path)

    def complete(self) -> None:
        """Brings the files of all documents into the folder, where they are not there yet."""

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
