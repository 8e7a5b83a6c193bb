"""Flips single bits of what was committed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made import tokens_of

from landmark.contexts.manifest import MANIFEST
from landmark.contexts.segments import Segment
from landmark.contexts.snapshot import Snapshot, open_reader

# The bytes of a landmark record hold three kinds of things.
REGIONS = (
    "manifest checksum",
    "manifest",
    "state",
    "blocks",
    "landmark keys",
    "block checksums",
    "record checksums",
    "tokens",
    "text",
    "documents",
    "parts",
)


def committed_byte(snapshot: Snapshot, region: str, draw: random.Random) -> tuple[Path, int]:
    """A random committed byte of a region: its file and its offset there."""
    if region == "manifest checksum":
        return snapshot.path / MANIFEST, draw.randrange(22)
    if region == "manifest":
        return snapshot.path / MANIFEST, draw.randrange(22, len(snapshot.manifest.to_bytes()))
    if region == "state":
        return snapshot.path / snapshot.manifest.state_name, draw.randrange(snapshot.manifest.state.bytes)
    kind = region if region in ("blocks", "tokens", "text", "documents", "parts") else "landmarks"
    segment = draw.choice([segment for segment in snapshot.segments if segment.entry.sizes(snapshot.layout)[kind]])
    if kind != "landmarks":
        return segment.path(kind), draw.randrange(segment.entry.sizes(snapshot.layout)[kind])
    record = snapshot.layout.landmark_record
    checks = record.fields["blocks"][1]
    first, last = {
        "landmark keys": (0, checks),
        "block checksums": (checks, record.itemsize - 4),
        "record checksums": (record.itemsize - 4, record.itemsize),
    }[region]
    return segment.path(kind), draw.randrange(segment.count) * record.itemsize + draw.randrange(first, last)


@contextmanager
def flipped(file: Path, offset: int, bit: int) -> Iterator[None]:
    """One bit of a file is the other way round."""
    data = bytearray(file.read_bytes())
    data[offset] ^= 1 << bit
    file.write_bytes(data)
    try:
        yield
    finally:
        data[offset] ^= 1 << bit
        file.write_bytes(data)


def read_all(path: Path) -> None:
    """Reads everything with the checks of opening and reading; blocks head by head."""
    snapshot = open_reader(path)
    snapshot.landmark_buffers()
    tokens_of(snapshot)
    snapshot.state()
    for document in snapshot.documents():
        snapshot.text(document)
    for segment in snapshot.segments:
        list(segment.parts())
        read_blocks(segment)


def read_blocks(segment: Segment) -> None:
    """Reads every block of a segment, the last head first."""
    for record in range(segment.count):
        for layer, shape in enumerate(segment.blocks.shapes):
            for head in reversed(range(shape.heads)):
                keys, values = bytearray(shape.key_bytes), bytearray(shape.piece_bytes - shape.key_bytes)
                segment.blocks.read(layer, head, record, memoryview(keys), memoryview(values))
