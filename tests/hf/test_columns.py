"""What a cache knows of the input it has read: columns and tokens, taken back or gone on from."""

import pytest
import torch
from families import family
from hypothesis import given, settings
from hypothesis import strategies as st

import landmark
from landmark.hf.columns import Columns
from landmark.hf.compat import cache_kwargs

IDS = torch.randint(3, 61, (2, 120), generator=torch.Generator().manual_seed(2))


def converted(name="llama", **options):
    return landmark.convert(family(name), **{"block_size": 5, "retrieve": 2, "local_blocks": 2} | options)


def logits(model, ids, cache, **options):
    with torch.no_grad():
        return model(input_ids=ids, **cache_kwargs(model, cache), **options).logits


@settings(max_examples=60)
@given(keep=st.integers(1, 12), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_a_prompt_begins_with_what_was_read_or_does_not(keep, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 50, (2, sum(sizes)), generator=generator)
    columns = Columns(keep)
    for piece in whole.split(sizes, 1):
        columns = columns.followed_by(piece, torch.ones_like(piece, dtype=torch.bool))
    assert columns.count == whole.shape[1]
    assert columns.begin(torch.cat((whole, whole[:, :3]), 1))
    other = whole.clone()
    other[1, torch.randint(0, whole.shape[1], (), generator=generator)] += 1
    assert not columns.begin(other)
    assert not columns.begin(whole[:, :-1])
    dropped = min(keep, whole.shape[1])
    assert columns.cropped(dropped)[0].begin(whole[:, : whole.shape[1] - dropped])
    rows = torch.tensor([1, 1, 0])
    assert columns.of_rows(rows).begin(whole[rows])


def test_generation_goes_on_from_what_was_read_only():
    model = converted()
    cache = landmark.read(model, IDS[:1, :60])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with pytest.raises(ValueError, match=r"does not begin with the 60 tokens.*fork"):
        model.generate(IDS[1:, :70], past_key_values=cache, **options)
    with pytest.raises(ValueError, match=r"has 60 tokens and the cache has read 60.*fork"):
        model.generate(IDS[:1, :60], past_key_values=cache, **options)
    alone = model.generate(IDS[:1, 60:70], past_key_values=cache.fork(), **options)[:, 10:]
    whole = model.generate(IDS[:1, :70], cache=cache, **options)[:, 70:]
    assert torch.equal(alone, whole)


def test_crop_counts_the_tokens_of_each_row():
    model, mask = converted(), torch.ones(2, 60, dtype=torch.long)
    mask[1, 52:] = 0
    cache = landmark.LandmarkCache(model.config)
    logits(model, IDS[:, :60], cache, attention_mask=mask)
    cache.crop(-8)
    assert cache.tokens_read() == [52, 52]
    found = logits(model, IDS[:, 60:63], cache)
    for row in range(2):
        alone = landmark.read(model, IDS[row : row + 1, :52])
        torch.testing.assert_close(found[row : row + 1], logits(model, IDS[row : row + 1, 60:63], alone))


def test_a_refused_crop_changes_nothing():
    model = converted("gemma2")  # layers: sliding, landmark, landmark
    cache = landmark.read(model, IDS[:1, :60])
    expected = logits(model, IDS[:1, 60:70], cache.fork())
    with pytest.raises(ValueError, match="window has moved on"):
        cache.crop(-3)
    assert cache.tokens_read() == [60]
    torch.testing.assert_close(logits(model, IDS[:1, 60:70], cache), expected, rtol=0, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [1, 50, 700])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_padding_of_any_length_changes_nothing(name, padding, side):
    model = converted(name)
    nothing = torch.zeros(1, padding, dtype=torch.long)
    parts = [nothing, IDS[:1]] if side == "left" else [IDS[:1], nothing]
    mask = torch.cat([torch.zeros_like(nothing), torch.ones_like(IDS[:1])][:: 1 if side == "left" else -1], 1)
    cache = landmark.LandmarkCache(model.config, chunk_size=10)
    found = logits(model, torch.cat(parts, 1), cache, attention_mask=mask)[:, mask[0] == 1]
    alone = landmark.LandmarkCache(model.config, chunk_size=10)
    torch.testing.assert_close(found, logits(model, IDS[:1], alone), rtol=0, atol=0)
    assert cache.tokens_read() == [120]
    assert cache.get_seq_length() == 120 + padding


def test_an_input_of_padding_alone_reads_nothing():
    model, cache = converted(), landmark.LandmarkCache(converted().config)
    out = logits(model, IDS[:, :9], cache, attention_mask=torch.zeros(2, 9, dtype=torch.long))
    assert out.shape[:2] == (2, 9)
    assert cache.tokens_read() == [0, 0]
    fresh = landmark.LandmarkCache(model.config)
    torch.testing.assert_close(logits(model, IDS, cache), logits(model, IDS, fresh))
