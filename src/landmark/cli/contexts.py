"""`landmark contexts`: list, describe, check, delete and export contexts on disk. No model is loaded."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from landmark.cli.output import bytes_done, counted, print_escaped, size_text
from landmark.limits import LocalFolder, OutFile
from landmark.urls import path_of, url_of

DAMAGED = 1


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the contexts in a folder."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER"), LocalFolder()] = Path(".")
    """The folder that the contexts' own folders are in."""
    json: bool = False
    """Print one JSON object per context."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """What a context holds, and how much."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT")]
    """Folder of the context, or the URL of a collection, such as s3://bucket/library."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Check every committed byte of a context."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT"), LocalFolder()]
    """Folder of the context."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """Delete a context with all its files; forks of it keep theirs."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT"), LocalFolder()]
    """Folder of the context."""
    yes: bool = False
    """Do not ask."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write what was committed to one tar file, which can be unpacked and opened anywhere."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT"), LocalFolder()]
    """Folder of the context."""
    out: Annotated[Path, OutFile()]
    """File to write; it must not exist."""


def run_ls(options: ListOptions) -> int:
    """One line for each context; one that cannot be opened is marked."""
    from landmark.contexts.collection_manifest import is_collection
    from landmark.contexts.either import find, info, is_either

    if is_either(options.folder):
        kind = "collection" if is_collection(options.folder) else "context"
        raise ValueError(f"{options.folder} is a {kind} itself: run landmark contexts info {options.folder}")
    contexts = list(find(options.folder))
    if not contexts:
        print_escaped(f"no contexts in {options.folder}", to_stderr=True)
    for path in contexts:
        try:
            found = info(path)
        except (OSError, ValueError) as error:
            if options.json:
                print(json.dumps({"path": str(path), "damage": str(error)}))
            else:
                print_escaped(f"{path}: DAMAGED: {error}")
            continue
        if options.json:
            print(json.dumps(found))
        else:
            print_escaped(f"{path}: {counted(found['tokens'], 'token')}, {size_text(found['bytes'])}")
    return 0


def run_info(options: InfoOptions) -> int:
    """What a context holds, without loading a model."""
    from landmark.contexts import either, remote

    url = url_of(options.context)
    found, held = either.described(path_of(options.context)) if url is None else remote.described(url)
    documents = [asdict(document) for document in held]
    if options.json:
        print(json.dumps({**found, "documents": documents}))
        return 0
    header, _ = found.pop("header"), found.pop("documents")
    _print_facts("context", found)
    _print_facts("read by", {"model": header.get("model"), "landmark": header.get("landmark")})
    _print_facts("settings", header.get("settings", {}))
    _print_facts("fingerprint", header.get("fingerprint", {}))
    print_escaped(f"documents: {len(documents)}")
    for document in documents:
        size = f"{counted(document['characters'], 'character')}, {counted(document['tokens'], 'token')}"
        print_escaped(f"  {document['name']}: {size}")
    return 0


def _print_facts(title: str, facts: dict[str, Any]) -> None:
    """A title, and one indented line for each fact that is known; those of a dictionary are indented further."""
    print_escaped(f"{title}:")
    for name, value in facts.items():
        if isinstance(value, dict):
            print_escaped(f"  {name}:")
            for part, inner in value.items():
                print_escaped(f"    {part}: {inner}")
        elif value is not None:
            print_escaped(f"  {name}: {value:,}" if type(value) is int else f"  {name}: {value}")


def run_verify(options: VerifyOptions) -> int:
    """Each damage on a line of its own; exit code 1 if there is any."""
    from landmark.contexts.either import verify_all

    with bytes_done(f"verifying {options.context}") as progress:
        damages = verify_all(options.context, progress)
    if options.json:
        print(json.dumps({"context": str(options.context), "damages": [str(damage) for damage in damages]}))
    elif damages:
        for damage in damages:
            print_escaped(str(damage))
    else:
        print_escaped(f"{options.context}: every committed byte is as it was written")
    return DAMAGED if damages else 0


def run_delete(options: DeleteOptions) -> int:
    """Ask on a terminal, and delete."""
    from landmark.contexts.either import check_deletable, delete

    check_deletable(options.context)
    if not options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ValueError(f"{options.context} is not deleted: give --yes where there is no terminal to ask on")
        print_escaped(f"delete {options.context}: {_contents(options.context)}? [y/N] ", end="")
        if input().strip().lower() not in ("y", "yes"):
            print_escaped("kept")
            return 0
    delete(options.context)
    print_escaped(f"{options.context} is deleted")
    return 0


def _contents(context: Path) -> str:
    """What would be deleted, in a few words."""
    from landmark.contexts.either import info

    try:
        found = info(context)
    except (OSError, ValueError):
        return "a context that cannot be opened, or what is left of one"
    return f"{counted(found['documents'], 'document')}, {size_text(found['bytes'])}"


def run_export(options: ExportOptions) -> int:
    """Write the tar file."""
    from landmark.contexts.export import export

    with bytes_done(f"exporting {options.context}") as progress:
        export(options.context, options.out, progress)
    print_escaped(f"{options.out}: {size_text(options.out.stat().st_size)}")
    return 0
