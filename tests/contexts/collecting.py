"""Collections of tiny documents made without a model, content following from numbers; a session that changes one."""

from pathlib import Path

import torch
from made import LAYOUT, block

from landmark.contexts.collection_folder import delete, is_unused, open_set, verify_collection
from landmark.contexts.collection_manifest import (
    DOCUMENTS,
    CollectionManifest,
    Member,
    document_key,
    is_collection,
    read_collection,
)
from landmark.contexts.collection_writer import CollectionWriter
from landmark.contexts.manifest import has_manifest
from landmark.contexts.segments import text_digest
from landmark.contexts.writer import create, open_writer

HEADER = {"settings": {"block_size": 2}, "fingerprint": {"model": "tiny"}}
# The documents after each change, by name, each the number of a text: add, add, remove, replace, add two, remove two.
STATES = ({}, {"a": 1}, {"a": 1, "b": 2}, {"b": 2}, {"b": 3}, {"b": 3, "c": 4, "d": 5}, {"c": 4})


def text_of(number: int) -> str:
    return f"text {number} of a tiny document . "


def write(place: Path, name: str, number: int) -> Member:
    """Makes the context of a document, if it is not whole yet."""
    text, blocks = text_of(number), number % 3 + 1
    sha256 = text_digest(text.encode())
    key = document_key(sha256, HEADER, LAYOUT)
    path = place / DOCUMENTS / key
    with open_writer(path) if has_manifest(path) else create(path, HEADER, LAYOUT) as writer:
        if not writer.blocks:
            writer.add_document("document", text, range(2 * blocks), [(0, 1)] * (2 * blocks))
            for layer in range(len(LAYOUT.blocks)):
                target = writer.target(layer)
                made = [block(layer, 10 * number + step) for step in range(blocks)]
                keys, values, landmarks = (torch.stack(parts, dim=1) for parts in zip(*made, strict=True))
                target.file.write(layer, target.allocate(0, blocks), keys, values)
                writer.append_landmarks(layer, landmarks)
            writer.commit({"window": torch.zeros(1)}, {"commit": 1})
    return Member(name, key, sha256, 2 * blocks, blocks, len(text), len(text))


class Session:
    """Changes the collection `root/set` from whatever there is to the last of `STATES`, deletes it, and knows both."""

    def __init__(self, root: Path) -> None:
        self.path = root / "set"
        self.sure = -1  # the last change that returned
        self._deleting = False

    def run(self) -> None:
        if not self._deleting:
            if not is_collection(self.path):
                assert self.sure < 0
                assert is_unused(self.path)
                CollectionWriter.create(self.path, CollectionManifest(0, HEADER, LAYOUT)).close()
                self.sure = 0
            with CollectionWriter.open(self.path) as writer:
                while (state := writer.manifest.generation) + 1 < len(STATES):
                    self._change(writer, STATES[state + 1])
                    self.sure = state + 1
        self._deleting = True
        if self.path.exists():
            delete(self.path)

    def _change(self, writer: CollectionWriter, wanted: dict[str, int]) -> None:
        gone = [member.name for member in writer.manifest.members if member.name not in wanted]
        if gone:
            writer.remove(gone)
        else:
            writer.publish(tuple(write(self.path, name, number) for name, number in wanted.items()))

    def check(self) -> None:
        """Raises AssertionError unless the collection is as before a change or after it, and whole."""
        if not is_collection(self.path):
            assert self.sure < 0 or self._deleting
            return
        found = read_collection(self.path)
        assert self._deleting or self.sure <= found.generation <= max(self.sure, 0) + 1
        self.sure = found.generation
        snapshot = open_set(self.path)
        held = {document.name: snapshot.text(document) for document in snapshot.documents()}
        wanted = {name: text_of(number) for name, number in STATES[found.generation].items()}
        assert held == wanted
        assert verify_collection(self.path) == []
        with CollectionWriter.open(self.path):
            pass
        texts = [file.read_bytes() for file in self.path.rglob("*.text")]
        removed = [number for state in STATES[: found.generation] for number in state.values()]
        for number in {*removed} - {*STATES[found.generation].values()}:
            assert text_of(number).encode() not in texts
