"""Landmark attention in training, with landmarks of other windows as distractors in the softmax."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from landmark.hf.calls import Reader
from landmark.index.constant import has_constant_keys
from landmark.ops.attention import grouped_attention
from landmark.ops.blockwise import blockwise_attention, complete_first_block
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.settings import check_block_size
from landmark.stream import Stream, check_phase


class Distractors:
    """The newest `capacity` landmark keys of each layer of the windows read so far, `[Hkv,F,D]`.

    Rotated by their offset in the block, as in memory, and detached.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"distractors is {capacity}: give the number of landmarks to keep, 1 or more")
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}

    def add(self, layer: int, landmarks: Tensor) -> None:
        """Adds `landmarks [B,Hkv,n,D]`; the oldest beyond the capacity are dropped."""
        new = landmarks.transpose(0, 1).flatten(1, 2)
        old = self.keys.get(layer, new[:, :0])
        self.keys[layer] = torch.cat((old, new), dim=1)[:, -self.capacity :]

    def save(self, file: Path) -> None:
        """Saves them for `load`."""
        tensors = {str(layer): keys.contiguous() for layer, keys in self.keys.items()}
        save_file(tensors, file, {"capacity": str(self.capacity)})

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Distractors":
        """Loads what `save` wrote."""
        with safe_open(file, framework="pt", device=str(device)) as saved:
            kept = cls(int(saved.metadata()["capacity"]))
            kept.keys = {int(layer): saved.get_tensor(layer) for layer in saved.keys()}  # noqa: SIM118 - no dictionary
        return kept


