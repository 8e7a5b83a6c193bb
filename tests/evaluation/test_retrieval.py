"""Retrieval of passages: scores of passages, ranks and figures by hand, and the heads that are chosen."""

import numpy as np
import pytest
import torch
from books import book

import landmark
from landmark.evaluation import retrieval
from landmark.evaluation.bm25 import bm25
from landmark.evaluation.passages import Passage, Query, RetrievalTasks, make_tasks
from landmark.evaluation.retrieval import PassageReader, Ranked, figures, rank, ranks_of
from landmark.evaluation.samples import share_interval
from landmark.hf.retrieval_heads import BACKGROUND, POOLINGS
from landmark.hf.tokenizer import encode

TASKS = make_tasks([book(), book(seed=1)], 6)


@pytest.fixture(scope="module")
def reader(model, tokenizer) -> PassageReader:
    encoded = [encode(tokenizer, text) for text in TASKS.texts]
    seen: list[int] = []
    reader = PassageReader(model, tokenizer, TASKS, encoded, seen.append)
    assert sum(seen) == sum(map(len, encoded))
    return reader


def test_passages_have_the_scores_of_their_best_blocks(reader: PassageReader, tokenizer):
    size = 5
    ends = np.cumsum([len(encode(tokenizer, text)) for text in TASKS.texts])
    blocks = -(-int(ends[-1]) // size)
    assert reader._of_passages(torch.arange(blocks).float()).diff().gt(0).all(), "later passages have later blocks"
    middle = [int(own[len(own) // 2]) for own in reader._members]
    for number, block in enumerate(middle):
        one = torch.zeros(blocks)
        one[block] = 1
        assert reader._of_passages(one).tolist() == [float(n == number) for n in range(6)]
    assert sum(len(own) for own in reader._members) >= blocks, "no block is left out"


def test_methods_score_every_passage(reader: PassageReader):
    heads = landmark.RetrievalHeads(((1, 0),))
    landmarks, means = (reader.scores(heads, keys)("jim spoke of ships") for keys in ("landmarks", "mean-keys"))
    assert landmarks.shape == means.shape == (6,)
    assert not torch.allclose(landmarks, means)
    seen: list[int] = []
    ranked = rank("landmarks", TASKS, reader.scores(heads), seen.append)
    assert sum(seen) == len(TASKS.queries) == len(ranked.ranks)
    assert ((ranked.ranks >= 1) & (ranked.ranks <= 6)).all()


def test_the_head_that_knows_is_chosen(reader: PassageReader, monkeypatch: pytest.MonkeyPatch):
    right = {query.text: reader._members[query.passage] for query in TASKS.queries}

    def weights(query: str, heads: list[tuple[int, int]], keys: str) -> torch.Tensor:
        found = torch.zeros(len(POOLINGS), len(heads), reader._search.blocks)
        if query in BACKGROUND:
            found[:, :, 3] = 0.25  # a block that all like
        else:
            found[POOLINGS.index("last"), heads.index((1, 2)), right[query]] = 0.5
            found[:, :, 3] += 0.25
        return found

    monkeypatch.setattr(reader, "_weights", weights)
    seen: list[int] = []
    chosen = reader.choose(TASKS, "landmarks", seen.append)
    assert (chosen.pooling, chosen.heads) == ("last", ((1, 2),))
    assert sum(seen) == 2 * len(TASKS.queries)


def test_bm25_finds_words():
    pytest.importorskip("bm25s")
    scores = bm25(["a calm sea", "jim looked at ships", "keys and keys"])
    assert scores("Who looked at the SHIPS?").argmax() == 1
    assert scores("zebra").tolist() == scores("the ?").tolist() == [0, 0, 0]
    assert bm25(["the", "?"])("zebra").tolist() == [0, 0]


def test_dense_scores_are_cosines(monkeypatch: pytest.MonkeyPatch):
    class Encoder:
        def encode(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0] if "sea" in text else [0.6, 0.8] for text in texts])

    monkeypatch.setattr(retrieval, "SentenceEncoder", Encoder)
    assert retrieval.dense(["sea", "ship"])("ship").tolist() == pytest.approx([0.6, 1.0])


def test_ranks_count_equals_as_better():
    tasks = RetrievalTasks((), (Passage(0, 0, 1),) * 3, (Query("fact", "", 1), Query("fact", "", 0)))
    assert ranks_of(torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 2.0]]), tasks).tolist() == [1, 3]


def test_figures_by_hand():
    queries = tuple(Query(task, "", 0) for task in ("continuation", "fact", "fact", "question"))
    tasks = RetrievalTasks((), (Passage(0, 0, 1),) * 20, queries)
    rows = figures(Ranked("bm25", np.array([12, 1, 4, 2]), 0.5), tasks)
    assert [row["task"] for row in rows] == ["continuation", "fact", "question"]
    fact = rows[1]
    assert (fact["queries"], fact["passages"], fact["ms_per_query"]) == (2, 20, 500)
    assert (fact["recall@1"], fact["recall@5"], rows[0]["recall@10"]) == (0.5, 1, 0)
    assert fact["recall@1_interval"] == list(share_interval(1, 2))
    assert fact["mrr"] == pytest.approx(0.625)
    assert fact["mrr_interval"] == pytest.approx([0.25, 1])
