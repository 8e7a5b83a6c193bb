"""`Chat`: a conversation with a converted model about documents, in the model's chat template."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from landmark.contexts import compatibility
from landmark.contexts.context import Answer, Context
from landmark.contexts.documents import (
    MemoryDocuments,
    Source,
    check_document,
    check_limit,
    first_sources,
    in_front,
    marked_reread,
    spans_with_words,
    tokenized,
)
from landmark.contexts.segments import Document
from landmark.data.chat import ChatFormat
from landmark.data.encoder import TextEncoder
from landmark.data.text import encoded
from landmark.hf import LandmarkCache, Span, read
from landmark.hf.ranking import Ranking
from landmark.hf.reader import TextTo, answer, end_tokens
from landmark.hf.rereading import Rereading, check_reread, in_text_order, read_first, usual_reread
from landmark.hf.retrieval_heads import RetrievalHeads
from landmark.hf.tokenizer import text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_CHAT = "its model continues texts, as `landmark ask` does; take an instruction model to chat with"
SEPARATOR = "\n\n"  # between documents and the question: the form in which recall tasks are trained


class Chat:
    """A conversation with a converted model, about documents or about nothing in particular.

    Messages stand in the chat template of the tokenizer. Documents are part of the user's next message, in front of the
    question. Special tokens of the template are special; their names in documents and questions stay text.

    All is kept in one KV cache, so that a question costs its own tokens and the answer's, whatever was read before; the
    passages that an answer was read from are its sources. `stop` ends an answer early. A chat whose forward was
    interrupted in any other way is over, and says so by a ValueError.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        cache: LandmarkCache | None = None,
        *,
        heads: RetrievalHeads | None = None,
    ) -> None:
        """A chat without documents; `read` adds some.

        `model` is a converted model, `tokenizer` its own (by default the one saved beside it), `cache` a new
        `LandmarkCache` with other settings than the model's. `heads` choose what `ask` reads again, by default those
        known for this model. Raises ValueError for a tokenizer without a chat template, for a cache that has
        read something, and for heads that the model has not.
        """
        self.model = model
        self.tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer
        self.cache = LandmarkCache(model.config) if cache is None else cache
        if self.cache.tokens_read():
            raise ValueError("the cache has read something already: give a new one, or use Chat.about(context)")
        if heads is not None:
            heads.check(model.config)
        self._heads = heads
        backend: Any = self.tokenizer.backend_tokenizer
        self._format = ChatFormat.of(self.tokenizer, NO_CHAT)
        self._templates, self._texts = TextEncoder(backend, template=True), text_encoder(self.tokenizer)
        self._end: Any = self.tokenizer.eos_token_id
        self._context: Context | None = None
        self._documents = MemoryDocuments()
        self._tokens = 0  # of the conversation; the cache has read as many
        self._opening = self._template(self._format.begin)  # to be read before anything else
        self._separator = ""  # of the next question
        self._ranking: Ranking | None = None  # for the documents read so far
        self._unasked: LandmarkCache | None = None  # they without a question behind them, which would be background too
        self._rereading: Rereading | None = None  # for them

    @classmethod
    def about(cls, context: Context, *, heads: RetrievalHeads | None = None) -> "Chat":
        """A chat about the documents of a context, which it does not change: it goes on in a fork in memory.

        `heads` as for the class. Raises ValueError for a tokenizer without a chat template, for documents that were
        added and not read, and for heads that the model has not.
        """
        if context.tokens_read < context.tokens:
            raise ValueError(f"{context.path} has documents that are not read yet: call its read() first")
        chat = cls(context.model, context.tokenizer, heads=heads)
        chat._context = context.fork()
        chat.cache = chat._context.cache
        chat._tokens = chat.tokens_read
        if chat._tokens:
            # A context begins with its text, and the template's opening is left out. Of 12 facts hidden in 8,000 tokens
            # SmolLM2-135M-Instruct names 8 so, 7 with the opening before the text, and 3 with the opening behind it.
            chat._opening, chat._separator = np.empty(0, np.int64), SEPARATOR
        return chat

    @property
    def tokens_read(self) -> int:
        """Number of tokens that the model has read: documents, questions, answers and the template's."""
        return next(iter(self.cache.tokens_read()), 0)

    @property
    def usual_reread(self) -> int:
        """A good number of blocks for `ask` to read again: 0 for a model whose heads that rank them are not known."""
        return usual_reread(self.model.config, self.cache, self._heads)

    @property
    def documents(self) -> list[Document]:
        """Names and sizes of the documents, in the order in which they were read."""
        return [*([] if self._context is None else self._context.documents), *self._documents.documents]

    def read(self, text: str, name: str = "text", *, progress: Callable[[int], object] | None = None) -> None:
        """Reads a document; `progress` is called with the number of tokens of each chunk.

        Where `progress` raises, what was read of the document stays. Raises ValueError for an empty text.
        """
        self._check_whole()
        check_document(name, text)
        tokens = tokenized(self.tokenizer, text, first=False)
        read(self.model, torch.from_numpy(self._opening), self.cache)
        self._opening, self._separator = np.empty(0, np.int64), SEPARATOR
        self._ranking = self._unasked = self._rereading = None
        first = self._tokens = self.tokens_read
        try:
            read(self.model, torch.from_numpy(tokens[:, 0].astype(np.int64)), self.cache, progress=progress)
        finally:
            self._tokens = self.tokens_read
            if count := self._tokens - first:
                document = Document.of(name, text, count, first_token=first)
                self._documents.add(document, text, tokens[:count])

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        sources: int = 5,
        reread: int = 0,
        write: Callable[[str], object] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """The model's answer to the user's next message: the documents read since the last one, and `question`.

        Greedy, or sampled at a `temperature` above 0; `write` gets the text word by word. `stop` is called after each
        token and ends the answer, which stays in the conversation as far as it came, when it returns True.

        With `reread`, the text of so many blocks of the documents, those that rank highest for the question, stands
        in the message again, in front of the question (docs/retrieval.md). The answer lists the passages of these, and
        of the first `sources` others that were opened, as `Ranking` has them; none at all for 0.

        Raises ValueError for a question that is empty or no text, for `reread` below 0, of more blocks than a chunk
        has or in a model whose heads are not known, and as `Context.generate` does.
        """
        self._check_whole()
        check_limit(sources)
        check_reread(reread, self.cache)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"the question is {question!r}: give some words")
        encoded("the question", question)
        if self.documents and self._unasked is None:
            self._unasked = self.cache.fork()
        again = self._best(question, reread)
        ids = self._message(self._texts_of(again) + question)
        if sources and self._unasked is not None and self._ranking is None:
            self._ranking = Ranking.after(self.model, self.tokenizer, self._unasked)
        traffic = self.cache.traffic
        self.cache.start_trace()
        new = answer(
            self.model,
            torch.from_numpy(ids),
            self.cache,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            streamer=None if write is None else TextTo(self.tokenizer, write),
            end=self._end,
            stop=stop,
        )
        self._end_turn(new[self.tokens_read - self._tokens - len(ids) :])
        text: Any = self.tokenizer.decode(new, skip_special_tokens=True)
        trace = self.cache.trace()
        opened = self._ranking.spans(trace) if sources and self._ranking else []
        found = self._found(again, opened, sources)
        return Answer(question, text, new, found, self.cache.traffic - traffic, trace)

    def _message(self, text: str) -> np.ndarray:
        """Token ids of the user's next message, up to the beginning of the reply."""
        asked = self._texts.encode(self._separator + text, continues=True).ids
        return np.concatenate([self._opening, asked, self._template(self._format.reply)])

    def _end_turn(self, unread: list[int]) -> None:
        """The next message begins with the last token of the answer, `unread` since nothing was predicted from it."""
        kept = [token for token in unread if token not in end_tokens(self.model, self._end)]
        self._opening = np.concatenate([np.array(kept, np.int64), self._template(self._format.again)])
        self._separator = ""
        self._tokens = self.tokens_read

    def _best(self, question: str, count: int) -> list[Span]:
        """The `count` blocks of documents that rank highest for the question, or fewer."""
        if not count or self._unasked is None:
            return []
        if self._rereading is None:
            self._rereading = Rereading(self.model, self.tokenizer, self._unasked, self._heads)
        return spans_with_words(self._sources, self._rereading.spans(question), count)

    def _texts_of(self, spans: list[Span]) -> str:
        """The passages of the spans in text order, each in front of a blank line."""
        return in_front(source for span in in_text_order(spans) for source in self._sources(span))

    def _found(self, again: list[Span], opened: list[Span], limit: int) -> list[Source]:
        """Passages of the blocks that were read `again`, then of the first `limit` others of `opened`; none for 0."""
        spans = read_first(again, opened) if limit else []
        return marked_reread(first_sources(self._sources, spans, len(again) + limit), again)

    def _template(self, text: str) -> np.ndarray:
        """Token ids of a part of the template."""
        return self._templates.encode(text, continues=True).ids

    def _sources(self, span: Span) -> list[Source]:
        """The passages of one span that lie in documents: none of what was said in the conversation."""
        of_context = [] if self._context is None else self._context.passages([span], 1)
        return [*of_context, *self._documents.sources(span)]

    def _check_whole(self) -> None:
        self.cache.check_complete()
        if self.tokens_read != self._tokens:
            raise ValueError(
                f"the cache of this chat has read {self.tokens_read} tokens, and the conversation has {self._tokens}:"
                " an answer was interrupted; begin another chat"
            )
