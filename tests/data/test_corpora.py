"""The corpora of the hub, read from files of the same names and kinds on this disk."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from landmark.data import corpora, hub
from landmark.data.corpora import is_fixed
from landmark.data.text import Document, read_documents
from landmark.data.tokens import TokenFile, tokenize

METAS = (
    {"config": "arxiv", "file": "1.tex"},
    {"config": "stack-exchange", "score": 3, "post": {"tags": ["a"]}},
    {"set_name": "MATH"},
    {"config": "arxiv", "file": 2, "more": None},
)


def write_parquet(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"short_book_title": ["A book"] * len(texts), "publication_date": [1900] * len(texts), "text": texts}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


@pytest.fixture
def snapshot(tmp_path, monkeypatch) -> Path:
    """The folder to which data sets are downloaded. Before that, nothing is on this machine."""
    folder = tmp_path / "snapshot"
    downloaded = []

    def download(name, *, revision, allow_patterns, local_files_only, **_):
        if local_files_only and allow_patterns not in downloaded:
            raise LocalEntryNotFoundError(name)
        assert len(revision) == 40, "only a whole commit stays the same"
        downloaded.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(corpora, "check_reachable", lambda *_: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return folder


def test_books_come_in_the_order_of_the_files(snapshot):
    for number in range(23):
        texts = [f"book {number}", " "] if number < 2 else [f"book {number}"]
        write_parquet(snapshot / "data" / f"train-{number:05d}-of-00023-0123456789abcdef.parquet", texts)
    documents = list(read_documents("corpus:pg19:train"))
    assert [document.text for document in documents] == [f"book {number}" for number in range(23)]
    assert documents[1] == Document("corpus:pg19:train#2", "book 1"), "blank rows are left out, and counted"


def test_only_papers_are_kept_whatever_else_rows_hold(snapshot):
    (snapshot / "dev").mkdir(parents=True)
    with gzip.open(snapshot / "dev" / "proofpile_dev.jsonl.gz", "wt") as file:
        for number, meta in enumerate(METAS):
            file.write(json.dumps({"text": rf"\section{{{number}}}", "meta": meta}) + "\n")
    names = {document.name: document.text for document in read_documents("corpus:arxiv_math:validation")}
    assert names == {
        "corpus:arxiv_math:validation#0": r"\section{0}",
        "corpus:arxiv_math:validation#3": r"\section{3}",
    }


def test_rows_are_read_as_they_are_asked_for(snapshot):
    for number in range(23):
        path = snapshot / "data" / f"train-{number:05d}-of-00023-0123456789abcdef.parquet"
        write_parquet(path, [f"book {number}"])
    path.write_bytes(b"not parquet")
    assert next(read_documents("corpus:pg19:train")).text == "book 0"


def test_tokenizing_is_resumed_and_what_is_complete_is_not_read_again(snapshot, tmp_path, tokenizer):
    path = snapshot / "data" / "validation-00000-of-00001-0123456789abcdef.parquet"
    write_parquet(path, ["the whale", "the ship", "the sea"])

    def stop(document):
        if document.name.endswith("#1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(["corpus:pg19:validation"], tokenizer, tmp_path / "tokens", on_document=stop)
    tokenize(["corpus:pg19:validation"], tokenizer, tmp_path / "tokens")
    whole = tokenize(["corpus:pg19:validation"], tokenizer, tmp_path / "whole")
    path.unlink()
    again = tokenize(["corpus:pg19:validation"], tokenizer, tmp_path / "tokens")
    assert again.checksum == whole.checksum
    assert [document.name[-2:] for document in again.documents] == ["#0", "#1", "#2"]
    assert TokenFile.open(tmp_path / "tokens", tokenizer=tokenizer).checksum == whole.checksum


@pytest.mark.parametrize("source", ["corpus:pg19", "corpus:pg91:train", "corpus:pg19:dev", "corpus:pg19:train:text"])
def test_unknown_corpora_are_named(source):
    with pytest.raises(ValueError, match=r"names are pg19, arxiv_math, splits train, validation, test"):
        next(read_documents(source))


def test_a_corpus_with_files_missing_is_not_read(snapshot):
    write_parquet(snapshot / "data" / "train-00000-of-00023-0123456789abcdef.parquet", ["book"])
    with pytest.raises(ValueError, match=r"needs 23 files of the data set emozilla/pg19, and 1 of them are here"):
        next(read_documents("corpus:pg19:train"))


def test_only_corpora_are_fixed(tmp_path):
    assert is_fixed("corpus:pg19:train")
    assert not is_fixed("hf:emozilla/pg19:train:text")
    assert not is_fixed(str(tmp_path))


def test_a_folder_with_a_data_set_is_read_like_one_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", ["one", "", "two"])
    source = f"hf:{tmp_path / 'set'}:train:text"
    assert list(read_documents(source)) == [Document(f"{source}#0", "one"), Document(f"{source}#2", "two")]
