"""What contexts there are, and what is in them."""

from pathlib import Path
from typing import Any

from landmark.contexts.manifest import has_manifest
from landmark.contexts.reading import open_reader


def find(folder: str | Path) -> list[Path]:
    """The contexts in `folder`, damaged ones too, by name; ValueError if it is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that contexts were saved in")
    return sorted(path for path in folder.iterdir() if has_manifest(path))


def info(path: str | Path) -> dict[str, Any]:
    """What is in the context in `path`, as JSON can say it; raises ValueError where `open_reader` does.

    `shared_bytes` lie in segments that a fork took over, and may be on disk only once for several contexts.
    """
    snapshot = open_reader(path)
    manifest = snapshot.manifest
    shared = [entry for entry in manifest.segments if not entry.owned]
    return {
        "path": str(path),
        "generation": manifest.generation,
        "documents": len(snapshot.documents()),
        "tokens": manifest.token_count,
        "text_bytes": sum(entry.text.bytes for entry in manifest.segments),
        "blocks": manifest.blocks,
        "segments": len(manifest.segments),
        "bytes": manifest.committed_bytes,
        "shared_bytes": sum(sum(entry.sizes(manifest.layout).values()) for entry in shared),
        "header": manifest.header,
    }
