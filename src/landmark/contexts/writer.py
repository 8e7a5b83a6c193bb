"""The one writer of a context: what it adds counts from its next commit on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from landmark.contexts import disk
from landmark.contexts.collection_manifest import is_collection
from landmark.contexts.disk import Folder
from landmark.contexts.folder import creating, stray_files
from landmark.contexts.growing import GrowingBlocks, GrowingSegment, Guard, grown_files, new_files
from landmark.contexts.key_file import update_keys
from landmark.contexts.lock import WriterLock, not_alone, take_lock
from landmark.contexts.manifest import (
    MOST_SEGMENTS,
    SEGMENTS,
    TOKEN,
    Committed,
    Layout,
    SegmentEntry,
    check_header,
    context_folder,
    extended,
    manifest_bytes,
    publish,
    read_manifest,
    state_name,
    to_json,
)
from landmark.contexts.segments import Document, Segment, document_line, parts_of
from landmark.contexts.snapshot import Snapshot, open_reader
from landmark.contexts.state import encode_state

SEGMENT_BYTES = 1 << 30  # of blocks; the commit that reaches it closes the segment


def create(path: str | Path, header: Mapping[str, Any], layout: Layout) -> "Writer":
    """Makes an empty context in `path` for blocks of this `layout`; `header` is any JSON object of the caller.

    Raises ValueError if `path` exists, if `header` is no JSON that a manifest can hold, or if `layout` has no layers.
    """
    if not layout.blocks or len(layout.blocks) != len(layout.landmarks):
        raise ValueError(
            f"a context needs the shapes of blocks and landmark keys of each layer, not of {len(layout.blocks)} and "
            f"{len(layout.landmarks)} layers"
        )
    kept = json.loads(to_json(dict(header), "the header"))
    check_header(kept)
    with creating(path) as lock:
        snapshot = Snapshot.empty(lock.folder, kept, layout)
        known = publish(lock.folder, snapshot.manifest)
    return Writer(snapshot, lock, known)


def open_writer(path: Folder | str | Path) -> "Writer":
    """Opens the context in `path` to append to it; what a crash left behind its last commit is removed.

    Raises ValueError where `open_reader` does, and if another writer has it open or it may not be written.
    """
    folder = context_folder(path)
    if is_collection(folder):
        raise ValueError(f"{folder.path} is a collection: add documents with `landmark add` or landmark.Collection")
    read_manifest(folder)  # before a lock is made where there is no context
    lock = take_lock(folder)
    try:
        # A rename not yet on the device could be taken back, and the files of the commit before be needed again.
        disk.sync_folder(folder)
        known, snapshot = manifest_bytes(folder), open_reader(folder)
        for stray in stray_files(folder, snapshot.manifest):
            disk.remove(stray)
        return Writer(snapshot, lock, known)
    except BaseException:
        lock.close()
        raise


class BlockTarget:
    """Implements `landmark.store.files.ExtentTarget`: new blocks of one layer, in the segment that grows now."""

    def __init__(self, writer: "Writer", layer: int) -> None:
        self.layer = layer
        self._writer = writer

    @property
    def file(self) -> GrowingBlocks:
        """The blocks of the segment that grows now."""
        return self._writer.growing().blocks

    def allocate(self, number: int, count: int) -> int:
        """Allocates records from block `number` on; ValueError unless they follow the layer's last."""
        return self._writer.growing().allocate(self.layer, number, count)


