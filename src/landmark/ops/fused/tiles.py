"""Device functions that the fused kernels share: a tile of M queries against a tile of keys made of whole blocks.

A tile holds G blocks in P columns each, P being the stride rounded up to a power of two; the columns in
excess are masked. Numbers of a row and a block are [M,G], numbers of a row and a key [M,G*P].

The position of a key is its index plus `phase`, so that blocks begin at multiples of the stride. Scores are in base 2:
a weight is 2 to its score.
"""

# ruff: noqa: ANN001, ANN201
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(float("-inf"))


class Problem(NamedTuple):
    """Sizes and settings of one launch."""

    heads: int
    groups: int  # query heads that share a key head
    queries: int
    keys: int
    phase: int
    scale: float
    softcap: float | None
    dropout: float


class Steps(NamedTuple):
    """Strides of a tensor [B,H,T,D] whose last dimension is dense."""

    batch: int
    head: int
    row: int


def steps(x: Tensor) -> Steps:
    return Steps(*x.stride()[:3])


@triton.jit
def head_of(x, at, batch, head):
    return x + batch.to(tl.int64) * at.batch + head.to(tl.int64) * at.head


@triton.jit
def load_rows(x, at, rows, real, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [R,WIDTH] of one head, 0 where not `real` and beyond DIM."""
    dims = tl.arange(0, WIDTH)
    mask = real[:, None]
    if DIM < WIDTH:
        mask = mask & (dims < DIM)[None, :]
    return tl.load(x + rows.to(tl.int64)[:, None] * at.row + dims[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, at, rows, real, values, DIM: tl.constexpr, WIDTH: tl.constexpr):
    dims = tl.arange(0, WIDTH)
    mask = real[:, None] & (dims < DIM)[None, :]
    tl.store(x + rows.to(tl.int64)[:, None] * at.row + dims[None, :], values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def block_max(x, G: tl.constexpr, P: tl.constexpr):
    return tl.max(x, 1)[:, None] if G == 1 else tl.max(tl.reshape(x, (x.shape[0], G, P)), 2)


@triton.jit
def block_sum(x, G: tl.constexpr, P: tl.constexpr):
    return tl.sum(x, 1)[:, None] if G == 1 else tl.sum(tl.reshape(x, (x.shape[0], G, P)), 2)


@triton.jit
def over_blocks(x, G: tl.constexpr, P: tl.constexpr):
    """[M,G] as [M,G*P]; as [M,1] if there is one block, which broadcasts."""
    return x if G == 1 else tl.reshape(tl.broadcast_to(x[:, :, None], (x.shape[0], G, P)), (x.shape[0], G * P))


@triton.jit
def cleaned(x, MASKED: tl.constexpr):
    """x with 0 for NaN and infinities, in tiles with masked pairs: 0 times NaN is NaN."""
    return tl.where(x - x == 0.0, x, 0.0) if MASKED else x


@triton.jit
def add_averages(summed, weights, v, MASKED: tl.constexpr):
    """`summed + weights [M,N] @ v [N,WIDTH]`; in tiles with masked pairs a weight of 0 hides NaN and infinities."""
    result = tl.dot(weights.to(v.dtype), cleaned(v, MASKED), summed, input_precision="ieee")
    if MASKED:
        bad = tl.where(v - v == 0.0, 0.0, 1.0)
        if tl.max(tl.max(bad, 1), 0) > 0.0:
            read = tl.dot((weights != 0.0).to(v.dtype), bad.to(v.dtype), input_precision="ieee")
            result = tl.where(read > 0.0, float("nan"), result)
    return result


@triton.jit
def where_seen(x, seen, MASKED: tl.constexpr):
    """x [M,N] where keys are visible, 0 elsewhere, even if it is NaN there."""
    return tl.where(seen, x, 0.0) if MASKED else x


@triton.jit
def tanh(x):
    """tanh in float32, from an exponential."""
    # The quotient cancels where x is small; there, the series is exact to float32.
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    large = (1.0 - e) / (1.0 + e)
    square = x * x
    small = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(square < 0.02, small, tl.where(x < 0.0, -large, large))


@triton.jit
def capped(products, problem):
    """Inner products as scores: scaled, soft-capped as by `Scoring.cap`, in base 2."""
    if problem.softcap is None:
        result = products * (problem.scale * LOG2E)
    else:
        result = tanh(products * (problem.scale / problem.softcap)) * (problem.softcap * LOG2E)
    return result


@triton.jit
def scores_of(query, key, problem):
    """Scores [M,N] of queries [M,WIDTH] and keys [N,WIDTH]."""
    return capped(tl.dot(query, tl.trans(key), input_precision="ieee"), problem)


@triton.jit
def uncapped(gradients, scores, problem):
    """Gradients of scores before the soft cap, from those after it."""
    if problem.softcap is None:
        result = gradients
    else:
        tanh = scores / (problem.softcap * LOG2E)
        result = gradients * (1.0 - tanh * tanh)
    return result


@triton.jit
def kept(seed, batch, head, rows, keys, problem):
    """Dropout factors [M,N]: a function of seed, batch, head, query and key, independent of the tiles."""
    if seed is None:
        result = 1.0
    else:
        zeros = rows[:, None] * 0 + keys[None, :] * 0
        item = zeros + batch * problem.heads + head
        bits, _, _, _ = tl.philox(tl.load(seed), keys[None, :] + zeros, rows[:, None] + zeros, item, zeros)
        result = tl.where(tl.uint_to_uniform_float(bits) < problem.dropout, 0.0, 1.0 / (1.0 - problem.dropout))
    return result


@triton.jit
def columns_of(first_block, part, STRIDE: tl.constexpr, G: tl.constexpr, P: tl.constexpr):
    """Positions of the columns of a tile, and their offsets in the block, of which `part` lie before the tile."""
    columns = tl.arange(0, G * P)
    inside = part + columns % P
    return (first_block + columns // P) * STRIDE + inside, inside


@triton.jit
def labels_of(labels, batch, index, real, SIDE: tl.constexpr, problem):
    """Labels of queries (side 0) or keys (side 1) at indices among the keys; any numbers without labels."""
    if labels is None:
        result = index
    else:
        result = tl.load(labels + (batch * 2 + SIDE).to(tl.int64) * problem.keys + index, mask=real, other=0)
    return result


@triton.jit
def visible(labels, own_labels, key_labels, positions, key_positions, held):
    """Mask of visible keys, [M,N]: they exist, are not later, and have the label of the query."""
    seen = held[None, :] & (key_positions[None, :] <= positions[:, None])
    if labels is not None:
        seen = seen & (own_labels[:, None] == key_labels[None, :])
    return seen


@triton.jit
def key_tile(
    first_block,
    part,
    labels,
    batch,
    positions,
    own_labels,
    problem,
    STRIDE: tl.constexpr,
    MASKED: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
):
    """A tile of keys and its masks.

    Indices of the keys, their offsets in their blocks, which of them exist [N], which are visible [M or 1,N], and
    which blocks are earlier than the queries' own [M,G]. Unmasked: all exist, are visible, and lie earlier.
    """
    key_positions, inside = columns_of(first_block, part, STRIDE, G, P)
    index = key_positions - problem.phase
    held = inside < STRIDE
    seen = held[None, :]
    earlier = tl.full((positions.shape[0], G), 1, tl.int1)
    if MASKED:
        held = held & (index >= 0) & (index < problem.keys)
        key_labels = labels_of(labels, batch, index, held, 1, problem)
        seen = visible(labels, own_labels, key_labels, positions, key_positions, held)
        earlier = (first_block + tl.arange(0, G))[None, :] < (positions // STRIDE)[:, None]
    return index, inside, held, seen, earlier


@triton.jit
def gate_scores(
    query,
    key,
    at_key,
    block,
    labels,
    batch,
    own_labels,
    earlier,
    problem,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Scores [M] of one block's landmark, HIDDEN where it is no gate; the same unmasked; its key [1,WIDTH]."""
    index = tl.zeros((1,), tl.int32) + block * STRIDE + (STRIDE - 1) - problem.phase
    held = index < problem.keys
    landmark = load_rows(key, at_key, index, held, DIM, WIDTH).to(tl.float32)
    scores = capped(tl.sum(query.to(tl.float32) * landmark, 1), problem)
    gate = scores
    if MASKED:
        seen = earlier & held
        if labels is not None:
            seen = seen & (own_labels == labels_of(labels, batch, index, held, 1, problem))
        gate = tl.where(seen, scores, HIDDEN)
    return gate, scores, landmark


@triton.jit
def two_softmaxes(
    scores, seen, earlier, inside, LAST: tl.constexpr, MASKED: tl.constexpr, G: tl.constexpr, P: tl.constexpr
):
    """Exponentials [M,G*P] of ordinary tokens over their block's largest, their sums, and joint scores [M,G].

    A block takes part in the joint softmax with its landmark's score if it is `earlier` than the query's, and
    with the largest of its tokens' scores if it is the query's own.
    """
    ordinary = tl.where(seen & (inside < LAST)[None, :], scores, HIDDEN)
    top = block_max(ordinary, G, P)
    # A sum with zeros, which keeps NaN; a maximum would drop it.
    gate = block_sum(tl.where((inside == LAST)[None, :], tl.where(seen, scores, HIDDEN), 0.0), G, P)
    joint = tl.where(earlier, gate, top)
    if MASKED:
        top = finite(top)
    shares = tl.exp2(ordinary - over_blocks(top, G, P))
    return shares, block_sum(shares, G, P), joint


@triton.jit
def finite(top):
    """The largest score, 0 where nothing is visible: any finite number there gives weights of 0."""
    return tl.where(top == HIDDEN, 0.0, top)


@triton.jit
def openings(joint_weights, totals, earlier):
    """Factors [M,G] that make exponentials over a block's largest the final weights of its tokens."""
    return tl.where(earlier, joint_weights / tl.maximum(totals, 1.0), joint_weights)


@triton.jit
def joined(top, total, joint, totals, earlier):
    """The running joint softmax after a tile: new top and total [M], rescaling of earlier sums, openings [M,G]."""
    new = tl.maximum(top, tl.max(joint, 1))
    base = finite(new)
    fading = tl.exp2(top - base)
    weights = tl.exp2(joint - base[:, None])
    total = total * fading + tl.sum(tl.where(earlier, weights, weights * totals), 1)
    return new, total, fading, openings(weights, totals, earlier)


@triton.jit
def tile_gradients(
    shares, totals, joint, grads, lse, delta, earlier, inside, LAST: tl.constexpr, G: tl.constexpr, P: tl.constexpr
):
    """Final weights, and gradients of scores, from gradients `grads` of the weights: both [M,G*P].

    `opened` is the gradient of a block's gate: the mean of its tokens' gradients.
    """
    joint_weights = tl.exp2(joint - lse[:, None])
    weights = shares * over_blocks(openings(joint_weights, totals, earlier), G, P)
    opened = block_sum(shares * grads, G, P) / tl.maximum(totals, 1.0)
    mean = tl.where(earlier, opened, delta[:, None])
    at_landmark = tl.where(earlier, joint_weights * (opened - delta[:, None]), 0.0)
    at_ordinary = weights * (grads - over_blocks(mean, G, P))
    return weights, tl.where((inside == LAST)[None, :], over_blocks(at_landmark, G, P), at_ordinary)
