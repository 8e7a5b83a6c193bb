"""Landmark attention of training windows whose queries also meet landmarks of other windows."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from landmark.hf.calls import Reader
from landmark.index.constant import has_constant_keys
from landmark.ops.attention import landmark_attention
from landmark.ops.blockwise import blockwise_attention, complete_first_block
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.settings import check_block_size
from landmark.stream import check_phase


class Distractors:
    """The newest `capacity` landmark keys of each layer of the windows read so far, `[Hkv,F,D]`.

    They are rotated by their offset in the block, as those in memory are, and have no gradient.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"distractors is {capacity}: give the number of landmarks to keep, 1 or more")
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}

    def add(self, layer: int, landmarks: Tensor) -> None:
        """Adds `landmarks [B,Hkv,n,D]`; the oldest make room."""
        new = landmarks.detach().transpose(0, 1).flatten(1, 2)
        old = self.keys.get(layer, new[:, :0])
        self.keys[layer] = torch.cat((old, new), dim=1)[:, -self.capacity :]

    def save(self, file: Path) -> None:
        """Writes them, for `load`."""
        tensors = {str(layer): keys.contiguous() for layer, keys in self.keys.items()}
        save_file(tensors, file, {"capacity": str(self.capacity)})

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Distractors":
        """What was saved in `file`."""
        with safe_open(file, framework="pt", device=str(device)) as saved:
            kept = cls(int(saved.metadata()["capacity"]))
            kept.keys = {int(layer): saved.get_tensor(layer) for layer in saved.keys()}  # noqa: SIM118 - no dictionary
        return kept


