"""Passkey retrieval (section 4.2 of the paper): digits hidden in a long text, asked for at its end."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landmark.data.recall import passkey_question, passkey_statement, random_key
from landmark.data.tokens import tokenizer_fingerprint
from landmark.evaluation.reading import Reading
from landmark.hf import LandmarkCache, read
from landmark.hf.fingerprint import model_fingerprint
from landmark.hf.reader import answer
from landmark.hf.tokenizer import bos_tokens, encode
from landmark.process_memory import PeakMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DIGITS = 5
DEPTH_BINS = 10


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


def depths(samples: int) -> list[float]:
    """Depths spread evenly from 0, the start of the text, to 1, its end; the middle for a single sample."""
    if samples < 1:
        raise ValueError(f"samples is {samples}: give 1 or more")
    return [index / (samples - 1) for index in range(samples)] if samples > 1 else [0.5]


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


def accuracy(samples: Sequence[Sample]) -> float:
    """Share of correct answers."""
    return sum(sample.correct for sample in samples) / len(samples)


def by_depth(samples: Sequence[Sample]) -> dict[str, float]:
    """Accuracy by tenth of the text that hides the passkey; `"0.1-0.2"` is from 0.1 to below 0.2."""
    bins: dict[int, list[Sample]] = {}
    for sample in samples:
        bins.setdefault(min(int(sample.depth * DEPTH_BINS), DEPTH_BINS - 1), []).append(sample)
    return {f"{tenth / DEPTH_BINS:.1f}-{(tenth + 1) / DEPTH_BINS:.1f}": accuracy(bins[tenth]) for tenth in sorted(bins)}


def contents(model: "PreTrainedModel", keys: PasskeyPrompts) -> dict[str, str]:
    """Hashes of everything that determines answers: parameters and configuration of the model, tokenizer and text.

    By contents and not by path: a model gives the same answers in another folder.
    """
    eos = getattr(model.generation_config, "eos_token_id", None)  # ends an answer
    backend: Any = keys.tokenizer.backend_tokenizer
    return {
        "tokenizer": _sha256([tokenizer_fingerprint(backend), keys.opening.tolist(), keys.question.tolist()]),
        "model": _sha256([model_fingerprint(model), eos]),
        "haystack": _sha256(keys.haystack.tolist()),
    }


def _sha256(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Journal:
    """The log of answered samples in the file `path`, so that an interrupted evaluation resumes.

    Its first line holds the `settings` of the evaluation, which must determine every answer (see `contents`); each
    further line holds a sample. An incomplete last line is dropped, and its sample is asked again. Raises ValueError if
    the file holds samples of other settings (naming the difference) or something else, and leaves it unchanged.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.samples: dict[tuple[int, int], Sample] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        data = self.path.read_bytes() if self.path.exists() else b""
        header = (json.dumps(settings) + "\n").encode()
        if header.startswith(data):  # new, empty, or incomplete in its first line
            self.path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        first, *rest = self._lines(finished)
        for name in {**settings, **first}:
            if name not in first:
                raise ValueError(
                    f"{path} does not record the {name} it was made with, like logs of earlier releases:"
                    " choose another file or delete it"
                )
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}):"
                    " choose another file or delete it"
                )
        for line in rest:
            sample = self._sample(line)
            self.samples[sample.length, sample.index] = sample
        if finished != data:
            self.path.write_bytes(finished)

    def add(self, sample: Sample) -> None:
        """Appends a sample."""
        self.samples[sample.length, sample.index] = sample
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.to_dict()) + "\n")

    def _sample(self, line: dict[str, Any]) -> Sample:
        try:
            return Sample(**line)
        except TypeError:
            raise ValueError(f"{self.path} is not a log of passkeys: choose another file") from None

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is not a log of passkeys: choose another file")
        return lines
