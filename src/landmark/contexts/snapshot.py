"""A snapshot: one commit of a context, for reading."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from landmark.contexts.disk import Damage, OpenFile, damaged_records
from landmark.contexts.manifest import Layout, Manifest, read_manifest
from landmark.contexts.segments import Document, Segment, read_committed

Taken = TypeVar("Taken")

_METADATA = "metadata"  # the state's one entry in the metadata that safetensors allows: JSON


class Snapshot:
    """A commit of the context in `path`. It does not change, whatever a writer does meanwhile."""

    def __init__(self, path: Path, manifest: Manifest, state_file: OpenFile | None, segments: list[Segment]) -> None:
        self.path = path
        self.manifest = manifest
        self.segments = segments
        self.state_file = state_file

    def frozen(self) -> "Snapshot":
        """This commit alone, also where a writer goes on to later ones."""
        return Snapshot(self.path, self.manifest, self.state_file, list(self.segments))

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


def open_reader(path: str | Path) -> Snapshot:
    """The newest commit of the context in `path`; needs no lock and changes nothing.

    Raises ValueError if `path` is no context or one of another format version, and Damage, which is a ValueError too,
    if its manifest is damaged, or a file is missing or cut short.
    """
    path = Path(path)
    manifest, state = with_state(path, OpenFile)
    segments = segments_of(path, manifest)
    for segment in segments:
        for damage in segment.missing_files():
            raise damage
    return Snapshot(path, manifest, state, segments)


def segments_of(path: Path, manifest: Manifest) -> list[Segment]:
    """The segments of the context in `path`; no file is opened."""
    return [Segment(path, number, entry, manifest.layout) for number, entry in enumerate(manifest.segments, start=1)]


def with_state(path: Path, take: Callable[[Path], Taken]) -> tuple[Manifest, Taken | None]:
    """The newest manifest, and what `take` returns for its state's file (None before the first commit).

    A commit removes the state of the one before. So a missing state means a newer manifest, or Damage if there is none.
    """
    manifest = read_manifest(path)
    while manifest.state is not None:
        state = path / manifest.state_name
        try:
            return manifest, take(state)
        except FileNotFoundError as error:
            newer = read_manifest(path)
            if newer.generation == manifest.generation:
                raise Damage(state, "is missing") from error
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
