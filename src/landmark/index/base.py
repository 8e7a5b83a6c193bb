"""The interface of an index of landmark keys: maximum inner product search over the blocks of one layer."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class ResidentKeys(NamedTuple):
    """Landmark keys in place: block number a of a row lies at slot `a % modulus` of `keys [B,Hkv,S,D]`.

    `first`, long [B]: number of the oldest block that may be among the best. No key has a norm above `max_norm`. Blocks
    from number `shared`, long [B], on lie at slot `a - shared` of `behind [B,Hkv,S',D]` instead.
    """

    keys: Tensor
    first: Tensor
    modulus: int
    max_norm: float
    behind: Tensor | None = None
    shared: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`keys`, `first`, `behind` and `shared`, for compiled loops; with nothing behind no block is that far."""
        if self.behind is None or self.shared is None:
            return self.keys, self.first, self.keys, torch.full_like(self.first, torch.iinfo(torch.long).max)
        return self.keys, self.first, self.behind, self.shared


class Index(Protocol):
    """Landmark keys of the blocks of one layer, for every row of the batch.

    Blocks are numbered from 0 in each row, in the order in which they were appended. B rows, H query heads, Hkv
    key-value heads. `upto` gives, per row, the block number at which a search ends (exclusive). Blocks that an index
    with `max_blocks` dropped are never found. Scores are inner products, without scale.
    """

    def append(self, row: int, keys: Tensor) -> None:
        """Adds `keys [Hkv,m,D]`, rotated, as the landmark keys of the next m blocks of one row."""
        ...

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        """The k best blocks of each query `[B,H,T,D]`, among equals the newest, in no particular order.

        Returns scores [B,H,T,k], -inf where there are fewer blocks, and block numbers long [B,H,T,k], -1 there.
        """
        ...

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        """Keys for a caller that scores the k best blocks below `upto` itself; None if `search` is faster."""
        ...

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        """Scores [B,H,T,N] of queries `[B,H,T,D]` at all N slots in use, -inf at those without a block below `upto`."""
        ...

    def numbers(self, device: torch.device) -> Tensor:
        """Block number at each of the N slots in use, long [B,N]."""
        ...

    def keys(self, numbers: Tensor) -> Tensor:
        """Keys [B,Hkv,m,D] of the blocks `numbers [B,m]`; any finite key where the number is -1."""
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "Index":
        """A copy-on-write branch: shares these blocks; both may grow, and neither sees the new blocks of the other."""
        ...

    def view(self) -> "Index":
        """The same blocks, new ones included; searches of others and their `reorder` do not change what it finds."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the keys, and of what was built to search them."""
        ...
