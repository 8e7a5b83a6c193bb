"""Copies on this machine of collections that lie on another file system, within a budget of bytes.

A copy is the folder of a collection, so that everything opens it. Its unit is the whole document: a question needs the
landmark keys of all of them, and a block that had to come over a network would stop the token that wants it.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from landmark.contexts import disk
from landmark.contexts.collection_folder import check_member, is_whole
from landmark.contexts.collection_manifest import (
    COLLECTION,
    DOCUMENTS,
    CollectionManifest,
    Member,
    is_collection,
    publish_collection,
    read_collection,
)
from landmark.contexts.disk import Damage, Progress
from landmark.contexts.manifest import TOKEN, Layout
from landmark.contexts.remote_store import Store, check_fetched
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.files import disk_bytes, files_below, release_lock, try_lock
from landmark.store.base import parse_bytes

FOLDER = "LANDMARK_CACHE"
BYTES = "LANDMARK_CACHE_BYTES"
DEFAULT_BYTES = "50GB"
_AT_ONCE = 16  # documents whose files are fetched together
_OTHER_BYTES = 8 * 4096  # of a document: its small files, and what a file system rounds up
_held: dict[Path, int] = {}  # descriptors of copies that this process uses until it ends


def cache_folder() -> Path:
    """The folder of all copies: $LANDMARK_CACHE, or `landmark` where the system keeps caches; others cannot read it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "landmark")
    folder = Path(os.environ.get(FOLDER) or default)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder.resolve()


def _unusable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{folder} cannot hold copies of collections ({error.strerror}): set {FOLDER} to a folder that can, and has"
        " room for them"
    )


def member_bytes(member: Member, layout: Layout) -> int:
    """About how many bytes a document has on disk."""
    tokens = layout.block_size * TOKEN.itemsize
    return member.blocks * (layout.block_bytes + layout.landmark_record.itemsize + tokens) + member.bytes + _OTHER_BYTES


