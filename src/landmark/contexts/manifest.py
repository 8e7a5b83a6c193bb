"""The manifest: which bytes of which files are the context (docs/context_format.md)."""

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landmark.contexts import disk
from landmark.contexts.disk import Damage, Folder
from landmark.settings import current_names
from landmark.store.base import BlockShape

FORMAT = "landmark context"
VERSION = 2
READABLE = (1, 2)  # documents of version 1 have no SHA-256 and no parts

MANIFEST = "manifest.json"
NEW_MANIFEST = "manifest.json.tmp"
LOCK = "lock"
SEGMENTS = "segments"
TOKEN = np.dtype(("<u4", 3))  # id, start and stop character in its document
KINDS = ("blocks", "landmarks", "tokens", "text", "documents", "parts")

_FIRST_LINE = re.compile(rb'\{"crc32": "([0-9a-f]{8})",\n')
_BEGINNING = 4096  # bytes in which a manifest names its format


@dataclass(frozen=True)
class Layout:
    """Shapes of a block, layer by layer: of its keys and values, and `(Hkv, D)` of its landmark keys."""

    blocks: tuple[BlockShape, ...]
    landmarks: tuple[tuple[int, int], ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in all layers."""
        return sum(shape.nbytes for shape in self.blocks)

    @cached_property
    def landmark_record(self) -> np.dtype:
        """A landmark record: keys `[Hkv,D]` under each layer's number, checksums of the block's layers, and its own."""
        keys = [(str(layer), "<f4", shape) for layer, shape in enumerate(self.landmarks)]
        return np.dtype([*keys, ("blocks", "<u4", (len(self.blocks),)), ("crc32", "<u4")])


@dataclass(frozen=True)
class Committed:
    """The committed bytes of an append-only file, and their CRC-32."""

    bytes: int = 0
    crc32: int = 0


def extended(committed: Committed, data: bytes) -> Committed:
    """The same file after `data` was appended."""
    return Committed(committed.bytes + len(data), zlib.crc32(data, committed.crc32))


@dataclass(frozen=True)
class SegmentEntry:
    """The committed part of a segment. Only an `owned` one may grow: others are shared with the context of a fork."""

    first: int  # block
    blocks: int
    owned: bool
    tokens: Committed = Committed()
    text: Committed = Committed()
    documents: Committed = Committed()
    parts: Committed | None = Committed()  # None in segments of format version 1, which have no such file

    @property
    def token_count(self) -> int:
        """Number of tokens of its documents."""
        return self.tokens.bytes // TOKEN.itemsize

    @property
    def committed(self) -> dict[str, Committed]:
        """What is committed of the files that hold documents, by kind."""
        found = {"tokens": self.tokens, "text": self.text, "documents": self.documents}
        return found if self.parts is None else {**found, "parts": self.parts}

    def sizes(self, layout: Layout) -> dict[str, int]:
        """Committed bytes of each of the segment's files."""
        return {
            "blocks": self.blocks * layout.block_bytes,
            "landmarks": self.blocks * layout.landmark_record.itemsize,
            **{kind: file.bytes for kind, file in self.committed.items()},
        }


@dataclass(frozen=True)
class Manifest:
    """A commit of a context. `state` is None until the first commit."""

    generation: int
    header: dict[str, Any]
    layout: Layout
    segments: tuple[SegmentEntry, ...] = ()
    state: Committed | None = None

    @property
    def blocks(self) -> int:
        """Number of blocks in all segments."""
        return sum(segment.blocks for segment in self.segments)

    @property
    def committed_bytes(self) -> int:
        """Committed bytes of all files but the manifest."""
        state = self.state.bytes if self.state else 0
        return state + sum(sum(segment.sizes(self.layout).values()) for segment in self.segments)

    @property
    def token_count(self) -> int:
        """Number of tokens of all documents."""
        return sum(segment.token_count for segment in self.segments)

    @property
    def state_name(self) -> str:
        """Name of the state's file."""
        return state_name(self.generation)

    def to_bytes(self) -> bytes:
        """The file: a first line with the checksum of the rest; both together are one JSON object."""
        blocks = [[*shape[:-1], str(shape.dtype).removeprefix("torch.")] for shape in self.layout.blocks]
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "generation": self.generation,
            "blocks": blocks,
            "landmarks": self.layout.landmarks,
            "segments": [asdict(segment) for segment in self.segments],
            "state": self.state and asdict(self.state),
            "header": self.header,
        }
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in fields.items()]
        rest = (",\n".join(lines) + "}\n").encode()
        return b'{"crc32": "%08x",\n%s' % (zlib.crc32(rest), rest)


