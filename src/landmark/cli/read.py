"""`landmark read` and `landmark append`: texts read once into a context on disk."""

import json
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from landmark.cli.collections import ReadAll, add_all
from landmark.cli.options import MemoryOptions, NumberOptions, load, model_of
from landmark.cli.output import counted, print_escaped, tokens_read
from landmark.cli.texts import named_texts, with_names
from landmark.limits import LocalFolder, MaybeFromOne, OutFolder
from landmark.settings import Verification
from landmark.urls import path_of, shown, url_of

if TYPE_CHECKING:
    from landmark.contexts.context import Context


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Read texts into a new context on disk, or resume an interrupted one."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")] = ()
    """Texts to read, in this order: UTF-8 files, - for standard input, or the other sources of `landmark train`."""
    out: Annotated[Path, OutFolder(makes_parents=False, or_url=True)]
    """Folder of the context. If it exists, reading resumes: documents that it holds are skipped. With --apart also a
    URL of another file system, such as s3://bucket/library."""
    apart: bool = False
    """Make a collection: every document is read from scratch, and can be replaced and removed later. Otherwise each is
    read with all earlier ones in reach."""
    share: tuple[Path, ...] = ()
    """With --apart, folders of other collections: documents that they hold are taken from there, not read again."""
    ray: str | None = None
    """With --apart, read by the workers of a Ray cluster: HOST:PORT of its head node, or local for one on this machine
    that ends with the command. All machines see --out, or it is a URL, and have the model where this one has it."""
    ray_workers: MaybeFromOne = None
    """Workers that read, each with a model of its own. Default: one for each GPU of the cluster, without any one for
    each core."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    json: bool = False
    """Print one JSON object instead of text."""
    verify: Verification = "landmarks"
    """What of a context is checked before it opens: docs/contexts.md."""
    memory: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)


@dataclass(frozen=True, kw_only=True)
class AppendOptions:
    """Add texts to a context, and read them."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT"), LocalFolder()]
    """Folder of the context."""
    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")] = ()
    """Texts to add, as for `landmark read`; those that the context holds already are skipped. Standard input is named
    stdin, another time stdin 2 and so on. Without any, documents added before and not read yet are read."""
    model: Path | None = None
    """Folder of the model that read the context; default: where it was then."""
    json: bool = False
    """Print one JSON object instead of text."""
    verify: Verification = "landmarks"
    """What of a context is checked before it opens: docs/contexts.md."""
    memory: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)


def run_read(options: ReadOptions) -> int:
    """Make or open the context, add what it lacks, read."""
    from landmark.contexts.documents import distinct

    known = _known(options)
    if not options.files and known is None:
        raise ValueError("there is nothing to read: name at least one file, or - for standard input")
    documents = distinct(named_texts(options.files))
    if options.share and not options.apart:
        raise ValueError("--share is for documents that are read apart: give --apart too")
    if options.ray is not None:
        _check_ray(options)
    elif options.ray_workers is not None:
        raise ValueError(f"ray_workers is {options.ray_workers}, of a Ray cluster: give --ray too, or leave it out")
    if known is not None:
        check_context(known, "--out")  # before a model is loaded
        check_kind(known, apart=options.apart)
    from landmark.contexts.collection import Collection
    from landmark.contexts.context import Context

    model, tokenizer = load(
        options.model, lambda config: options.memory.check(config, known), known, numbers=options.numbers
    )
    keywords = options.memory.keywords()
    if options.apart:
        keywords["share"] = options.share
    kind: Any = Collection if options.apart else Context
    if known is not None:
        made = kind.open(options.out, model, tokenizer, write=True, verify=options.verify, **keywords)
    else:
        made = kind.create(options.out, model, tokenizer, **keywords)
    if options.apart:
        read_all = None if options.ray is None else _by_ray(options, options.ray, made.path)
        return add_all(made, documents, shown(options.out), as_json=options.json, read_all=read_all)
    return _grow(made, documents, as_json=options.json)


