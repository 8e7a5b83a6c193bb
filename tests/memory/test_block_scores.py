"""`Retrieval.scores`: the scores of all blocks, by which a search chooses."""

import pytest
import torch

from landmark.memory.layer import LayerMemory
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.settings import ReadingSettings

BLOCK, STRIDE, DIM = 3, 4, 8
LENGTH = 64


def rotation() -> Rotation:
    angles = torch.arange(128)[:, None] / 10 ** torch.arange(0, 4)[None]
    return Rotation(torch.cat((angles.cos(),) * 2, -1), torch.cat((angles.sin(),) * 2, -1), "half")


def searched(queries: int, softcap: float | None = None, **settings):
    """Scores of a last chunk after 16 blocks; the memory, the keys that it read and the queries."""
    memory = LayerMemory(BLOCK, ReadingSettings(local_blocks=0, **settings))
    key, value = torch.randn(1, 2, LENGTH, DIM), torch.randn(1, 2, LENGTH, DIM)
    memory.attend(torch.randn(1, 4, LENGTH, DIM), key, value, lengths=None, rotation=rotation())
    seen = []
    memory.on_search = lambda search, query: seen.append((search.scores(query), query))
    query = torch.randn(1, 4, queries, DIM)
    new = torch.randn(1, 2, queries, DIM)
    memory.attend(query, new, new, lengths=None, rotation=rotation(), scoring=Scoring(softcap=softcap))
    ((scores, given),) = seen
    assert torch.equal(given, query)
    return scores, memory, key, query


@pytest.mark.parametrize("queries", [1, 2, 40])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_they_are_those_of_each_landmark_from_its_slot(queries: int, softcap: float | None):
    scores, _, key, query = searched(queries, softcap, retrieve=2)
    landmarks = rotation().apply(key[0, :, BLOCK::STRIDE], torch.tensor([BLOCK]))
    assert scores.shape == (1, 4, queries, 16)
    for number in range(16):
        slot = max(0, number - 13)  # the two newest have slots of their own
        turned = rotation().apply(query[0], 3 * STRIDE + torch.arange(queries) - slot * STRIDE)
        expected = (turned * landmarks[:, number].repeat_interleave(2, 0)[:, None]).sum(-1) / DIM**0.5
        if softcap:
            expected = softcap * torch.tanh(expected / softcap)
        torch.testing.assert_close(scores[0, :, :, number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("selection", ["per_token_and_head", "per_group", "per_token"])
def test_the_best_of_them_are_opened(queries: int, selection: str):
    scores, memory, _, _ = searched(queries, retrieve=3, selection=selection)
    assert memory.last is not None
    if selection == "per_token":
        scores = scores.log_softmax(-1).amax(1, keepdim=True).expand_as(scores)
    elif selection == "per_group":
        scores = scores.unflatten(1, (2, 2)).sum(2).repeat_interleave(2, 1)
    best = scores.topk(3, dim=-1).indices.sort(-1).values
    assert torch.equal(memory.last.blocks, best)


def test_blocks_that_were_dropped_have_none():
    scores, _, _, _ = searched(5, retrieve=2, max_blocks=6)
    assert torch.equal(scores.isfinite().any((0, 1, 2)), torch.arange(16) >= 10)


def test_settling_moves_the_local_window_too():
    memory = LayerMemory(BLOCK, ReadingSettings(local_blocks=2, retrieve=2))
    key = torch.randn(1, 2, LENGTH + 1, DIM)
    memory.attend(key, key, key, lengths=None, rotation=rotation())
    memory.settle(rotation())
    assert memory.state()[0].lengths == [2 * STRIDE + 1]
    memory.settle(rotation(), local_blocks=0)
    assert memory.state()[0].lengths == [1]
