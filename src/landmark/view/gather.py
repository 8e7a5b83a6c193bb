"""`View`: an answer, the texts that it came from, and what each generated token read of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers.decoders import DecodeStream

from landmark.contexts.documents import Source
from landmark.hf.tokenizer import EncodedText, encode
from landmark.stream import stream_length
from landmark.view import FIGURES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from landmark.contexts.context import Answer, Context
    from landmark.hf.trace import Trace

DOCUMENT, PROMPT, ANSWER = "document", "prompt", "answer"
_BEFORE = 8  # tokens of the prompt that are decoded before the answer, so that it begins with its own space


@dataclass(frozen=True)
class Text:
    """A text that the model read or wrote, and the characters (start, stop) of each of its tokens, `offsets [n,2]`.

    `kind` is "document", "prompt" or "answer". Its first token is number `first` of all that were read.
    """

    name: str
    kind: str
    text: str
    offsets: np.ndarray
    first: int

    @property
    def stop(self) -> int:
        """The number behind its last token."""
        return self.first + len(self.offsets)


@dataclass(frozen=True)
class Token:
    """A generated token, number `number` of all tokens that were read.

    `text` is what it adds to the answer: nothing for a special token, nor for one that is followed by the rest of a
    character. `name` is how the vocabulary spells it.
    """

    number: int
    id: int
    text: str
    name: str


@dataclass(frozen=True)
class View:
    """What each of G generated tokens read, in L layers and H heads: at most k blocks each, and their weights.

    Made by `of_context` and `of_text`; `save` writes it as a page, a figure or lines of JSON. A token is predicted by
    the query of the token before it, so its reads are those of that query. Blocks are numbered from the first token
    that was read, through all texts; prompt and answer are the last two.

    Attributes:
        model: name of the model.
        block_size: ordinary tokens of a block.
        texts: everything that was read or generated, in this order.
        tokens: the generated tokens.
        layers: numbers of the layers that retrieve.
        blocks: `[G,L,H,k]`, -1 for none.
        weights: `[G,L,H,k]`, their gates (section 3.1 of the paper), 0 for none.
        local: `[G,L,H]`, the weight of everything else: the local window, the chunk, attention sinks. With the gates it
            sums to 1.
    """

    model: str
    block_size: int
    texts: tuple[Text, ...]
    tokens: tuple[Token, ...]
    layers: tuple[int, ...]
    blocks: np.ndarray
    weights: np.ndarray
    local: np.ndarray

    @classmethod
    def of_context(cls, context: "Context", answer: "Answer") -> "View":
        """The view of an answer of `context.generate`.

        Raises ValueError for a context without text, an answer from before it grew, and one for which no block was
        opened.
        """
        read, documents = context.tokens_read, []
        for document in context.documents:
            if document.first_token < read:
                text, offsets = context.text(document), context.offsets(document).astype(np.int64)
                if document.first_token + len(offsets) > read:
                    offsets = offsets[: read - document.first_token]
                    text = text[: offsets[-1, 1]]
                documents.append(Text(document.name, DOCUMENT, text, offsets, document.first_token))
        if not documents:
            raise ValueError(f"{context.path} has no text that was read: read one into it with `landmark append`")
        if answer.trace.positions[0, 0] != stream_length(read, answer.trace.block_size):
            raise ValueError(f"{context.path} has grown since this answer was given: ask again")
        encoded = encode(context.tokenizer, answer.prompt, continues=context.tokens > 0)
        return cls._of(_name(context.model), context.tokenizer, documents, encoded, answer.ids, answer.trace)

    @classmethod
    def of_text(
        cls,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        text: EncodedText,
        prompt: EncodedText,
        ids: Sequence[int],
        trace: "Trace",
        *,
        name: str = "text",
    ) -> "View":
        """The view of the tokens `ids` that `model` generated after a `text` and a `prompt`, row 0 of the `trace`.

        The trace must hold the forwards from the last token of the prompt on: `cache.start_trace()` before it is read.
        Raises ValueError if it does not, and if no block was opened.
        """
        document = Text(name, DOCUMENT, text.text, _offsets(text), 0)
        return cls._of(_name(model), tokenizer, [document], prompt, ids, trace)

    @classmethod
    def _of(
        cls,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        documents: list[Text],
        prompt: EncodedText,
        ids: Sequence[int],
        trace: "Trace",
    ) -> "View":
        if not len(prompt):
            raise ValueError("the prompt is empty: give the text that is to be continued")
        if not len(ids):
            raise ValueError("nothing was generated: there is no token to show the reads of")
        asked = Text(PROMPT, PROMPT, prompt.text, _offsets(prompt), documents[-1].stop)
        tokens = _generated(tokenizer, prompt.ids[-_BEFORE:].tolist(), ids, asked.stop)
        ends = np.cumsum([len(token.text) for token in tokens])
        starts = ends - [len(token.text) for token in tokens]
        answer = "".join(token.text for token in tokens)
        written = Text(ANSWER, ANSWER, answer, np.stack((starts, ends), 1), asked.stop)
        places = trace.queries([token.number - 1 for token in tokens])
        if not trace.blocks:
            raise ValueError(
                f"no block was opened for these {asked.stop} tokens: a text must be longer than the local window, and"
                " retrieve at least 1"
            )
        blocks, weights, local = (
            np.stack([of_layer[0, :, places].transpose(0, 1).cpu().numpy() for of_layer in kind.values()], 1)
            for kind in (trace.blocks, trace.gates, trace.local)
        )
        texts = (*documents, asked, written)
        return cls(model, trace.block_size, texts, tuple(tokens), tuple(trace.blocks), blocks, weights, local)

    # What there is.

    @cached_property
    def block_count(self) -> int:
        """Blocks of all texts, the unfinished last one included."""
        return -(-self.texts[-1].stop // self.block_size)

    def weights_of_blocks(self, token: int | None = None) -> list[tuple[int, float]]:
        """Blocks and their mean weight over layers, heads and all generated tokens, or one; by falling weight."""
        chosen = slice(None) if token is None else slice(token, token + 1)
        blocks, weights = self.blocks[chosen].ravel(), self.weights[chosen].ravel().astype(np.float64)
        opened = blocks >= 0
        totals = np.bincount(blocks[opened], weights[opened])
        totals /= self.local[chosen].size
        order = np.argsort(-totals, kind="stable")
        return [(int(block), float(totals[block])) for block in order if totals[block] > 0]

    def sources(self, limit: int, token: int | None = None) -> list[Source]:
        """The passages of the `limit` blocks that were read most for all generated tokens, or for one.

        A block on the border of two texts gives a passage of each.
        """
        return [
            source for block, weight in self.weights_of_blocks(token)[:limit] for source in self.passages(block, weight)
        ]

    def passages(self, block: int, weight: float = 0.0) -> Iterator[Source]:
        """The passages of one block: one, or one of each text on whose border it lies."""
        begin, end = block * self.block_size, (block + 1) * self.block_size
        for text in self.texts:
            start, stop = max(begin, text.first), min(end, text.stop)
            if start < stop:
                first, last = int(text.offsets[start - text.first, 0]), int(text.offsets[stop - 1 - text.first, 1])
                yield Source(text.name, first, last, block, start, stop, weight, text.text[first:last])

    # What it can be written as.

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a page (`.html`), a figure (`.png`, `.svg`, `.pdf`; needs matplotlib) or lines of JSON (`.jsonl`).

        Raises ValueError for another ending, and without matplotlib where it is needed.
        """
        _writer_of(Path(path))(self, Path(path))


