"""A snapshot: one commit of a context, for reading."""

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from landmark.contexts import disk
from landmark.contexts.committed import check_size, map_committed, open_committed
from landmark.contexts.disk import Damage, Folder, OpenFile, Place, damaged_records
from landmark.contexts.fields import Malformed
from landmark.contexts.key_file import mapped_keys
from landmark.contexts.manifest import (
    MANIFEST,
    SEGMENTS,
    Layout,
    Manifest,
    context_folder,
    read_manifest,
    segment_name,
)
from landmark.contexts.segments import Document, Segment
from landmark.contexts.state import decode_state

Taken = TypeVar("Taken")


class Snapshot:
    """A commit of the context in `folder`. It does not change, whatever a writer does meanwhile.

    Its files are open as long as it is, so that it can be read to the end where the context is deleted.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, state_file: OpenFile | None, segments: list[Segment]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.segments = segments
        self.state_file = state_file
        self.checks_landmarks = True

    @classmethod
    def empty(cls, folder: Folder, header: dict[str, Any], layout: Layout) -> "Snapshot":
        """What a context in `folder` begins with: no documents, and no files yet."""
        return cls(folder, Manifest(0, header, layout), None, [])

    def frozen(self) -> "Snapshot":
        """This commit alone, also where a writer goes on to later ones."""
        return Snapshot(self.folder, self.manifest, self.state_file, list(self.segments))

    @property
    def path(self) -> Path:
        """The folder's path when it was opened."""
        return self.folder.path

    @property
    def header(self) -> dict[str, Any]:
        """The JSON object given when the context was created: model, tokenizer, settings."""
        return self.manifest.header

    @property
    def layout(self) -> Layout:
        """Shapes of blocks and landmark keys."""
        return self.manifest.layout

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.manifest.blocks

    def documents(self) -> list[Document]:
        """The documents in the order in which they were added; Damage if their records are damaged."""
        found: list[Document] = []
        for index, segment in enumerate(self.segments):
            first_token = found[-1].first_token + found[-1].tokens if found else 0
            found += segment.documents(index, first_token)
        return found

    def text(self, document: Document) -> str:
        """A document's text; Damage if it is damaged."""
        return self.segments[document.segment].text(document)

    def landmark_buffers(self) -> list[Tensor]:
        """Landmark keys of every layer, float32 `[Hkv,capacity,D]`: of all blocks, and room for more of them.

        Pages of the key file that processes share, as far as it has the same keys, until something is written to them:
        then they are private. All layers at once, since a record holds them all. Raises Damage if a record is damaged,
        unless that is not to be checked.
        """
        keys = mapped_keys(self.folder, self.layout, self.blocks)
        write = np.copyto if keys is None else _make_equal
        if keys is None:
            keys = [np.empty((heads, self.blocks, width), np.float32) for heads, width in self.layout.landmarks]
        for first, records in self.landmark_records():
            for layer, out in enumerate(keys):
                write(out[:, first : first + len(records)], records[str(layer)].swapaxes(0, 1))
        with torch.inference_mode(False):  # so that they stay writable
            return [torch.from_numpy(out) for out in keys]

    def landmark_records(self) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces of all landmark records, checked, with the number of the first block of each; raises Damage."""
        for segment in self.segments:
            for start, records in segment.landmark_records():
                for record in damaged_records(records).tolist() if self.checks_landmarks else ():
                    raise segment.record_damage(start + record)
                yield segment.first + start, records

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Tensors and metadata of the commit, empty before the first. Processes share what is not written to.

        Raises Damage if they are damaged, or count other blocks or tokens than the manifest.
        """
        if self.state_file is None or self.manifest.state is None:
            return {}, {}
        data = map_committed(self.state_file, self.manifest.state)
        try:
            return decode_state(data, self.manifest)
        except Malformed as error:
            raise Damage(self.state_file.path, f"does not fit the manifest: {error}") from error


def open_reader(path: Folder | str | Path) -> Snapshot:
    """The newest commit of the context in `path`; needs no lock and changes nothing.

    Raises ValueError if `path` is no context or one of another format version, or has more files than the process may
    open, and Damage, which is a ValueError too, if its manifest is damaged, or a file is missing, no regular file, or
    has another size than was committed.
    """
    folder = context_folder(path)
    try:
        manifest, state = with_state(folder, disk.open_file)
        if state is not None and manifest.state is not None:
            check_size(state, manifest.state.bytes, grows=False)
        return Snapshot(folder, manifest, state, list(open_segments(folder, manifest)))
    except Damage:
        if (folder / MANIFEST).stat() is None:
            raise ValueError(f"{folder.path} was deleted while it was opened: give another context") from None
        raise
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise ValueError(
            f"{folder.path} has more files than this process may hold open: raise the limit (`ulimit -n`), or close "
            f"other contexts"
        ) from error


def open_segments(
    folder: Folder, manifest: Manifest, opening: Callable[[Path], AbstractContextManager[None]] = nullcontext
) -> Iterator[Segment]:
    """The segments of a context one by one; Damage if a file is missing, no regular file, or of another size.

    Each file is opened within `opening` of its path; a segment lacks those whose error that holds back.
    """
    if not manifest.segments:
        return
    segments = disk.open_inner(folder / SEGMENTS)
    for number, entry in enumerate(manifest.segments, start=1):
        grows, files = manifest.grows(number), {}
        for kind, size in entry.sizes(manifest.layout).items():
            place = segments / segment_name(number, kind)
            with opening(place.path):
                files[kind] = open_committed(place, size, grows=grows)
        yield Segment(number, entry, manifest.layout, files)


def with_state(folder: Folder, take: Callable[[Place], Taken]) -> tuple[Manifest, Taken | None]:
    """The newest manifest, and what `take` returns for its state's file (None before the first commit).

    A commit removes the state of the one before. So a missing state means a newer manifest, or Damage if there is none.
    """
    manifest = read_manifest(folder)
    while manifest.state is not None:
        state = folder / manifest.state_name
        try:
            return manifest, take(state)
        except FileNotFoundError as error:
            newer = read_manifest(folder)
            if newer.generation == manifest.generation:
                raise Damage(state.path, "is missing") from error
            manifest = newer
    return manifest, None


def _make_equal(keys: np.ndarray, wanted: np.ndarray) -> None:
    """Makes mapped `keys [Hkv,m,D]` the `wanted` ones, bit for bit; a page of equal keys is not written to."""
    differ = (keys.view(np.uint32) != wanted.view(np.uint32)).any(-1)
    if differ.any():
        keys[differ] = wanted[differ]
