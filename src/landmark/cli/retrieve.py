"""`landmark retrieve`: passages of a context ranked by their landmarks for a query."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from landmark.cli.options import MemoryOptions, here, is_packaged, load, model_of, open_to_ask
from landmark.cli.output import SNIPPET, print_escaped, print_unread
from landmark.limits import FromOne
from landmark.settings import Verification

_HINT = (
    "the model in the package finds pass keys and little else; SmolLM2-135M-Instruct finds more:"
    " see landmark retrieve --help"
)


@dataclass(frozen=True, kw_only=True)
class RetrieveOptions:
    """Rank the passages of a context for a query by their landmarks. Nothing is generated, nothing changed.

    The model that read the context decides how well. Of 42 questions about 120 passages of novels, the right passage
    was among the first five for 5 % with the model in the package, which knows little but pass keys, and for 79 % with
    SmolLM2-135M-Instruct; BM25 had 95 % (docs/retrieval.md). `landmark chat FILE --context FOLDER` reads with
    SmolLM2-135M-Instruct.
    """

    context: Annotated[Positional[Path], arg(metavar="CONTEXT")]
    """Folder of a context that `landmark read` made, or the URL of a collection, such as s3://bucket/library."""
    query: Annotated[Positional[str], arg(metavar="QUERY")]
    """What to look for: a question or a sentence."""
    top: FromOne = 10
    """Most passages to show, the best first."""
    without: tuple[str, ...] = ()
    """Names of documents to leave out."""
    heads: Path | None = None
    """JSON file of the heads whose landmarks rank, from `landmark eval retrieval --save-heads`; default: those known
    for the model."""
    model: Path | None = None
    """Folder of the model that read the context; default: where it was then, or the one in the package."""
    json: bool = False
    """Print one JSON object per passage instead of text."""
    verify: Verification = "landmarks"
    """What of a context is checked before it opens: docs/contexts.md."""
    memory: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)


def run(options: RetrieveOptions) -> int:
    """Open the context, rank, and list the passages."""
    if not options.query.strip():
        raise ValueError("the query is empty: give the words to look for")
    options = replace(options, context=here(options.context))
    from landmark.contexts.retriever import Retriever
    from landmark.hf.retrieval_heads import RetrievalHeads

    heads = None if options.heads is None else RetrievalHeads.load(options.heads)
    folder = model_of(options.context, options.model)
    model, tokenizer = load(folder, lambda config: options.memory.check(config, options.context), options.context)
    context = open_to_ask(options.context, model, tokenizer, options.verify, **options.memory.keywords())
    retriever = Retriever(context, heads)
    if is_packaged(folder) and not options.json:
        print_escaped(_HINT, to_stderr=True)
    for name in options.without:
        retriever.remove(name)
    for number, match in enumerate(retriever.search(options.query, options.top), start=1):
        if options.json:
            print(json.dumps(asdict(match)))
            continue
        print_escaped(f"{number}. {match.document}, characters {match.first}:{match.last}, score {match.score:.4f}")
        print_escaped(f"  {' '.join(match.text.split())[:SNIPPET]}")
    if unread := context.tokens - context.tokens_read:
        print_unread(unread, options.context)
    return 0
