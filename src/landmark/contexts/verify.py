"""Checks every committed byte of a context against its checksum."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from landmark.contexts import disk
from landmark.contexts.disk import Damage, Folder, OpenFile, Progress, damaged_records
from landmark.contexts.manifest import SEGMENTS, Layout, Manifest, context_folder, read_manifest, segment_name
from landmark.contexts.segments import Segment, open_committed, read_committed
from landmark.contexts.snapshot import with_state


def verify(path: str | Path, progress: Progress | None = None) -> list[Damage]:
    """All damage in the newest commit of the context in `path`; what is not committed is not read.

    `progress` is called with the bytes checked so far and those of the whole commit. What the system cannot read counts
    as damage. Raises ValueError if `path` is no context, or one of another format version.
    """
    folder = context_folder(path)
    try:
        manifest = read_manifest(folder)
    except Damage as damage:
        return [damage]
    check = _Check(manifest.committed_bytes, progress)
    with check.of((folder / manifest.state_name).path, 0):
        manifest, state = with_state(folder, disk.open_file)
        if state is not None and manifest.state is not None:
            with check.of(state.path, manifest.state.bytes):
                read_committed(state, manifest.state)
    with check.of((folder / SEGMENTS).path, 0):
        for segment in _segments(folder, manifest, check):
            _check_documents(segment, check)
            _check_blocks(segment, manifest.layout, check)
    return check.found


def _segments(folder: Folder, manifest: Manifest, check: "_Check") -> Iterator[Segment]:
    """The segments one by one, each with the files that can be opened and are long enough."""
    segments = disk.open_inner(folder / SEGMENTS) if manifest.segments else folder
    for number, entry in enumerate(manifest.segments, start=1):
        files = {}
        for kind, size in entry.sizes(manifest.layout).items():
            place = segments / segment_name(number, kind)
            with check.of(place.path, 0):
                files[kind] = open_committed(place, size)
        yield Segment(number, entry, manifest.layout, files)


class _Check:
    """The damage found so far in `total` bytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.found: list[Damage] = []
        self._done = 0
        self._total = total
        self._progress = progress

    @contextmanager
    def of(self, path: Path, count: int) -> Iterator[None]:
        """Wraps the check of `count` bytes of a file: collects what it raises."""
        try:
            yield
        except Damage as damage:
            self.found.append(damage)
        except OSError as error:
            self.found.append(Damage(path, f"cannot be read ({error.strerror})"))
        self._done += count
        if self._progress is not None and count:
            self._progress(self._done, self._total)


def _check_documents(segment: Segment, check: _Check) -> None:
    for kind, committed in segment.entry.committed.items():
        if kind not in segment.files:
            continue
        with check.of(segment.path(kind), committed.bytes):
            try:
                read_committed(segment.files[kind], committed)
            except Damage as whole:
                check.found += (_damaged_documents(segment) if kind == "text" else []) or [whole]


def _damaged_documents(segment: Segment) -> list[Damage]:
    found = []
    try:
        for document in segment.documents(0, 0) if "documents" in segment.files else []:
            try:
                segment.text(document)
            except Damage as damage:
                found.append(damage)
    except (Damage, OSError):
        return []
    return found


def _check_blocks(segment: Segment, layout: Layout, check: _Check) -> None:
    """Checks landmark records, and the blocks of the sound ones, since these hold the checksums of the blocks."""
    blocks = segment.files.get("blocks")
    if "landmarks" not in segment.files:
        return
    with check.of(segment.path("landmarks"), segment.entry.sizes(layout)["landmarks"]):
        for start, records in segment.landmark_records():
            damaged = damaged_records(records)
            check.found += [segment.record_damage(start + record) for record in damaged.tolist()]
            if blocks is not None:
                for record in np.setdiff1d(np.arange(len(records)), damaged).tolist():
                    _check_block(segment, start + record, layout, blocks, records["blocks"][record].tolist(), check)


def _check_block(
    segment: Segment, record: int, layout: Layout, blocks: OpenFile, expected: list[int], check: _Check
) -> None:
    offset = record * layout.block_bytes
    for layer, (shape, crc32) in enumerate(zip(layout.blocks, expected, strict=True)):
        with check.of(blocks.path, shape.nbytes):
            if zlib.crc32(blocks.read(shape.nbytes, offset)) != crc32:
                raise Damage(blocks.path, f"is damaged in block {segment.first + record}, layer {layer}")
        offset += shape.nbytes
