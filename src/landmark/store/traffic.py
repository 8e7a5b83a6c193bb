"""What a store moved, and how often a block was where it was wanted."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Traffic:
    """Counts of one store; add those of several layers with `sum(..., Traffic())`.

    `calls`: chunks that asked, or parts of one that had to be cut. `wanted`: distinct blocks of a key-value head,
    summed over heads, rows and calls. `misses`: those of them that were in no slot of the device. `file_bytes` went
    from files to memory, `device_bytes` from memory to the device's slots.
    """

    calls: int = 0
    wanted: int = 0
    misses: int = 0
    file_bytes: int = 0
    device_bytes: int = 0

    @property
    def hits(self) -> int:
        return self.wanted - self.misses

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.calls + other.calls,
            self.wanted + other.wanted,
            self.misses + other.misses,
            self.file_bytes + other.file_bytes,
            self.device_bytes + other.device_bytes,
        )


def distinct_blocks(blocks: Tensor, kv_heads: int) -> int:
    """Blocks that must be read for `blocks [B,H,T,k]` (-1 is none): distinct ones of each key-value head, summed.

    Any store must read as many; for one that counts no traffic.
    """
    grouped = blocks.reshape(len(blocks) * kv_heads, -1).cpu().numpy()
    return sum(int(np.count_nonzero(np.unique(numbers) >= 0)) for numbers in grouped)
