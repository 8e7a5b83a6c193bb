"""A snapshot: one commit of a context, for reading."""

import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from landmark.contexts import disk
from landmark.contexts.disk import Damage, Folder, OpenFile, Place, damaged_records
from landmark.contexts.manifest import (
    SEGMENTS,
    Layout,
    Manifest,
    context_folder,
    read_manifest,
    segment_name,
)
from landmark.contexts.segments import Document, Segment, open_committed, read_committed

Taken = TypeVar("Taken")

_METADATA = "metadata"  # the state's one entry in the metadata that safetensors allows: JSON


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

    def tokens(self) -> np.ndarray:
        """Id, start and stop character in its document of every token, uint32 `[n,3]`; Damage if they are damaged."""
        return np.concatenate([np.empty((0, 3), np.uint32), *(segment.tokens() for segment in self.segments)])

    def text(self, document: Document) -> str:
        """A document's text; Damage if it is damaged."""
        return self.segments[document.segment].text(document)

    def landmarks(self) -> list[Tensor]:
        """Landmark keys of every layer, float32 `[Hkv,n,D]`.

        All layers at once, since a record holds them all. Raises Damage if a record is damaged.
        """
        keys = [np.empty((heads, self.blocks, width), np.float32) for heads, width in self.layout.landmarks]
        for segment in self.segments:
            for start, records in segment.landmark_records():
                for record in damaged_records(records).tolist():
                    raise segment.record_damage(start + record)
                begin = segment.first + start
                for layer, out in enumerate(keys):
                    out[:, begin : begin + len(records)] = records[str(layer)].swapaxes(0, 1)
        return [torch.from_numpy(out) for out in keys]

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Tensors and metadata of the commit, empty before the first; Damage if they are damaged."""
        if self.state_file is None or self.manifest.state is None:
            return {}, {}
        return decode_state(bytes(read_committed(self.state_file, self.manifest.state)))


def open_reader(path: Folder | str | Path) -> Snapshot:
    """The newest commit of the context in `path`; needs no lock and changes nothing.

    Raises ValueError if `path` is no context or one of another format version, or has more files than the process may
    open, and Damage, which is a ValueError too, if its manifest is damaged, or a file is missing, cut short or no
    regular file.
    """
    folder = context_folder(path)
    try:
        manifest, state = with_state(folder, disk.open_file)
        return Snapshot(folder, manifest, state, _open_segments(folder, manifest))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise ValueError(
            f"{folder.path} has more files than this process may hold open: raise the limit (`ulimit -n`), or close "
            f"other contexts"
        ) from error


def _open_segments(folder: Folder, manifest: Manifest) -> list[Segment]:
    """The segments of a context; Damage if a file is missing, cut short or no regular file."""
    if not manifest.segments:
        return []
    segments, found = disk.open_inner(folder / SEGMENTS), []
    for number, entry in enumerate(manifest.segments, start=1):
        sizes = entry.sizes(manifest.layout)
        files = {kind: open_committed(segments / segment_name(number, kind), size) for kind, size in sizes.items()}
        found.append(Segment(number, entry, manifest.layout, files))
    return found


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


def encode_state(tensors: Mapping[str, Tensor], metadata: Any) -> bytes:
    """The file of a state: safetensors. Raises ValueError if `metadata` has no JSON form."""
    # Copies, because safetensors refuses tensors that share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(copies, {_METADATA: to_json(metadata, "the state's metadata")})


def decode_state(data: bytes) -> tuple[dict[str, Tensor], Any]:
    """The tensors and metadata of a state's file."""
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    return safetensors.torch.load(data), json.loads(header["__metadata__"][_METADATA])


def to_json(value: Any, what: str) -> str:
    """JSON text of `value`; ValueError that names it as `what` if it has none."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from error
