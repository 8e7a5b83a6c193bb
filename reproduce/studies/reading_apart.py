"""What reading documents apart costs beside reading them in sequence: facts, continuations, retrieval."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import landmark
from landmark import Collection, Context, LandmarkCache, Retriever
from landmark.assets import model_path
from landmark.data.recall import (
    named_key_question,
    named_key_statement,
    passkey_question,
    passkey_statement,
    random_key,
    random_name,
)
from landmark.data.text import read_text
from landmark.evaluation.samples import digest, share_interval
from landmark.hf.fingerprint import model_fingerprint
from landmark.hf.reader import answer
from landmark.hf.tokenizer import encode
from reproduce.studies.options import ReadingApartOptions
from reproduce.studies.records import Records

APART, SEQUENCE, EMPTIED = "apart", "in sequence", "in sequence, window emptied"
READINGS = (APART, SEQUENCE, EMPTIED)
NOTHING = "nothing read"
_CONTINUATION = 128  # tokens


@dataclass(frozen=True)
class Part:
    """A document of a group: a piece of a book with a fact in it, the text that goes on, and what is asked."""

    text: str
    goes_on: str
    question: str
    key: str
    passkey: bool


def run(options: ReadingApartOptions) -> int:
    """Measures group after group, and prints the figures."""
    torch.set_num_threads(options.threads)
    model = landmark.from_pretrained(model_path() if options.model is None else options.model)
    books = [read_text(path) for path in options.texts]
    settings = {
        "model": model_fingerprint(model),
        "texts": [digest(book) for book in books],
        "asked": [options.documents, options.characters, options.seed],
    }
    records = Records(options.out, json.loads(json.dumps(settings, default=str)))
    for number in range(options.groups):
        if str(number) not in records:
            records.add(str(number), measured(model, list(_parts(books, options, number))))
    for row in table([records.by_key[str(number)] for number in range(options.groups)]):
        print(json.dumps(row))
    return 0


def _parts(books: list[str], options: ReadingApartOptions, group: int) -> Iterator[Part]:
    """The documents of a group; one has a passkey, each of the others a key of a name."""
    rng = np.random.default_rng([options.seed, group])
    with_passkey = int(rng.integers(options.documents))
    for number in range(options.documents):
        book = books[int(rng.integers(len(books)))]
        length = int(options.characters * rng.uniform(0.75, 1.25))
        start = int(rng.integers(len(book) - length - 10 * _CONTINUATION))
        stop, cut = start + length, start + int(rng.integers(length))
        name, key, passkey = random_name(rng), random_key(rng), number == with_passkey
        stated = passkey_statement(key) if passkey else named_key_statement(name, key)
        asked = passkey_question() if passkey else named_key_question(name)
        text = book[start:cut] + stated + book[cut:stop]
        yield Part(text, book[stop : stop + 10 * _CONTINUATION], asked, key, passkey)


def measured(model: PreTrainedModel, parts: list[Part]) -> dict[str, Any]:
    """Right answers, right first passages, and nats a token, document by document, for each way of reading."""
    with tempfile.TemporaryDirectory() as folder:
        sequence = Context.create(Path(folder) / "sequence", model)
        sequence.add([(str(number), part.text) for number, part in enumerate(parts)])
        sequence.read()
        with Collection.create(Path(folder) / "apart", model) as collection:
            for number, part in enumerate(parts):
                collection.add(part.text, str(number))
        emptied = sequence.cache.fork()
        ropes: Any = model.base_model.landmark_ropes
        emptied.settle(ropes, local_blocks=0)
        caches = {APART: collection.context.cache, SEQUENCE: sequence.cache, EMPTIED: emptied}
        encoded = [encode(sequence.tokenizer, part.question, continues=True).ids for part in parts]
        continued = [encode(sequence.tokenizer, part.goes_on, continues=True).ids[:_CONTINUATION] for part in parts]
        right = {
            name: [_answer(sequence, ids, cache, part) for ids, part in zip(encoded, parts, strict=True)]
            for name, cache in caches.items()
        }
        nats = {name: [_nats(model, ids, cache) for ids in continued] for name, cache in caches.items()}
        nats[NOTHING] = [_nats(model, ids, LandmarkCache(model.config)) for ids in continued]
        found = {
            name: _first_passages(context, parts)
            for name, context in ((APART, collection.context), (SEQUENCE, sequence))
        }
    return {"right": right, "nats": nats, "found": found, "passkey": [part.passkey for part in parts]}


def _answer(context: Context, ids: Tensor, cache: LandmarkCache, part: Part) -> bool:
    digits = len(encode(context.tokenizer, part.key, continues=True))
    new = answer(context.model, ids, cache.fork(), max_new_tokens=digits)
    return str(context.tokenizer.decode(new)).strip() == part.key


@torch.inference_mode()
def _nats(model: PreTrainedModel, ids: Tensor, cache: LandmarkCache) -> float:
    """Mean negative log-likelihood of the tokens behind the first, in nats."""
    logits = model(input_ids=ids[None], past_key_values=cache.fork()).logits[0, :-1].float()  # type: ignore[operator]
    return float((logits.logsumexp(-1) - logits.gather(-1, ids[1:, None])[:, 0]).mean())


def _first_passages(context: Context, parts: list[Part]) -> list[bool]:
    """Whether the best passage for each question is of the document that answers it."""
    retriever = Retriever(context)
    best = [retriever.search(part.question.strip(), 1)[0].document for part in parts]
    return [document == str(number) for number, document in enumerate(best)]


# Figures.


@dataclass(frozen=True)
class Share:
    """Right answers of so many, and Wilson's 95 % interval."""

    measure: str
    reading: str
    right: int
    asked: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, measure: str, reading: str, values: list[bool]) -> "Share":
        """The share of those that are true."""
        right, asked = sum(values), len(values)
        low, high = share_interval(right, asked)
        return cls(measure, reading, right, asked, round(right / asked, 3), round(low, 3), round(high, 3))


def table(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows: shares of right answers and passages; perplexities, and differences in nats from reading in sequence.

    The interval of a difference is 1.96 standard errors over groups, which share no text read.
    """
    passkey = [flag for record in records for flag in record["passkey"]]
    for reading in READINGS:
        right = [value for record in records for value in record["right"][reading]]
        for measure, wanted in (("passkey", True), ("keys of names", False)):
            chosen = [value for value, flag in zip(right, passkey, strict=True) if flag is wanted]
            yield asdict(Share.of(measure, reading, chosen))
    for reading in (APART, SEQUENCE):
        yield asdict(
            Share.of("retrieval", reading, [value for record in records for value in record["found"][reading]])
        )
    by_group = {name: np.array([np.mean(record["nats"][name]) for record in records]) for name in (*READINGS, NOTHING)}
    for reading, nats in by_group.items():
        difference = nats - by_group[SEQUENCE]
        error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else None
        yield {
            "measure": "continuation",
            "reading": reading,
            "perplexity": round(float(np.exp(nats.mean())), 3),
            "nats_above_sequence": round(float(difference.mean()), 4),
            "interval": None if error is None else round(1.96 * error, 4),
            "windows": sum(len(record["nats"][reading]) for record in records),
        }
