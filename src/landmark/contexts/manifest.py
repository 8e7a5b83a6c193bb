"""The manifest: which bytes of which files are the context (docs/context_format.md)."""

import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landmark.contexts import disk, fields
from landmark.contexts.disk import Damage, Folder
from landmark.contexts.fields import Malformed
from landmark.settings import KvDtype, current_names
from landmark.store.base import BlockShape
from landmark.store.int8 import packed_shape

FORMAT = "landmark context"
VERSION = 2
VERSION_INT8 = 3  # with a `kv_dtype`, and otherwise as version 2
READABLE = (1, 2, 3)  # documents of version 1 have no SHA-256 and no parts

# Limits of what is parsed, far above what is written: nothing is allocated by what a damaged file says.
MOST_BYTES = 8 << 20  # of a manifest
MOST_SEGMENTS = 16_384  # 16 TiB of blocks
_MOST_LAYERS = 4096
_MOST_HEADS = 2**16
_MOST_WIDTH = 2**16  # of a key or value
_MOST_STRIDE = 2**24
_MOST_RECORD_BYTES = 64 << 20  # the landmark keys of one block
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

MANIFEST = "manifest.json"
NEW_MANIFEST = "manifest.json.tmp"
LOCK = "lock"
SEGMENTS = "segments"
KEYS = "landmark-keys.f32"  # see `key_file`
NEW_KEYS = "landmark-keys.tmp"
TOKEN = np.dtype(("<u4", 3))  # id, start and stop character in its document
# A part is up to 1,024 tokens of one document, and the text from the first of them to the first of the next part. The
# record holds where it begins in the files of the segment, and the checksums of what it covers.
PART = np.dtype(
    [
        ("token", "<u8"),  # of the segment
        ("byte", "<u8"),  # of the segment's text
        ("character", "<u8"),  # of the document
        ("line", "<u8"),  # byte where the document's line begins
        ("line_bytes", "<u4"),
        ("line_crc32", "<u4"),
        ("text_crc32", "<u4"),
        ("tokens_crc32", "<u4"),
        ("crc32", "<u4"),
    ]
)
_KV_DTYPES: dict[str, KvDtype] = {"int8": "int8"}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}
KINDS = ("blocks", "landmarks", "tokens", "text", "documents", "parts")

_FIRST_LINE = re.compile(rb'\{"crc32": "([0-9a-f]{8})",\n')
_BEGINNING = 4096  # bytes in which a manifest names its format
_FIELDS = ("crc32", "format", "version", "generation", "blocks", "landmarks", "segments", "state", "header")
OPTIONAL = ("kv_dtype",)


@dataclass(frozen=True)
class Layout:
    """Shapes of a block, layer by layer: of its keys and values, and `(Hkv, D)` of its landmark keys.

    Keys and values are kept in `kv_dtype`, or as they are without one.
    """

    blocks: tuple[BlockShape, ...]
    landmarks: tuple[tuple[int, int], ...]
    kv_dtype: KvDtype | None = None

    @property
    def stored(self) -> tuple[BlockShape, ...]:
        """Shapes of a block as it is kept, layer by layer."""
        return self.blocks if self.kv_dtype is None else tuple(map(packed_shape, self.blocks))

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in all layers, as it is kept."""
        return sum(shape.nbytes for shape in self.stored)

    @property
    def landmark_bytes(self) -> int:
        """Bytes of a block's landmark keys in all layers."""
        return sum(heads * width for heads, width in self.landmarks) * 4

    @property
    def block_size(self) -> int:
        """Tokens of a block, without its landmark."""
        return self.blocks[0].stride - 1

    @property
    def fields(self) -> dict[str, Any]:
        """Its fields in a manifest; `layout_of` takes them."""
        blocks = [[*shape[:-1], str(shape.dtype).removeprefix("torch.")] for shape in self.blocks]
        return {"blocks": blocks, "landmarks": self.landmarks, **self.kept}

    @property
    def kept(self) -> dict[str, KvDtype]:
        """`kv_dtype` under its name, nothing without one."""
        return {} if self.kv_dtype is None else {"kv_dtype": self.kv_dtype}

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

    def grows(self, number: int) -> bool:
        """Whether the files of a segment may have more bytes than were committed, of a writer that goes on or crashed.

        That is so for the last one, and where another context owns the files. Writers of version 1 left such bytes
        behind when one of version 2 went on.
        """
        entry = self.segments[number - 1]
        return number == len(self.segments) or not entry.owned or entry.parts is None

    def to_bytes(self) -> bytes:
        """The file: a first line with the checksum of the rest; both together are one JSON object."""
        fields = {
            "format": FORMAT,
            "version": VERSION if self.layout.kv_dtype is None else VERSION_INT8,
            "generation": self.generation,
            **self.layout.fields,
            "segments": [asdict(segment) for segment in self.segments],
            "state": self.state and asdict(self.state),
            "header": self.header,
        }
        return framed(fields)


