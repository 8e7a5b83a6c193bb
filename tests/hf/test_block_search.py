"""`BlockSearch`: the scores of a query are those by which a forward chooses its blocks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import landmark
from landmark.hf.block_search import BlockSearch

BLOCK, FILLER = 5, 7
IDS = torch.randint(2, 60, (83,), generator=torch.Generator().manual_seed(1))
QUERY = torch.randint(2, 60, (12,), generator=torch.Generator().manual_seed(2))
LANDMARKS = (5, 11)  # of the query, which begins a block
CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(params=[0, 1])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, sharp_llama):
    """A model without and with a local block; the token that completes blocks needs no tokenizer."""
    filler = SimpleNamespace(ids=torch.tensor([3, FILLER]))
    monkeypatch.setattr("landmark.hf.block_search.encode", lambda *_, **__: filler)
    return landmark.convert(sharp_llama(**CONFIG), block_size=BLOCK, retrieve=2, local_blocks=request.param)


def search_over(model, tokens: int) -> BlockSearch:
    tokenizer: Any = None
    return BlockSearch(model, tokenizer, landmark.read(model, IDS[:tokens]))


@pytest.mark.parametrize("model", [0], indirect=True)
@pytest.mark.parametrize("tokens", [80, 83])
def test_scores_are_those_of_a_forward(model, tokens: int):
    cache = landmark.read(model, IDS[:tokens])
    landmark.read(model, [FILLER] * (BLOCK - tokens % BLOCK), cache)
    expected: dict[int, torch.Tensor] = {}
    for layer, memory in enumerate(cache.memories):
        memory.on_search = lambda search, query, layer=layer: expected.update({layer: search.scores(query)[0]})
    landmark.read(model, QUERY, cache)
    search = search_over(model, tokens)
    found = search.scores(QUERY, [1, 2])
    assert sorted(found) == [1, 2]
    assert search.blocks == -(-tokens // BLOCK)
    ordinary = [place for place in range(14) if place not in LANDMARKS]
    for layer, scores in found.items():
        assert torch.equal(scores, expected[layer][:, ordinary, : search.blocks])


def test_all_blocks_are_scored_and_queries_leave_no_trace(model):
    search = search_over(model, 83)
    first = search.scores(QUERY, [1])[1]
    assert first.shape == (4, 12, 17)
    assert first.isfinite().all(), "also those of the local window, and the unfinished one"
    search.scores(QUERY[:3], [2])
    assert torch.equal(search.scores(QUERY, [1])[1], first)


def test_another_search_may_score(model):
    search = search_over(model, 83)
    asked = []
    search.scores(QUERY, [2], lambda layer, one: asked.append(layer) or one)
    assert asked == [2]


def test_bad_input(model):
    with pytest.raises(ValueError, match="nothing was read yet"):
        search_over(model, 0)
    cache = landmark.read(model, IDS, landmark.LandmarkCache(model.config, retrieve=0))
    with pytest.raises(ValueError, match="retrieve is 0"):
        BlockSearch(model, None, cache)  # type: ignore[arg-type]
    search = search_over(model, 83)
    for query in (QUERY[:0], QUERY.repeat(100)):
        with pytest.raises(ValueError, match=rf"the query has {len(query)} tokens: give 1 to {search.longest_query}"):
            search.scores(query, [1])
    assert search.scores(QUERY.repeat(100)[: search.longest_query], [1])[1].shape[1] == search.longest_query
