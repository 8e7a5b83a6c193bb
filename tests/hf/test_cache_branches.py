"""A cache forked, bounded in memory, or rebuilt from its state goes on exactly as the one it came from."""

import copy

import pytest
import torch
from families import family

import landmark
from landmark.hf.serialization import cache_state, resume_cache

SELECTIONS = ["per_token_and_head", "per_token", "per_head"]
IDS = torch.randint(3, 61, (1, 260), generator=torch.Generator().manual_seed(5))


def model_of(name="llama", **options):
    return landmark.convert(family(name), **{"block_size": 5, "retrieve": 2, "local_blocks": 1} | options)


@torch.no_grad()
def goes_on(model, cache, ids=IDS[:, 200:]):
    return torch.cat([model(input_ids=piece, past_key_values=cache).logits for piece in ids.split(13, 1)], 1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_a_fork_and_its_origin_go_on_by_themselves(name):
    model = model_of(name)
    cache = landmark.read(model, IDS[:, :200])
    expected = goes_on(model, landmark.read(model, IDS[:, :200]))
    branch = cache.fork()
    other = goes_on(model, branch, IDS[:, :60].flip(1))
    twig = cache.fork()
    assert torch.equal(goes_on(model, cache), expected)
    assert torch.equal(goes_on(model, twig), expected)
    assert not torch.equal(other, expected)
    assert cache.tokens_read() == [260]
    assert branch.get_seq_length() == 60


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_fork_tells_repeated_words_apart_as_its_origin_does(selection):
    # Their landmarks have nearly the same keys: what sums them in another order opens another block.
    model = model_of(selection=selection, retrieve=4)
    ids = IDS[:, :15].repeat(1, 20)
    expected = goes_on(model, landmark.read(model, ids[:, :150], chunk_size=31), ids[:, 150:])
    branch = landmark.read(model, ids[:, :150], chunk_size=31).fork()
    assert torch.equal(goes_on(model, branch, ids[:, 150:]), expected)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("budget", [20_000, 40_000, 10_000_000])
def test_a_budget_changes_nothing_but_memory(selection, budget):
    model = model_of(selection=selection)
    expected = goes_on(model, landmark.read(model, IDS[:, :200], chunk_size=11))
    cache = landmark.read(model, IDS[:, :200], landmark.LandmarkCache(model.config, host_budget=budget), chunk_size=11)
    assert torch.equal(goes_on(model, cache), expected)
    assert cache.traffic.requested > 0
    assert cache.traffic.file_bytes > 0 or budget > 40_000
    twig = landmark.read(model, IDS[:, :200], landmark.LandmarkCache(model.config, host_budget=budget), chunk_size=11)
    assert torch.equal(goes_on(model, twig.fork()), expected)


def test_what_inference_mode_made_can_be_written_to_outside_of_it():
    model = model_of()
    expected = goes_on(model, landmark.read(model, IDS[:, :200]))
    cache = landmark.LandmarkCache(model.config)
    with torch.inference_mode():
        model(input_ids=IDS[:, :200], past_key_values=cache)
    torch.testing.assert_close(goes_on(model, cache), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host_budget": "12 parsecs"}, "host_budget is '12 parsecs'"),
        ({"host_budget": 0}, "host_budget is 0"),
        ({"index": "sorted"}, "sorted"),
    ],
)
def test_settings_that_mean_nothing(options, said):
    with pytest.raises(ValueError, match=said):
        landmark.LandmarkCache(model_of().config, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host_budget": 100}, "too small for a single query"),
        ({"device_budget": "1MB"}, "on a CPU, give host_budget"),
        ({"host_budget": "1MB", "max_blocks": 3}, "max_blocks is 3"),
    ],
)
def test_budgets_that_cannot_serve_this_reading(options, said):
    model = model_of()
    with pytest.raises(ValueError, match=said):
        landmark.read(model, IDS, landmark.LandmarkCache(model.config, **options))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_windows_come_back_from_their_state(name):
    # All within the local windows: blocks are the business of a storage.
    model = model_of(name, local_blocks=3)
    first, rest = IDS[:, :14], IDS[:, 14:19]
    cache = landmark.read(model, first)
    cache.settle(model.base_model.landmark_ropes)
    tensors, metadata = cache_state(cache)
    again = landmark.LandmarkCache(model.config)
    resume_cache(again, tensors, metadata, 0, torch.device("cpu"))
    assert again.tokens_read() == [14]
    assert torch.equal(goes_on(model, again, rest), goes_on(model, cache, rest))


def test_nothing_read_has_no_state():
    with pytest.raises(ValueError, match="nothing was read yet"):
        cache_state(landmark.LandmarkCache(model_of().config))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_cache_keeps_no_graph_of_the_forwards_that_filled_it(name):
    model, cache = model_of(name), landmark.LandmarkCache(model_of(name).config)
    model(input_ids=IDS[:, :9], past_key_values=cache)  # gradients are on
    assert torch.equal(goes_on(model, copy.deepcopy(cache)), goes_on(model, cache))
