"""Memory of a layer in a step of decoding over tensors of fixed shape, so that a device can repeat it as one graph.

Window, blocks and landmark keys are read and written where `LayerMemory` keeps them. What differs from step to step,
lengths and counts, comes as one small tensor (`StepCounts`), and nothing in a step is read by the host. Blocks leave
the window between steps. The results are those of `LayerMemory.attend`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.topk import top_packed
from landmark.memory.geometry import slot_begins
from landmark.memory.selection import by_age, summed
from landmark.ops.decode_cpu import dense
from landmark.ops.retrieved import retrieved_attention
from landmark.ops.retrieved.pytorch import merged, of_heads
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.ops.triton_support import unsupported_reason
from landmark.settings import ReadingSettings
from landmark.store.base import ResidentBlocks


class FixedLayer(NamedTuple):
    """The tensors of one layer: keys before rotary, values and rotated keys of its window [B,Hkv,L,D], and its blocks.

    The last of the L positions is behind every window: padding is written there. Without blocks in memory the other two
    are None.
    """

    keys: Tensor
    values: Tensor
    turned: Tensor
    blocks: ResidentBlocks | None
    landmarks: ResidentKeys | None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        found = [self.keys, self.values, self.turned]
        if self.blocks is not None and self.landmarks is not None:
            found += [*self.blocks.tensors, self.landmarks.keys]
        return found


class StepCounts(NamedTuple):
    """What a step needs to know of one row.

    Fields:
        length: positions in the window before the step.
        valid: stream positions that the step reads, 0 to T.
        start: rotary position of the first of them.
        appended: blocks that ever entered memory.
        oldest: number of the oldest that is still there.
        upto: number of the first block that has a slot of its own, of the newest; `appended` where there is none.
    """

    length: int
    valid: int
    start: int
    appended: int
    oldest: int
    upto: int


class Places(NamedTuple):
    """Positions of the T queries of a step, and which blocks are newest: the same in every layer."""

    real: Tensor  # bool [B,T], False at padding
    window: Tensor  # [B,T], in the window; padding is where the last valid query is
    rotary: Tensor  # [B,T]
    appended: Tensor  # [B,1]
    oldest: Tensor  # [B,1]
    upto: Tensor  # [B,1]
    recent: Tensor  # [B,k], numbers of the newest blocks by age, those of slots 1, 2, ...; then -1
    from_slots: Tensor  # [B,T,k + 1], distance of each query from slots 0 to k
    stride: int
    gap: int  # positions between slot 0 and slot 1 that are left free
    by_group: bool  # whether the query heads of a key-value head choose their blocks together


def places_of(counts: Tensor, width: int, settings: ReadingSettings, stride: int) -> Places:
    """The places of `width` queries that read by `settings`, from the `StepCounts` of each row, long [B,6]."""
    k = settings.retrieve
    length, valid, start, appended, oldest, upto = (column[:, None] for column in counts.unbind(1))
    steps = torch.arange(width, device=counts.device)
    advanced = torch.minimum(steps, valid - 1)
    rotary = (start + advanced).clamp(min=0)
    recent = upto + torch.arange(k, device=counts.device)
    slots = torch.arange(k + 1, device=counts.device)
    return Places(
        real=steps < valid,
        window=(length + advanced).clamp(min=0),
        rotary=rotary,
        appended=appended,
        oldest=oldest,
        upto=upto,
        recent=torch.where(recent < appended, recent, -1),
        from_slots=(rotary[..., None] - slot_begins(slots, slots > 0, stride, settings.gap)).clamp(min=0),
        stride=stride,
        gap=settings.gap,
        by_group=settings.selection == "per_group",
    )


def attend_fixed(
    layer: FixedLayer,
    places: Places,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: Rotation,
    scoring: Scoring,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Attention of `query [B,H,T,D]` to the window, retrieved blocks and `key`, `value [B,Hkv,T,D]`, before rotary.

    These are written behind the window. Returns the output [B,H,T,D], undefined at padding, and what was opened, as
    `landmark.memory.blocks.Opened` has it: blocks and gates [B,H,T,k], and the weight of local attention [B,H,T]; None
    without blocks in memory.
    """
    _write(layer, places, key, value, rotation)
    turned = rotation.apply(query, places.window[:, None])
    out, lse = dense(turned, layer.turned, layer.values, places.window, places.stride, scoring)
    if layer.blocks is None or layer.landmarks is None:
        return out, None
    blocks = _chosen(layer.landmarks, places, query, rotation, scoring)
    newest = blocks >= places.upto[:, :, None, None]
    slots = torch.arange(blocks.shape[-1], device=query.device) + newest
    starts = slot_begins(slots, newest, places.stride, places.gap)
    distance = (places.rotary[:, None, :, None] - starts).masked_fill(blocks < 0, 0)
    pages = layer.blocks.pages(blocks)
    # On a CPU, where there are no graphs, the fastest would be a compiled loop, which cannot be traced.
    backend = "gathered" if query.device.type == "cpu" else "auto"
    inside, gates = retrieved_attention(query, pages, distance, rotation=rotation, scoring=scoring, backend=backend)
    out, weights, own = merged(out, lse, inside, gates)
    padding, blocks = ~places.real[:, None, :, None], of_heads(blocks, query.shape[1])
    blocks, weights = blocks.masked_fill(padding, -1), weights.masked_fill(padding, 0.0)
    return out, (blocks, weights, own.masked_fill(padding[..., 0], 0.0))


