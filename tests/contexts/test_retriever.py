"""`Retriever`: what is found is in the documents, in a fixed order, and the context stays as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import landmark
from landmark.contexts import retriever as module
from landmark.contexts.retriever import passages
from landmark.hf.block_search import BlockSearch

BLOCK = 5  # of the tiny model
ONE = "it was a calm sea and jim looked at the ships for a long while . he spoke of keys and grüße 0123 . " * 4
TWO = "the ships spoke \N{SNOWMAN} 45 while jim was calm . " * 3
HEADS = landmark.RetrievalHeads(((1, 0), (1, 3)))
QUERY = "he spoke of keys"


@pytest.fixture
def context(model, tmp_path: Path) -> Iterator[landmark.Context]:
    with landmark.Context.create(tmp_path / "context", model) as context:
        context.append(ONE, "one")
        context.append(TWO, "two")
        yield context


def test_matches_are_text_of_the_documents_by_falling_score(context: landmark.Context):
    retriever = landmark.Retriever(context, HEADS)
    tokens = context.tokens_read
    matches = retriever.search(QUERY, 100)
    for match in matches:
        assert match.text == {"one": ONE, "two": TWO}[match.document][match.first : match.last]
        assert 0 <= match.start < match.stop <= tokens
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True)
    covered = torch.zeros(tokens, dtype=torch.long)
    for match in matches:
        covered[match.start : match.stop] += 1
    assert (covered == 1).all(), "every token is in one passage"
    blocks = retriever.block_scores(QUERY)
    assert scores[0] == float(blocks.max())
    assert retriever.search(QUERY, 1)[0].score == scores[0]
    assert (context.tokens_read, [one.name for one in context.documents]) == (tokens, ["one", "two"])


def test_scores_are_the_same_in_a_context_that_was_reopened(context: landmark.Context, model):
    context.close()
    expected = landmark.Retriever(context, HEADS).block_scores(QUERY)
    reopened = landmark.Context.open(context.path, model)
    assert torch.equal(landmark.Retriever(reopened, HEADS).block_scores(QUERY), expected)


def test_the_documents_are_made_ready_once(context: landmark.Context, monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(module, "BlockSearch", lambda *given: made.append(given) or BlockSearch(*given))
    retriever = landmark.Retriever(context, HEADS)
    expected = retriever.search(QUERY)
    assert retriever.search(QUERY) == expected
    assert len(made) == 1
    retriever.add("a third text of jim .", "three")
    retriever.search(QUERY)
    assert len(made) == 2


def test_a_search_that_was_interrupted_does_not_change_the_next(context: landmark.Context, monkeypatch):
    retriever = landmark.Retriever(context, HEADS)
    expected = retriever.block_scores(QUERY)
    with monkeypatch.context() as patch:
        patch.setattr(landmark.LandmarkCache, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            retriever.block_scores(QUERY)
    assert torch.equal(retriever.block_scores(QUERY), expected)


def test_equal_scores_rank_the_earlier_passage_first(context: landmark.Context, monkeypatch: pytest.MonkeyPatch):
    retriever = landmark.Retriever(context, HEADS)
    blocks = len(retriever.block_scores(QUERY))
    monkeypatch.setattr(retriever, "block_scores", lambda query: torch.zeros(blocks))
    starts = [match.start for match in retriever.search(QUERY, 100)]
    assert starts == sorted(starts)


def test_removed_documents_are_not_found_and_new_ones_are(context: landmark.Context):
    retriever = landmark.Retriever(context, HEADS)
    retriever.remove("one")
    assert {match.document for match in retriever.search(QUERY, 100)} == {"two"}
    with pytest.raises(ValueError, match="no document is named 'one': there are two"):
        retriever.remove("one")
    retriever.add("a third text of jim .", "three")
    assert {match.document for match in retriever.search(QUERY, 100)} == {"two", "three"}
    retriever.add(ONE, "one")
    assert len(context.documents) == 3, "it was there already"
    assert {match.document for match in retriever.search(QUERY, 100)} == {"one", "two", "three"}


def test_texts_in_memory(model):
    with landmark.Retriever.over([("one", ONE), ("two", TWO)], model, heads=HEADS) as retriever:
        folder = retriever.context.path
        assert {match.document for match in retriever.search(QUERY, 100)} == {"one", "two"}
        retriever.add("more .", "three")
    assert not folder.exists()


def test_passages_by_hand():
    assert passages([5, 9, 6, 4, 7, 3, 8, 0], 10) == [range(4, 8), range(8, 10), range(3, 4), range(0, 1)]
    assert passages([5, 9, 6, 2, 1], 2) == [range(5, 7), range(9, 10)]
    assert passages([], 3) == []
    assert module.MOST_BLOCKS == 4


def test_bad_input(context: landmark.Context, model, tmp_path: Path):
    retriever = landmark.Retriever(context, HEADS)
    for query in ("", " \n"):
        with pytest.raises(ValueError, match="the query is empty"):
            retriever.search(query)
    with pytest.raises(ValueError, match="top is 0"):
        retriever.search(QUERY, 0)
    with pytest.raises(ValueError, match="give 1 to"):
        retriever.search(QUERY * 1000)
    with pytest.raises(ValueError, match="layer 0 has no head 0"):
        landmark.Retriever(context, landmark.RetrievalHeads(((0, 0),)))
    with pytest.raises(ValueError, match="no heads are known"):
        landmark.Retriever(context)
    with (
        landmark.Context.create(tmp_path / "empty", model) as empty,
        pytest.raises(ValueError, match="holds no text that was read"),
    ):
        landmark.Retriever(empty, HEADS)
    reading = landmark.Context.open(context.path, model)
    with pytest.raises(ValueError, match="open for reading"):
        landmark.Retriever(reading, HEADS).add("more .", "three")


def test_a_model_that_changed_is_refused(context: landmark.Context, model):
    retriever = landmark.Retriever(context, HEADS)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight.mul_(2)
    try:
        with pytest.raises(ValueError, match="was read with other weights"):
            landmark.Retriever(context, HEADS)
        with pytest.raises(ValueError, match="was read with other weights"):
            retriever.search(QUERY)
    finally:
        with torch.no_grad():
            weight.div_(2)
