"""Sources of answers: right for any tokens of any documents, at a cost that follows from their own length alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import HEADER, LAYOUT, Content, as_version_1, commit

from landmark.contexts.disk import OpenFile
from landmark.contexts.documents import DocumentStore
from landmark.contexts.manifest import segment_name
from landmark.contexts.snapshot import open_reader
from landmark.contexts.writer import create
from landmark.hf import Span

WORD = "Grüße aus Köln \N{SNOWMAN} "


def tokens_of(text):
    """Three characters a token, and none in front of a snowman: uint32 [n,3]."""
    spans = [(start, min(start + 3, len(text))) for start in range(0, len(text), 3) if text[start] != "\N{SNOWMAN}"]
    return np.array([(start % 50, start, stop) for start, stop in spans], np.uint32).reshape(-1, 3)


def library_of(path, texts, in_memory=0):
    """A library of `texts`, named by their numbers; the last `in_memory` of them in this process alone."""
    with create(path, HEADER, LAYOUT) as writer:
        held = DocumentStore(writer)
        for number, text in enumerate(texts[: len(texts) - in_memory]):
            held.add(str(number), text, tokens_of(text))
        commit(writer, Content())
    library = DocumentStore(open_reader(path)).fork()
    for number in range(len(texts) - in_memory, len(texts)):
        library.add(str(number), texts[number], tokens_of(texts[number]))
    return library


def expected(texts, start, stop):
    """What tokens `start:stop` of all texts are, one after the other: (document, tokens, characters, text)."""
    found, first = [], 0
    for number, text in enumerate(texts):
        tokens = tokens_of(text)
        low, high = max(start - first, 0), min(stop - first, len(tokens))
        if low < high:
            begin, end = int(tokens[low, 1]), int(tokens[high - 1, 2])
            found.append((str(number), first + low, first + high, begin, end, text[begin:end]))
        first += len(tokens)
    return found


def fields(sources):
    return [(s.document, s.start, s.stop, s.first, s.last, s.text) for s in sources]


@pytest.mark.parametrize("part_tokens", [1, 2, 7, 1024])
@pytest.mark.parametrize("version", [1, 2])
def test_sources_of_any_tokens(tmp_path, monkeypatch, part_tokens, version):
    monkeypatch.setattr("landmark.contexts.segments.PART_TOKENS", part_tokens)
    texts = [WORD * 3, "", "\N{SNOWMAN}", "ab", WORD, "", "x" * 40, "\N{SNOWMAN}", WORD * 2, "", "end"]
    library = library_of(tmp_path / "context", texts, in_memory=4)
    if version == 1:
        as_version_1(tmp_path / "context")
        added, library = library._added, DocumentStore(open_reader(tmp_path / "context"))
        library._added = added
    for start in range(library.tokens):
        for length in (1, 2, 5, 30):
            spans = [Span(0, start, start + length, 0.5)]
            assert fields(library.sources(spans, 1)) == expected(texts, start, start + length)
            pieces = [tokens_of(text) for text in texts]
            assert np.array_equal(library.slice(start, start + length), np.concatenate(pieces)[start : start + length])
    behind = [Span(9, library.tokens, library.tokens + 5, 0.9)]
    assert library.sources(behind + spans + spans, 1) == library.sources(spans, 5)


@settings(max_examples=25)
@given(starts=st.lists(st.integers(0, 30), min_size=12, max_size=12))
def test_tokens_may_stand_anywhere(tmp_path_factory, starts):
    """Tokenizers name the same characters for several tokens, or go back."""
    path = tmp_path_factory.mktemp("any") / "context"
    text, tokens = WORD * 2, np.array([(1, start, min(start + 2, 34)) for start in starts], np.uint32)
    with pytest.MonkeyPatch.context() as patch, create(path, HEADER, LAYOUT) as writer:
        patch.setattr("landmark.contexts.segments.PART_TOKENS", 3)
        DocumentStore(writer).add("one", text, tokens)
        commit(writer, Content())
    library = DocumentStore(open_reader(path))
    for start, stop in ((0, 1), (2, 4), (3, 9), (5, 12)):
        (source,) = library.sources([Span(0, start, stop, 0.5)], 1)
        first = int(tokens[start, 1])
        last = max(first, int(tokens[stop - 1, 2]))
        assert (source.first, source.last, source.text) == (first, last, text[first:last])


@pytest.fixture
def bytes_read(monkeypatch):
    """Counts the bytes that are read from files."""
    counts = []
    usual = OpenFile.read

    def read(self, length, offset=0):
        counts.append(length)
        return usual(self, length, offset)

    monkeypatch.setattr(OpenFile, "read", read)
    return counts


def cost(library, bytes_read, at):
    """Bytes read for the sources of 30 tokens at a share of all tokens."""
    start = int(library.tokens * at)
    bytes_read.clear()
    assert library.sources([Span(0, start, start + 30, 0.5)], 1)
    return sum(bytes_read)


@pytest.mark.parametrize("texts", [[WORD * 200], [WORD * 20] * 10, ["ab"] * 100], ids=["long", "some", "many"])
def test_sources_cost_the_same_in_a_hundred_times_the_text(tmp_path, bytes_read, texts):
    small = library_of(tmp_path / "small", texts)
    large = library_of(tmp_path / "large", [texts[0] * 100] if len(texts) == 1 else texts * 100)
    least = max(cost(small, bytes_read, at) for at in (0, 0.5, 0.9))
    most = max(cost(large, bytes_read, at) for at in (0, 0.5, 0.9))
    whole = sum(
        (tmp_path / "large" / "segments" / segment_name(1, kind)).stat().st_size
        for kind in ("tokens", "text", "documents")
    )
    # A part or two more where a span crosses from one to the next, and the steps of a search.
    assert most <= least + 2 * 1024 * (12 + 3 * 6) + 52 * 2 * 20
    assert most < whole / 20


def test_sources_in_memory_look_at_few_documents(tmp_path):
    class Counting(list):
        looked = 0

        def __getitem__(self, index):
            Counting.looked += 1
            return super().__getitem__(index)

        def __iter__(self):
            raise AssertionError("all documents are looked at")

    library = library_of(tmp_path / "context", ["ab"] * 5000, in_memory=5000)
    library._added._added = Counting(library._added._added)
    library.sources([Span(0, 2500, 2504, 0.5)], 1)
    assert 4 <= Counting.looked < 100
