"""Questions about *Lord Jim* in the chat template, answered by the converted model through landmarks and by baselines.

The converted model reads the book once, into a context, and answers every question from there. The baselines are the
model before conversion with full attention: given the passages that BM25 finds, given the right passage alone (what
reading can reach), and given nothing (what it knows by heart). Two controls tell reading from retrieval: the converted
model with the right passage alone, and with the book but no block opened. Beside them it reads again, in front of each
question, the blocks that its landmarks rank highest.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.assets import book_path
from landmark.cli.output import print_escaped, print_table, tokens_read
from landmark.contexts.context import Context
from landmark.contexts.documents import Source
from landmark.contexts.folder import is_unused
from landmark.data.chat import ChatFormat
from landmark.data.text import read_text
from landmark.evaluation.bm25 import Passages, check_installed
from landmark.evaluation.samples import share_interval
from landmark.evaluation.tasks import Draft, Hidden, Prompt, Task
from landmark.hf import LandmarkCache
from landmark.hf.reader import answer
from landmark.hf.rereading import in_text_order
from landmark.hf.retrieval_heads import RetrievalHeads
from landmark.hf.tokenizer import EncodedText, encode
from reproduce.studies.lord_jim import Question, questions
from reproduce.studies.options import QuestionsOptions
from reproduce.studies.records import Records
from reproduce.studies.smollm2_models import Pair, greedy, template

INTRODUCTION = "Here is a text.\n\n"
LEAD = "Answer from the text above. "
LONGEST = 40  # tokens of an answer
WINDOW = 2048  # tokens that the original sees with passages, its answer included
BLOCK = 63  # tokens by which the book is cut for BM25, whose passages have three such blocks
TASK = Task("lord_jim", lambda reply, draft: 0.0, LONGEST)  # for `Passages`, which scores nothing
SHOWN = 5  # opened blocks, as `landmark ask` shows them, and blocks that are read again
COLUMNS = ("answered_by", "right", "of", "low", "high", "named", "plain", "two", "none", "found")


def run(options: QuestionsOptions) -> int:
    """Reads the book, asks all questions in every way, and prints the answers and the table."""
    check_installed()
    pair = Pair.load(options)
    book = first_tokens(encode(pair.tokenizer, read_text(book_path())), options.tokens)
    asked = [question for question in questions() if question.ends <= len(book.text)]
    if not asked:
        raise ValueError(f"the first {len(book)} tokens of the book answer none of the questions: read 8000 or more")
    options.work.mkdir(parents=True, exist_ok=True)
    settings = pair.settings() | {"tokens": len(book), "questions": [question.question for question in asked]}
    records = Records(options.work / "answers.jsonl", settings)
    read_book(pair, options.work / "context", book.text)
    ways = Answering(pair, book, options.work / "context").ways()
    with tokens_read("answers", len(ways) * len(asked)) as progress:
        for name, way in ways.items():
            for question in asked:
                key = f"{name}: {question.question}"
                if key not in records:
                    reply, found = way(question)
                    records.add(key, {"answer": reply, "right": question.right(reply), "found": found})
                progress(1)
    rows = [figures(name, asked, records) for name in ways]
    if options.json:
        print("\n".join(json.dumps(row) for row in rows))
        return 0
    for question in asked:
        print_escaped(f"{question.question} ({question.kind}: {question.accepted[0]})")
        for name in ways:
            record = records.by_key[f"{name}: {question.question}"]
            print_escaped(f"  {'+' if record['right'] else '-'} {name}: {record['answer']}")
    print_table(rows, COLUMNS)
    return 0


def first_tokens(book: EncodedText, count: int | None) -> EncodedText:
    """The first `count` tokens; all if None."""
    if count is None or count >= len(book):
        return book
    return EncodedText(book.text[: book.offsets[count - 1][1]], book.ids[:count], book.offsets[:count])


def read_book(pair: Pair, folder: Path, text: str) -> None:
    """Reads the beginning of a user's message and the book into the context at `folder`; goes on where it broke off."""
    if is_unused(folder):
        Context.create(folder, pair.converted, pair.tokenizer).close()
    with Context.open(folder, pair.converted, pair.tokenizer, write=True) as context:
        if not context.documents:
            begin, tokenizer = ChatFormat.of(pair.tokenizer).begin, pair.tokenizer
            tokens: Any = tokenizer(begin, add_special_tokens=False, return_offsets_mapping=True)
            columns = np.column_stack((tokens["input_ids"], tokens["offset_mapping"])).astype(np.uint32)
            context._documents.add("template", begin, columns)  # `add` reads special tokens as text
        context.add(context.missing([("book", INTRODUCTION + text)]))
        with tokens_read("reading the book", context.tokens - context.tokens_read) as progress:
            context.read(progress=progress)


Way = Callable[[Question], tuple[str, bool | None]]


