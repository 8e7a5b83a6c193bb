"""Keys and values of the blocks in memory."""

from typing import Protocol

from torch import Tensor

from landmark.ops.retrieved import Pages


class BlockStore(Protocol):
    """Block keys and values, for every row of the batch; blocks are numbered from 0 in each row."""

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks of one row."""
        ...

    def locate(self, blocks: Tensor) -> Pages:
        """Where the blocks with numbers `blocks` lie, long [B,H,T,k], [B,1,T,k] or [B,H,1,k]; -1 is no block.

        What lies at place 0 is finite, whatever was stored.
        """
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept."""
        ...
