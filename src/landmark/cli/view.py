"""`landmark view`: what a model read for each token of its answer, as a page, a list, a figure or JSON."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from landmark.cli.answering import AnswerOptions, answer_from_context, answer_from_text, check_asked
from landmark.cli.options import here
from landmark.cli.output import print_escaped, print_sources, size_text
from landmark.limits import MaybeFromOne, OutFile
from landmark.view import FIGURES

if TYPE_CHECKING:
    from landmark.view.gather import View

PASSAGES = 10  # that are printed


@dataclass(frozen=True, kw_only=True)
class ViewOptions(AnswerOptions):
    """Continue a prompt after a context or a text, and show what the model read for each generated token."""

    context: Path | None = None
    """Folder of a context, which is not changed, or the URL of a collection, such as s3://bucket/library."""
    file: Path | None = None
    """A UTF-8 text of any length, instead of a context."""
    prompt: str
    """What is continued, word for word."""
    out: Annotated[Path | None, OutFile()] = None
    """Write a page, FILE.html, that opens in any browser and needs no network."""
    text: bool = False
    """Print the passages, the most read first."""
    passages: MaybeFromOne = None
    """How many of them (default 10)."""
    figure: Annotated[Path | None, OutFile()] = None
    """Draw blocks against generated tokens: FILE.png, FILE.svg or FILE.pdf."""
    jsonl: Annotated[Path | None, OutFile()] = None
    """Write what every layer and head read for each token, FILE.jsonl, one line for each."""


def run(options: ViewOptions) -> int:
    """Answer, and write what was asked for."""
    files = _files(options)
    if (options.context is None) == (options.file is None):
        raise ValueError("give --context CONTEXT or --file BOOK, one of them: what the prompt is continued after")
    source = options.file if options.context is None else options.context
    assert source is not None
    check_asked(source, options.prompt)
    if options.context is not None:
        options = replace(options, context=here(options.context))
    if options.context is not None and not options.context.is_dir():
        raise ValueError(f"{source} is no context, which is a folder: give a text with --file")
    if files:
        from landmark.view.gather import check_can_write

        for path in files:
            check_can_write(path)  # before a text is read for minutes
    view = _view(options)
    if options.text:
        print_escaped(view.texts[-1].text, lines=True)
        print_sources(asdict(source) for source in view.sources(options.passages or PASSAGES))
    for path in files:
        view.save(path)
        print_escaped(f"wrote {path}, {size_text(path.stat().st_size)}", to_stderr=True)
    return 0


def _files(options: ViewOptions) -> list[Path]:
    """The files to write; ValueError where nothing is to be made, or one has the ending of another kind."""
    kinds = {"out": (".html",), "figure": FIGURES, "jsonl": (".jsonl",)}
    files = []
    for name, endings in kinds.items():
        path: Path | None = getattr(options, name)
        if path is None:
            continue
        if path.suffix.lower() not in endings:
            raise ValueError(f"{name} is {path}: end its name in {' or '.join(endings)}")
        files.append(path)
    if options.passages is not None and not options.text:
        raise ValueError(f"passages is {options.passages}, and none are printed: give --text")
    if not files and not options.text:
        raise ValueError("nothing is to be made: give --out PAGE.html, --text, --figure FILE.png or --jsonl FILE.jsonl")
    return files


def _view(options: ViewOptions) -> "View":
    if options.context is not None:
        context, answer, _ = answer_from_context(options, options.context, options.prompt)
        from landmark.view.gather import View

        return View.of_context(context, answer)
    assert options.file is not None
    found = answer_from_text(options, options.file, options.prompt)
    from landmark.view.gather import View

    trace = found.cache.trace()
    name = options.file.name
    return View.of_text(found.model, found.tokenizer, found.text, found.prompt, found.ids, trace, name=name)