def _write(layer: FixedLayer, places: Places, key: Tensor, value: Tensor, rotation: Rotation) -> None:
    """Writes keys and values behind the window."""
    turned = rotation.apply(key, places.window[:, None])
    last = layer.keys.shape[2] - 1
    positions = torch.where(places.real, places.window, last)[:, None, :, None]
    padding = ~places.real[:, None, :, None]
    for buffer, new in zip(layer[:3], (key, value, turned), strict=True):
        # Padding may be anything, NaN too; what lies behind a row must be finite.
        buffer.scatter_(2, positions.expand_as(new), new.masked_fill(padding, 0.0))


def _chosen(landmarks: ResidentKeys, places: Places, query: Tensor, rotation: Rotation, scoring: Scoring) -> Tensor:
    """The blocks [B,H,T,k] or [B,Hkv,T,k] that queries open, by age, then -1; see `landmark.memory.selection`."""
    k = places.recent.shape[1]
    scaled = query.float() * scoring.scale_of(query)
    if places.by_group:
        scaled = summed(scaled, landmarks.keys.shape[1])
    turned = rotation.apply(scaled[..., None, :], places.from_slots[:, None])
    turned = turned.expand(*scaled.shape[:3], k + 1, -1)
    scores, numbers = _search(landmarks, places, turned[..., 0, :], k)
    at = (places.recent.clamp(min=0) % landmarks.modulus)[:, None, :, None]
    keys = landmarks.keys.gather(2, at.expand(-1, landmarks.keys.shape[1], -1, landmarks.keys.shape[3]))
    grouped = turned[..., 1:, :].unflatten(1, (keys.shape[1], -1))
    recent = (grouped * keys[:, :, None, None]).sum(-1).flatten(1, 2)
    newest = places.recent[:, None, None].expand_as(recent)
    return by_age(top_packed(torch.cat((scores, recent), -1), torch.cat((numbers, newest), -1), k)[1])


def _search(landmarks: ResidentKeys, places: Places, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and numbers [B,H,T,k] of the best blocks without a slot of their own; -inf and -1 where there are fewer.

    `query [B,H,T,D]` is scaled and rotated to be scored from slot 0.
    """
    keys, modulus = landmarks.keys, landmarks.modulus
    if modulus == 1:  # one key for all blocks, or one block
        numbers = places.upto - 1 - torch.arange(k, device=query.device)
        numbers = torch.where(numbers < places.oldest, -1, numbers)[:, None, None]
        scores = _inner_products(query, keys[:, :, :1]).masked_fill(numbers < 0, -torch.inf)
        return scores, numbers.expand_as(scores)
    newest = places.appended - 1
    numbers = newest - (newest - torch.arange(keys.shape[2], device=query.device)) % modulus
    numbers = torch.where((numbers >= 0) & (numbers < places.upto), numbers, -1)
    if query.device.type == "cuda" and unsupported_reason(query, keys) is None:
        from landmark.ops.topk_triton import search_landmarks  # needs the package triton

        return search_landmarks(query, keys, numbers, k)
    return top_packed(_inner_products(query, keys), numbers[:, None, None], k)


def _inner_products(query: Tensor, keys: Tensor) -> Tensor:
    """Inner products [B,H,T,n] of queries `[B,H,T,D]` and keys `[B,Hkv,n,D]`."""
    grouped = query.unflatten(1, (keys.shape[1], -1))
    return (grouped @ keys[:, :, None].transpose(3, 4)).flatten(1, 2)
