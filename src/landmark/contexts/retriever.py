"""`Retriever`: passages of documents ranked by the landmark scores of a query, without decoding."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from landmark.contexts.context import Context
from landmark.hf.block_search import BlockSearch
from landmark.hf.cache import CacheOptions
from landmark.hf.retrieval_heads import BlockRanker, RetrievalHeads
from landmark.hf.trace import Span
from landmark.limits import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_BLOCKS = 4  # of a passage


@dataclass(frozen=True)
class Match:
    """A passage that a query found: characters `first:last` of the document named `document`.

    It is one block, or some neighbours: the tokens `start:stop`, counted from the start of the context. `score` is that
    of its best block.
    """

    document: str
    first: int
    last: int
    start: int
    stop: int
    score: float
    text: str


class Retriever:
    """Ranks passages of a context, which was read once, by landmark scores; nothing is decoded (docs/retrieval.md).

    A query is read after the documents, in a fork in memory, and its scores with the landmark of every block are
    pooled. Neighbouring blocks make one passage.

    Args:
        context: a context that its model has read.
        heads: the heads whose scores count; by default those known for this model.

    Raises ValueError for a context without text, for heads that the model has not, and where none are known.
    """

    def __init__(self, context: Context, heads: RetrievalHeads | None = None) -> None:
        config = context.model.config
        self.context = context
        self.heads = RetrievalHeads.of_model(config, heads)
        self._hidden: set[str] = set()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._ranker, self._read = self._ranker_of_now()

    def __repr__(self) -> str:
        return f"Retriever({self.context!r}, {self.heads!r})"

    @classmethod
    def over(
        cls,
        texts: Iterable[tuple[str, str]],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        heads: RetrievalHeads | None = None,
        progress: Callable[[int], object] | None = None,
        **options: Unpack[CacheOptions],
    ) -> "Retriever":
        """Reads `texts`, pairs of a name and a text, into a temporary context; `close` deletes it.

        `progress` is called with the number of tokens of each chunk; `options` are those of `Context.create`. Raises
        ValueError as `Context.add` and the class do.
        """
        folder = tempfile.TemporaryDirectory(prefix="landmark-")
        try:
            context = Context.create(Path(folder.name) / "context", model, tokenizer, **options)
            context.add(texts)
            context.read(progress=progress)
            retriever = cls(context, heads)
        except BaseException:
            folder.cleanup()
            raise
        retriever._temporary = folder
        return retriever

    # Documents.

    def add(self, text: str, name: str, *, progress: Callable[[int], object] | None = None) -> None:
        """Reads one more document, as `Context.append` does; a removed one of the same name and text is found again.

        Raises ValueError for a context that is not open for writing, and another text under a known name.
        """
        if self.context.missing([(name, text)]):
            self.context.append(text, name, progress=progress)
        self._hidden.discard(name)

    def remove(self, name: str) -> None:
        """Leaves the document out of what is found from now on; the context keeps it, and its model has read it.

        Raises ValueError for a name that no document has.
        """
        if name not in self._names():
            raise ValueError(f"no document is named {name!r}: there are {', '.join(self._names()) or 'none'}")
        self._hidden.add(name)

    def _names(self) -> list[str]:
        """Names of the documents that were not removed, each once."""
        names = dict.fromkeys(document.name for document in self.context.documents)
        return [name for name in names if name not in self._hidden]

    # Searching.

    def search(self, query: str, top: int = 10) -> list[Match]:
        """The `top` best passages or fewer, by falling score, among equals the earlier one first.

        Raises ValueError for a query that is empty or too long, for `top` below 1, and for a model that changed since.
        """
        if not isinstance(query, str) or not query.strip():
            raise ValueError("the query is empty: give the words to look for")
        if not is_whole(top, 1):
            raise ValueError(f"top is {top!r}: give the number of passages, 1 or more")
        found: list[Match] = []
        scores = self.block_scores(query)
        for blocks in passages(self._ranking(scores), top):
            found += self._matches(blocks, float(scores[blocks.start : blocks.stop].max()))
        return found[:top]

    def block_scores(self, query: str) -> Tensor:
        """The score of every block [N] of the context, for a ranking of your own; errors as for `search`."""
        self.context.check()
        if self._read != self.context.tokens_read:
            self._ranker, self._read = self._ranker_of_now()
        return self._ranker.scores(query)

    def _ranker_of_now(self) -> tuple[BlockRanker, int]:
        """The ranker of all that was read, and how many tokens that is."""
        fork, read = self.context.fork(), self.context.tokens_read
        if not read:
            raise ValueError(f"{self.context.path} holds no text that was read: add a document first")
        search = BlockSearch(fork.model, fork.tokenizer, fork.cache)
        return BlockRanker(search, fork.tokenizer, self.heads), read

    def _ranking(self, scores: Tensor) -> Iterator[int]:
        """The blocks by falling score, without those that hold nothing but removed documents."""
        seen = torch.zeros(len(scores), dtype=torch.bool)
        size = self.context.cache.settings.block_size
        for document in self.context.documents:
            if document.name not in self._hidden:
                last = document.first_token + document.tokens - 1
                seen[document.first_token // size : last // size + 1] = True
        order = scores.argsort(descending=True, stable=True)
        return iter(order[seen[order]].tolist())

    def _matches(self, blocks: range, score: float) -> Iterator[Match]:
        """A passage, in parts where documents meet in it."""
        size = self.context.cache.settings.block_size
        span = Span(blocks.start, blocks.start * size, min(blocks.stop * size, self._read), score)
        for part in self.context.passages([span], 1):
            if part.document not in self._hidden:
                yield Match(part.document, part.first, part.last, part.start, part.stop, score, part.text)

    def close(self) -> None:
        """Closes the context, and deletes it if it is temporary."""
        self.context.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "Retriever":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def passages(ranking: Iterable[int], top: int) -> list[range]:
    """The best `top` passages of blocks by falling score: a block joins the best passage beside it that has room."""
    found: list[range] = []
    for block in ranking:
        beside = (n for n, one in enumerate(found) if block in (one.start - 1, one.stop) and len(one) < MOST_BLOCKS)
        place = next(beside, None)
        if place is not None:
            one = found[place]
            found[place] = range(min(one.start, block), max(one.stop, block + 1))
        elif len(found) < top:
            found.append(range(block, block + 1))
        else:
            break
    return found
