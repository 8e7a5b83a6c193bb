"""How many tokens a forward through a cache reads at once, and where longer inputs are cut."""

import pytest
import torch
from families import family

import landmark
from landmark.hf.config import MAX_CHUNK

IDS = torch.randint(3, 61, (2, 400), generator=torch.Generator().manual_seed(9))


def model_of(trained=60, name="llama", **options):
    """A model whose (2 + 1 + 1) * 6 = 24 positions before a chunk leave 36 of 60 to it: 6 blocks, no more."""
    options = {"block_size": 5, "retrieve": 2, "local_blocks": 1} | options
    return landmark.convert(family(name, max_position_embeddings=trained), **options)


@torch.no_grad()
def read_in_pieces(ids, cuts, name="llama"):
    """Logits of the same weights where the trained range asks for no cut, read in pieces that end at `cuts`."""
    model, pieces = model_of(600, name), torch.tensor_split(ids, cuts, 1)
    cache = landmark.LandmarkCache(model.config)
    return torch.cat([model(input_ids=piece, past_key_values=cache).logits for piece in pieces], 1)


@torch.no_grad()
def logits(model, cache, ids, **options):
    return model(input_ids=ids, past_key_values=cache, **options).logits


def test_the_chunks_of_the_paper_fill_its_range():
    model = model_of(512, block_size=50, retrieve=4, local_blocks=0)
    # (4 + 1 + 0) * 51 + 255 = 510 of 512 positions; behind a tail of up to 49 tokens there is room for 201.
    assert landmark.LandmarkCache(model.config, chunk_size=250).chunk_tokens == 250
    assert landmark.LandmarkCache(model.config).chunk_tokens == 201
    said = r"255 lie before it: \(retrieve 4 \+ 1 \+ local_blocks 0\) \* stride 51; give at most 250, or lower"
    with pytest.raises(ValueError, match=said):
        landmark.LandmarkCache(model.config, chunk_size=300)
    with pytest.raises(ValueError, match="at most 201 where it begins inside a block, or 250 in whole blocks"):
        landmark.LandmarkCache(model.config, chunk_size=202)
    assert landmark.LandmarkCache(model.config, chunk_size=201).chunk_tokens == 201


def test_a_block_may_fit_where_no_tail_would():
    model = model_of()
    with pytest.raises(ValueError, match="nothing fits"):
        landmark.LandmarkCache(model.config, retrieve=7)
    assert landmark.LandmarkCache(model.config, retrieve=7, chunk_size=5).chunk_tokens == 5  # (7 + 1 + 1) * 6 + 6
    with pytest.raises(ValueError, match="at most 0"):
        landmark.LandmarkCache(model.config, retrieve=8, chunk_size=5)


def test_the_longest_default_chunk_bounds_no_chunk_that_is_given():
    config = model_of(6000).config  # (2 + 1 + 1 + 1) * 6 = 30 positions before the chunk
    assert landmark.LandmarkCache(config).chunk_tokens == stream_tokens(MAX_CHUNK)
    for size in (3001, stream_tokens(6000 - 30)):
        assert landmark.LandmarkCache(config, chunk_size=size).chunk_tokens == size
    with pytest.raises(ValueError, match="does not fit the trained range of 6000 positions"):
        landmark.LandmarkCache(config, chunk_size=stream_tokens(6000 - 30) + 1)