class DistractedLandmarks(Reader):
    """The grouped softmax of one window, in which the windows that ask also weigh the landmarks of other windows.

    A window of training holds a dozen blocks, a memory may hold a million, and among so many some landmark scores well
    by chance. So that a model learns to tell the right one from all others by far, every query of a row that is not
    `plain [B]` weighs all `distractors`, scored as old blocks in memory are, as if in slot 0 (Mohtashami & Jaggi 2023,
    section 3.2): gates without a block, whose weight is lost. Gradients flow into the queries. The landmarks of plain
    rows, text alone, are the distractors of later windows; those of other rows could answer the same questions. The
    first layer, whose keys are constant, goes without. With `asking [B, segment]` (bool) only the queries of
    these tokens weigh them, so that all else of a row stays what it is. Raises ValueError for settings that mean
    nothing.
    """

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
            raise ValueError(f"retrieve is {retrieve}: give 1 or more, the slots that stand before a query in memory")
        self.block_size = block_size
        self.slots = (retrieve + 1) * (block_size + 1)
        self.distractors = distractors
        self.plain = plain
        self.phase = phase
        self.asked: list[tuple[int, Tensor]] | None = None  # rows, and the stream positions of their queries that ask
        if asking is not None:
            found = [(row, places.nonzero()[:, 0]) for row, places in enumerate(asking & ~plain[:, None])]
            self.asked = [(row, token + (token + phase) // block_size) for row, token in found if len(token)]

    def reach(self, width: int) -> int:
        return self.slots + width

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        scale = s.scale_of(query)
        places = torch.arange(key.shape[2], device=key.device)
        layer: int = module.layer_idx
        if self.asked is not None:
            out = self._among_answers(layer, query, key, value, rotation, s)
            self._add(layer, key, rotation)
            return out
        keys, values, mask = rotation.apply(key, places), value, None
        if self.phase:
            keys, values, mask, _ = complete_first_block(keys, values, None, None, self.phase)
        out, lse = blockwise_attention(
            rotation.apply(query, places),
            keys,
            values,
            block_size=self.block_size,
            query_positions=places + self.phase,
            key_mask=mask,
            scoring=s,
        )
        if has_constant_keys(layer):
            return out
        asking = ~self.plain
        if layer in self.distractors.keys and bool(asking.any()):
            # A query stands where it would behind the slots of a memory.
            standing = rotation.apply(query[asking].to(working_dtype(query)), places + self.slots) * scale
            lost = torch.full_like(lse, -torch.inf)
            lost[asking] = _weight(standing, self.distractors.keys[layer], s)
            out = out * (lse - lost).sigmoid()[..., None].to(out.dtype)
        self._add(layer, key, rotation)
        return out

    def _add(self, layer: int, key: Tensor, rotation: Rotation) -> None:
        """Makes the landmarks of plain rows distractors of later windows."""
        if has_constant_keys(layer):
            return
        landmarks = key[self.plain, :, self.block_size - self.phase :: self.block_size + 1].to(working_dtype(key))
        offset = torch.tensor([self.block_size], device=key.device)
        self.distractors.add(layer, rotation.apply(landmarks, offset))

    def _among_answers(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring
    ) -> Tensor:
        """The attention of the window, in which the few queries that ask lose what distractors take."""
        places = torch.arange(key.shape[2], device=key.device)
        rotated, keys = rotation.apply(query, places), rotation.apply(key, places)
        out = landmark_attention(
            rotated,
            keys,
            value,
            block_size=self.block_size,
            phase=self.phase,
            scale=s.scale,
            softcap=s.softcap,
            sinks=s.sinks,
            dropout=s.dropout,
        )
        if layer not in self.distractors.keys or not self.asked:
            return out
        scale = s.scale_of(query)
        shares = torch.ones(query.shape[:3], dtype=working_dtype(query), device=query.device)
        for row, where in self.asked:
            seen = self._seen(where, places)
            kept = _sum(rotated[row, :, where].to(shares) * scale, keys[row].to(shares), seen, s)
            standing = rotation.apply(query[row, :, where].to(shares), where + self.slots) * scale
            lost = _weight(standing[None], self.distractors.keys[layer], s)[0]
            heads = torch.arange(len(kept), device=where.device)[:, None]
            at = (torch.full_like(where, row), heads, where)
            shares = shares.index_put(at, (kept - lost).sigmoid())
        return out * shares[..., None].to(out.dtype)

    def _seen(self, where: Tensor, places: Tensor) -> Tensor:
        """What queries at `where [n]` weigh in the joint softmax, `[n, T]`: their own block, and earlier landmarks."""
        stride = self.block_size + 1
        block, own = (places + self.phase) // stride, ((where + self.phase) // stride)[:, None]
        landmark = (places + self.phase) % stride == self.block_size
        return (block == own) & (places <= where[:, None]) & ~landmark | (block < own) & landmark


def _sum(query: Tensor, keys: Tensor, seen: Tensor, s: Scoring) -> Tensor:
    """The logarithm of the joint softmax's denominator of queries `[H,n,D]`, scaled, over the keys `[Hkv,T,D]` seen."""
    with torch.autocast(query.device.type, enabled=False):
        scores = s.cap((query.unflatten(0, (len(keys), -1)).flatten(1, 2) @ keys.mT).view(*query.shape[:2], -1))
        total = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
        return total if s.sinks is None else torch.logaddexp(total, s.sinks[:, None].to(total))


def _weight(query: Tensor, landmarks: Tensor, s: Scoring) -> Tensor:
    """The logarithm of the sum of exponentials of the scores of `landmarks [Hkv,F,D]`, for each query `[B,H,T,D]`.

    Row by row, each computed again in backward, so that the scores of one row are all that is ever kept.
    """

    def of_row(row: Tensor) -> Tensor:
        scores = s.cap(row.unflatten(0, (len(landmarks), -1)).flatten(1, 2) @ landmarks.mT)
        return scores.logsumexp(-1).view(row.shape[:2])

    with torch.autocast(query.device.type, enabled=False):
        rows: list[Any] = [checkpoint(of_row, row, use_reentrant=False) for row in query]
        return torch.stack(rows)
