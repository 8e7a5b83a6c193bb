"""Passkey retrieval (section 4.2 of the paper): digits hidden in a long text, asked for at its end."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landmark.data.recall import passkey_question, passkey_statement, random_key
from landmark.data.tokens import tokenizer_fingerprint
from landmark.evaluation.reading import Reading
from landmark.evaluation.samples import accuracy, by_depth, depths, digest
from landmark.hf import LandmarkCache, read
from landmark.hf.fingerprint import model_fingerprint
from landmark.hf.reader import answer
from landmark.hf.tokenizer import bos_tokens, encode
from landmark.process_memory import PeakMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIGITS = 5


@dataclass(frozen=True)
class Prompt:
    """A text with a passkey and the question after it: `text [N]`, `question [M]` ordinary tokens.

    `depth` is the position of the passkey `key`, from 0 at the start of the text to 1 at its end; `stated` are the
    tokens of its statement.
    """

    key: str
    depth: float
    text: Tensor
    question: Tensor
    stated: range


@dataclass(frozen=True)
class Sample:
    """An answered prompt; `seconds` from the first token of the prefill to the last digit."""

    length: int
    index: int
    depth: float
    key: str
    answer: str
    correct: bool
    seconds: float
    peak_rss_mb: float

    @property
    def place(self) -> tuple[int, int]:
        return self.length, self.index

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class PasskeyPrompts:
    """Generates prompts of any length from the filler ids `haystack [H]`, repeated if they are too few."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", haystack: Tensor, *, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more")
        self.tokenizer = tokenizer
        self.haystack = haystack
        self.seed = seed
        self.opening = bos_tokens(tokenizer).ids
        self.question = encode(tokenizer, passkey_question(), continues=True).ids

    def check_length(self, length: int) -> None:
        """Raises ValueError if `length` tokens have no room for a passkey, its question and a token of filler."""
        # The statement has the passkey twice, and each further digit takes at most a token.
        stated = len(encode(self.tokenizer, passkey_statement("0"), continues=True)) + 2 * (DIGITS - 1)
        least = len(self.opening) + stated + len(self.question) + 1
        if length < least:
            raise ValueError(
                f"length {length} is too short for a passkey and its question: give {least} tokens or more"
            )

    def prompt(self, length: int, index: int, samples: int) -> Prompt:
        """Prompt `index` of `samples`, `length` tokens in all; depends on nothing but these and the seed."""
        rng = np.random.default_rng([self.seed, length, index])
        key, offset = random_key(rng, DIGITS), int(rng.integers(len(self.haystack)))
        stated = len(encode(self.tokenizer, passkey_statement(key), continues=True))
        room = length - len(self.opening) - stated - len(self.question)
        assert room > 0, "check_length was called before"
        filler = self.haystack[(offset + torch.arange(room)) % len(self.haystack)]
        return self.hide(key, filler, depths(samples)[index])

    def hide(self, key: str, filler: Tensor, depth: float) -> Prompt:
        """The prompt that hides `key` at `depth` of `filler [F]`."""
        statement = encode(self.tokenizer, passkey_statement(key), continues=True).ids
        cut = round(depth * len(filler))
        text = torch.cat((self.opening, filler[:cut], statement, filler[cut:]))
        start = len(self.opening) + cut
        return Prompt(key, depth, text, self.question, range(start, start + len(statement)))


def answer_tokens(tokenizer: Any, key: str) -> int:
    """Number of tokens of the passkey right after the question, without a space in front."""
    return len(encode(tokenizer, key, continues=True))


def ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    cache: LandmarkCache | None,
    *,
    chunk_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> str:
    """The model's answer: reads the text into `cache`, then decodes `answer_tokens` tokens greedily.

    Without a cache, every step attends to the whole prompt.
    """
    if cache is not None:
        read(model, prompt.text, cache, chunk_size=chunk_size, progress=progress)
    ids = prompt.question if cache is not None else torch.cat((prompt.text, prompt.question))
    digits = answer(model, ids, cache, max_new_tokens=answer_tokens(tokenizer, prompt.key))
    return str(tokenizer.decode(digits, skip_special_tokens=True)).strip()


def run(
    model: "PreTrainedModel",
    keys: PasskeyPrompts,
    reading: Reading,
    length: int,
    indices: Iterable[int],
    samples: int,
    progress: Callable[[int], Any] | None = None,
) -> Iterable[Sample]:
    """Asks for the passkeys `indices` of `samples` at one length, one after the other.

    `progress` is called with numbers of tokens that add up to `length` for each sample.
    """
    for index in indices:
        prompt = keys.prompt(length, index, samples)
        peak, started, unread = PeakMemory(), time.perf_counter(), length

        def count(tokens: int, peak: PeakMemory = peak) -> None:
            nonlocal unread
            peak.sample()
            unread -= tokens
            if progress is not None:
                progress(tokens)

        chunk = reading.settings.chunk_size
        reply = ask(model, keys.tokenizer, prompt, reading.cache(model.config), chunk_size=chunk, progress=count)
        count(unread)
        seconds = time.perf_counter() - started
        yield Sample(length, index, prompt.depth, prompt.key, reply, reply == prompt.key, seconds, peak.megabytes)


def summary(reading: Reading, length: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """The figures of one length."""
    seconds = sum(sample.seconds for sample in samples)
    figures = {
        "length": length,
        "accuracy": accuracy(samples),
        "samples": len(samples),
        "by_depth": by_depth(samples),
        "attention": reading.attention,
        **asdict(reading.settings),
        "tokens_per_s": length * len(samples) / seconds,
        "seconds": seconds,
        "peak_rss_mb": max(sample.peak_rss_mb for sample in samples),
    }
    return figures | {"looks_ahead": True} if reading.looks_ahead else figures


def contents(model: "PreTrainedModel", keys: PasskeyPrompts) -> dict[str, str]:
    """Hashes of everything that determines answers: parameters and configuration of the model, tokenizer and text.

    By contents and not by path: a model gives the same answers in another folder.
    """
    eos = getattr(model.generation_config, "eos_token_id", None)  # ends an answer
    backend: Any = keys.tokenizer.backend_tokenizer
    return {
        "tokenizer": digest([tokenizer_fingerprint(backend), keys.opening.tolist(), keys.question.tolist()]),
        "model": digest([model_fingerprint(model), eos]),
        "haystack": digest(keys.haystack.tolist()),
    }
