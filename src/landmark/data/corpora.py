"""The paper's two corpora, PG-19 and arXiv math, from their data sets on the Hugging Face hub.

Both are pinned to a commit, so `corpus:NAME:SPLIT` never changes: once tokenized, it needs neither the hub nor the
files again. Rows are streamed from the downloaded files, without a second copy.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from landmark.data.hub import check_reachable, dataset_files, load

FORM = "corpus:NAME:SPLIT"
COLUMN = "text"


@dataclass(frozen=True)
class HubCorpus:
    """A data set with a column `text`: for each split, the pattern and number of its files.

    `columns` names all columns of JSON files, to be read as strings: their objects differ from row to row, which table
    types do not allow. `keep` selects the rows of the corpus.
    """

    dataset: str
    revision: str
    kind: Literal["parquet", "json"]
    files: dict[str, tuple[str, int]]
    columns: tuple[str, ...] = ()
    keep: Callable[[dict[str, Any]], bool] = lambda row: True


def is_arxiv(row: dict[str, Any]) -> bool:
    """Whether a row of the proof-pile is a paper from arXiv."""
    return json.loads(row["meta"]).get("config") == "arxiv"


CORPORA = {
    "pg19": HubCorpus(
        "emozilla/pg19",
        "c021754c8e01c5b1cc83a1f549c1f97fbbb756b8",
        "parquet",
        {
            "train": ("data/train-*.parquet", 23),
            "validation": ("data/validation-*.parquet", 1),
            "test": ("data/test-*.parquet", 1),
        },
    ),
    # The data set is cleaned: LaTeX in English only, without bibliographies and figures.
    "arxiv_math": HubCorpus(
        "hoskinson-center/proof-pile",
        "490b980249446f2f3bd2df3a8cf085d0f2de240a",
        "json",
        {
            "train": ("train/proofpile_train_*.jsonl.gz", 21),
            "validation": ("dev/proofpile_dev.jsonl.gz", 1),
            "test": ("test/proofpile_test.jsonl.gz", 1),
        },
        columns=(COLUMN, "meta"),
        keep=is_arxiv,
    ),
}


def is_fixed(source: str) -> bool:
    """Whether the text of `source` never changes."""
    return source.startswith("corpus:")


def corpus_rows(source: str) -> Iterator[tuple[int, str]]:
    """Row numbers and texts of `corpus:NAME:SPLIT`, always in the same order; missing files are downloaded first.

    Raises ValueError, naming the remedy, for an unknown corpus or split and files that are not available.
    """
    name, _, split = source.removeprefix("corpus:").partition(":")
    corpus = CORPORA.get(name)
    if corpus is None or split not in corpus.files:
        raise ValueError(
            f"{source!r} is not of the form {FORM}: names are {', '.join(CORPORA)}, splits train, validation, test"
        )
    files = [str(path) for path in _files(source, corpus, split)]
    rows = load(source, corpus.kind, data_files=files, split="train", streaming=True, **_types(corpus))
    for number, row in enumerate(rows):
        if corpus.keep(row):
            yield number, row[COLUMN]


def _files(source: str, corpus: HubCorpus, split: str) -> list[Path]:
    """The files of a split in the order of their names, downloaded if any is missing."""
    pattern, number = corpus.files[split]
    files = dataset_files(corpus.dataset, corpus.revision, pattern, download=False)
    if len(files) < number:
        check_reachable(corpus.dataset, "dataset")
        files = dataset_files(corpus.dataset, corpus.revision, pattern, download=True)
    if len(files) < number:
        raise ValueError(
            f"{source!r} needs {number} files of the data set {corpus.dataset}, and {len(files)} of them are here: "
            "run the same command with a connection to the Hugging Face hub and without HF_HUB_OFFLINE"
        )
    return files


def _types(corpus: HubCorpus) -> dict[str, Any]:
    if not corpus.columns:
        return {}
    from datasets import Features, Value

    return {"features": Features({name: Value("string") for name in corpus.columns})}
