"""A cache with a threshold: what it skips, and that skipping spares the store."""

import pytest
import torch
from families import family

import landmark

IDS = torch.randint(3, 61, (2, 150), generator=torch.Generator().manual_seed(11))
ALMOST_ONE = 1 - 1e-9


def model_of(name="llama", **options):
    model = family(name)
    with torch.no_grad():  # random weights of the usual size attend to everything alike
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(8)
    return landmark.convert(model, **{"block_size": 5, "retrieve": 2, "local_blocks": 1} | options)


@torch.no_grad()
def logits(model, cache, cuts=(40, 41, 42, 110, 145), **options):
    pieces = torch.tensor_split(IDS, cuts, 1)
    return torch.cat([model(input_ids=piece, past_key_values=cache, **options).logits for piece in pieces], 1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])  # soft-capping, sinks, native sliding layers
def test_a_threshold_of_nearly_one_is_local_attention(name):
    model = model_of(name)
    cache = landmark.LandmarkCache(model.config, miss_threshold=ALMOST_ONE, host_budget="10MB")
    found = logits(model, cache)
    assert torch.equal(found, logits(model, landmark.LandmarkCache(model.config, retrieve=0)))
    layers = len(cache.trace().blocks)
    # 110 tokens and their 22 landmarks follow the first 40, each a query of 4 heads in 2 rows.
    assert (cache.retrievals.queries, cache.retrievals.context_misses) == (layers * 2 * 4 * 132, layers * 2 * 4 * 132)
    assert cache.traffic == landmark.LandmarkCache(model.config).traffic  # nothing
    assert all((blocks < 0).all() for blocks in cache.trace().blocks.values())


@pytest.mark.parametrize("selection", ["per_token_and_head", "per_token", "per_head"])
@pytest.mark.parametrize("index", ["exact", "hierarchical"])
def test_a_threshold_spares_a_part_of_the_store(selection, index):
    model, wanted, skipped = model_of(), [], []
    for threshold in (0.0, 0.4, 0.9):
        options = {"selection": selection, "index": index, "miss_threshold": threshold, "host_budget": "10MB"}
        cache = landmark.LandmarkCache(model.config, **options)
        logits(model, cache)
        wanted.append(cache.traffic.requested)
        skipped.append(cache.retrievals.miss_rate)
    # What one layer skips changes what the next one looks for, so that only a high threshold is sure to spare blocks.
    assert wanted[0] > wanted[2] > 0
    assert 0 == skipped[0] < skipped[1] < skipped[2] < 1


def test_padding_changes_neither_results_nor_counts():
    model, mask = model_of(), torch.ones_like(IDS)
    mask[0, :17] = 0
    cache = landmark.LandmarkCache(model.config, miss_threshold=0.4)
    pieces, columns, together = torch.tensor_split(IDS, [57, 58, 120], 1), 0, []
    alone = [landmark.LandmarkCache(model.config, miss_threshold=0.4) for _ in range(2)]
    apart: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for piece in pieces:
            first = max(0, 17 - columns)
            columns += piece.shape[1]
            together.append(model(input_ids=piece, attention_mask=mask[:, :columns], past_key_values=cache).logits)
            for row, start in ((0, first), (1, 0)):
                apart[row].append(model(input_ids=piece[row : row + 1, start:], past_key_values=alone[row]).logits)
    both = torch.cat(together, 1)
    torch.testing.assert_close(both[:1, 17:], torch.cat(apart[0], 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1:], torch.cat(apart[1], 1), atol=1e-5, rtol=1e-4)
    assert cache.retrievals == alone[0].retrievals + alone[1].retrievals
    assert 0 < cache.retrievals.context_misses < cache.retrievals.queries


def test_generation_counts_on_and_a_reset_begins_anew():
    model = model_of()
    cache = landmark.read(model, IDS[:1, :100], landmark.LandmarkCache(model.config, miss_threshold=0.4))
    before, branch = cache.retrievals, cache.fork()
    model.generate(IDS[:1, :103], past_key_values=cache, max_new_tokens=4, do_sample=False, eos_token_id=None)
    # A question of 3 and 3 of the 4 new tokens are read, and the landmark behind the 105th.
    assert cache.retrievals.queries - before.queries == 3 * 4 * 7
    assert branch.retrievals == before
    cache.reset()
    assert cache.retrievals == landmark.LandmarkCache(model.config).retrievals


def test_no_threshold():
    with pytest.raises(ValueError, match=r"miss_threshold is 1\.0"):
        landmark.LandmarkCache(model_of().config, miss_threshold=1.0)
