"""Export of a context: one tar file of what is committed, which is a context where it is unpacked."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, cast

from landmark.contexts import disk
from landmark.contexts.collection_manifest import is_collection
from landmark.contexts.disk import Damage, OpenFile, Place, Progress
from landmark.contexts.folder import check_outside
from landmark.contexts.key_file import open_keys
from landmark.contexts.manifest import KEYS, MANIFEST, SEGMENTS
from landmark.contexts.snapshot import Snapshot, open_reader
from landmark.files import try_lock, unfinished

_COPY_BYTES = 1 << 20


def export(path: str | Path, file: str | Path, progress: Progress | None = None) -> None:
    """Writes the newest commit of the context in `path` to `file`: a tar of one folder with the context's name.

    `progress` is called with the bytes written so far and those of the whole commit. Until the tar is whole its
    name ends in .tmp; what a killed export of the same context left there is written anew. The tar and what is in it
    have no more permissions than the folder. Raises ValueError if `path` is no sound context, or if `file` exists or
    lies in a context, and OSError if it cannot be written.
    """
    file = Path(file)
    check_outside(file)
    folder = disk.open_folder(file.parent)
    place, partial = folder / file.name, folder / unfinished(file).name
    if place.stat() is not None:
        raise _taken(place)
    if is_collection(path):
        raise ValueError(f"{path} is a collection: pack its folder with tar, while nobody writes to it")
    snapshot = open_reader(path)
    with closing(_opened(partial, snapshot)) as target:
        if not try_lock(target.descriptor):
            raise ValueError(f"{partial.path} is being written by another export: wait for it, or give another file")
        try:
            disk.truncate(target, 0)
            sink = cast(IO[bytes], _Sink(target))
            with tarfile.TarFile(fileobj=sink, mode="w", copybufsize=_COPY_BYTES) as tar:
                _fill(tar, snapshot, progress)
            disk.publish(target, partial, place)
        except OSError:
            with suppress(OSError):  # the first error is the one to report
                disk.remove(partial)
            raise


def _opened(place: Place, snapshot: Snapshot) -> OpenFile:
    """The file to write to: a new one, or that of an export of the context which was killed."""
    try:
        return disk.create(place, snapshot.folder.mode)
    except FileExistsError:
        pass
    try:
        file = disk.open_or_create(place)
    except Damage as error:
        raise _taken(place) from error
    header = _folder_entries(snapshot)[0].tobuf()
    if file.names > 1 or not header.startswith(file.read(min(file.size, len(header)))):
        raise _taken(place)
    return file


def _taken(place: Place) -> ValueError:
    return ValueError(f"{place.path} exists: give another file, or delete it first")


def _fill(tar: tarfile.TarFile, snapshot: Snapshot, progress: Progress | None) -> None:
    for folder in _folder_entries(snapshot):
        tar.addfile(folder)
    name, mode, written = _name(snapshot), snapshot.folder.mode, 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, snapshot.manifest.committed_bytes)

    for part, file, size in _committed(snapshot):
        tar.addfile(_entry(f"{name}/{part}", file.mode & mode, size), _Source(file, advance))
    keys = open_keys(snapshot.folder, snapshot.layout, snapshot.blocks)
    if keys is not None:
        tar.addfile(_entry(f"{name}/{KEYS}", keys.mode & mode, keys.size), _Source(keys, lambda count: None))
    manifest = snapshot.manifest.to_bytes()
    tar.addfile(_entry(f"{name}/{MANIFEST}", 0o666 & mode, len(manifest)), io.BytesIO(manifest))


def _name(snapshot: Snapshot) -> str:
    return snapshot.path.resolve().name


def _folder_entries(snapshot: Snapshot) -> list[tarfile.TarInfo]:
    """The context's folder, and the one of its segments."""
    name = _name(snapshot)
    entries = [_entry(folder, snapshot.folder.mode) for folder in (name, f"{name}/{SEGMENTS}")]
    for entry in entries:
        entry.type = tarfile.DIRTYPE
    return entries


def _committed(snapshot: Snapshot) -> Iterator[tuple[str, OpenFile, int]]:
    """Files with committed bytes: the name in the folder, the file, and the number of bytes."""
    for segment in snapshot.segments:
        for kind, size in segment.entry.sizes(snapshot.layout).items():
            yield f"{SEGMENTS}/{segment.path(kind).name}", segment.files[kind], size
    if snapshot.state_file is not None and snapshot.manifest.state is not None:
        yield snapshot.manifest.state_name, snapshot.state_file, snapshot.manifest.state.bytes


def _entry(name: str, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size = mode, size
    return entry


class _Source(io.RawIOBase):
    """A file that tarfile reads from its start on."""

    def __init__(self, file: OpenFile, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self._offset = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size, self._offset)
        self._offset += size
        self._advance(size)
        return bytes(data)


class _Sink(io.RawIOBase):
    """A file that tarfile writes from its start on."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self._length = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        disk.write(self.file, data, self._length)
        self._length += len(data)
        return len(data)

    def tell(self) -> int:
        return self._length
