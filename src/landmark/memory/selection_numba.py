"""Block selection for a few queries on a CPU, as in decoding: one compiled pass over the landmark keys."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landmark.index.base import ResidentKeys
from landmark.index.keys import rounding_error, score
from landmark.index.topk import insert
from landmark.memory.geometry import Past
from landmark.ops.numba_loops import compiled, inner_products, norm_of, rotate
from landmark.ops.parallel import in_parts
from landmark.ops.rotary import Rotation

_RUN = 32  # landmarks scored at once


def choose_few(query: Tensor, past: Past, landmarks: ResidentKeys, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Blocks of each query by age, and their distances, both long [B,H,T,k], as in `landmark.memory.selection.Choice`.

    `query [B,H,T,D]` is scaled, before rotary, and of the dtype of the keys.
    """
    return choose_by(choose_loop, query, past, landmarks, rotation)


def choose_by(
    loop: Callable[..., None], query: Tensor, past: Past, landmarks: ResidentKeys, rotation: Rotation
) -> tuple[Tensor, Tensor]:
    """`choose_few` by a compiled `loop` with the arguments of `choose_loop`."""
    shape = (*query.shape[:3], past.k)
    blocks, distance = (torch.empty(shape, dtype=torch.long) for _ in range(2))
    tensors = query.contiguous(), *rotation.by_partner, past.positions, past.bounds, *landmarks.tensors
    arrays = [x.numpy() for x in (*tensors, blocks, distance)]
    slack = rounding_error(landmarks.max_norm, query.shape[3], query.dtype)
    in_parts(
        lambda start, stop: loop(*arrays, slack, landmarks.modulus, past.stride, past.stingy, start, stop),
        query.shape[:3].numel(),
        size=max(past.kept),
    )
    return blocks, distance


def rotate_queries(query: Tensor, distance: Tensor, rotation: Rotation) -> Tensor:
    """`query [B,H,T,D]` rotated to each `distance`, long [B,T,s]: [B,H,T,s,D], to the same bits as in `choose_few`."""
    turned = query.new_empty(*query.shape[:3], *distance.shape[2:], query.shape[3])
    tensors = query.contiguous(), *rotation.by_partner, distance.contiguous(), turned
    arrays = [x.numpy() for x in tensors]
    in_parts(lambda start, stop: _rotate(*arrays, start, stop), query.shape[:3].numel(), size=distance.shape[2])
    return turned


@compiled
def _rotate(query: Any, cos: Any, sin: Any, partner: Any, distance: Any, turned: Any, start: int, stop: int) -> None:
    """Fills `turned [B,H,T,s,D]` for the queries start..stop, counted over all rows and heads."""
    heads, length = query.shape[1:3]
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        for slot in range(turned.shape[3]):
            rotate(query[row, head, step], cos, sin, partner, distance[row, step, slot], turned[row, head, step, slot])


@compiled
def choose_loop(
    query: Any, cos: Any, sin: Any, partner: Any, positions: Any, bounds: Any, keys: Any, first: Any, behind: Any,
    shared: Any, blocks: Any, distance: Any, slack: float, modulus: int, stride: int, stingy: bool, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Fills `blocks` and `distance [B,H,T,k]` of the queries start..stop, counted over all rows and heads."""
    heads, length, dim = query.shape[1:]
    turned, scores = np.empty((1, dim), query.dtype), np.empty(_RUN, query.dtype)
    best = np.empty(blocks.shape[3], query.dtype)
    for flat in range(start, stop):
        row, head, step = flat // (heads * length), flat // length % heads, flat % length
        group, found = head // (heads // keys.shape[1]), blocks[row, head, step]
        lies = keys[row, group], modulus, behind[row, group], shared[row]
        upto, count, gap = bounds[row]
        best[:], found[:] = -np.inf, -1
        number = first[row]
        rotate(query[row, head, step], cos, sin, partner, positions[row, step], turned[0])
        lowest, norm = -np.inf, norm_of(turned[0])
        while number < upto:
            landmarks, slot, run = landmark_at(number, *lies)
            run = min(_RUN, upto - number, run)
            inner_products(landmarks[slot:], turned[0], scores[:run])
            for j in range(run):
                if scores[j] >= lowest:
                    insert_if_best(score(turned, 0, landmarks, None, slot + j), number + j, best, found)
                    lowest = best[-1] - slack * norm
            number += run
        for newest in range(upto, count):  # with slots, each of these is scored from its own
            away = max(0, positions[row, step] - gap - (newest - upto + 1) * stride)
            rotate(query[row, head, step], cos, sin, partner, away, turned[0])
            landmarks, slot, _ = landmark_at(newest, *lies)
            insert_if_best(score(turned, 0, landmarks, None, slot), newest, best, found)
        place(found, positions[row, step], upto, gap, stride, stingy, distance[row, head, step])


@compiled
def landmark_at(number: int, keys: Any, modulus: int, behind: Any, shared: int) -> Any:
    """Where the landmark key of a block lies: `keys [S,D]` or `behind`, as `ResidentKeys` has them, and its slot there.

    Also how many blocks, from this one on, lie in a row.
    """
    if number >= shared:
        return behind, number - shared, len(behind) - (number - shared)
    return keys, number % modulus, min(modulus - number % modulus, shared - number)


@compiled
def place(found: Any, position: int, upto: int, gap: int, stride: int, stingy: bool, distance: Any) -> None:
    """Sorts the blocks found for a query by age, and writes its `distance [k]` from where each is read."""
    _sort_by_age(found)
    for j in range(len(found)):
        newest = found[j] >= upto
        begin = (j + newest) * stride + gap * newest if stingy else found[j] * stride
        distance[j] = position - begin if found[j] >= 0 else 0


@compiled
def insert_if_best(new: Any, number: int, best: Any, found: Any) -> None:
    """Inserts a landmark into the best if its score is high enough."""
    if new >= best[-1] and new > -np.inf:
        insert(best, found, new, number)


@compiled
def _sort_by_age(numbers: Any) -> None:
    """Sorts a few block numbers, -1 last."""
    for i in range(1, len(numbers)):
        number, j = numbers[i], i
        while j > 0 and number >= 0 and (numbers[j - 1] > number or numbers[j - 1] < 0):
            numbers[j] = numbers[j - 1]
            j -= 1
        numbers[j] = number
