"""The folder of a collection: creation, deletion, what is in it, and the set of its documents as one snapshot."""

import resource
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from landmark.contexts import disk, folder
from landmark.contexts.collection_manifest import (
    COLLECTION,
    DOCUMENTS,
    NEW_COLLECTION,
    CollectionManifest,
    Member,
    collection_place,
    document_key,
    is_collection,
    read_collection,
)
from landmark.contexts.disk import Damage, Folder, Progress
from landmark.contexts.lock import WriterLock, take_lock
from landmark.contexts.manifest import LOCK, Manifest, has_manifest, read_manifest
from landmark.contexts.segments import Segment
from landmark.contexts.snapshot import Snapshot, open_reader
from landmark.contexts.verify import verify

_NAMES = (COLLECTION, NEW_COLLECTION, LOCK, DOCUMENTS)
_FILES_A_DOCUMENT = 8  # open at most, of a document in one segment file


def open_set(path: Folder | str | Path) -> Snapshot:
    """The documents of a collection, side by side: one snapshot with the blocks of all of them, and without a state.

    They lie in the order of their keys, which the order of adding does not change. Its files are open as long as it is,
    so that it can be read to the end where documents are removed. Raises as `open_reader` does, and Damage for a
    document that is not the one that the manifest names.
    """
    place = collection_place(path)
    while True:
        manifest = read_collection(place)
        try:
            return _joined(place, manifest)
        except ValueError:
            if not _changed_since(place, manifest):
                raise


def _changed_since(place: Folder, manifest: CollectionManifest) -> bool:
    """Whether a document may have been removed meanwhile."""
    try:
        return read_collection(place).generation != manifest.generation
    except OSError:  # where the process may open no more files
        return False


def _joined(place: Folder, manifest: CollectionManifest) -> Snapshot:
    _allow_files(_FILES_A_DOCUMENT * len(manifest.members))
    segments: list[Segment] = []
    blocks = 0
    for member in sorted(manifest.members, key=lambda member: member.key):
        for segment in _open_member(place, member, manifest).segments:
            entry = replace(segment.entry, first=blocks, owned=False)
            segments.append(Segment(len(segments) + 1, entry, manifest.layout, segment.files, name=member.name))
            blocks += entry.blocks
    entries = tuple(segment.entry for segment in segments)
    joined = Manifest(manifest.generation, manifest.header, manifest.layout, entries)
    return Snapshot(place, joined, None, segments)


def document_folder(place: Folder, key: str) -> Folder:
    """The folder of a document's context; Damage if it is missing, or a link."""
    return disk.open_inner(disk.open_inner(place / DOCUMENTS) / key)


def _open_member(place: Folder, member: Member, manifest: CollectionManifest) -> Snapshot:
    found = open_reader(document_folder(place, member.key))
    check_member(found, member, manifest)
    return found


def check_member(found: Snapshot, member: Member, manifest: CollectionManifest) -> None:
    """Raises Damage unless a document is what the manifest says, read by the model of the manifest."""
    held = found.documents()
    keys = {document_key(member.sha256, one.header, one.layout) for one in (found, manifest)}
    sound = (
        len(held) == 1
        and held[0].sha256 == member.sha256
        and keys == {member.key}
        and found.layout == manifest.layout
        and found.blocks == member.blocks
        and held[0].tokens == member.blocks * manifest.layout.block_size
    )
    if not sound:
        raise Damage(found.path, f"is not the document {member.name!r} that {COLLECTION} names")


def is_whole(path: Path) -> bool:
    """Whether there is a document that was read to its end; someone else may be reading it, or have given up."""
    if not has_manifest(path):
        return False
    manifest = read_manifest(path)
    return 0 < manifest.token_count == manifest.blocks * manifest.layout.block_size