def state_name(generation: int) -> str:
    """Name of the file with the state of a commit."""
    return f"state-{generation}.safetensors"


def segment_name(number: int, kind: str) -> str:
    """Name of one of the files of a segment; segments are numbered from 1."""
    return f"{number:06}.{kind}"


def context_folder(path: Folder | str | Path) -> Folder:
    """The folder of a context, held open; ValueError if there is none."""
    if isinstance(path, Folder):
        return path
    try:
        return disk.open_folder(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} is not a context: it has no {MANIFEST}") from error


def read_manifest(folder: Folder | str | Path) -> Manifest:
    """The newest commit of the context in `folder`.

    Raises Damage if its manifest is damaged, and ValueError if there is none or if it has another format version.
    """
    place = context_folder(folder) / MANIFEST
    return _parse(manifest_bytes(place.folder), place.path)


def manifest_bytes(folder: Folder) -> bytes:
    """The file, not parsed; raises as `read_manifest` does where it cannot be read."""
    try:
        file = disk.open_file(folder / MANIFEST)
    except FileNotFoundError as error:
        raise ValueError(f"{folder.path} is not a context: it has no {MANIFEST}") from error
    return bytes(file.read(file.size))


def publish(folder: Folder | str | Path, manifest: Manifest, check: Callable[[], object] = lambda: None) -> bytes:
    """Makes `manifest` the newest commit, in one step: a reader finds the old one or the new one; returns the file.

    `check` is called right before that step and may raise.
    """
    new = context_folder(folder) / NEW_MANIFEST
    file, data = disk.create(new), manifest.to_bytes()
    disk.write(file, data, 0)
    disk.publish(file, new, new.folder / MANIFEST, check)
    return data


def has_manifest(folder: Folder | str | Path) -> bool:
    """Whether `folder` has the manifest of a context, even a damaged one."""
    try:
        file = disk.open_file(context_folder(folder) / MANIFEST)
    except (OSError, ValueError):
        return False
    return _is_manifest(bytes(file.read(min(file.size, _BEGINNING))))


def _is_manifest(data: bytes) -> bool:
    return _FIRST_LINE.match(data) is not None or FORMAT.encode() in data


def _parse(data: bytes, path: Path) -> Manifest:
    if not _is_manifest(data):
        raise ValueError(f"{path} is not the manifest of a context; give the folder that a context was saved to")
    first = _FIRST_LINE.match(data)
    if first is None or int(first[1], 16) != zlib.crc32(data[first.end() :]):
        raise Damage(path, "is damaged: its checksum does not fit")
    fields = json.loads(data)
    if fields["version"] not in READABLE:
        age, nearest = ("newer", READABLE[-1]) if fields["version"] > VERSION else ("older", READABLE[0])
        raise ValueError(
            f"{path} has format version {fields['version']}, {age} than {nearest}, which this program reads: "
            f"use the version of the package that wrote it, or read the text again"
        )
    return Manifest(
        generation=fields["generation"],
        header=_current_header(fields["header"]),
        layout=Layout(tuple(map(_shape, fields["blocks"])), tuple((h, d) for h, d in fields["landmarks"])),
        segments=tuple(map(_segment, fields["segments"])),
        state=fields["state"] and Committed(**fields["state"]),
    )


def _shape(fields: Sequence[Any]) -> BlockShape:
    *sizes, dtype = fields
    return BlockShape(*sizes, dtype=getattr(torch, dtype))


def _segment(fields: dict[str, Any]) -> SegmentEntry:
    files = {kind: Committed(**fields[kind]) for kind in ("tokens", "text", "documents")}
    parts = fields.get("parts")
    return SegmentEntry(
        fields["first"], fields["blocks"], fields["owned"], **files, parts=None if parts is None else Committed(**parts)
    )


def _current_header(header: dict[str, Any]) -> dict[str, Any]:
    """A header of this release or an earlier one, its settings under the names of today."""
    return {name: current_names(value) if name == "settings" else value for name, value in header.items()}