class DistractedLandmarks(Reader):
    """The grouped softmax of one window, with landmarks of other windows as distractors for queries of recall windows.

    A training window has a dozen blocks, memory may have a million, and among so many some landmark scores well by
    chance. So that the right landmark learns to outscore all others by a margin, the softmax of every query in a row
    that is not `plain [B]` also covers all `distractors`, scored as old blocks in memory are, in slot 0 (Mohtashami &
    Jaggi 2023, section 3.2): gates without a block, whose weight is lost. Gradients flow into the queries. The
    landmarks of plain rows, without recall tasks, become distractors of later windows; those of other rows might answer
    the same questions. The first layer, whose landmark keys are constant, has no distractors. With
    `asking [B, segment]` (bool) only the queries of these tokens get distractors. Raises ValueError for invalid
    settings.
    """

    recomputable = True

    def __init__(
        self,
        segment: int,
        retrieve: int,
        block_size: int,
        distractors: Distractors,
        plain: Tensor,
        phase: int,
        asking: Tensor | None = None,
    ):
        super().__init__(segment, phase=phase)
        check_block_size(block_size)
        check_phase(phase, block_size)
        if retrieve < 1:
            raise ValueError(f"retrieve is {retrieve}: give 1 or more: as many slots precede a query in memory")
        self.block_size = block_size
        self.slots = (retrieve + 1) * (block_size + 1)
        self.distractors = distractors
        self._met = dict(distractors.keys)  # what was kept before the window
        self._added: set[int] = set()  # layers; one that is computed again in the backward pass adds nothing
        self.plain = plain
        self.phase = phase
        self.asked: list[tuple[int, Tensor]] | None = None  # row, and stream positions of its asking queries
        if asking is not None:
            tokens = [(row, own.nonzero()[:, 0]) for row, own in enumerate(asking & ~plain[:, None])]
            self.asked = [(row, token + (token + phase) // block_size) for row, token in tokens if len(token)]

    def reach(self, width: int) -> int:
        return self.slots + width

    def lay_out(self, tokens: Tensor) -> Stream:
        if self.seen != self.phase:
            raise ValueError("this reader has read its window: make another one for the next")
        return super().lay_out(tokens)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        scale = s.scale_of(query)
        positions = torch.arange(key.shape[2], device=key.device)
        layer: int = module.layer_idx
        if self.asked is not None:
            out = self._among_answers(layer, query, key, value, rotation, s)
            self._add(layer, key, rotation)
            return out
        keys, values, mask = rotation.apply(key, positions), value, None
        if self.phase:
            keys, values, mask, _ = complete_first_block(keys, values, None, None, self.phase)
        out, lse = blockwise_attention(
            rotation.apply(query, positions),
            keys,
            values,
            block_size=self.block_size,
            query_positions=positions + self.phase,
            key_mask=mask,
            scoring=s,
        )
        if has_constant_keys(layer):
            return out
        asking = ~self.plain
        if layer in self._met and bool(asking.any()):
            # Positions as in memory, behind the slots of retrieved blocks.
            standing = rotation.apply(query[asking].to(working_dtype(query)), positions + self.slots) * scale
            lost = torch.full_like(lse, -torch.inf)
            lost[asking] = _log_weight(standing, self._met[layer], s)
            out = out * (lse - lost).sigmoid()[..., None].to(out.dtype)
        self._add(layer, key, rotation)
        return out

    def _add(self, layer: int, key: Tensor, rotation: Rotation) -> None:
        """Adds the landmarks of plain rows to the distractors of later windows."""
        if has_constant_keys(layer) or layer in self._added:
            return
        self._added.add(layer)
        own = key.detach()[self.plain, :, self.block_size - self.phase :: self.block_size + 1]
        offset = torch.tensor([self.block_size], device=key.device)
        self.distractors.add(layer, rotation.apply(own.to(working_dtype(key)), offset))

    def _among_answers(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring
    ) -> Tensor:
        """The attention of the window, reduced by the weight of distractors for the few asking queries."""
        positions = torch.arange(key.shape[2], device=key.device)
        rotated, keys = rotation.apply(query, positions), rotation.apply(key, positions)
        out = grouped_attention(rotated, keys, value, s, block_size=self.block_size, phase=self.phase)
        if layer not in self._met or not self.asked:
            return out
        scale = s.scale_of(query)
        shares = torch.ones(query.shape[:3], dtype=working_dtype(query), device=query.device)
        for row, where in self.asked:
            seen = self._seen(where, positions)
            kept = _log_sum(rotated[row, :, where].to(shares) * scale, keys[row].to(shares), seen, s)
            standing = rotation.apply(query[row, :, where].to(shares), where + self.slots) * scale
            lost = _log_weight(standing[None], self._met[layer], s)[0]
            heads = torch.arange(len(kept), device=where.device)[:, None]
            at = (torch.full_like(where, row), heads, where)
            shares = shares.index_put(at, (kept - lost).sigmoid())
        return out * shares[..., None].to(out.dtype)

    def _seen(self, where: Tensor, positions: Tensor) -> Tensor:
        """Keys in the joint softmax of queries at `where [n]`, `[n, T]`: their own block, and earlier landmarks."""
        stride = self.block_size + 1
        block, own = (positions + self.phase) // stride, ((where + self.phase) // stride)[:, None]
        landmark = (positions + self.phase) % stride == self.block_size
        return (block == own) & (positions <= where[:, None]) & ~landmark | (block < own) & landmark


def _log_sum(query: Tensor, keys: Tensor, seen: Tensor, s: Scoring) -> Tensor:
    """Log-sum-exp of the scores of scaled queries `[H,n,D]` over the `seen` keys of `[Hkv,T,D]`, and the sink."""
    with torch.autocast(query.device.type, enabled=False):
        scores = s.cap((query.unflatten(0, (len(keys), -1)).flatten(1, 2) @ keys.mT).view(*query.shape[:2], -1))
        total = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
        return total if s.sinks is None else torch.logaddexp(total, s.sinks[:, None].to(total))


def _log_weight(query: Tensor, landmarks: Tensor, s: Scoring) -> Tensor:
    """Log-sum-exp over `landmarks [Hkv,F,D]` of the scores of each query `[B,H,T,D]`.

    Checkpointed row by row: the scores of one row are all that is ever in memory.
    """

    def of_row(row: Tensor) -> Tensor:
        scores = s.cap(row.unflatten(0, (len(landmarks), -1)).flatten(1, 2) @ landmarks.mT)
        return scores.logsumexp(-1).view(row.shape[:2])

    with torch.autocast(query.device.type, enabled=False):
        rows: list[Any] = [checkpoint(of_row, row, use_reentrant=False) for row in query]
        return torch.stack(rows)
