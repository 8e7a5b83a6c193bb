import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.settings import check_block_size
from landmark.stream import Stream, check_phase, stream_length, tokens_that_fit

sizes = st.integers(1, 9)


@given(sizes, st.integers(0, 40), st.integers(0, 60))
def test_tokens_that_fit_is_the_largest_number_that_fits(block_size, phase, positions):
    phase %= block_size
    tokens = tokens_that_fit(positions, block_size, phase)
    assert tokens == 0 or stream_length(tokens, block_size, phase) <= positions
    assert stream_length(tokens + 1, block_size, phase) > positions


@given(
    sizes,
    st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3),
    st.integers(0, 30),
)
def test_every_row_is_its_own_stream(block_size, real, seen):
    mask, past = torch.tensor(real), torch.arange(len(real)) + seen
    tokens = torch.arange(mask.numel()).view_as(mask) + 100
    stream = Stream.lay_out(mask, past, block_size)
    laid = stream.insert(tokens, torch.tensor(-1))
    for row, keep in enumerate(mask):
        expected, count = [], int(past[row]) % block_size
        for token in tokens[row][keep].tolist():
            expected.append(token)
            count += 1
            if count % block_size == 0:
                expected.append(-1)
        assert laid[row, : stream.lengths[row]].tolist() == expected
        assert (laid[row, stream.lengths[row] :] == -1).all()
    back = stream.strip(laid[..., None].float())[..., 0].long()
    assert torch.equal(back[mask], tokens[mask])


def test_embeddings_go_in_like_ids():
    stream = Stream.lay_out(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, dtype=torch.long), 2)
    laid = stream.insert(torch.arange(8.0).view(1, 4, 2), torch.tensor([-1.0, -2.0]))
    assert laid[0].tolist() == [[0, 1], [2, 3], [-1, -2], [4, 5], [6, 7], [-1, -2]]


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_bad_block_size(value):
    with pytest.raises(ValueError, match="block_size"):
        check_block_size(value)


def test_bad_phase():
    with pytest.raises(ValueError, match="phase is 4"):
        check_phase(4, 4)