def check_can_write(path: Path) -> None:
    """Raises ValueError where `View.save` would, before there is a view."""
    from landmark.view import figures

    if _writer_of(path) is figures.write:
        figures.check_matplotlib()


def _writer_of(path: Path) -> Callable[[View, Path], None]:
    """The function that writes a view to a file with the ending of `path`."""
    from landmark.view import figures, page, records

    writers: dict[str, Callable[[View, Path], None]] = {".html": page.write, ".jsonl": records.write}
    writers |= dict.fromkeys(FIGURES, figures.write)
    if path.suffix.lower() not in writers:
        raise ValueError(f"{path} ends in {path.suffix!r}: end its name in one of {', '.join(writers)}")
    return writers[path.suffix.lower()]


def _name(model: "PreTrainedModel") -> str:
    """The name of a model on the hub, or the end of the path that it was loaded from: pages are sent to others."""
    name = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
    return "/".join(Path(name).parts[-2:])


def _offsets(text: EncodedText) -> np.ndarray:
    return np.array(text.offsets, dtype=np.int64).reshape(-1, 2)


def _generated(tokenizer: "PreTrainedTokenizerBase", before: list[int], ids: Sequence[int], first: int) -> list[Token]:
    """The tokens `ids`, numbered from `first`, with the text that each adds behind the tokens `before`."""
    backend: Any = tokenizer.backend_tokenizer
    special, stream = set(tokenizer.all_special_ids), DecodeStream(skip_special_tokens=True)
    for token in before:
        stream.step(backend, token)
    tokens = []
    for number, token in enumerate(ids, first):
        text = "" if token in special else stream.step(backend, token) or ""
        tokens.append(Token(number, token, text, str(tokenizer.convert_ids_to_tokens(token))))
    return tokens
