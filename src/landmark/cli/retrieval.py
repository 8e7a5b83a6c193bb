"""`landmark eval retrieval`: passages of books ranked by landmarks, mean keys, BM25 and a dense encoder."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from landmark.cli.options import load_either
from landmark.cli.output import print_escaped, print_table, tokens_read
from landmark.limits import OutFile, Range, Seed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from landmark.evaluation.passages import RetrievalTasks
    from landmark.evaluation.retrieval import Keys, PassageReader, Scores
    from landmark.hf.retrieval_heads import RetrievalHeads

Method = Literal["bm25", "dense", "mean-keys", "landmarks"]
MEAN_KEYS, LANDMARKS = OF_MODEL = ("mean-keys", "landmarks")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Retrieval of passages of books: which passage does a sentence continue, which states a fact, which answers a
    question. Landmarks, mean keys, BM25 and a dense encoder rank the same passages."""

    texts: tuple[str, ...]
    """Books that passages are cut from: files, or the other sources that `landmark train --texts` takes."""
    passages: Annotated[int, Range(6, 10**6)] = 150
    """Passages of some 100 words, an even share of each book; there are about as many queries."""
    choose_on: tuple[str, ...] = ()
    """Other books, on as many passages of which heads and pooling are chosen first, for landmarks and for mean keys;
    default: the heads known for the model, and no mean keys."""
    heads: Path | None = None
    """JSON file of heads that were chosen before."""
    save_heads: Annotated[Path | None, OutFile()] = None
    """JSON file for the heads that are chosen for landmarks."""
    methods: tuple[Method, ...] = ("bm25", "dense", "mean-keys", "landmarks")
    """What ranks the passages. A method whose package is not installed is left out, with a message."""
    model: str | None = None
    """A converted model with its tokenizer, with --adapter an ordinary one: a folder, a GGUF file or a name on the
    Hugging Face hub; default: the one in the package."""
    adapter: Path | None = None
    """Adapter that converts the model, as landmark.load_adapter takes it."""
    seed: Seed = 0
    """Decides passages, facts and what is left out."""
    json: bool = False
    """Print one JSON object per task and method instead of a table."""


def run(options: RetrievalOptions) -> int:
    """Choose heads if asked to, then rank the passages by each method."""
    if options.choose_on and options.heads is not None:
        raise ValueError("choose_on and heads both say which heads rank: give one of them")
    if options.save_heads is not None and not options.choose_on:
        raise ValueError("save_heads keeps heads that are chosen: give choose_on, the books to choose them on")
    if not options.methods:
        raise ValueError("methods are none: name one or more, or leave --methods out for all")
    if {*options.methods} == {MEAN_KEYS} and not options.choose_on:
        raise ValueError("no heads are known for mean-keys: give choose_on, books to choose them on, or other methods")
    of_landmarks = (LANDMARKS,)
    for name, methods in {
        "choose_on": OF_MODEL,
        "heads": of_landmarks,
        "save_heads": of_landmarks,
        "model": OF_MODEL,
        "adapter": OF_MODEL,
    }.items():
        if getattr(options, name) and not {*methods} & {*options.methods}:
            raise ValueError(f"{name} is for the method {' or '.join(methods)}: add it to the methods, or leave it out")
    books, others = _books(options.texts), _books(options.choose_on)
    if {*books} & {*others}:
        raise ValueError("choose_on has a text that is measured on: heads are chosen on other books, give these")
    from landmark.evaluation.passages import make_tasks
    from landmark.evaluation.retrieval import figures, rank
    from landmark.hf.tokenizer import quiet_transformers

    tasks = make_tasks(books, options.passages, seed=options.seed)
    validation = make_tasks(others, options.passages, seed=options.seed) if others else None
    quiet_transformers()
    rows = []
    for method, scores in _methods(options, tasks, validation):
        with tokens_read(f"queries by {method}", len(tasks.queries)) as progress:
            found = figures(rank(method, tasks, scores, progress), tasks)
        rows += found
        for row in found if options.json else ():
            print(json.dumps(row), flush=True)
    if not options.json:
        columns = ("task", "method", "queries", "recall@1", "recall@5", "recall@10", "mrr", "ms_per_query")
        print_table(sorted(rows, key=lambda row: row["task"]), columns)
    return 0


def _books(sources: tuple[str, ...]) -> list[str]:
    from landmark.data.text import read_documents

    return [document.text for source in sources for document in read_documents(source)]


def _methods(
    options: RetrievalOptions, tasks: "RetrievalTasks", validation: "RetrievalTasks | None"
) -> "Iterator[tuple[str, Scores]]":
    """The methods that can be measured, in the order of their cost."""
    from landmark.evaluation import retrieval
    from landmark.evaluation.bm25 import bm25

    # Before anything is measured, for its errors.
    loaded = _model(options) if {*OF_MODEL} & {*options.methods} else None
    without_model: dict[str, Callable[[list[str]], Scores]] = {"bm25": bm25, "dense": retrieval.dense}
    for method, make in without_model.items():
        if method in options.methods:
            try:
                yield method, make(tasks.passage_texts())
            except ValueError as error:
                print_escaped(f"{method} is left out: {error}", to_stderr=True)
    if loaded is None:
        return
    model, tokenizer, heads = loaded
    if validation is not None:
        heads = _chosen(options, model, tokenizer, validation)
    reader = _reader(model, tokenizer, tasks)
    for keys in OF_MODEL:
        if keys in options.methods and keys in heads:
            yield keys, reader.scores(heads[keys], keys)
        elif keys in options.methods:
            print_escaped(f"{keys} are left out: choose_on names books to choose their heads on", to_stderr=True)


def _model(
    options: RetrievalOptions,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Mapping[Keys, RetrievalHeads]]":
    """The model, its tokenizer, and the heads that are known before any are chosen."""
    from landmark.hf.config import landmark_settings
    from landmark.hf.retrieval_heads import RetrievalHeads

    saved = None if options.heads is None else RetrievalHeads.load(options.heads)

    def known(config: "PretrainedConfig") -> "dict[Keys, RetrievalHeads]":
        landmark_settings(config)  # raises for a model without landmarks
        if options.choose_on:
            return {}
        heads = RetrievalHeads.of_model(config) if saved is None else saved
        heads.check(config)
        return {LANDMARKS: heads}

    model, tokenizer = load_either(options.model, options.adapter, known)
    return model, tokenizer, known(model.config)


def _chosen(
    options: RetrievalOptions,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    validation: "RetrievalTasks",
) -> "Mapping[Keys, RetrievalHeads]":
    """The heads that rank best on the validation books, for each kind of keys that is measured."""
    reader = _reader(model, tokenizer, validation)
    chosen: dict[Keys, RetrievalHeads] = {}
    for keys in OF_MODEL:
        if keys in options.methods:
            with tokens_read(f"choosing heads for {keys}", 2 * len(validation.queries)) as progress:
                chosen[keys] = reader.choose(validation, keys, progress)
            print_escaped(f"{keys}: {chosen[keys].pooling} of heads {list(chosen[keys].heads)}", to_stderr=True)
    if options.save_heads is not None and LANDMARKS in chosen:
        chosen[LANDMARKS].save(options.save_heads)
    return chosen


def _reader(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: "RetrievalTasks") -> "PassageReader":
    from landmark.evaluation.retrieval import PassageReader
    from landmark.hf.tokenizer import encode

    encoded = [encode(tokenizer, text) for text in tasks.texts]
    with tokens_read("reading", sum(map(len, encoded))) as progress:
        return PassageReader(model, tokenizer, tasks, encoded, progress)