def stream_tokens(positions: int) -> int:
    """Most ordinary tokens of a chunk that begins with the last token of a block of five."""
    return max(n for n in range(positions) if n + (4 + n) // 5 <= positions)


@pytest.mark.parametrize("chunk_size", [0, -5, 5.0, True])
def test_no_chunk_size(chunk_size):
    with pytest.raises(ValueError, match="the ordinary tokens of a chunk"):
        landmark.LandmarkCache(model_of().config, chunk_size=chunk_size)


# Gemma's native sliding layers place tokens by their position in the stream.
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_long_input_is_cut_where_multiples_of_the_chunk_end(name):
    model = model_of(name=name)
    found = logits(model, landmark.LandmarkCache(model.config, chunk_size=30), IDS[:, :110])
    torch.testing.assert_close(found, read_in_pieces(IDS[:, :110], [30, 60, 90], name=name), atol=1e-5, rtol=1e-4)


def test_tables_end_with_the_trained_range():
    model, made = model_of(), []

    class Watched(landmark.LandmarkCache):
        def rotations(self, positions, make):
            return super().rotations(positions, lambda reach: made.append(reach) or make(reach))

    # A table that ends early is an error, so these 60 suffice: variants that scale by its length are not surprised.
    logits(model, Watched(model.config, chunk_size=30), IDS[:, :110])
    assert made == [60]


@pytest.mark.parametrize(("first", "cuts"), [(5, [5, 35, 65, 95]), (6, [6, 35, 65, 95]), (34, [30, 34, 60, 90])])
def test_after_a_tail_the_next_chunk_is_shorter(first, cuts):
    model = model_of()
    cache = landmark.LandmarkCache(model.config, chunk_size=30)
    found = torch.cat((logits(model, cache, IDS[:, :first]), logits(model, cache, IDS[:, first:110])), 1)
    torch.testing.assert_close(found, read_in_pieces(IDS[:, :110], cuts), atol=1e-5, rtol=1e-4)
    other = [cut - 1 for cut in cuts]
    assert not torch.allclose(found, read_in_pieces(IDS[:, :110], other), atol=1e-3), "where it is cut does not show"


@pytest.mark.parametrize("chunk_size", [7, 30])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_every_row_is_cut_as_if_it_were_alone(name, chunk_size):
    model, mask = model_of(name=name), torch.ones(2, 110, dtype=torch.long)
    mask[0, :3], mask[0, 40:47], mask[1, 90:] = 0, 0, 0
    found = logits(
        model, landmark.LandmarkCache(model.config, chunk_size=chunk_size), IDS[:, :110], attention_mask=mask
    )
    for row in range(2):
        real = mask[row] == 1
        alone = landmark.LandmarkCache(model.config, chunk_size=chunk_size)
        expected = logits(model, alone, IDS[row : row + 1, :110][:, real])
        torch.testing.assert_close(found[row, real], expected[0], atol=1e-5, rtol=1e-4)


def test_a_size_that_is_no_multiple_cuts_pieces_of_that_size():
    model = model_of()
    found = logits(model, landmark.LandmarkCache(model.config, chunk_size=7), IDS[:, :40])
    torch.testing.assert_close(found, read_in_pieces(IDS[:, :40], [7, 14, 21, 28, 35]), atol=1e-5, rtol=1e-4)


def test_a_question_after_a_tail_is_generated_from():
    model = model_of()
    ids, told = IDS[:1, :100], []
    cache = landmark.read(model, ids[:, :64], chunk_size=30, progress=told.append)
    assert (told, cache.next_chunk) == ([30, 30, 4], 26)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answer = model.generate(ids, past_key_values=cache, **options)[:, 100:]
    by_hand = landmark.LandmarkCache(model_of(600).config)
    model = model_of(600)
    pieces = torch.tensor_split(ids, [30, 60, 64, 90], 1)  # the question of 36 is longer than the 26 left
    for piece in pieces:
        token = logits(model, by_hand, piece)[:, -1:].argmax(-1)
    expected = []
    for _ in range(20):
        expected.append(token)
        token = logits(model, by_hand, token)[:, -1:].argmax(-1)
    assert torch.equal(answer, torch.cat(expected, 1))


def test_reading_takes_no_longer_chunks_than_the_cache():
    model = model_of()
    told = []
    landmark.read(model, IDS[:1, :70], landmark.LandmarkCache(model.config, chunk_size=30), progress=told.append)
    assert told == [30, 30, 10]
    with pytest.raises(ValueError, match=r"takes 1 to 25 .* LandmarkCache\(chunk_size"):
        landmark.read(model, IDS[:1], landmark.LandmarkCache(model.config), chunk_size=30)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        landmark.read(model, IDS[:1], chunk_size=0)
    with pytest.raises(ValueError, match="at most 30"):
        landmark.read(model, IDS[:1], chunk_size=35)
