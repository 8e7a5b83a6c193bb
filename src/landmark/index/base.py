"""Landmark keys in, block numbers out."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class ResidentKeys(NamedTuple):
    """Landmark keys where they lie: block number a of a row is found at slot `a % modulus` of `keys [B,Hkv,S,D]`.

    `first`, long [B]: number of the oldest block worth scoring. No key is longer than `longest`.
    """

    keys: Tensor
    first: Tensor
    modulus: int
    max_norm: float


class Index(Protocol):
    """The landmark keys of the blocks in memory, for every row of the batch.

    Blocks are numbered from 0 in each row, in the order in which they came. `upto` gives, per row, the block
    number at which a search ends (exclusive); blocks that were dropped are never found. Scores are plain
    inner products.
    """

    def append(self, row: int, keys: Tensor) -> None:
        """Adds `keys [Hkv,m,D]`, rotated, as the landmark keys of the next m blocks of one row."""
        ...

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        """The k best blocks of each query `[B,H,T,D]`, ties to the newest, in no particular order.

        Returns scores [B,H,T,k], -inf where there are fewer blocks, and numbers long [B,H,T,k], -1 there.
        """
        ...

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        """What a search of its own for the k best blocks below `upto` needs to score; None if `search` knows better."""
        ...

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        """Scores [B,H,T,N] of queries `[B,H,T,D]` at all slots, -inf at those without a block to find."""
        ...

    def numbers(self, device: torch.device) -> Tensor:
        """Block number of each of the N slots, long [B,N]."""
        ...

    def keys(self, numbers: Tensor) -> Tensor:
        """Keys [B,Hkv,m,D] of the blocks `numbers [B,m]`; where the number is -1, any finite key."""
        ...

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        ...

    def fork(self) -> "Index":
        """An index of its own that shares these blocks; both may grow, and neither sees what comes to the other."""
        ...

    def view(self) -> "Index":
        """The same blocks, those to come too; what is found does not depend on searches elsewhere from here on."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the keys kept."""
        ...
