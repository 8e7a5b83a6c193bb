import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.store.device import DeviceStore


def filled(counts: list[int], max_blocks: int | None = None) -> tuple[DeviceStore, list[torch.Tensor]]:
    """A store, and per row all blocks it was given: the values are the keys plus 100."""
    store, given_blocks = DeviceStore(len(counts), max_blocks), []
    for row, count in enumerate(counts):
        keys = torch.randn(2, count, 4, 3)
        store.append(row, keys, keys + 100)
        given_blocks.append(keys)
    return store, given_blocks


@given(
    parts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 7)), min_size=1, max_size=6),
    max_blocks=st.sampled_from([None, 1, 3, 8]),
)
def test_every_kept_block_comes_back(parts, max_blocks):
    store = DeviceStore(2, max_blocks)
    keys = [torch.empty(2, 0, 4, 3), torch.empty(2, 0, 4, 3)]
    for row, count in parts:
        new = torch.randn(2, count, 4, 3)
        store.append(row, new, new + 100)
        keys[row] = torch.cat((keys[row], new), 1)
    for row in range(2):
        count = keys[row].shape[1]
        kept = range(0 if max_blocks is None else max(0, count - max_blocks), count)
        for head in range(2):
            numbers = torch.tensor([list(kept)], dtype=torch.long)
            found = store.gather(torch.tensor([row * 2 + head]), numbers)
            assert torch.equal(found[0][0], keys[row][head, kept.start :])
            assert torch.equal(found[1][0], keys[row][head, kept.start :] + 100)


def test_no_block_is_finite_even_in_a_row_without_any():
    store, _ = filled([3, 0])
    keys, values = store.gather(torch.tensor([0, 3]), torch.tensor([[-1, 2], [-1, -1]]))
    assert keys.shape == values.shape == (2, 2, 4, 3)
    assert keys[[0, 1, 1], [0, 0, 1]].isfinite().all()


def test_gather_fills_given_buffers():
    store, blocks = filled([5])
    room = torch.empty(2, 2, 4, 3), torch.empty(2, 2, 4, 3)
    found = store.gather(torch.tensor([1, 0]), torch.tensor([[0, 4], [2, 2]]), room)
    assert found[0] is room[0]
    assert found[1] is room[1]
    assert torch.equal(room[0], torch.stack((blocks[0][1, [0, 4]], blocks[0][0, [2, 2]])))


@pytest.mark.parametrize("max_blocks", [None, 2])
def test_rows_can_be_reordered_repeated_and_extended(max_blocks):
    store, blocks = filled([2, 4], max_blocks)
    store.reorder([1, 0, 1])
    more = torch.randn(2, 1, 4, 3)
    store.append(0, more, more + 100)
    heads, newest = torch.tensor([0, 3, 4]), torch.tensor([[3, 4], [0, 1], [2, 3]])
    expected = (
        torch.stack((blocks[1][0, 3], more[0, 0])),
        blocks[0][1, 0:2],
        blocks[1][0, 2:4],
    )
    assert torch.equal(store.gather(heads, newest)[0], torch.stack(expected))


def test_bytes_count_what_is_kept():
    store, _ = filled([3, 9], max_blocks=4)
    assert store.nbytes == 2 * (3 + 4) * 2 * 4 * 3 * 4
