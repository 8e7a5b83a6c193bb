"""Rotary position embedding by table, for queries, local keys and keys in memory alike."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Rotary tables of a layer: the first R dimensions of a head are rotated, the others pass through.

    `cos` and `sin` are [P,R] tables by position and may carry a scaling factor. Style "half" pairs dimension
    i with i + R/2 (tables are `cat(freqs, freqs)`), "interleaved" pairs 2i with 2i + 1
    (`repeat_interleave(freqs, 2)`), and "none" rotates nothing (the tables are not read).
    """

    cos: Tensor
    sin: Tensor
    style: Literal["half", "interleaved", "none"]

    def __post_init__(self) -> None:
        if self.style not in ("half", "interleaved", "none"):
            raise ValueError(f"rotation style {self.style!r} is unknown: use 'half', 'interleaved' or 'none'")
        paired = self.cos.shape == self.sin.shape and self.cos.dim() == 2 and self.cos.shape[1] % 2 == 0
        if self.style != "none" and not paired:
            raise ValueError(
                f"cos {tuple(self.cos.shape)} and sin {tuple(self.sin.shape)} must be tables of one shape "
                "[positions, even width]"
            )

    def __reduce__(self) -> Any:
        return Rotation, (self.cos, self.sin, self.style)  # what was made of them has addresses, and a copy others

    @property
    def reach(self) -> int | None:
        """Number of positions in the tables, None without rotation."""
        return None if self.style == "none" else self.cos.shape[0]

    @cached_property
    def by_partner(self) -> tuple[Tensor, Tensor, Tensor]:
        """`cos`, a `sin` with signs, both [P,R], and `partner`, long [R]; R is 0 where nothing is rotated.

        Dimension i becomes `x[i] * cos[i] + x[partner[i]] * sin[i]`: one rule for both styles.
        """
        if self.style == "none":
            empty = self.cos.new_empty(1, 0)
            return empty, empty, torch.empty(0, dtype=torch.long, device=self.cos.device)
        width = self.cos.shape[1]
        each = torch.arange(width, device=self.cos.device)
        partner = (each + width // 2) % width if self.style == "half" else each ^ 1
        return self.cos.contiguous(), (self.sin * torch.where(partner > each, -1, 1)).contiguous(), partner

    @cached_property
    def arrays(self) -> tuple[Any, Any, Any]:
        """`by_partner` on a CPU, for compiled loops: every layer of every step asks for them."""
        cos, sin, partner = (x.numpy() for x in self.by_partner)
        return cos, sin, partner

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Where `cos` and `sin` of `arrays` lie, and their number of positions."""
        cos, sin, _ = self.arrays
        return cos.ctypes.data, sin.ctypes.data, len(cos)

    def like(self, other: "Rotation") -> bool:
        """Whether compiled loops that take the one take the other: of any number of positions."""
        mine, theirs = self.cos, other.cos
        return self.style == other.style and mine.dtype == theirs.dtype and mine.shape[1] == theirs.shape[1]

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotates `x [..., D]` to `positions`, long and broadcastable to `x.shape[:-1]`, each in 0..P-1.

        Computes in the wider of the two dtypes and returns x's dtype. Attention depends on relative positions
        only, so a query rotated by p - s against a key rotated by j scores like p against s + j.
        """
        if self.style == "none":
            return x
        cos, sin, _ = self.by_partner
        width = cos.shape[1]
        head = x if width == x.shape[-1] else x[..., :width]
        turned = (head * cos[positions]).addcmul(self._partners(head), sin[positions]).to(x.dtype)
        return turned if width == x.shape[-1] else self._with_rest(turned, x[..., width:])

    def _partners(self, x: Tensor) -> Tensor:
        """`x [..., R]` with the two dimensions of each pair swapped."""
        if self.style == "half":
            return x.roll(x.shape[-1] // 2, -1)
        return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)

    @staticmethod
    def _with_rest(turned: Tensor, rest: Tensor) -> Tensor:
        return torch.cat((turned, rest.expand(*turned.shape[:-1], rest.shape[-1])), dim=-1)