class Copy:
    """What this machine has of the collection at a URL: two folders of collections.

    Readers open `folder`, which has a manifest and all of its documents. `draft` is for those who change the
    collection: the newest manifest, and documents that are not uploaded yet. `changing` keeps other processes from
    changing either meanwhile.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        readable = re.sub("[^A-Za-z0-9._-]+", "-", url)[-60:].lstrip("-.")
        self._cache = cache_folder()
        self.folder = self._cache / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        self.draft = _beside(self.folder, "draft")
        self._incoming = _beside(self.folder, "incoming")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Waits for other processes that change the copy."""
        try:
            descriptor = _open_lock(_beside(self.folder, "lock"))
        except OSError as error:
            raise _unusable(self._cache, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in (self._incoming, *self._cache.glob(f"{self.folder.name}.*gone-*")):  # of a killed process
                shutil.rmtree(left, ignore_errors=True)
            for folder in (self.folder, self.draft):
                (folder / DOCUMENTS).mkdir(mode=0o700, parents=True, exist_ok=True)
            yield
        finally:
            os.close(descriptor)

    # For readers. All of this is called within `changing`.

    def hold(self) -> bool:
        """Keeps other processes from making room in `folder` until this one ends; whether none of them uses it."""
        disk.copies[self.folder] = self._give_up
        return _hold(self.folder)

    def _give_up(self, file: Path) -> str:
        """Deletes the document with a damaged file, so that it is fetched again; returns the URL."""
        _, *inside = file.relative_to(self.folder).parts
        if inside:  # else it is a manifest, in whose place the next comes
            with suppress(OSError):
                _drop(self.folder, inside[0])
        return self.url

    def complete(
        self, store: Store, manifest: CollectionManifest, progress: Progress | None = None, *, alone: bool = False
    ) -> None:
        """Fetches the documents that `folder` lacks, makes the manifest its own, and deletes all other documents.

        Each is checked, every byte, before it counts. Until all are there the set from before stays, unless this
        process is `alone` with it. Raises ValueError for a document that is damaged, and where the documents have more
        bytes than the cache may hold.
        """
        if alone:
            self._drop_others(manifest)
        sizes = {member.key: member_bytes(member, manifest.layout) for member in manifest.members}
        missing = [member for member in manifest.members if not _has(self.folder, member.key)]
        done, total = 0, sum(sizes[member.key] for member in missing)
        if missing:
            self._make_room(self.url, sum(sizes.values()), total)
        for start in range(0, len(missing), _AT_ONCE):
            group = missing[start : start + _AT_ONCE]
            self._fetch(store, group, manifest)
            done += sum(sizes[member.key] for member in group)
            if progress is not None:
                progress(done, total)
        _take(self.folder, manifest)
        self._drop_others(manifest)

    def _drop_others(self, manifest: CollectionManifest) -> None:
        for key in _documents(self.folder) - {member.key for member in manifest.members}:
            _drop(self.folder, key)

    def _fetch(self, store: Store, members: Sequence[Member], manifest: CollectionManifest) -> None:
        self._incoming.mkdir(mode=0o700)
        try:
            store.get_documents([member.key for member in members], self._incoming)
            for member in members:
                self._check(member, manifest)
            for member in members:
                _drop(self.folder, member.key)  # a part of it, or a damaged one
                (self._incoming / member.key).rename(self.folder / DOCUMENTS / member.key)
        except Damage as damage:
            name = damage.file.relative_to(self._incoming)
            raise ValueError(
                f"{self.url}/{DOCUMENTS}/{name} {damage.what} in the store itself, and was not kept: upload the"
                " document again, or remove it and add its text"
            ) from damage
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _unusable(self._cache, error) from error
        finally:
            shutil.rmtree(self._incoming, ignore_errors=True)

    def _check(self, member: Member, manifest: CollectionManifest) -> None:
        folder = self._incoming / member.key
        check_fetched(folder, self.url)
        for damage in verify(folder):
            raise damage
        check_member(open_reader(folder), member, manifest)

    # For those who change the collection.

    def begin(self, manifest: CollectionManifest) -> None:
        """Makes the newest manifest that of the draft, which no other process deletes until this one ends."""
        _hold(self.draft)
        _take(self.draft, manifest)

    def make_room(self, member: Member, layout: Layout) -> None:
        """Makes room for a document that is read into the draft next, or on; raises ValueError where there is none."""
        _hold(self.draft)
        size, begun = member_bytes(member, layout), files_below([self.draft / DOCUMENTS / member.key])
        self._make_room(f"the document {member.name!r}", size, size - sum(map(disk_bytes, begun)))

    def adopt(self, manifest: CollectionManifest) -> None:
        """Moves documents of the newest manifest, which were uploaded, from the draft to `folder`.

        If that has all of them then, the manifest becomes its own.
        """
        keys = {member.key for member in manifest.members}
        for key in keys & _documents(self.draft):
            if _has(self.draft, key) and not _has(self.folder, key):
                _drop(self.folder, key)
                (self.draft / DOCUMENTS / key).rename(self.folder / DOCUMENTS / key)
            else:
                _drop(self.draft, key)
        if keys <= _documents(self.folder):
            _take(self.folder, manifest)
            self._drop_others(manifest)

    def drop(self, key: str) -> None:
        """Deletes a document of the draft."""
        _drop(self.draft, key)

    def _make_room(self, what: str, size: int, wanted: int) -> None:
        """Deletes documents in folders that no process uses, those used least recently first, until `wanted` bytes fit.

        `size` bytes are those of all `what`. Raises ValueError where that is not enough.
        """
        most = parse_bytes(BYTES, os.environ.get(BYTES) or DEFAULT_BYTES)
        if size > most:
            raise ValueError(
                f"{what} has {size:,} bytes, and {self._cache} may hold {most:,}: set {BYTES} to more, or take a"
                " smaller one"
            )
        used = sum(disk_bytes(file) for file in files_below([self._cache]))
        folders = [path for path in self._cache.iterdir() if (path / DOCUMENTS).is_dir()]
        for path in sorted(folders, key=_last_used):
            if used + wanted <= most:
                return
            with _unused(path) as unused:
                for key in sorted(_documents(path)) if unused else ():
                    if used + wanted > most:
                        used -= _drop(path, key)
        if used + wanted > most:
            raise ValueError(
                f"{self._cache} may hold {most:,} bytes, and collections that are in use leave too few of them for"
                f" {what}: set {BYTES} to more, or end these processes"
            )


def lost_copy(folder: Path) -> str | None:
    """The URL of a copy that this process uses, and somebody deleted; None for any other folder."""
    give_up = disk.copies.get(folder)
    return None if give_up is None or is_collection(folder) else give_up(folder / COLLECTION)


def _documents(folder: Path) -> set[str]:
    """The keys of all documents in a folder."""
    return {*os.listdir(folder / DOCUMENTS)}


def _has(folder: Path, key: str) -> bool:
    """Whether a document is whole, as far as its manifest says."""
    with suppress(ValueError):
        return is_whole(folder / DOCUMENTS / key)
    return False


def _take(folder: Path, manifest: CollectionManifest) -> None:
    """Makes a manifest that of a folder, in the place of another or a damaged one."""
    with suppress(ValueError):
        if read_collection(folder) == manifest:
            return
    publish_collection(disk.open_folder(folder), manifest)


def _drop(folder: Path, key: str) -> int:
    """Deletes a document, in one step; returns the bytes that come back."""
    gone = _beside(folder, f"gone-{token_hex(8)}")
    try:
        (folder / DOCUMENTS / key).rename(gone)
    except FileNotFoundError:
        return 0
    freed = sum(disk_bytes(file) for file in files_below([gone]) if file.st_nlink == 1)
    shutil.rmtree(gone, ignore_errors=True)
    return freed


def _hold(folder: Path) -> bool:
    """Lets no other process delete documents of a folder to make room, until this one ends; whether none uses it."""
    used = _beside(folder, "used")
    if used in _held and not used.exists():  # somebody deleted the cache
        os.close(_held.pop(used))
    alone = used not in _held
    if alone:
        descriptor = _open_lock(used)
        alone = try_lock(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[used] = descriptor
    os.utime(used)
    return alone


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _last_used(folder: Path) -> float:
    used = _beside(folder, "used")
    return used.stat().st_mtime if used.exists() else 0.0


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Whether no process uses a copy; as long as this lasts, none begins to."""
    descriptor = _open_lock(_beside(folder, "used"))
    try:
        unused = try_lock(descriptor)
        yield unused
        if unused:
            release_lock(descriptor)
    finally:
        os.close(descriptor)
