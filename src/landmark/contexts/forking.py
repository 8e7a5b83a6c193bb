"""Forks: another context that begins as this one and shares its files."""

import errno
from dataclasses import replace
from pathlib import Path

from landmark.contexts import disk
from landmark.contexts.folders import founding
from landmark.contexts.manifest import publish, segment_file
from landmark.contexts.reading import open_reader, with_state


def fork(path: str | Path, to: str | Path) -> None:
    """Makes in `to` a context that is what `path` is now. Both may go on and be deleted, whatever the other does.

    No block is copied: `to` names the same files and adds to none of them. A writer may have `path` open.
    Raises ValueError if `path` is no sound context, if `to` exists, or if the two folders cannot share files.
    """
    path, to = Path(path), Path(to)
    open_reader(path)
    with founding(to) as lock:
        manifest, _ = with_state(path, lambda state: _share(state, to / state.name))
        # A power cut could take a new manifest back; its writer would then cut files that the fork counts on.
        disk.sync_folder(path)
        for number, entry in enumerate(manifest.segments, start=1):
            for kind in entry.sizes(manifest.layout):
                _share(segment_file(path, number, kind), segment_file(to, number, kind))
        disk.sync_folder(segment_file(to, 1, "blocks").parent)
        publish(to, replace(manifest, segments=tuple(replace(entry, owned=False) for entry in manifest.segments)))
    lock.close()


def _share(source: Path, target: Path) -> None:
    try:
        disk.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            raise
        raise ValueError(
            f"{target} cannot share the bytes of {source} ({error.strerror}): fork to a folder of the same "
            f"file system, or export the context"
        ) from error
