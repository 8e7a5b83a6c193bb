"""Questions about a library of a million tokens: documents read apart, all in reach of one question.

Statements of the recall tasks are hidden in books, which are cut into documents. `landmark read --apart` reads each of
these from scratch, so that the time grows with their number and not faster; then every question is asked of all of them
together: by opened blocks alone, with blocks read again, and with nothing opened.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landmark.cli.output import print_escaped, print_table, tokens_read
from landmark.contexts.chat import Chat
from landmark.contexts.context import Context
from landmark.contexts.folder import is_unused
from landmark.data.text import read_text
from landmark.evaluation.recall import NAMES, PASSKEY, recall
from landmark.evaluation.samples import share_interval
from landmark.evaluation.tasks import Prompt, Prompts
from landmark.hf.rereading import USUAL
from landmark.process_memory import PeakMemory
from reproduce.studies.options import LibraryOptions
from reproduce.studies.records import Records
from reproduce.studies.smollm2_models import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAYS: dict[str, tuple[dict[str, Any], int]] = {  # keywords of `Context.open`, and blocks to read again
    "opened blocks": ({}, 0),
    f"{USUAL} blocks again": ({}, USUAL),
    "nothing opened": ({"retrieve": 0}, 0),
}
COLUMNS = ("kind", "way", "right", "of", "low", "high", "median_s")


def run(options: LibraryOptions) -> int:
    """Writes the documents; once they are read, asks about them."""
    pair = Pair.load(options)
    parts = [*_parts(options, pair.tokenizer)]
    texts, library = options.work / "texts", options.work / "library"
    if is_unused(library):
        texts.mkdir(parents=True, exist_ok=True)
        for name, text in _documents(parts, pair.tokenizer, options.characters):
            (texts / name).write_text(text, encoding="utf-8")
        command = f"landmark read {texts}/* --apart --kv-dtype int8 --model {options.original} --out {library}"
        print_escaped(f"documents are in {texts}. Read them, and run this command again: {command}")
        return 0
    asked = [prompt for prompts in parts for prompt in prompts]
    settings = pair.settings() | {"asked": [prompt.draft.query for prompt in asked]}
    records, peak = Records(options.work / "answers.jsonl", settings), PeakMemory()
    size: dict[str, Any] = {}
    with tokens_read("answers", len(WAYS) * len(asked)) as progress:
        for way, (reading, reread) in WAYS.items():
            context = Context.open(library, pair.converted, pair.tokenizer, host_budget=options.host_budget, **reading)
            documents = context.documents
            size = {"tokens": sum(one.tokens for one in documents), "documents": len(documents)}
            for number, prompt in enumerate(asked):
                if (key := f"{way}: {number}") not in records:
                    records.add(key, _answered(context, prompt, reread))
                peak.sample()
                progress(1)
    rows = [*_rows(asked, records)]
    size["peak_resident_mb"] = round(peak.megabytes)
    if options.json:
        print("\n".join(json.dumps(row) for row in (*rows, size)))
        return 0
    print_table(rows, COLUMNS)
    print(json.dumps(size))
    return 0


def _parts(options: LibraryOptions, tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[Prompt]]:
    """The questions about each part of the text, which all hold it: every kind once, one passkey in the middle part."""
    books = "\n\n".join(read_text(path) for path in options.texts)
    size, length, chosen = len(books) // options.parts, options.tokens // options.parts, len(NAMES) // 2
    for part in range(options.parts):
        kinds = [kind for kind in NAMES if kind != PASSKEY or part == options.parts // 2]
        haystack = books[part * size : (part + 1) * size]
        prompts = Prompts(tokenizer, haystack, samples=len(NAMES), seed=options.seed + part)
        prompts.check_length(recall(kinds), length, chat=True)
        yield prompts.prompts(recall(kinds), length, chosen, chat=True)


def _documents(
    parts: Sequence[list[Prompt]], tokenizer: "PreTrainedTokenizerBase", characters: int
) -> Iterator[tuple[str, str]]:
    """Names and texts: paragraphs together, at least so many characters of them."""
    count = 0
    for first, *_ in parts:
        text: Any = tokenizer.decode(first.text[first.context.start :])
        paragraphs, document = text.split("\n\n"), ""
        for number, paragraph in enumerate(paragraphs):
            document += paragraph + "\n\n"
            if len(document) >= characters or number == len(paragraphs) - 1:
                yield f"{count:04}.txt", document
                count, document = count + 1, ""


def _answered(context: Context, prompt: Prompt, reread: int) -> dict[str, Any]:
    """The record of an answer in a conversation of its own."""
    start = time.perf_counter()
    question, longest = prompt.draft.question.strip(), prompt.task.answer_tokens
    answer = Chat.about(context).ask(question, max_new_tokens=longest, reread=reread, sources=0)
    seconds, right = time.perf_counter() - start, prompt.task.score(answer.text, prompt.draft) == 1
    return {"kind": prompt.task.name, "question": question, "answer": answer.text, "right": right, "seconds": seconds}


def _rows(asked: Sequence[Prompt], records: Records) -> Iterator[dict[str, Any]]:
    """A row for each kind and way, and one of all kinds."""
    for way in WAYS:
        found = [records.by_key[f"{way}: {number}"] for number in range(len(asked))]
        for kind in (*NAMES, "all"):
            if chosen := [record for record in found if kind in (record["kind"], "all")]:
                right = sum(record["right"] for record in chosen)
                low, high = share_interval(right, len(chosen))
                seconds = float(np.median([record["seconds"] for record in chosen]))
                shares = {"right": right, "of": len(chosen), "low": round(low, 3), "high": round(high, 3)}
                yield {"kind": kind, "way": way, **shares, "median_s": round(seconds, 2)}
