"""Random blocks, and what pages say of them."""

import torch
from hypothesis import strategies as st

from landmark.store.base import BackingStore, BlockStore
from landmark.store.device import DeviceStore
from landmark.store.files import ExtentMap, FileStore
from landmark.store.tiered import TieredStore

KINDS = ("files", "host", "two levels")  # of what lies below the device
# What is done with stores, and with which numbers.
steps = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 9), st.integers(1, 25)),
    st.tuples(st.just("read"), st.integers(1, 7), st.integers(1, 3)),
    st.tuples(st.just("reorder"), st.integers(1, 3), st.integers(0, 99)),
    st.tuples(st.just("fork"), st.booleans(), st.none()),
)


def below_the_device(kind: str, rows: int, budget: int) -> BackingStore:
    """A backing store of one of `KINDS`; that of two levels has host memory of `budget` bytes above files."""
    below = DeviceStore(rows) if kind == "host" else FileStore([ExtentMap() for _ in range(rows)])
    return TieredStore(below, budget=budget) if kind == "two levels" else below


def some_blocks(count: int, dtype: torch.dtype = torch.float32, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [Hkv,m,4,3] and values [Hkv,m,4,5]."""
    return torch.randn(heads, count, 4, 3).to(dtype), torch.randn(heads, count, 4, 5).to(dtype)


def read(store: BlockStore, blocks: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[B,H,T,k,..]` of `blocks`, for `heads` query heads; 0 where there is no block."""
    parts = []
    for part, pages in store.pages(blocks):
        wanted = blocks[:, :, part] if blocks.shape[2] > 1 else blocks
        assert (pages.table < 0).equal((wanted < 0).expand_as(pages.table))
        assert pages.table.shape == wanted.shape, "the form of the choice is kept"
        assert all(x[:, :, 0].isfinite().all() for x in pages[:2])
        parts.append([at_pages(x, pages.table, heads) for x in pages[:2]])
    return torch.cat([keys for keys, _ in parts], 2), torch.cat([values for _, values in parts], 2)


def at_pages(data: torch.Tensor, table: torch.Tensor, heads: int) -> torch.Tensor:
    """The pages of page table `table`, for each of `heads` query heads those of its key-value head."""
    rows, kv_heads = data.shape[:2]
    table = table.expand(-1, heads, -1, -1)
    own_head = torch.arange(heads) // (heads // kv_heads)
    found = data[torch.arange(rows)[:, None, None, None], own_head[:, None, None], table.clamp(min=0)]
    return found.masked_fill(table[..., None, None] < 0, 0)


def rounded_blocks(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What int8 makes of blocks: keys rounded by channels, values by tokens, to 127 steps of the largest magnitude."""
    found = []
    for x, dim in ((keys, -2), (values, -1)):
        wide = x.double() if x.dtype == torch.float64 else x.float()
        scale = (wide.abs().max(dim, keepdim=True).values.float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
        found.append(((wide / scale).round() * scale).to(x.dtype))
    return found[0], found[1]
