"""Checks every committed byte of a context against its checksum."""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from landmark.contexts import disk
from landmark.contexts.committed import check_committed, check_size, read_committed
from landmark.contexts.disk import Damage, Folder, OpenFile, Progress, damaged_records
from landmark.contexts.fields import Malformed
from landmark.contexts.manifest import SEGMENTS, Layout, Manifest, context_folder, read_manifest
from landmark.contexts.segments import Segment
from landmark.contexts.snapshot import Snapshot, open_segments, with_state
from landmark.contexts.state import check_state

MOST_DAMAGES = 1000  # then the rest is not looked at


def verify(path: Folder | str | Path, progress: Progress | None = None) -> list[Damage]:
    """All damage in the newest commit of the context in `path`; what is not committed is not read.

    Where there is very much, it ends after the first thousand and what was found with them.

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
        _check_state(manifest, state, check)
    with check.of((folder / SEGMENTS).path, 0):
        segments = open_segments(folder, manifest, lambda path: check.of(path, 0))
        _check_segments(segments, manifest.layout, check)
    return check.found


def check_snapshot(snapshot: Snapshot) -> None:
    """Raises the first Damage in any committed byte of an open snapshot."""
    check = _Check(snapshot.manifest.committed_bytes, None)
    _check_state(snapshot.manifest, snapshot.state_file, check)
    _check_segments(snapshot.segments, snapshot.layout, check)
    for damage in check.found:
        raise damage


def _check_segments(segments: Iterable[Segment], layout: Layout, check: "_Check") -> None:
    for segment in segments:
        if check.is_full:
            return
        _check_documents(segment, check)
        _check_blocks(segment, layout, check)


class _Check:
    """The damage found so far in `total` bytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.found: list[Damage] = []
        self._done = 0
        self._total = total
        self._progress = progress

    @property
    def is_full(self) -> bool:
        """Whether so much was found that the rest need not be looked at."""
        return len(self.found) >= MOST_DAMAGES

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


def _check_state(manifest: Manifest, state: OpenFile | None, check: _Check) -> None:
    """Checks the bytes of the state, and that it counts what the manifest counts."""
    if state is None or manifest.state is None:
        return
    with check.of(state.path, manifest.state.bytes):
        check_size(state, manifest.state.bytes, grows=False)
        data = read_committed(state, manifest.state)
        try:
            check_state(data, manifest)
        except Malformed as error:
            raise Damage(state.path, f"does not fit the manifest: {error}") from error


def _check_documents(segment: Segment, check: _Check) -> None:
    before = len(check.found)
    for kind, committed in segment.entry.committed.items():
        if kind not in segment.files:
            continue
        with check.of(segment.path(kind), committed.bytes):
            try:
                check_committed(segment.files[kind], committed)
            except Damage as whole:
                check.found += (_damaged_documents(segment) if kind == "text" else []) or [whole]
    if len(check.found) == before and segment.entry.committed.keys() <= segment.files.keys():
        _check_fit(segment, check)


def _check_fit(segment: Segment, check: _Check) -> None:
    """Checks files that are sound by themselves: documents, and parts of them, are those of the tokens and the text."""
    with check.of(segment.path("documents"), 0):
        segment.documents(0, 0)
    if segment.entry.parts is not None:
        with check.of(segment.path("parts"), 0):
            segment.parts().check()


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
            if check.is_full:
                return
            damaged = damaged_records(records)
            check.found += [segment.record_damage(start + record) for record in damaged.tolist()]
            if blocks is not None:
                for record in np.setdiff1d(np.arange(len(records)), damaged).tolist():
                    _check_block(segment, start + record, layout, blocks, records["blocks"][record].tolist(), check)


def _check_block(
    segment: Segment, record: int, layout: Layout, blocks: OpenFile, expected: list[int], check: _Check
) -> None:
    offset = record * layout.block_bytes
    for layer, (shape, crc32) in enumerate(zip(layout.stored, expected, strict=True)):
        with check.of(blocks.path, shape.nbytes):
            if zlib.crc32(blocks.read(shape.nbytes, offset)) != crc32:
                raise Damage(blocks.path, f"is damaged in block {segment.first + record}, layer {layer}")
        offset += shape.nbytes
