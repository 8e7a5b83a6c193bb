"""Paged keys and values: buffers of whole blocks, and the page table of each query."""

from typing import NamedTuple

from torch import Tensor


class Pages(NamedTuple):
    """Blocks of one layer, and the pages that each query reads. A page holds one block of one key-value head.

    Fields:
        keys [B,Hkv,P,stride,D]: P pages of a row and key-value head, contiguous, rotated by their offset in the block;
            the last of the stride positions is the landmark.
        values [B,Hkv,P,stride,Dv]: of the same pages, contiguous; the value of the landmark is not read.
        table: the page table, long [B,H,T,k], or [B,1,T,k] where heads share their blocks, or [B,H,1,k] where queries
            do. Pages from 0 to P - 1, for query head h those of key-value head h // (H // Hkv); -1 is no block.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
