"""Export of a context: one tar file of what is committed, which is a context where it is unpacked."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from landmark.contexts import disk
from landmark.contexts.disk import OpenFile, Progress
from landmark.contexts.manifest import MANIFEST, SEGMENTS
from landmark.contexts.snapshot import Snapshot, open_reader
from landmark.files import unfinished

_COPY_BYTES = 1 << 20


def export(path: str | Path, file: str | Path, progress: Progress | None = None) -> None:
    """Writes the newest commit of the context in `path` to `file`: a tar of one folder with the context's name.

    `progress` is called with the bytes written so far and those of the whole commit. Until the tar is whole its
    name ends in .tmp. Raises ValueError if `path` is no sound context or if `file` exists, and OSError if it
    cannot be written.
    """
    path, file = Path(path), Path(file)
    partial = unfinished(file)
    for taken in (file, partial):
        if taken.exists():
            raise ValueError(f"{taken} exists: give another file, or delete it first")
    snapshot = open_reader(path)
    sink = _Sink(disk.create(partial))
    try:
        with tarfile.TarFile(fileobj=cast(IO[bytes], sink), mode="w", copybufsize=_COPY_BYTES) as tar:
            _fill(tar, snapshot, progress)
        disk.publish(sink.file, file)
    except OSError:
        with suppress(OSError):  # the first error is the one to report
            disk.remove(partial)
        raise


def _fill(tar: tarfile.TarFile, snapshot: Snapshot, progress: Progress | None) -> None:
    name = snapshot.path.resolve().name
    segments = tarfile.TarInfo(f"{name}/{SEGMENTS}")
    segments.type, segments.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(segments)
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, snapshot.manifest.committed_bytes)

    for part, file, size in _committed(snapshot):
        tar.addfile(_entry(f"{name}/{part}", size), _Source(file, advance))
    manifest = snapshot.manifest.to_bytes()
    tar.addfile(_entry(f"{name}/{MANIFEST}", len(manifest)), io.BytesIO(manifest))


def _committed(snapshot: Snapshot) -> Iterator[tuple[str, OpenFile, int]]:
    """Files with committed bytes: the name in the folder, the file, and the number of bytes."""
    for segment in snapshot.segments:
        for kind, size in segment.entry.sizes(snapshot.layout).items():
            path = segment.path(kind)
            yield f"{SEGMENTS}/{path.name}", OpenFile(path), size
    if snapshot.state_file is not None and snapshot.manifest.state is not None:
        yield snapshot.manifest.state_name, snapshot.state_file, snapshot.manifest.state.bytes


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
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