def framed(fields: dict[str, Any]) -> bytes:
    """A file of JSON fields, a line each, whose first line is the checksum of the rest."""
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
        raise no_context(path) from error


def no_context(path: str | Path) -> ValueError:
    """The error for a path at which there is no context: it says what is there, and which command makes one."""
    if not os.path.lexists(path):
        return ValueError(f"{path} does not exist: `landmark read FILE ... --out {path}` makes a context there")
    if not os.path.isdir(path):
        return ValueError(
            f"{path} is a file, and a context is a folder: `landmark read {path} --out FOLDER` reads a text into one"
        )
    return ValueError(f"{path} is not a context: it has no {MANIFEST}; `landmark read FILE ... --out FOLDER` makes one")


def read_manifest(folder: Folder | str | Path) -> Manifest:
    """The newest commit of the context in `folder`.

    Raises Damage if its manifest is damaged, or says what cannot be; ValueError if there is none or if it has another
    format version.
    """
    place = context_folder(folder) / MANIFEST
    return _parse(manifest_bytes(place.folder), place.path)


def manifest_bytes(folder: Folder) -> bytes:
    """The file, not parsed; raises as `read_manifest` does where it cannot be read."""
    try:
        file = disk.open_file(folder / MANIFEST)
    except FileNotFoundError as error:
        raise no_context(folder.path) from error
    if file.size > MOST_BYTES:
        raise Damage(file.path, f"has {file.size} bytes, and a manifest has {MOST_BYTES} at most")
    return bytes(file.read(file.size))


def publish(folder: Folder | str | Path, manifest: Manifest, check: Callable[[], object] = lambda: None) -> bytes:
    """Makes `manifest` the newest commit, in one step: a reader finds the old one or the new one; returns the file.

    `check` is called right before that step and may raise.
    """
    place, data = context_folder(folder), manifest.to_bytes()
    disk.publish_bytes(data, place / NEW_MANIFEST, place / MANIFEST, check=check)
    return data


def has_manifest(folder: Folder | str | Path) -> bool:
    """Whether `folder` has the manifest of a context, even a damaged one."""
    try:
        file = disk.open_file(context_folder(folder) / MANIFEST)
    except (OSError, ValueError):
        return False
    return _is_manifest(bytes(file.read(min(file.size, _BEGINNING))))


def _is_manifest(data: bytes) -> bool:
    return _FIRST_LINE.match(data) is not None or FORMAT.encode() in data[:_BEGINNING]


