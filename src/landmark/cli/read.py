"""`landmark read`, `append` and `ask`: texts read once into a context on disk, and asked again and again."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from landmark.cli.reading import load, tokens_read
from landmark.limits import FromOne, FromZero, Limit, OutFolder, Seed, Temperature
from landmark.settings import ReadingChanges

if TYPE_CHECKING:
    from landmark.contexts.context import Context

SNIPPET = 160


class Bytes(Limit):
    """Bytes, as text such as 256MB."""

    def check(self, name: str, value: str) -> None:
        from landmark.store.base import parse_bytes

        parse_bytes(name, value)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How much of a context stays in memory, and how its landmarks are searched."""

    host_budget: Annotated[str | None, Bytes()] = None
    """Most bytes of keys and values kept in main memory, e.g. 256MB; landmark keys come on top. Default: 256MB."""
    device_budget: Annotated[str | None, Bytes()] = None
    """The same for a GPU's memory."""
    index: Literal["auto", "exact", "hierarchical"] = "auto"
    """How the landmarks are searched: docs/indexes.md."""

    def keywords(self) -> dict[str, Any]:
        """What they are to `Context`."""
        return {"host_budget": self.host_budget, "device_budget": self.device_budget, "index": self.index}

    def check(self, config: Any, context: Path | None = None, **settings: Any) -> None:
        """Raises ValueError for what does not go with a context, and a model with this `config`, not loaded yet."""
        import torch

        from landmark.contexts.compatibility import check_memory
        from landmark.contexts.manifest import read_manifest
        from landmark.hf import LandmarkCache

        if self.device_budget is not None and not torch.cuda.is_available():
            raise ValueError("device_budget is for GPUs, and torch sees none here: give host_budget")
        LandmarkCache(config, **self.keywords(), **settings)
        if context is not None:
            manifest = read_manifest(context)
            check_memory(manifest.header, manifest.layout, config, **self.keywords(), **settings)


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Memory):
    """Read texts into a new context on disk, or go on with one where an interruption left it."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")]
    """Texts to read, in this order: UTF-8 files, - for standard input, or the other sources of `landmark train`."""
    out: Annotated[Path, OutFolder(makes_parents=False)]
    """Folder of the context. If it exists, the same command goes on with it: documents that it holds are left out."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; the one in the package when left out."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class AppendOptions(Memory):
    """Add texts to a context, and read them."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT")]
    """Folder of the context."""
    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")]
    """Texts to add, as for `landmark read`; the ones that the context holds already are left out. Standard input is
    named stdin, another time stdin 2 and so on. Without any, what was added and not read is read."""
    model: Path | None = None
    """Folder of the model that read the context; default: where it was then."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class AskOptions(Memory):
    """Continue a prompt after a context, and show where in its documents the model looked."""

    context: Annotated[Positional[Path], arg(metavar="CONTEXT")]
    """Folder of the context; it is not changed."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What is continued, word for word."""
    model: Path | None = None
    """Folder of the model that read the context; default: where it was then."""
    max_new_tokens: FromOne = 100
    """Most tokens to generate."""
    temperature: Temperature = 0.0
    """0 takes the most likely token each time; above 0 samples."""
    seed: Seed = 0
    """Decides what is sampled."""
    sources: FromZero = 5
    """Opened blocks to show, the most read first."""
    json: bool = False
    """Print one JSON object instead of text."""
    reading: OmitArgPrefixes[ReadingChanges] = field(default_factory=ReadingChanges)
    """How it is read; default: as when the context was read."""


def run_read(options: ReadOptions) -> int:
    """Make or open the context, add what it lacks, read."""
    if not options.files and not options.out.exists():
        raise ValueError("there is nothing to read: name at least one file, or - for standard input")
    from landmark.contexts.documents import distinct

    documents = distinct(named_texts(options.files))
    from landmark.contexts.context import Context
    from landmark.contexts.manifest import read_manifest

    known = options.out if options.out.exists() else None
    if known is not None:
        read_manifest(known)  # tells that it is no context before a model is loaded
    model, tokenizer = load(options.model, lambda config: options.check(config, known))
    keywords = options.keywords()
    if known is not None:
        context = Context.open(options.out, model, tokenizer, write=True, **keywords)
    else:
        context = Context.create(options.out, model, tokenizer, **keywords)
    return grow(context, documents, as_json=options.json)


