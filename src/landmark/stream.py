"""The token stream of landmark attention: blocks of ordinary tokens, each closed by a landmark token.

A block is `block_size` ordinary tokens followed by their landmark, `stride = block_size + 1` positions of the
stream (Mohtashami & Jaggi 2023, section 3). A landmark is inserted as soon as the token before it is in the stream.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor


def check_phase(phase: int, block_size: int) -> None:
    """Raises ValueError unless 0 <= `phase` < `block_size`: the tokens of a window's first block that lie before it."""
    if not 0 <= phase < block_size:
        raise ValueError(
            f"phase is {phase}: give 0 to {block_size - 1}, the tokens of the first block before the window"
        )


def stream_length(tokens: int, block_size: int, phase: int = 0) -> int:
    """Stream positions of `tokens` ordinary tokens and of the landmarks of the blocks they complete."""
    return tokens + (phase + tokens) // block_size


def tokens_that_fit(positions: int, block_size: int, phase: int = 0) -> int:
    """Largest number of ordinary tokens whose stream, landmarks included, has at most `positions` positions."""
    if positions <= 0:
        return 0
    # With phase + n = a * block_size + b the stream takes n + a positions: (phase + n) // block_size landmarks.
    blocks, rest = divmod(positions + phase, block_size + 1)
    return max(0, blocks * block_size + min(rest, block_size - 1) - phase)


@dataclass(frozen=True)
class Stream:
    """Layout of a batch `[B, S]` of ordinary tokens (padding anywhere) in a right-padded stream `[B, T]`.

    Attributes:
        positions: long [B, S], the stream position of each token, T for padding.
        lengths: long [B], valid stream positions of each row.
        tokens: long [B], ordinary tokens of each row.
        width: T.
    """

    positions: Tensor
    lengths: Tensor
    tokens: Tensor
    width: int

    @cached_property
    def rows(self) -> list[int]:
        """`lengths` as numbers: a device is waited for once."""
        return self.lengths.tolist()

    @classmethod
    def lay_out(cls, real: Tensor, seen: Tensor, block_size: int) -> "Stream":
        """Lays out the tokens where `real [B, S]` is true, after `seen [B]` ordinary tokens of the same row."""
        if real.shape == (1, 1) and real.device.type == "cpu" and bool(real):
            return _of_one_token((int(seen) + 1) % block_size == 0)
        phase = seen % block_size
        count = real.long().cumsum(1)
        tokens = count[:, -1] if real.shape[1] else torch.zeros_like(seen)
        lengths = tokens + (phase + tokens) // block_size
        width = max(1, int(lengths.max())) if lengths.numel() else 0  # a batch of padding alone is one landmark wide
        before = count - 1
        positions = before + (phase[:, None] + before) // block_size
        return cls(torch.where(real, positions, width), lengths, tokens, width)

    def insert(self, tokens: Tensor, landmark: Tensor) -> Tensor:
        """The stream `[B, T]` of ids `[B, S]`, or `[B, T, C]` of embeddings `[B, S, C]`; elsewhere `landmark`."""
        shape = (tokens.shape[0], self.width + 1, *tokens.shape[2:])
        stream = landmark.to(tokens.dtype).expand(shape).clone()  # padding is written to the last column
        positions = self.positions.view(*self.positions.shape, *[1] * (tokens.dim() - 2)).expand_as(tokens)
        return stream.scatter(1, positions, tokens)[:, : self.width]

    def strip(self, stream: Tensor) -> Tensor:
        """The ordinary tokens `[B, S, C]` of a stream `[B, T, C]`.

        Padding repeats the token before it, so that a row padded on the right ends as it does alone.
        """
        if not self.positions.numel() or self.width == 0:
            return stream.new_zeros(*self.positions.shape, stream.shape[-1])
        positions = self.positions.masked_fill(self.positions == self.width, 0).cummax(1).values
        return stream.gather(1, positions[..., None].expand(*positions.shape, stream.shape[-1]))


@cache
def _of_one_token(closes: bool) -> Stream:
    """The layout of one token on the CPU, and of a landmark behind it if it `closes` a block: that of most steps."""
    with torch.inference_mode(False):
        positions, tokens = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long)
        return Stream(positions, tokens + closes, tokens, 1 + closes)
