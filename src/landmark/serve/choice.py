"""One choice of an answer: its tokens as text that clients may see, and the passages that it was read from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenizers.decoders import DecodeStream

from landmark.hf.decoding import Decoding
from landmark.hf.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"'\u201d\u2019)\]]*(?=\s|$)|\n|$)", re.DOTALL)


@dataclass(frozen=True)
class TokenLog:
    """A token, the natural logarithm of its probability, and the likeliest tokens with theirs."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """Text that an answer grew by, and its token's logarithm if that was asked for."""

    text: str
    log: TokenLog | None = None


@dataclass(frozen=True)
class Sentence:
    """Characters `first:last` of an answer, and what its tokens attended to."""

    first: int
    last: int
    trace: Trace


class Choice:
    """Turns a decoding into text, cuts it at stop strings, and holds back what could be the beginning of one."""

    def __init__(
        self,
        decoding: Decoding,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        stops: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> None:
        self.decoding = decoding
        self.text = ""
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = list(stops)
        self._logprobs = logprobs
        self._sent = 0  # characters
        self._ends: list[int] = []  # of each token, in characters

    def step(self) -> Piece | None:
        """One forward; None while the prompt is read. `finish_reason` is set by the last one."""
        token = self.decoding.step()
        if token is None:
            return None
        self.text += self._stream.step(self._backend, token) or ""
        if self.decoding.done:
            self.text += self._rest()
            self.finish_reason = "stop" if self.decoding.ended else "length"
        self._cut()
        self._ends.append(len(self.text))
        until = len(self.text) - (0 if self.finish_reason else self._held())
        piece = Piece(self.text[self._sent : until], self._log(token))
        self._sent = max(self._sent, until)
        return piece

    def _rest(self) -> str:
        """Text that the stream kept back: the beginning of a character whose end was not generated."""
        whole: Any = self._tokenizer.decode(self.decoding.ids, skip_special_tokens=True)
        return whole[len(self.text) :] if whole.startswith(self.text) else ""

    def _cut(self) -> None:
        """Ends the answer before the first stop string."""
        found = [at for stop in self._stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish_reason = self.text[: min(found)], "stop"

    def _held(self) -> int:
        """Characters at the end that a stop string begins with."""
        lengths = (n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        return min(max(lengths, default=0), len(self.text) - self._sent)

    def _log(self, token: int) -> TokenLog | None:
        if self._logprobs is None:
            return None
        logprob, top = self.decoding.logprobs(self._logprobs)
        return TokenLog(self._shown(token), logprob, [(self._shown(other), value) for other, value in top])

    def _shown(self, token: int) -> str:
        """A token's text; of a part of a character, which has none, how the vocabulary spells it."""
        text: Any = self._tokenizer.decode([token])
        spelt: Any = self._tokenizer.convert_ids_to_tokens(token)
        return spelt if "\ufffd" in text else text

    # What was read for it.

    def trace(self) -> Trace:
        """What prompt and answer attended to."""
        return self.decoding.cache.trace()

    def sentences(self, first_token: int) -> list[Sentence]:
        """What was read for each sentence; `first_token` is the number of the answer's first token."""
        trace, found = self.trace(), []
        starts = [0, *self._ends]
        for sentence in _SENTENCE.finditer(self.text):
            first, last = sentence.span()
            tokens = [
                first_token + number - 1  # a token is predicted by the query of the token before it
                for number, (start, end) in enumerate(zip(starts, self._ends, strict=False))
                if start < last and end > first
            ]
            found.append(Sentence(first, last, _part(trace, trace.queries(tokens))))
        return found


def _part(trace: Trace, places: list[int]) -> Trace:
    """The trace of some queries, all of which follow a text."""
    return replace(
        trace,
        positions=trace.positions[:, places],
        blocks={layer: x[:, :, places] for layer, x in trace.blocks.items()},
        gates={layer: x[:, :, places] for layer, x in trace.gates.items()},
        local={layer: x[:, :, places] for layer, x in trace.local.items()},
        asking={layer: x.new_full(x.shape, len(places)) for layer, x in trace.asking.items()},
    )