def run_append(options: AppendOptions) -> int:
    """Open the context, add, read."""
    from landmark.contexts.documents import distinct

    documents = distinct(named_texts(options.files))
    from landmark.contexts.context import Context

    folder = model_of(options.context, options.model)
    model, tokenizer = load(folder, lambda config: options.check(config, options.context))
    context = Context.open(options.context, model, tokenizer, write=True, **options.keywords())
    return grow(context, documents, as_json=options.json)


def run_ask(options: AskOptions) -> int:
    """Answer, and list what was opened."""
    import torch

    from landmark.contexts.context import Context

    if not options.prompt:
        raise ValueError("the prompt is empty: say what is to be continued")
    folder = model_of(options.context, options.model)
    model, tokenizer = load(folder, lambda config: options.check(config, options.context, **options.reading))
    context = Context.open(options.context, model, tokenizer, **options.reading, **options.keywords())
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    answer = context.generate(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        sources=options.sources,
        write=None if options.json else lambda piece: print(piece, end="", flush=True),
    )
    seconds = time.perf_counter() - started
    if options.json:
        figures = {"tokens_read": context.tokens_read, "new_tokens": len(answer.ids), "seconds": seconds}
        sources = [asdict(source) for source in answer.sources]
        print(json.dumps({"answer": answer.text, **figures, "traffic": asdict(answer.traffic), "sources": sources}))
        return 0
    print(flush=True)
    print(f"answered from {context.tokens_read:,} tokens in {seconds:.2f} s", file=sys.stderr)
    if unread := context.tokens - context.tokens_read:
        print(f"{unread:,} tokens more are not read yet: run landmark append {options.context}", file=sys.stderr)
    for source in answer.sources:
        print(
            f"\n{source.document}, characters {source.first}:{source.last}, weight {source.weight:.3f}\n"
            f"  {' '.join(source.text.split())[:SNIPPET]}"
        )
    return 0


def named_texts(files: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names and texts of all documents of the sources; what cannot be read is told before work starts.

    Standard input is named `-`, until the context is open and knows which names are free.
    """
    from landmark.data.text import STDIN, read_documents

    for source in files:
        for document in read_documents(source):
            yield STDIN if source == STDIN else document.name, document.text


def model_of(context: Path, model: Path | None) -> Path | None:
    """The folder of the model that read a context, as far as the context knows; None is the one in the package.

    If it is another one after all, opening the context says so.
    """
    from landmark.contexts.manifest import read_manifest

    recorded = read_manifest(context).header["model"]
    return model or (Path(recorded) if recorded and Path(recorded).is_dir() else None)


def grow(context: "Context", documents: list[tuple[str, str]], *, as_json: bool) -> int:
    """Add the documents that the context does not hold, read all that is unread, and tell the figures."""
    from landmark.data.text import STDIN

    with context:
        named = ((context.name_for("stdin", text) if name == STDIN else name, text) for name, text in documents)
        new = context.missing(named)
        before, started = context.tokens_read, time.perf_counter()
        context.add(new)
        with tokens_read(f"reading into {context.path.name}", context.tokens - before) as progress:
            context.read(progress=progress)
        seconds = time.perf_counter() - started
        figures = {
            "documents": len(context.documents),
            "new_documents": len(new),
            "tokens": context.tokens_read,
            "new_tokens": context.tokens_read - before,
            "seconds": seconds,
        }
        if as_json:
            print(json.dumps({"context": str(context.path), **figures}))
        else:
            print(
                f"{context.path}: {figures['new_tokens']:,} tokens read in {seconds:.1f} s;"
                f" {figures['documents']} documents, {figures['tokens']:,} tokens in all"
            )
    return 0
