"""Collections on other file systems: opened by a copy on this machine, and changed by manifests with a number each.

No process of ours runs beside the store. What is written first are documents, which nobody looks for; then the next
manifest, where there is none of its number: a reader finds the set before a change or the set after it, and of two
writers one fails. Deleted last are the manifest before and documents that no manifest names.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from landmark.contexts.collection_manifest import DOCUMENTS, CollectionManifest, Member
from landmark.contexts.collection_writer import CollectionWriter
from landmark.contexts.disk import Damage, Progress
from landmark.contexts.lock import not_alone
from landmark.contexts.remote_cache import Copy, lost_copy, member_bytes
from landmark.contexts.remote_store import NotInStore, Store, manifest_name
from landmark.urls import path_of, url_of

T = TypeVar("T")


def local_copy(path: str | PathLike[str], progress: Progress | None = None) -> Path:
    """The folder of a context or collection: `path` itself, or a copy of the collection at a URL, brought up to date.

    `progress` is called with bytes. The copy stays until this process ends. Raises ValueError for a URL without a
    collection or out of reach, for damage in what was fetched, and where the cache has too little room.
    """
    url = url_of(path) or lost_copy(path_of(path))
    if url is None:
        return path_of(path)
    store, copy = Store(url), Copy(url)
    with copy.changing():
        alone = copy.hold()
        _with_newest(store, lambda manifest: copy.complete(store, manifest, progress, alone=alone))
    return copy.folder


def local_manifest(path: str | PathLike[str]) -> Path:
    """Where a context or collection is changed: its folder, or for a URL one with its manifest, without documents.

    Raises as `local_copy` does, and for a URL where nothing can be written.
    """
    url = url_of(path)
    if url is None:
        return path_of(path)
    store, copy = Store(url), Copy(url)
    store.check_writable()
    with copy.changing():
        _with_newest(store, copy.begin)
    return copy.draft


def mending(opening: Callable[[], T]) -> T:
    """What `opening` returns. Where it finds damage in a copy, that is fetched again, each file once.

    Raises ValueError as `local_copy` does, for damage in the store itself for one.
    """
    fetched: set[Path] = set()
    while True:
        try:
            return opening()
        except Damage as damage:
            if damage.url is None or damage.file in fetched:
                raise
            fetched.add(damage.file)
            local_copy(damage.url)


def newest_manifest(url: str) -> CollectionManifest:
    """That of the collection at a URL; the copy on this machine stays as it is. Raises as `local_copy` does."""
    return _with_newest(Store(url), lambda manifest: manifest)


def _with_newest(store: Store, use: Callable[[CollectionManifest], T]) -> T:
    """What `use` makes of the newest manifest; it is called again where a change removed what it fetches."""
    while True:
        number = store.newest()
        try:
            return use(store.manifest(number))
        except NotInStore as error:  # removed by a change, or lost
            if store.newest() == number:
                raise ValueError(f"{store.url} is damaged, a file of it is missing ({error}): restore it") from error


def is_unused(url: str) -> bool:
    """Whether there is no collection at a URL yet; ValueError where none can be written."""
    store = Store(url)
    store.check_writable()
    return not store.generations()


def described(url: str) -> tuple[dict[str, Any], list[Member]]:
    """Counts and sizes of the collection at a URL, as JSON values, and its documents. None of them is fetched."""
    manifest = newest_manifest(url)
    size = sum(member_bytes(member, manifest.layout) for member in manifest.members)
    return manifest.facts(url, bytes=size), list(manifest.members)


class RemoteWriter(CollectionWriter):
    """A writer of the copy that puts every change into the store. Made by `create_at` and `open_at`."""

    store: Store
    copy: Copy

    @classmethod
    def create_at(cls, url: str, manifest: CollectionManifest) -> "RemoteWriter":
        """Makes an empty collection; raises ValueError if there is one."""
        store = Store(url)
        try:
            if not is_unused(url):
                raise FileExistsError
            store.create(manifest_name(manifest.generation), manifest.to_bytes())
        except FileExistsError:
            raise ValueError(f"{url} exists: give another URL, or delete the collection there first") from None
        return cls.open_at(url)

    @classmethod
    def open_at(cls, url: str) -> "RemoteWriter":
        """Opens the collection at a URL, and finishes a change that was interrupted; raises as `open` does."""
        draft = local_manifest(url)
        try:
            writer = cls.open(draft)
        except ValueError as error:
            raise ValueError(str(error).replace(str(draft), url)) from error
        try:
            writer.store, writer.copy = Store(url), Copy(url)
            with writer.copy.changing():
                writer.copy.adopt(writer.manifest)
            writer._clean()
            return writer
        except BaseException:
            writer.close()
            raise

    def publish(self, members: tuple[Member, ...]) -> None:
        """Makes `members` the documents, at the URL, in the draft, and in the copy if that has all of them.

        Raises ValueError, and changes nothing, if another writer changed the collection, or if a document cannot be
        written. What fails behind the change is a ValueError that says so.
        """
        following, held = self.manifest.followed_by(members), {member.key for member in self.manifest.members}
        for member in members:
            if member.key not in held:
                self.store.put_document(self.place.path / DOCUMENTS / member.key)
        with self.copy.changing():
            self._check_alone()
            try:
                self.store.create(manifest_name(following.generation), following.to_bytes())
            except FileExistsError:
                raise not_alone(f"{self.store.url} was changed by another writer") from None
            try:
                super().publish(members)
                self.copy.adopt(following)
            except (OSError, ValueError) as error:
                raise ValueError(f"{error}; the change was made at {self.store.url}: open it again") from error
        self._clean()

    def make_room(self, member: Member) -> None:
        with self.copy.changing():
            self.copy.make_room(member, self.manifest.layout)

    @property
    def where(self) -> str:
        return self.store.url

    def _clean(self) -> None:
        """Deletes what the newest manifest does not count on: older ones, and documents that it took out."""
        gone = {*self.manifest.removed} - {member.key for member in self.manifest.members}
        older = (manifest_name(n) for n in self.store.generations() if n < self.manifest.generation)
        try:
            left = sorted(gone & self.store.documents()) if gone else ()
            for name in (*(f"{DOCUMENTS}/{key}" for key in left), *older):
                self.store.remove(name)
        except ValueError as error:
            raise ValueError(f"{error}; the change was made, and the next one deletes what it took out") from error


def open_writer(path: str | PathLike[str]) -> CollectionWriter:
    """The writer of the collection in a folder or at a URL."""
    url = url_of(path)
    return CollectionWriter.open(path_of(path)) if url is None else RemoteWriter.open_at(url)


def create_writer(path: str | PathLike[str], manifest: CollectionManifest) -> CollectionWriter:
    """The writer of a new collection in a folder or at a URL."""
    url = url_of(path)
    return CollectionWriter.create(path_of(path), manifest) if url is None else RemoteWriter.create_at(url, manifest)