class Writer(Snapshot):
    """The newest commit, as a Snapshot, and what is added to it. Made by `create` and `open_writer`.

    A change that fails raises its OSError. After that every further change is a ValueError, and the context on disk is
    as it was committed last. Not for several threads.
    """

    def __init__(self, snapshot: Snapshot, lock: WriterLock, known: bytes) -> None:
        super().__init__(snapshot.folder, snapshot.manifest, snapshot.state_file, snapshot.segments)
        self._lock = lock
        self._known = known  # the manifest's file
        self._segments_folder = disk.open_inner(self.folder / SEGMENTS)
        self._guard = Guard(self.path)
        self._index_states: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        self._growing: GrowingSegment | None = None
        if self.segments and self._may_grow(self.segments[-1].entry):
            number, entry = self.segments[-1].number, self.segments[-1].entry
            files = grown_files(self._segments_folder, number, entry, self.layout)
            if files is None:
                self.segments[-1] = Segment(number, replace(entry, owned=False), self.layout, self.segments[-1].files)
            else:
                self._growing = GrowingSegment(number, entry, self.layout, files, self._guard)
                self.segments[-1] = Segment(number, entry, self.layout, files, self._growing.blocks)

    def add_document(self, name: str, text: str, ids: ArrayLike, offsets: ArrayLike, source: str | None = None) -> None:
        """Adds a document: the ids of its tokens `[n]` and their start and stop characters in `text`, `[n,2]`.

        Raises ValueError if these do not fit each other, and OSError if they cannot be written.
        """
        tokens = _token_records(name, text, ids, offsets)
        line = document_line(Document.of(name, text, len(tokens), source))
        growing = self.growing()
        with self._guard.changing():
            byte = growing.append("text", text.encode())
            token = growing.append("tokens", tokens.tobytes()) // TOKEN.itemsize
            line_start = growing.append("documents", line)
            parts = parts_of(text, tokens, line, token=token, byte=byte, line_start=line_start)
            growing.append("parts", parts.tobytes())

    def target(self, layer: int) -> BlockTarget:
        """The target for new blocks of a layer."""
        return BlockTarget(self, layer)

    def append_landmarks(self, layer: int, keys: Tensor) -> None:
        """Adds the landmark keys `[Hkv,m,D]`, float32, of a layer's next m blocks; ValueError for other shapes."""
        heads, width = self.layout.landmarks[layer]
        if keys.ndim != 3 or (keys.shape[0], keys.shape[2]) != (heads, width) or keys.dtype != torch.float32:
            raise ValueError(
                f"landmark keys of layer {layer} are float32 [{heads},m,{width}], not {keys.dtype} {list(keys.shape)}"
            )
        self.growing().append_landmarks(layer, keys)

    def save_index_state(self, prefix: str, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Lets every commit call `tensors` and save the result in its state, with `prefix` before each name."""
        self._index_states[prefix] = tensors

    def commit(self, tensors: Mapping[str, Tensor], metadata: Any) -> None:
        """Commits what was added, with this state: once it returns, no crash takes it away.

        Raises ValueError, and changes nothing, if the layers differ in their number of blocks, if `metadata` is no
        JSON, or if this is not the context's one writer any more: its lock or folder was deleted or replaced, or
        another writer made a commit. Raises OSError if the system refuses a step: then the commit before still is the
        newest, unless the refusal came after the new manifest was in place.
        """
        self._guard.check()
        if self._growing is not None:
            self._growing.new_blocks()
        index = {prefix + name: x for prefix, state in self._index_states.items() for name, x in state().items()}
        data = encode_state({**tensors, **index}, metadata)
        with self._guard.changing():
            self._commit(data)

    def close(self) -> None:
        """Releases the lock. What is not committed is lost; blocks that are still referred to can be read."""
        self._guard.close()
        if self._growing is not None:
            self._growing.release()
        self._lock.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def growing(self) -> GrowingSegment:
        """The segment that is appended to, a new one if need be; ValueError if nothing may be added any more."""
        self._guard.check()
        if self._growing is None:
            if len(self.segments) == MOST_SEGMENTS:
                raise ValueError(
                    f"{self.path} has {MOST_SEGMENTS} segments, the most there can be: make another context"
                )
            number, entry = len(self.segments) + 1, SegmentEntry(self.blocks, 0, owned=True)
            with self._guard.changing():
                self._check_alone()
                files = new_files(self._segments_folder, number, entry, self.layout)
                self._growing = GrowingSegment(number, entry, self.layout, files, self._guard)
        return self._growing

    def _check_alone(self) -> None:
        """Raises ValueError unless the folder, the lock, the growing files and the newest commit are this writer's."""
        self._lock.check()
        try:
            newest = manifest_bytes(self.folder)
        except ValueError as error:
            raise not_alone(f"{self.path} lost its manifest") from error
        if newest != self._known:
            raise not_alone(f"{self.path} got a commit of another writer")
        places = [(self.folder / SEGMENTS, self._segments_folder)]
        if self._growing is not None:
            places += [(self._segments_folder / file.path.name, file) for file in self._growing.files.values()]
        for place, held in places:
            if not place.holds(held):
                raise not_alone(f"{place.path} was moved, replaced or deleted")

    def _commit(self, state: bytes) -> None:
        self._check_alone()
        segments, growing = list(self.segments), self._growing
        if growing is not None:
            entry = growing.commit()
            disk.sync_folder(self._segments_folder)
            segments[growing.number - 1 :] = [
                Segment(growing.number, entry, self.layout, growing.files, growing.blocks)
            ]
        before = self.manifest
        generation = before.generation + 1
        state_file = disk.create(self.folder / state_name(generation), disk.OTHERS_READ)
        disk.write(state_file, state, 0)
        disk.sync(state_file)
        entries = tuple(segment.entry for segment in segments)
        manifest = replace(before, generation=generation, segments=entries, state=extended(Committed(), state))
        self._known = publish(self.folder, manifest, self._check_alone)
        self.manifest, self.segments, self.state_file = manifest, segments, state_file
        if growing is not None and self._is_full(segments[-1].entry):
            growing.release()
            self._growing = None
        if before.state is not None:
            disk.remove(self.folder / before.state_name)
        update_keys(self.folder, self.layout, self.blocks, self.landmark_records())

    def _may_grow(self, entry: SegmentEntry) -> bool:
        return entry.owned and entry.parts is not None and not self._is_full(entry)

    def _is_full(self, entry: SegmentEntry) -> bool:
        return entry.blocks * self.layout.block_bytes >= SEGMENT_BYTES


def _token_records(name: str, text: str, ids: ArrayLike, offsets: ArrayLike) -> np.ndarray:
    """Id, start and stop of each token, uint32 `[n,3]`."""
    numbers, spans = np.asarray(ids, np.int64), np.asarray(offsets, np.int64).reshape(-1, 2)
    if numbers.ndim != 1 or len(numbers) != len(spans):
        raise ValueError(
            f"document {name!r} has ids {list(numbers.shape)} and offsets {list(spans.shape)}: [n] and [n,2]"
        )
    records = np.column_stack((numbers, spans))
    if records.size and (records.min() < 0 or numbers.max() >= 2**32 or spans.max() > len(text)):
        raise ValueError(
            f"document {name!r} has an id or an offset out of range: offsets lie in its {len(text)} characters"
        )
    return records.astype("<u4")
