"""Keys and values of the blocks in memory."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from landmark.ops.retrieved import Pages
from landmark.store.traffic import Traffic


class BlockStore(Protocol):
    """Block keys and values, for every row of the batch; blocks are numbered from 0 in each row."""

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks of one row."""
        ...

    def pages(self, blocks: Tensor) -> Iterator[tuple[slice, Pages]]:
        """Where the blocks with numbers `blocks` lie, long [B,H,T,k], [B,1,T,k] or [B,H,1,k]; -1 is no block.

        Some queries at a time: a slice of T, `slice(None)` where all come at once, as they do if queries share their
        blocks. Pages hold until the next are asked for. What lies at place 0 is finite, whatever was stored. A store
        is either always asked for heads together, [B,1,T,k], or never.
        """
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "BlockStore":
        """A store of the same blocks that goes on by itself."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept, wherever they lie."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What was moved to serve reads so far."""
        ...

    @property
    def resident(self) -> int:
        """Bytes of blocks in memory."""
        ...
