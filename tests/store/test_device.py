import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.ops.retrieved import Pages
from landmark.store.device import DeviceStore


def filled(counts: list[int], max_blocks: int | None = None) -> tuple[DeviceStore, list[torch.Tensor]]:
    """A store, and per row all blocks it was given: the values are the keys plus 100."""
    store, given_blocks = DeviceStore(len(counts), max_blocks), []
    for row, count in enumerate(counts):
        keys = torch.randn(2, count, 4, 3)
        store.append(row, keys, keys + 100)
        given_blocks.append(keys)
    return store, given_blocks


def pages_of(store: DeviceStore, numbers: torch.Tensor) -> Pages:
    ((part, pages),) = store.pages(numbers)
    assert part == slice(None)
    return pages


def blocks_of(store: DeviceStore, row: int, head: int, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    pages = pages_of(store, torch.tensor(numbers).view(1, 1, 1, -1))
    table = pages.table.flatten()
    return pages.keys[row, head, table], pages.values[row, head, table]


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
            if kept:
                found = blocks_of(store, row, head, list(kept))
                assert torch.equal(found[0], keys[row][head, kept.start :])
                assert torch.equal(found[1], keys[row][head, kept.start :] + 100)


def test_no_block_stays_no_block_and_page_0_is_finite_even_in_a_row_without_any():
    store, _ = filled([3, 0])
    pages = pages_of(store, torch.tensor([[-1, 2], [-1, -1]]).view(2, 1, 1, 2))
    assert pages.table.flatten().tolist() == [-1, 2, -1, -1]
    assert pages.keys[:, :, 0].isfinite().all()
    assert pages.values[:, :, 0].isfinite().all()


def test_blocks_are_not_copied():
    store, _ = filled([3])
    first, second = (pages_of(store, torch.zeros(1, 1, 1, 1, dtype=torch.long)) for _ in range(2))
    assert first.keys.data_ptr() == second.keys.data_ptr()


@pytest.mark.parametrize("max_blocks", [None, 2])
def test_rows_can_be_reordered_repeated_and_extended(max_blocks):
    store, blocks = filled([2, 4], max_blocks)
    store.reorder([1, 0, 1])
    more = torch.randn(2, 1, 4, 3)
    store.append(0, more, more + 100)
    for row, head, numbers, expected in (
        (0, 0, [3, 4], torch.stack((blocks[1][0, 3], more[0, 0]))),
        (1, 1, [0, 1], blocks[0][1, 0:2]),
        (2, 0, [2, 3], blocks[1][0, 2:4]),
    ):
        assert torch.equal(blocks_of(store, row, head, numbers)[0], expected)


def test_bytes_count_what_is_kept():
    store, _ = filled([3, 9], max_blocks=4)
    assert store.nbytes == 2 * (3 + 4) * 2 * 4 * 3 * 4