def _check_ray(options: ReadOptions) -> None:
    """Raises ValueError where documents cannot be read on the cluster of `options`."""
    from landmark.contexts.ray_reading import check_address

    assert options.ray is not None
    if not options.apart:
        raise ValueError("--ray is for documents that are read apart: give --apart too")
    if options.share:
        raise ValueError("--share is for one machine: leave it out, or --ray")
    check_address(options.ray)


def _by_ray(options: ReadOptions, address: str, collection: Path) -> ReadAll:
    """What reads documents of a collection on the cluster at `address`, with the model that this process has."""
    from landmark.contexts.ray_reading import read_by_ray

    model = options.model and options.model.absolute()
    loading = partial(load, model, numbers=options.numbers.of_context(collection))
    return partial(read_by_ray, load=loading, address=address, workers=options.ray_workers)


def _known(options: ReadOptions) -> Path | None:
    """The folder of what `out` holds already, or of its copy on this machine, without documents; None for nothing."""
    from landmark.contexts import collection_folder, folder, remote

    url = url_of(options.out)
    if url is not None and not options.apart:
        raise ValueError(f"{url} is on another file system, for documents that are read apart: give --apart too")
    if url is not None:
        return None if remote.is_unused(url) else remote.local_manifest(url)
    is_unused = (collection_folder if options.apart else folder).is_unused
    out = path_of(options.out)
    return None if is_unused(out) else out


def check_context(folder: Path, option: str) -> None:
    """Raises ValueError unless a context is in `folder`, which the command was given with `option`."""
    from landmark.contexts.either import is_either, manifest_of

    if folder.is_dir() and not is_either(folder):
        raise ValueError(f"{folder} holds other files: give {option} a new folder, an empty one or a context")
    manifest_of(folder)


def check_kind(folder: Path, *, apart: bool) -> None:
    """Raises ValueError unless documents are read in this way into what is in a folder."""
    from landmark.contexts.collection_manifest import is_collection

    if is_collection(folder) and not apart:
        raise ValueError(f"{folder} is a collection, whose documents are read apart: give --apart, or run landmark add")
    if apart and not is_collection(folder):
        raise ValueError(
            f"{folder} is a context, whose documents are read one after another: leave --apart out, or give a new"
            " folder"
        )


def run_append(options: AppendOptions) -> int:
    """Open the context, add, read."""
    from landmark.contexts.documents import distinct

    documents = distinct(named_texts(options.files))
    from landmark.contexts.context import Context

    folder = model_of(options.context, options.model)
    model, tokenizer = load(folder, lambda config: options.memory.check(config, options.context), options.context)
    context = Context.open(
        options.context, model, tokenizer, write=True, verify=options.verify, **options.memory.keywords()
    )
    return _grow(context, documents, as_json=options.json)


def _grow(context: "Context", documents: list[tuple[str, str]], *, as_json: bool) -> int:
    """Add the documents that the context does not hold, read all that is unread, and print the figures."""
    with context:
        figures = grow(context, documents)
    if as_json:
        print(json.dumps({"context": str(context.path), **figures}))
    else:
        print_escaped(
            f"{context.path}: {counted(figures['new_tokens'], 'token')} read in {figures['seconds']:.1f} s;"
            f" {counted(figures['documents'], 'document')}, {counted(figures['tokens'], 'token')} in all"
        )
    return 0


def grow(context: "Context", documents: list[tuple[str, str]]) -> dict[str, Any]:
    """Add the documents that the context does not hold, and read all that is unread; figures of what was read."""
    new = context.missing(with_names(context, documents))
    before, started = context.tokens_read, time.perf_counter()
    context.add(new)
    with tokens_read(f"reading into {context.path.name}", context.tokens - before) as progress:
        context.read(progress=progress)
    return {
        "documents": len(context.documents),
        "new_documents": len(new),
        "tokens": context.tokens_read,
        "new_tokens": context.tokens_read - before,
        "seconds": time.perf_counter() - started,
    }
