"""Copies on this machine of collections that lie on another file system, within a budget of bytes.

A copy is the folder of a collection, so that everything opens it. Its unit is the whole document: a question needs the
landmark keys of all of them, and a block that had to come over a network would stop the token that wants it.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from landmark.contexts import disk
from landmark.contexts.collection_folder import check_member, is_whole
from landmark.contexts.collection_manifest import (
    DOCUMENTS,
    CollectionManifest,
    Member,
    publish_collection,
    read_collection,
)
from landmark.contexts.disk import Damage, Progress
from landmark.contexts.manifest import TOKEN, Layout
from landmark.contexts.remote_store import Store
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
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.resolve()


def member_bytes(member: Member, layout: Layout) -> int:
    """About how many bytes a document has on disk."""
    tokens = (layout.blocks[0].stride - 1) * TOKEN.itemsize
    return member.blocks * (layout.block_bytes + layout.landmark_record.itemsize + tokens) + member.bytes + _OTHER_BYTES


class Copy:
    """The copy of what lies at a URL. `changing` keeps other processes from changing it meanwhile."""

    def __init__(self, url: str) -> None:
        self.url = url
        readable = re.sub("[^A-Za-z0-9._-]+", "-", url)[-60:].lstrip("-.")
        self._cache = cache_folder()
        self.folder = self._cache / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        self._incoming = _beside(self.folder, "incoming")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Waits for other processes that change the copy. Afterwards it is in use until this process ends."""
        descriptor = _open_lock(_beside(self.folder, "lock"))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._hold()
            shutil.rmtree(self._incoming, ignore_errors=True)  # of a killed process
            (self.folder / DOCUMENTS).mkdir(mode=0o700, parents=True, exist_ok=True)
            yield
        finally:
            os.close(descriptor)

    def _hold(self) -> None:
        used = _beside(self.folder, "used")
        if used in _held and not used.exists():  # somebody deleted the cache
            os.close(_held.pop(used))
        if used not in _held:
            descriptor = _open_lock(used)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _held[used] = descriptor
        os.utime(used)

    def take(self, manifest: CollectionManifest) -> None:
        """Makes a manifest that was fetched that of the copy, and deletes documents that only the one before named."""
        before = self._manifest()
        if before != manifest:
            publish_collection(disk.open_folder(self.folder), manifest)
            held = () if before is None else before.members
            for key in {member.key for member in held} - {member.key for member in manifest.members}:
                _drop(self.folder, key)

    def _manifest(self) -> CollectionManifest | None:
        """That of the copy; None if there is none, or a damaged one, which the next replaces."""
        with suppress(ValueError):
            return read_collection(self.folder)
        return None

    def complete(self, store: Store, manifest: CollectionManifest, progress: Progress | None = None) -> None:
        """Fetches the documents that the copy lacks, or has a part of. Each is checked, every byte, before it counts.

        Raises ValueError for one that is damaged, and where the documents have more bytes than the cache may hold.
        """
        sizes = {member.key: member_bytes(member, manifest.layout) for member in manifest.members}
        missing = [one for one in manifest.members if not is_whole(self.folder / DOCUMENTS / one.key)]
        if not missing:
            return
        self._make_room(sum(sizes.values()), total := sum(sizes[member.key] for member in missing))
        done = 0
        for start in range(0, len(missing), _AT_ONCE):
            group = missing[start : start + _AT_ONCE]
            self._fetch(store, group, manifest)
            done += sum(sizes[member.key] for member in group)
            if progress is not None:
                progress(done, total)

    def _fetch(self, store: Store, members: Sequence[Member], manifest: CollectionManifest) -> None:
        self._incoming.mkdir(mode=0o700)
        try:
            store.get_documents([member.key for member in members], self._incoming)
            for member in members:
                folder = self._incoming / member.key
                for damage in verify(folder):
                    raise damage
                check_member(open_reader(folder), member, manifest)
            for member in members:
                _drop(self.folder, member.key)  # where a reading of it was given up
                (self._incoming / member.key).rename(self.folder / DOCUMENTS / member.key)
        except Damage as damage:
            name = damage.file.relative_to(self._incoming)
            raise ValueError(
                f"{self.url}/{DOCUMENTS}/{name} {damage.what}, and was not kept: upload the document again, or remove"
                " it and add its text"
            ) from damage
        finally:
            shutil.rmtree(self._incoming)

    def drop(self, key: str) -> None:
        """Deletes a document of the copy; other processes wait meanwhile, as for `changing`."""
        with self.changing():
            _drop(self.folder, key)

    def _make_room(self, size: int, wanted: int) -> None:
        """Deletes documents of copies that no process uses, those used least recently first, until `wanted` fit.

        `size` bytes are all that the collection has. Raises ValueError where that is not enough.
        """
        most = parse_bytes(BYTES, os.environ.get(BYTES) or DEFAULT_BYTES)
        if size > most:
            raise ValueError(
                f"{self.url} has {size:,} bytes, and {self._cache} may hold {most:,}: set {BYTES} to more, or open a"
                " smaller collection"
            )
        used = sum(disk_bytes(file) for file in files_below([self._cache]))
        others = [path for path in self._cache.iterdir() if path != self.folder and (path / DOCUMENTS).is_dir()]
        for path in sorted(others, key=_last_used):
            if used + wanted <= most:
                return
            with _unused(path) as unused:
                for document in sorted((path / DOCUMENTS).iterdir()) if unused else ():
                    if used + wanted > most:
                        used -= _drop(path, document.name)
        if used + wanted > most:
            raise ValueError(
                f"{self._cache} may hold {most:,} bytes, and collections that are in use leave too few of them for"
                f" {self.url}: set {BYTES} to more, or end these processes"
            )


def _drop(folder: Path, key: str) -> int:
    """Deletes a document of a copy, in one step; returns the bytes that come back."""
    gone = _beside(folder, "gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a killed process
    try:
        (folder / DOCUMENTS / key).rename(gone)
    except FileNotFoundError:
        return 0
    freed = sum(disk_bytes(file) for file in files_below([gone]) if file.st_nlink == 1)
    shutil.rmtree(gone)
    return freed


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
