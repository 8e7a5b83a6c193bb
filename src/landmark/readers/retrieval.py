"""Landmark attention that retrieves blocks of earlier segments, by the rules of reading, with gradients."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landmark.hf.calls import Reader
from landmark.index.base import Index
from landmark.index.constant import has_constant_keys
from landmark.index.options import IndexOptions, make_index
from landmark.memory.geometry import Past, past_of
from landmark.memory.selection import Retrieval
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.retrieved import merge
from landmark.ops.retrieved.pytorch import trainable_blocks
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.settings import check_block_size
from landmark.stream import check_phase


class RetrievedLandmarks(Reader):
    """Each query opens its best `retrieve` blocks of earlier segments; attention to the segment itself is local.

    The rules of a cache with `local_blocks` 0 (Mohtashami & Jaggi 2023, section 3.2), with gradients for the queries,
    keys and values of the segment, but not for blocks and tail of earlier segments. So a model trains with the memory
    that it reads with, which the paper leaves open.

    A text may begin `phase` tokens inside its first block, whose missing tokens are masked. Raises ValueError for
    invalid settings.
    """

    def __init__(self, segment: int, retrieve: int, block_size: int, phase: int = 0) -> None:
        super().__init__(segment, phase=phase)
        check_block_size(block_size)
        check_phase(phase, block_size)
        if retrieve < 1:
            raise ValueError(f"retrieve is {retrieve}: give 1 or more blocks for a query to open")
        self.block_size = block_size
        self.retrieve = retrieve
        self._hidden = phase
        self._layers: dict[int, _Blocks] = {}

    def reach(self, width: int) -> int:
        return (self.retrieve + 2) * (self.block_size + 1) + width

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        if module.layer_idx not in self._layers:
            self._layers[module.layer_idx] = _Blocks.before(key, module.layer_idx, self.block_size, self._hidden)
        blocks = self._layers[module.layer_idx]
        blocks.settle(rotation)
        tail = blocks.tail[0].shape[2]
        key, value = (torch.cat(pair, dim=2) for pair in zip(blocks.tail, (key, value), strict=True))
        blocks.tail = key.detach(), value.detach()
        positions = torch.arange(key.shape[2], device=key.device)
        out, lse = blockwise_attention(
            rotation.apply(query, positions[tail:]),
            rotation.apply(key, positions),
            value,
            block_size=self.block_size,
            query_positions=positions[tail:],
            key_mask=(positions >= self._hidden).expand(len(key), -1) if self._hidden and not blocks.count else None,
            scoring=s,
        )
        if not blocks.count:
            return out
        retrieval = Retrieval(blocks.index, self._past(blocks.count, tail, query), rotation, s)
        choice = retrieval.choose(query.detach().to(working_dtype(query)), "per_token_and_head", None)
        inside, gates = trainable_blocks(
            query,
            blocks.keys,
            blocks.values,
            choice.blocks,
            choice.distance,
            rotation=rotation,
            scoring=s,
            hidden=self._hidden,
        )
        return merge(out, lse, inside, gates)[0]

    def _past(self, count: int, tail: int, query: Tensor) -> Past:
        rows, width, stride = len(query), query.shape[2], self.block_size + 1
        return past_of(
            counts=(count,) * rows,
            kept=(count,) * rows,
            retrieve=self.retrieve,
            stingy=True,
            stride=stride,
            starts=((min(self.retrieve, count) + 1) * stride + tail,) * rows,
            valid=(width,) * rows,
            width=width,
            device=query.device,
        )


@dataclass
class _Blocks:
    """KV cache of earlier segments in one layer: complete blocks `[B,Hkv,n,stride,D]`, their landmarks, and the tail.

    Keys of blocks are rotated by their offset, those of the tail `[B,Hkv,L,D]` not yet. All are detached, and never
    written in place: the graph of an earlier segment may need them.
    """

    index: Index
    keys: Tensor
    values: Tensor
    tail: tuple[Tensor, Tensor]

    @classmethod
    def before(cls, key: Tensor, layer: int, block_size: int, hidden: int) -> "_Blocks":
        """Empty, for a first segment with keys like `key`; `hidden` positions of its first block are masked."""
        constant_keys = has_constant_keys(layer)
        index = make_index(IndexOptions("exact"), len(key), None, constant_keys=constant_keys, device=key.device)
        none = key.new_zeros(*key.shape[:2], 0, block_size + 1, key.shape[3])
        passed = key.new_zeros(*key.shape[:2], hidden, key.shape[3])
        return cls(index, none, none, (passed, passed))

    @property
    def count(self) -> int:
        return self.keys.shape[2]

    def settle(self, rotation: Rotation) -> None:
        """Moves the complete blocks of the tail to the blocks that can be retrieved."""
        stride = self.keys.shape[3]
        complete = self.tail[0].shape[2] // stride * stride
        if not complete:
            return
        keys, values = (x[:, :, :complete].unflatten(2, (-1, stride)) for x in self.tail)
        self.tail = self.tail[0][:, :, complete:], self.tail[1][:, :, complete:]
        offsets = torch.arange(stride, device=keys.device)
        landmarks = rotation.apply(keys[:, :, :, -1].to(working_dtype(keys)), offsets[-1:])
        for row, own in enumerate(landmarks):
            self.index.append(row, own)
        self.keys = torch.cat((self.keys, rotation.apply(keys, offsets)), dim=2)
        self.values = torch.cat((self.values, values), dim=2)
