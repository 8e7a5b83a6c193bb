"""Keys and values of the blocks in memory."""

from typing import Protocol

from torch import Tensor


class BlockStore(Protocol):
    """Block keys and values, for every row of the batch; blocks are numbered from 0 in each row."""

    @property
    def kv_heads(self) -> int:
        """Key-value heads of each row."""
        ...

    def append(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Adds `keys [Hkv,m,stride,D]` and `values [Hkv,m,stride,Dv]` as the next m blocks of one row."""
        ...

    def gather(self, heads: Tensor, numbers: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Keys [M,k,stride,D] and values [M,k,stride,Dv] of blocks `numbers [M,k]` of `heads [M]`.

        Heads are counted through the batch, `row * Hkv + head`. Where the number is -1 the result is finite.
        `out`, contiguous tensors of these shapes, is filled and returned instead of new ones.
        """
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks kept."""
        ...
