"""Contexts of tiny blocks whose content follows from numbers, and a check that one holds just that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from landmark.contexts import writer
from landmark.contexts.manifest import Committed, Layout, extended, publish, read_manifest, segment_name
from landmark.contexts.snapshot import Snapshot
from landmark.contexts.writer import Writer
from landmark.store.base import BlockShape

HEADER = {"model": "tiny", "block_size": 2}
LAYOUT = Layout(
    (BlockShape(1, 3, 4, 2, torch.float32), BlockShape(2, 3, 2, 2, torch.bfloat16)),
    ((1, 4), (2, 2)),
)


@dataclass(frozen=True)
class Content:
    """What a context holds: the seeds of its documents and blocks, and the number in its state (0: no state yet)."""

    documents: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    state: int = 0


HELD = Content((1, 2), (3, 4), 1)  # what the fixture `path` holds


def block(layer: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys `[Hkv,stride,D]`, values `[Hkv,stride,Dv]` and landmark keys `[Hkv,D]` of a block."""
    shape, random = LAYOUT.blocks[layer], np.random.default_rng((layer, seed))
    keys = torch.from_numpy(random.standard_normal((shape.heads, shape.stride, shape.key_dim))).to(shape.dtype)
    values = torch.from_numpy(random.standard_normal((shape.heads, shape.stride, shape.value_dim))).to(shape.dtype)
    landmarks = torch.from_numpy(random.standard_normal(LAYOUT.landmarks[layer], np.float32))
    return keys, values, landmarks


def document(seed: int) -> tuple[str, str, list[int], list[tuple[int, int]]]:
    """Name, text, ids and offsets of a document; some are empty, some not ASCII."""
    length = seed % 4
    text = "".join(f"Grüße {seed} \N{SNOWMAN}\n" for _ in range(length))
    ids = [(seed * 31 + index) % 2**32 for index in range(length)]
    return f"document {seed}\n", text, ids, [(start, start + 2) for start in range(length)]


def add(writer: Writer, before: Content, documents: tuple[int, ...], blocks: tuple[int, ...]) -> Content:
    """Adds documents and blocks to a writer that holds `before`; what it holds then, when it commits the next state."""
    for seed in documents:
        writer.add_document(*document(seed))
    for layer in range(len(LAYOUT.blocks)):
        target, number = writer.target(layer), len(before.blocks)
        if blocks:
            made = [block(layer, seed) for seed in blocks]
            keys, values, landmarks = (torch.stack(parts, dim=1) for parts in zip(*made, strict=True))
            record = target.allocate(number, len(blocks))
            target.file.write(layer, record, keys, values)
            writer.append_landmarks(layer, landmarks)
    return Content(before.documents + documents, before.blocks + blocks, before.state)


def commit(writer: Writer, content: Content) -> Content:
    """Commits `content`; what the context then holds."""
    after = replace(content, state=content.state + 1)
    window = torch.full((2, 3), float(after.state))
    writer.commit({"window": window, "part": window[:1]}, {"commit": after.state})
    return after


def tokens_of(snapshot: Snapshot) -> np.ndarray:
    """Id, start and stop character in its document of every token, uint32 `[n,3]`."""
    return np.concatenate([np.empty((0, 3), np.uint32), *(segment.tokens() for segment in snapshot.segments)])


def landmarks_of(snapshot: Snapshot) -> list[Tensor]:
    """Landmark keys of every layer, float32 `[Hkv,n,D]`."""
    return [keys[:, : snapshot.blocks] for keys in snapshot.landmark_buffers()]


def check(snapshot: Snapshot, content: Content) -> None:
    """Raises AssertionError unless the context holds just `content`."""
    assert snapshot.header == HEADER
    assert snapshot.blocks == len(content.blocks)
    _check_documents(snapshot, content)
    for layer, keys in enumerate(landmarks_of(snapshot)):
        expected = [block(layer, seed)[2] for seed in content.blocks]
        assert torch.equal(keys, torch.stack(expected, 1) if expected else torch.empty(keys.shape))
        _check_blocks(snapshot, layer, content)
    tensors, metadata = snapshot.state()
    assert metadata == ({"commit": content.state} if content.state else {})
    assert not content.state or torch.equal(tensors["window"], torch.full((2, 3), float(content.state)))


def _check_documents(snapshot: Snapshot, content: Content) -> None:
    documents, tokens = snapshot.documents(), tokens_of(snapshot)
    assert len(documents) == len(content.documents)
    assert len(tokens) == sum(document.tokens for document in documents)
    for held, seed in zip(documents, content.documents, strict=True):
        name, text, ids, offsets = document(seed)
        assert (held.name, snapshot.text(held)) == (name, text)
        rows = tokens[held.first_token : held.first_token + held.tokens]
        assert rows.tolist() == [[i, *offset] for i, offset in zip(ids, offsets, strict=True)]


def _check_blocks(snapshot: Snapshot, layer: int, content: Content) -> None:
    for segment in snapshot.segments:
        for record, seed in enumerate(content.blocks[segment.first : segment.first + segment.count]):
            keys, values, _ = block(layer, seed)
            for head in range(keys.shape[0]):
                read_keys, read_values = torch.empty_like(keys[head]), torch.empty_like(values[head])
                segment.blocks.read(layer, head, record, _bytes(read_keys), _bytes(read_values))
                assert torch.equal(read_keys, keys[head])
                assert torch.equal(read_values, values[head])


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).flatten().numpy())


@contextmanager
def short_segments(blocks: int) -> Iterator[None]:
    """Lets a segment end after so many blocks."""
    usual = writer.SEGMENT_BYTES
    writer.SEGMENT_BYTES = blocks * LAYOUT.block_bytes
    try:
        yield
    finally:
        writer.SEGMENT_BYTES = usual


def names(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def as_version_1(path: Path) -> None:
    """Rewrites a context of one segment as the first version of the format had it."""
    manifest = read_manifest(path)
    (entry,) = manifest.segments
    segments = path / "segments"
    file = segments / segment_name(1, "documents")
    lines = [json.loads(line) for line in file.read_bytes()[: entry.documents.bytes].splitlines()]
    data = b"".join(json.dumps({k: v for k, v in line.items() if k != "sha256"}).encode() + b"\n" for line in lines)
    file.write_bytes(data)
    (segments / segment_name(1, "parts")).unlink()
    entry = replace(entry, documents=extended(Committed(), data), parts=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("landmark.contexts.manifest.VERSION", 1)
        publish(path, replace(manifest, segments=(entry,)))
