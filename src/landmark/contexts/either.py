"""What is done in the same way with the folder of a context and with that of a collection."""

from pathlib import Path
from types import ModuleType
from typing import Any

from landmark.contexts import collection_folder, folder, verify
from landmark.contexts.collection_manifest import CollectionManifest, Member, is_collection, read_collection
from landmark.contexts.disk import Damage, Progress
from landmark.contexts.manifest import Manifest, has_manifest, read_manifest
from landmark.contexts.segments import Document
from landmark.contexts.snapshot import Snapshot, open_reader


def is_either(path: str | Path) -> bool:
    """Whether there is a context or a collection in `path`, even a damaged one."""
    return is_collection(path) or has_manifest(path)


def manifest_of(path: str | Path) -> Manifest | CollectionManifest:
    """The newest manifest: both kinds have a header and a layout. Raises as `read_manifest` does."""
    return read_collection(path) if is_collection(path) else read_manifest(path)


def open_snapshot(path: str | Path) -> Snapshot:
    """The newest state, for reading; raises as `open_reader` does."""
    return collection_folder.open_set(path) if is_collection(path) else open_reader(path)


def find(path: str | Path) -> list[Path]:
    """The contexts and collections in a folder, damaged ones too, by name; ValueError if it is no folder."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give the one that contexts were saved in")
    return sorted(inner for inner in path.iterdir() if is_either(inner))


def info(path: str | Path) -> dict[str, Any]:
    """Counts and sizes, as JSON values."""
    return described(path)[0]


def described(path: str | Path) -> tuple[dict[str, Any], list[Document] | list[Member]]:
    """Counts and sizes, as JSON values, and the documents."""
    if is_collection(path):
        return collection_folder.info(path), list(read_collection(path).members)
    snapshot = open_reader(path)
    return folder.facts(path, snapshot), snapshot.documents()


def verify_all(path: str | Path, progress: Progress | None = None) -> list[Damage]:
    """All damage in what was committed; see `landmark.contexts.verify.verify`."""
    return collection_folder.verify_collection(path, progress) if is_collection(path) else verify.verify(path, progress)


def check_deletable(path: Path) -> None:
    """Raises ValueError if `path` cannot be deleted as a context or collection."""
    _folder_of(path).check_deletable(path)


def delete(path: Path) -> None:
    """Deletes a context or collection, with all its files; forks of it, and those that share with it, keep theirs."""
    _folder_of(path).delete(path)


def _folder_of(path: Path) -> ModuleType:
    """The module for what is in `path`, or for what a crash left of it."""
    return collection_folder if is_collection(path) or collection_folder.is_remains(path) else folder
