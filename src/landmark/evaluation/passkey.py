"""The pass-key task (section 4.2 of the paper): a key hidden in a long text, asked for at its end."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

DIGITS = 5
DEPTH_BINS = 10


@dataclass(frozen=True)
class Prompt:
    """A text with a key in it and the question at its end: `text [N]`, `question [M]` ordinary tokens.

    `depth` is the place of the key, 0 at the start of the text and 1 at its end; `stated` the tokens that
    state it.
    """

    key: str
    depth: float
    text: Tensor
    question: Tensor
    stated: range


@dataclass(frozen=True)
class Sample:
    """One answered prompt; `seconds` from the first token read to the last digit."""

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
    """Makes prompts of any length from the ids `haystack [H]`, repeated where they are too few."""

    def __init__(self, tokenizer: Any, haystack: Tensor, *, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more")
        self.tokenizer = tokenizer
        self.haystack = haystack
        self.seed = seed
        self.opening = bos_tokens(tokenizer).ids
        self.question = encode(tokenizer, passkey_question(), continues=True).ids

    def check_length(self, length: int) -> None:
        """Raises ValueError when `length` tokens have no room for a key, its question and a token of text."""
        # The key stands there twice, and each further digit takes at most a token.
        stated = len(encode(self.tokenizer, passkey_statement("0"), continues=True)) + 2 * (DIGITS - 1)
        least = len(self.opening) + stated + len(self.question) + 1
        if length < least:
            raise ValueError(f"length {length} is too short for a key and its question: give {least} tokens or more")

    def prompt(self, length: int, index: int, samples: int) -> Prompt:
        """Prompt `index` of `samples`, `length` tokens in all; the same whatever was asked before."""
        rng = np.random.default_rng([self.seed, length, index])
        key, offset = random_key(rng, DIGITS), int(rng.integers(len(self.haystack)))
        stated = len(encode(self.tokenizer, passkey_statement(key), continues=True))
        room = length - len(self.opening) - stated - len(self.question)
        assert room > 0, "check_length was called before"
        filler = self.haystack[(offset + torch.arange(room)) % len(self.haystack)]
        return self.hide(key, filler, depths(samples)[index])

    def hide(self, key: str, filler: Tensor, depth: float) -> Prompt:
        """The prompt that states `key` at `depth` of `filler [F]`."""
        statement = encode(self.tokenizer, passkey_statement(key), continues=True).ids
        cut = round(depth * len(filler))
        text = torch.cat((self.opening, filler[:cut], statement, filler[cut:]))
        start = len(self.opening) + cut
        return Prompt(key, depth, text, self.question, range(start, start + len(statement)))


def depths(samples: int) -> list[float]:
    """Places spread evenly from the start of the text, 0, to its end, 1; the middle for a single sample."""
    if samples < 1:
        raise ValueError(f"samples is {samples}: give 1 or more")
    return [index / (samples - 1) for index in range(samples)] if samples > 1 else [0.5]


def answer_tokens(tokenizer: Any, key: str) -> int:
    """How many tokens of this tokenizer the key takes behind the question, where no space belongs in front of it."""
    return len(encode(tokenizer, key, continues=True))


def ask(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    cache: LandmarkCache | None,
    *,
    chunk_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> str:
    """What the model takes the key to be: it reads the text into `cache` and answers the question greedily.

    As many tokens are generated as `answer_tokens` says. Without a cache all is attended to at once, in each step.
    """
    if cache is not None:
        read(model, prompt.text, cache, chunk_size=chunk_size, progress=progress)
    ids = prompt.question if cache is not None else torch.cat((prompt.text, prompt.question))
    digits = answer(model, ids, cache, max_new_tokens=answer_tokens(tokenizer, prompt.key))
    return tokenizer.decode(digits, skip_special_tokens=True).strip()


def run(
    model: Any,
    keys: PasskeyPrompts,
    reading: Reading,
    length: int,
    indices: Iterable[int],
    samples: int,
    progress: Callable[[int], Any] | None = None,
) -> Iterable[Sample]:
    """Asks for the keys `indices` of `samples` at one length, one after the other.

    `progress` is called with numbers of tokens that add up to `length` for each sample.
    """
    for index in indices:
        prompt = keys.prompt(length, index, samples)
        peak, started, unread = PeakMemory(), time.perf_counter(), length

        def look(tokens: int, peak: PeakMemory = peak) -> None:
            nonlocal unread
            peak.sample()
            unread -= tokens
            if progress is not None:
                progress(tokens)

        chunk = reading.settings.chunk_size
        said = ask(model, keys.tokenizer, prompt, reading.cache(model.config), chunk_size=chunk, progress=look)
        look(unread)
        seconds = time.perf_counter() - started
        yield Sample(length, index, prompt.depth, prompt.key, said, said == prompt.key, seconds, peak.megabytes)


def summary(reading: Reading, length: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """What is reported for one length."""
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
    """Share of right answers."""
    return sum(sample.correct for sample in samples) / len(samples)


def by_depth(samples: Sequence[Sample]) -> dict[str, float]:
    """Accuracy in each tenth of the text that holds keys; `"0.1-0.2"` is from 0.1 to below 0.2."""
    bins: dict[int, list[Sample]] = {}
    for sample in samples:
        bins.setdefault(min(int(sample.depth * DEPTH_BINS), DEPTH_BINS - 1), []).append(sample)
    return {f"{place / DEPTH_BINS:.1f}-{(place + 1) / DEPTH_BINS:.1f}": accuracy(bins[place]) for place in sorted(bins)}


def contents(model: Any, keys: PasskeyPrompts) -> dict[str, str]:
    """What answers come from, by its contents: hashes of the model's weights and configuration, tokenizer and text.

    Paths are left out: the same model in another folder gives the same answers, another one in the same folder not.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)  # an answer ends there
    tokenizer = tokenizer_fingerprint(keys.tokenizer.backend_tokenizer)
    return {
        "tokenizer": _sha256([tokenizer, keys.opening.tolist(), keys.question.tolist()]),
        "model": _sha256([model_fingerprint(model), ends]),
        "haystack": _sha256(keys.haystack.tolist()),
    }


def _sha256(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Journal:
    """The file `path`: a first line with the `settings` of the evaluation, then a line for each sample.

    The settings must name all that decides about an answer, by its contents: see `contents`.
    A run that was killed while writing leaves a line without an end; its sample is asked again. Raises
    ValueError when the file holds samples of other settings (naming the difference) or something else, and
    leaves it as it is.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.samples: dict[tuple[int, int], Sample] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        data = self.path.read_bytes() if self.path.exists() else b""
        header = (json.dumps(settings) + "\n").encode()
        if header.startswith(data):  # new, empty, or cut short in its first line
            self.path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        first, *rest = self._lines(finished)
        for name in {**settings, **first}:
            if name not in first:
                raise ValueError(
                    f"{path} does not say with which {name} it was made, as those of earlier releases do not:"
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
        self.samples[sample.length, sample.index] = sample
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.to_dict()) + "\n")

    def _sample(self, line: dict[str, Any]) -> Sample:
        try:
            return Sample(**line)
        except TypeError:
            raise ValueError(f"{self.path} is not a log of pass keys: choose another file") from None

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is not a log of pass keys: choose another file")
        return lines
