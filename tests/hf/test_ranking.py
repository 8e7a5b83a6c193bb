"""Ranking of opened blocks: what a question asked for stands before what every question opens."""

import pytest
import torch
from transformers import AutoTokenizer

import landmark
from landmark.assets import book_path
from landmark.data.text import read_text
from landmark.hf import LandmarkCache, Trace, read
from landmark.hf.ranking import Ranking
from landmark.hf.tokenizer import encode

BLOCKS = torch.tensor([[[[0, 2], [0, 3]], [[0, 2], [0, 1]]]])  # of one row, two heads, two queries
GATES = torch.tensor([[[[0.5, 0.1], [0.5, 0.2]], [[0.6, 0.1], [0.2, 0.3]]]])


def trace() -> Trace:
    return Trace(5, torch.tensor([[40, 41]]), {3: BLOCKS}, {3: GATES}, {}, {3: torch.tensor([2])})


def ranked(ranking: Ranking) -> list[tuple[int, float]]:
    return [(span.block, pytest.approx(span.weight)) for span in ranking.spans(trace())]


def test_without_background_the_order_is_that_of_mean_gates():
    assert ranked(Ranking()) == [(0, 0.45), (1, 0.075), (2, 0.05), (3, 0.05)]


def test_what_every_question_opens_comes_last_with_its_weight():
    assert ranked(Ranking(background={0: 0.44, 2: 0.01})) == [(1, 0.075), (3, 0.05), (2, 0.05), (0, 0.45)]


def test_only_the_heads_that_rank_passages_count():
    assert ranked(Ranking(heads=[(3, 1), (2, 0)])) == [(0, 0.4), (1, 0.15), (2, 0.05)]


def test_a_question_finds_its_sentence_and_leaves_the_cache_alone():
    model = landmark.from_pretrained(landmark.model_path())
    tokenizer = AutoTokenizer.from_pretrained(landmark.model_path())
    book = read_text(book_path())
    stated = " The pass key is 48213. Remember it. 48213 is the pass key. "
    text = encode(tokenizer, book[:6000] + stated + book[6000:12000])
    cache = LandmarkCache(model.config)
    read(model, text.ids, cache)
    ranking = Ranking.after(model, tokenizer, cache)
    assert cache.tokens_read() == [len(text)]
    cache.start_trace()
    read(model, encode(tokenizer, " What is the pass key? The pass key is ", continues=True).ids, cache)
    first = ranking.spans(cache.trace())[0]
    assert "48213" in text.text[slice(*text.characters(first.start, first.stop))]