class Answering:
    """The ways to answer a question. Each gives the answer, and whether the stating passage was found, None if given.

    Found is, through landmarks, a place among the first `SHOWN` opened blocks, or among those that are read again; by
    BM25 one in the prompt.
    """

    def __init__(self, pair: Pair, book: EncodedText, folder: Path) -> None:
        self.pair = pair
        self.book = book
        self.chat = ChatFormat.of(pair.tokenizer)
        self.context = Context.open(folder, pair.converted, pair.tokenizer)
        self.unretrieved = Context.open(folder, pair.converted, pair.tokenizer, retrieve=0)

    def ways(self) -> dict[str, Way]:
        """All ways, by name; blocks can be read again where the heads that rank them are known."""
        known = RetrievalHeads.known(self.pair.converted.config) is not None
        return {
            "landmark": partial(self._from_context, self.context),
            **({"landmark, 5 blocks again": self._rereading} if known else {}),
            "landmark, nothing opened": partial(self._from_context, self.unretrieved),
            "landmark, right passage": partial(self._from_passage, converted=True),
            "original, bm25": self._from_search,
            "original, right passage": partial(self._from_passage, converted=False),
            "original, nothing": self._from_nothing,
        }

    def _from_context(self, context: Context, question: Question) -> tuple[str, bool]:
        branch = context.cache.fork()
        branch.start_trace()
        reply = answer(self.pair.converted, self._question(question, LEAD), branch, max_new_tokens=LONGEST)
        return self._text(reply), _states(context.passages(context.ranked(branch.trace()), SHOWN), question)

    def _rereading(self, question: Question) -> tuple[str, bool]:
        best = self.context.best_blocks(question.question, SHOWN)
        shown = self.context.passages(in_text_order(best), SHOWN)
        again = "".join(f"\n\n{source.text.strip()}" for source in shown if source.document == "book")
        ids = torch.cat((encode(self.pair.tokenizer, again, continues=True).ids, self._question(question, LEAD)))
        reply = answer(self.pair.converted, ids, self.context.cache.fork(), max_new_tokens=LONGEST)
        return self._text(reply), _states(shown, question)

    def _from_passage(self, question: Question, *, converted: bool) -> tuple[str, None]:
        ids = torch.cat((self._prompt(question.passage(self.book.text)), self._question(question, LEAD)))
        if not converted:
            return self._text(greedy(self.pair.original, ids, LONGEST)), None
        cache = LandmarkCache(self.pair.converted.config)
        return self._text(answer(self.pair.converted, ids, cache, max_new_tokens=LONGEST)), None

    def _from_search(self, question: Question) -> tuple[str, bool]:
        before = self._prompt("")
        asked = self._question(question, LEAD)
        draft = Draft(Hidden(()), question.question, question.accepted, query=question.question)
        whole, context = torch.cat((before, self.book.ids)), range(len(before), len(before) + len(self.book))
        passages = Passages(self.pair.tokenizer, WINDOW - LONGEST - len(before) - len(asked), BLOCK)
        chosen = passages.of(Prompt(TASK, draft, 0.0, whole, asked, context))
        reply = greedy(self.pair.original, torch.cat((chosen.text, asked)), LONGEST)
        return self._text(reply), question.quotes[-1] in str(self.pair.tokenizer.decode(chosen.text))

    def _from_nothing(self, question: Question) -> tuple[str, None]:
        begin = template(self.pair.tokenizer, self.chat.begin)
        return self._text(greedy(self.pair.original, torch.cat((begin, self._question(question, ""))), LONGEST)), None

    def _prompt(self, text: str) -> Tensor:
        """Ids of a user's message that begins with `text`."""
        shown = encode(self.pair.tokenizer, INTRODUCTION + text).ids
        return torch.cat((template(self.pair.tokenizer, self.chat.begin), shown))

    def _question(self, question: Question, lead: str) -> Tensor:
        gap = "\n\n" if lead else ""
        return template(self.pair.tokenizer, f"{gap}{lead}{question.question}{self.chat.reply}")

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.pair.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def _states(shown: Sequence[Source], question: Question) -> bool:
    """Whether one of the passages is of the last quote that answers the question."""
    start, stop = (len(INTRODUCTION) + place for place in (question.offsets[-1], question.ends))
    return any(source.document == "book" and source.first < stop and start < source.last for source in shown)


def figures(name: str, asked: Sequence[Question], records: Records) -> dict[str, Any]:
    """Right answers with Wilson's 95 % interval, by kind of question, and stating passages found."""
    measured = {question: records.by_key[f"{name}: {question.question}"] for question in asked}
    right = Counter(question.kind for question, record in measured.items() if record["right"])
    of = Counter(question.kind for question in asked)
    low, high = share_interval(right.total(), len(asked))
    row: dict[str, Any] = {"answered_by": name, "right": right.total(), "of": len(asked), "low": low, "high": high}
    row |= {kind: f"{right[kind]}/{count}" for kind, count in of.items()}
    found = [record["found"] for question, record in measured.items() if question.kind != "none"]
    return row | ({} if None in found else {"found": f"{sum(found)}/{len(found)}"})