def to_json(value: Any, what: str) -> str:
    """JSON text of `value`; ValueError that names it as `what` if it has none."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from error


# Parsing. A right checksum says that the bytes are those that were written, not who wrote them.


def check_header(header: Any) -> None:
    """Raises ValueError for a header that a manifest cannot hold."""
    header_of(header)
    if len(json.dumps(header)) > MOST_BYTES // 4:
        raise Malformed(f"the header is too long: {MOST_BYTES // 4} bytes are allowed")


def _parse(data: bytes, path: Path) -> Manifest:
    if not _is_manifest(data):
        raise ValueError(f"{path} is not the manifest of a context; give the folder that a context was saved to")
    check_frame(data, path)
    try:
        found = fields.parse(data, "the manifest")
        version = fields.whole(found.get("version"), "the format version")
        if version in READABLE:
            return _manifest(found)
    except Malformed as error:
        raise Damage(path, f"is no manifest that can be read: {error}") from error
    age, nearest = ("newer", READABLE[-1]) if version > READABLE[-1] else ("older", READABLE[0])
    raise ValueError(
        f"{path} has format version {version}, {age} than {nearest}, which this program reads: "
        f"use the version of the package that wrote it, or read the text again"
    )


def check_frame(data: bytes, path: Path) -> None:
    """Raises Damage for a file whose first line is not the checksum of the rest."""
    first = _FIRST_LINE.match(data)
    if first is None or int(first[1], 16) != zlib.crc32(memoryview(data)[first.end() :]):
        raise Damage(path, "is damaged: its checksum does not fit")


def _manifest(found: dict[str, Any]) -> Manifest:
    fields.fields(found, "the manifest", _FIELDS, OPTIONAL)
    fields.one_of(found["format"], "format", {FORMAT: FORMAT})
    generation = fields.whole(found["generation"], "generation")
    if (found["state"] is None) != (generation == 0):
        raise Malformed(f"generation is {generation}, and state is {fields.shown(found['state'])}")
    return Manifest(
        generation=generation,
        header=header_of(found["header"]),
        layout=layout_of(found),
        segments=_segments(found["segments"]),
        state=None if found["state"] is None else _committed(found["state"], "state"),
    )


def layout_of(found: dict[str, Any]) -> Layout:
    """The layout in the fields of a manifest; Malformed if it is none."""
    layers = fields.items(found["blocks"], "blocks", _MOST_LAYERS, least=1)
    keys = fields.items(found["landmarks"], "landmarks", len(layers), least=len(layers))
    layout = Layout(
        tuple(_shape(shape, f"blocks[{layer}]") for layer, shape in enumerate(layers)),
        tuple(_landmark_shape(shape, f"landmarks[{layer}]") for layer, shape in enumerate(keys)),
        fields.one_of(found["kv_dtype"], "kv_dtype", _KV_DTYPES) if "kv_dtype" in found else None,
    )
    if layout.landmark_bytes + 4 * (len(layers) + 1) > _MOST_RECORD_BYTES:
        raise Malformed(f"landmarks is too large: a record has {_MOST_RECORD_BYTES} bytes at most")
    return layout


def _shape(value: Any, what: str) -> BlockShape:
    heads, stride, key_dim, value_dim, dtype = fields.items(value, what, 5, least=5)
    return BlockShape(
        fields.whole(heads, f"{what}: heads", _MOST_HEADS, least=1),
        fields.whole(stride, f"{what}: stride", _MOST_STRIDE, least=2),
        fields.whole(key_dim, f"{what}: key_dim", _MOST_WIDTH, least=1),
        fields.whole(value_dim, f"{what}: value_dim", _MOST_WIDTH, least=1),
        fields.one_of(dtype, f"{what}: dtype", DTYPES),
    )


def _landmark_shape(value: Any, what: str) -> tuple[int, int]:
    heads, width = fields.items(value, what, 2, least=2)
    return fields.whole(heads, f"{what}: heads", _MOST_HEADS, 1), fields.whole(width, f"{what}: dim", _MOST_WIDTH, 1)


def _segments(value: Any) -> tuple[SegmentEntry, ...]:
    found: list[SegmentEntry] = []
    first = 0
    for index, entry in enumerate(fields.items(value, "segments", MOST_SEGMENTS)):
        found.append(_segment(entry, first, f"segments[{index}]"))
        first += found[-1].blocks
    return tuple(found)


def _segment(value: Any, first: int, what: str) -> SegmentEntry:
    found = fields.fields(value, what, ("first", "blocks", "owned", "tokens", "text", "documents"), ("parts",))
    if fields.whole(found["first"], f"{what}: first") != first:
        raise Malformed(f"{what}: first is {found['first']}, and the segments before have {first} blocks")
    parts = found.get("parts")
    entry = SegmentEntry(
        first,
        fields.whole(found["blocks"], f"{what}: blocks"),
        fields.boolean(found["owned"], f"{what}: owned"),
        _committed(found["tokens"], f"{what}: tokens", TOKEN.itemsize),
        _committed(found["text"], f"{what}: text"),
        _committed(found["documents"], f"{what}: documents"),
        None if parts is None else _committed(parts, f"{what}: parts", PART.itemsize),
    )
    held = {kind for kind, file in entry.committed.items() if file.bytes}
    if (held and "documents" not in held) or (entry.parts is not None and "documents" in held and "parts" not in held):
        raise Malformed(f"{what} has bytes of {', '.join(sorted(held))} alone")
    return entry


def _committed(value: Any, what: str, record: int = 1) -> Committed:
    """Committed bytes: whole records of so many bytes; no bytes have checksum 0."""
    found = fields.fields(value, what, ("bytes", "crc32"))
    size, crc32 = (
        fields.whole(found["bytes"], f"{what}: bytes"),
        fields.whole(found["crc32"], f"{what}: crc32", 2**32 - 1),
    )
    if size % record:
        raise Malformed(f"{what}: bytes is {size}, which is no multiple of {record}")
    if not size and crc32:
        raise Malformed(f"{what}: crc32 is {crc32}, and no bytes have 0")
    return Committed(size, crc32)


def header_of(value: Any) -> dict[str, Any]:
    """A header of this release or an earlier one, its settings under the names of today."""
    fields.check_object(value, "header")
    found = dict(value)
    for name in ("landmark", "model"):
        fields.text(found.get(name, ""), f"header: {name}")
    for name in ("settings", "fingerprint"):
        fields.mapping(found.get(name, {}), f"header: {name}")
    if "settings" in found:
        found["settings"] = current_names(found["settings"])
    return found