def _allow_files(count: int) -> None:
    """Raises the limit of open files of this process, as far as the system lets it, so that it has room for `count`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


# Creation and deletion.


@contextmanager
def creating(path: str | Path) -> Iterator[WriterLock]:
    """Wraps the creation of a collection in `path` and gives its lock.

    Raises ValueError if there is something at `path` already, except what a crash in here left, and if it lies in a
    context or collection.
    """
    path = Path(path)
    check_outside(path)
    if path.exists() and not is_unused(path):
        raise ValueError(f"{path} exists: give a new folder, or delete the collection in it first")
    parent = disk.open_folder(path.parent)
    if not path.exists():
        disk.make_folder(parent / path.name)
    place = disk.open_folder(path)
    with ExitStack() as held:
        lock = take_lock(place)
        held.callback(lock.close)
        if not (place / DOCUMENTS).is_folder():
            disk.make_folder(place / DOCUMENTS, place.mode)
        yield lock
        disk.sync_folder(parent)
        held.pop_all()


def is_unused(path: str | Path) -> bool:
    """Whether a collection can be made at `path`: there is nothing, an empty folder, or what a killed creation left."""
    if not Path(path).exists():
        return True
    try:
        place = disk.open_folder(path)
    except OSError:
        return False
    documents = place / DOCUMENTS
    known = set(place.names()) <= {NEW_COLLECTION, LOCK, DOCUMENTS}
    return known and (documents.stat() is None or (documents.is_folder() and not disk.open_inner(documents).names()))


def is_remains(path: str | Path) -> bool:
    """Whether a folder is what a killed creation or deletion of a collection left."""
    try:
        names = disk.open_folder(path).names()
    except OSError:
        return False
    return COLLECTION not in names and {LOCK, DOCUMENTS} <= set(names) <= set(_NAMES)


def check_outside(path: str | Path) -> None:
    """Raises ValueError if `path` lies in a context or a collection, where only their own files may be."""
    folder.check_outside(Path(path))
    parent = Path(path).absolute().parent.resolve()
    for outer in (parent, *parent.parents):
        if is_collection(outer):
            raise ValueError(f"{path} lies in the collection {outer}: give a place outside of it")


def check_deletable(path: Path) -> None:
    """Raises ValueError if `path` cannot be deleted as a collection: it is a link, or holds other files."""
    refusal = f"{path} cannot be deleted as a collection"
    if path.is_symlink():
        raise ValueError(f"{refusal}: it is a link; give the folder that it leads to")
    place = disk.open_folder(path)
    foreign = [name for name in place.names() if name not in _NAMES]
    if foreign:
        raise ValueError(f"{refusal}: {path / foreign[0]} is not part of one")
    for name in _keys_in(place):
        folder.check_deletable(path / DOCUMENTS / name)


def delete(path: str | Path) -> None:
    """Deletes the collection in `path` with its documents; those that other collections share stay there.

    Raises ValueError, and deletes nothing, where `check_deletable` does, and if a writer has it open.
    """
    path = Path(path)
    check_deletable(path)
    parent, place = disk.open_folder(path.absolute().parent), disk.open_folder(path)
    lock = take_lock(place)
    try:
        for name in (COLLECTION, NEW_COLLECTION):  # from here on there is no collection, only remains
            disk.discard(place / name)
        disk.sync_folder(place)
        for name in _keys_in(place):
            folder.delete(path / DOCUMENTS / name)
        if (place / DOCUMENTS).stat() is not None:
            disk.remove_folder(place / DOCUMENTS)
        disk.remove(place / LOCK)
        disk.remove_folder(parent / path.name)
        disk.sync_folder(parent)
    finally:
        lock.close()


def _keys_in(place: Folder) -> list[str]:
    """The names of all folders of documents, those that no manifest names too."""
    documents = place / DOCUMENTS
    return [] if documents.stat() is None else disk.open_inner(documents).names()


def remove_removed(place: Folder, manifest: CollectionManifest) -> None:
    """Deletes the documents that the last change took out, where it was interrupted before it did so."""
    for key in sorted({*manifest.removed} & {*_keys_in(place)}):
        folder.delete(place.path / DOCUMENTS / key)


def remove_others(place: Folder, manifest: CollectionManifest, kept: Set[str] = frozenset()) -> None:
    """Deletes all documents that the manifest does not name: removed ones, and those whose reading was given up.

    Folders with the keys `kept` stay.
    """
    for key in sorted({*_keys_in(place)} - {member.key for member in manifest.members} - kept):
        folder.delete(place.path / DOCUMENTS / key)


# What is in it.


def info(path: str | Path) -> dict[str, Any]:
    """Counts and sizes of the collection in `path`, and its header, as JSON values; raises as `read_collection` does.

    `shared_bytes` are those of documents whose files other collections hold too.
    """
    place = collection_place(path)
    manifest = read_collection(place)
    sizes = [read_manifest(document_folder(place, member.key)) for member in manifest.members]
    shared = [one for one in sizes if any(not entry.owned for entry in one.segments)]
    return manifest.facts(
        str(path),
        bytes=sum(one.committed_bytes for one in sizes),
        shared_bytes=sum(one.committed_bytes for one in shared),
    )


def verify_collection(path: str | Path, progress: Progress | None = None) -> list[Damage]:
    """All damage in the collection in `path`: in its manifest, and in every committed byte of its documents."""
    place = collection_place(path)
    try:
        manifest = read_collection(place)
    except Damage as damage:
        return [damage]
    found: list[Damage] = []
    done, total = 0, sum(_bytes_of(place, member) for member in manifest.members)
    for member in manifest.members:
        found += _verify_member(place, member, manifest, _shifted(progress, done, total))
        done += _bytes_of(place, member)
    return found


def _verify_member(
    place: Folder, member: Member, manifest: CollectionManifest, progress: Progress | None
) -> list[Damage]:
    try:
        folder = document_folder(place, member.key)
        found = verify(folder, progress)
        if not found:
            _open_member(place, member, manifest)
        return found
    except Damage as damage:
        return [damage]
    except ValueError as error:  # no context at all
        return [Damage(place.path / DOCUMENTS / member.key, f"is not the document {member.name!r} ({error})")]


def _bytes_of(place: Folder, member: Member) -> int:
    try:
        return read_manifest(document_folder(place, member.key)).committed_bytes
    except (ValueError, OSError):
        return 0


def _shifted(progress: Progress | None, before: int, total: int) -> Callable[[int, int], object] | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
