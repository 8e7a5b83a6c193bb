"""The manifest of a collection: which documents it holds, and what model read them how (docs/context_format.md)."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from landmark.contexts import disk, fields
from landmark.contexts.disk import Damage, Folder
from landmark.contexts.fields import Malformed
from landmark.contexts.manifest import (
    OPTIONAL,
    Layout,
    check_frame,
    context_folder,
    framed,
    has_manifest,
    header_of,
    layout_of,
)

FORMAT = "landmark collection"
VERSION = 1
VERSION_INT8 = 2  # with a `kv_dtype`, and otherwise as version 1
COLLECTION = "collection.json"
NEW_COLLECTION = "collection.json.tmp"
DOCUMENTS = "documents"  # folder of the documents' contexts, each named by its key

MOST_BYTES = 64 << 20  # of a manifest
MOST_DOCUMENTS = 100_000
_SHA256 = re.compile("[0-9a-f]{64}")
_FIELDS = ("crc32", "format", "version", "generation", "blocks", "landmarks", "documents", "removed", "header")
_COUNTS = ("tokens", "blocks", "characters", "bytes")


@dataclass(frozen=True)
class Member:
    """A document of a collection.

    `sha256` is that of its text, in hexadecimal digits, and `key` that of the text and of all that decides what a model
    keeps of it: the name of its folder. `tokens` are those of the text; with what fills the last one they make
    `blocks`. `characters` and `bytes` (in UTF-8) are the text's.
    """

    name: str
    key: str
    sha256: str
    tokens: int
    blocks: int
    characters: int
    bytes: int


@dataclass(frozen=True)
class CollectionManifest:
    """A state of a collection; `members` are in the order in which they were added.

    `removed` are the keys of those that the state before had: their folders may still have to be deleted.
    """

    generation: int
    header: dict[str, Any]
    layout: Layout
    members: tuple[Member, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def blocks(self) -> int:
        """Number of blocks of all documents."""
        return sum(member.blocks for member in self.members)

    def facts(self, path: str, **sizes: int) -> dict[str, Any]:
        """Counts of the collection at `path`, its `sizes` on disk, and its header, as JSON values."""
        return {
            "path": path,
            "generation": self.generation,
            "documents": len(self.members),
            "tokens": sum(member.tokens for member in self.members),
            "text_bytes": sum(member.bytes for member in self.members),
            "blocks": self.blocks,
            **sizes,
            **self.layout.kept,
            "header": self.header,
        }

    def followed_by(self, members: tuple[Member, ...]) -> "CollectionManifest":
        """The next state, with these members."""
        kept = {member.key for member in members}
        removed = tuple(member.key for member in self.members if member.key not in kept)
        return replace(self, generation=self.generation + 1, members=members, removed=removed)

    def to_bytes(self) -> bytes:
        """The file, framed as the manifest of a context is."""
        return framed(
            {
                "format": FORMAT,
                "version": VERSION if self.layout.kv_dtype is None else VERSION_INT8,
                "generation": self.generation,
                **self.layout.fields,
                "documents": [asdict(member) for member in self.members],
                "removed": list(self.removed),
                "header": self.header,
            }
        )


def document_key(sha256: str, header: dict[str, Any], layout: Layout) -> str:
    """The key of a document with the text `sha256`, read as a `header` and `layout` have it."""
    read_by = {"text": sha256, "fingerprint": header.get("fingerprint"), "settings": header.get("settings")}
    if layout.kv_dtype is not None:
        read_by["kv_dtype"] = layout.kv_dtype
    return hashlib.sha256(json.dumps(read_by, sort_keys=True).encode()).hexdigest()


def is_collection(path: Folder | str | Path) -> bool:
    """Whether a folder has the manifest of a collection, even a damaged one."""
    try:
        return (context_folder(path) / COLLECTION).is_file()
    except (OSError, ValueError):
        return False


def collection_place(path: Folder | str | Path) -> Folder:
    """The folder of a collection, held open; ValueError if there is none."""
    if not is_collection(path):
        raise _no_collection(path.path if isinstance(path, Folder) else Path(path))
    return context_folder(path)


def _no_collection(path: Path) -> ValueError:
    """The error for a path at which there is no collection: it says what is there, and which command to use."""
    if has_manifest(path):
        return ValueError(
            f"{path} is not a collection: it is a context, whose documents were read one after another;"
            f" `landmark append {path} FILE ...` adds to it"
        )
    if not path.exists():
        return ValueError(
            f"{path} does not exist: `landmark read --apart FILE ... --out {path}` makes a collection there"
        )
    what = f"it has no {COLLECTION}" if path.is_dir() else "it is a file"
    return ValueError(f"{path} is not a collection: {what}; `landmark read --apart FILE ... --out FOLDER` makes one")


def collection_bytes(folder: Folder) -> bytes:
    """The file, not parsed; ValueError if there is none."""
    try:
        file = disk.open_file(folder / COLLECTION)
    except FileNotFoundError as error:
        raise ValueError(f"{folder.path} was deleted just now: give another collection") from error
    _check_size(file.size, file.path)
    return bytes(file.read(file.size))


def read_collection(folder: Folder | str | Path) -> CollectionManifest:
    """The newest state of the collection in `folder`.

    Raises Damage if its manifest is damaged; ValueError if there is none or if it has another format version.
    """
    place = collection_place(folder) / COLLECTION
    return parse_collection(collection_bytes(place.folder), place.path)


def parse_collection(data: bytes, path: Path) -> CollectionManifest:
    """The state in the bytes of a file; raises as `read_collection` does."""
    _check_size(len(data), path)
    check_frame(data, path)
    try:
        found = fields.parse(data, "the manifest")
        version = fields.whole(found.get("version"), "the format version")
        if version in (VERSION, VERSION_INT8):
            return _manifest(found)
    except Malformed as error:
        raise Damage(path, f"is no manifest that can be read: {error}") from error
    raise ValueError(
        f"{path} has format version {version}, and this program reads {VERSION} and {VERSION_INT8}: use the"
        " version of the package that wrote it, or read the documents again"
    )


def _check_size(size: int, path: Path) -> None:
    if size > MOST_BYTES:
        raise Damage(path, f"has {size} bytes, and the manifest of a collection has {MOST_BYTES} at most")


def publish_collection(
    folder: Folder, manifest: CollectionManifest, check: Callable[[], object] = lambda: None
) -> bytes:
    """Makes `manifest` the newest state in one step; `check` is called right before and may raise. Returns the file."""
    data = manifest.to_bytes()
    disk.discard(folder / NEW_COLLECTION)  # of a killed writer
    disk.publish_bytes(data, folder / NEW_COLLECTION, folder / COLLECTION, check=check)
    return data


def _manifest(found: dict[str, Any]) -> CollectionManifest:
    fields.fields(found, "the manifest", _FIELDS, OPTIONAL)
    fields.one_of(found["format"], "format", {FORMAT: FORMAT})
    members = tuple(
        _member(value, f"documents[{index}]")
        for index, value in enumerate(fields.items(found["documents"], "documents", MOST_DOCUMENTS))
    )
    for what in ("name", "key"):
        if len({getattr(member, what) for member in members}) != len(members):
            raise Malformed(f"two documents have one {what}")
    removed = fields.items(found["removed"], "removed", MOST_DOCUMENTS)
    header = header_of(found["header"])
    for name in ("settings", "fingerprint"):
        fields.mapping(header.get(name), f"header: {name}")
    return CollectionManifest(
        generation=fields.whole(found["generation"], "generation"),
        header=header,
        layout=layout_of(found),
        members=members,
        removed=tuple(_digest(key, "removed") for key in removed),
    )


def _member(value: Any, what: str) -> Member:
    found = fields.fields(value, what, ("name", "key", "sha256", *_COUNTS))
    key, sha256 = (_digest(found[name], f"{what}: {name}") for name in ("key", "sha256"))
    counts = {name: fields.whole(found[name], f"{what}: {name}") for name in _COUNTS}
    return Member(fields.text(found["name"], f"{what}: name"), key, sha256, **counts)


def _digest(value: Any, what: str) -> str:
    """A SHA-256 in hexadecimal digits; a key is a name in a folder, too."""
    digits = fields.text(value, what)
    if not _SHA256.fullmatch(digits):
        raise Malformed(f"{what} is {fields.shown(digits)}, not 64 hexadecimal digits")
    return digits
