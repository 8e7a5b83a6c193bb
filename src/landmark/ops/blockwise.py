"""Blockwise grouped softmax in PyTorch, for any device, in memory linear in the number of keys.

Gates need only the scores of landmarks and of the query's own block, so the joint softmax of a tile of queries is
finished before any earlier block is read. Earlier blocks then pass through a small buffer with their final weight:
no running maximum, no rescaling, and no query-by-key matrix.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from landmark.ops.autograd import first_derivatives_only
from landmark.ops.nonfinite import all_finite, cleaned, reads_any
from landmark.ops.scoring import Scoring, working_dtype

_TILE_QUERIES = 128  # short blocks share a tile up to this many queries, as measured by `python -m benchmarks ops`
_TILE_QUERIES_SHORT = 32  # the same for short inputs
_TILE_QUERIES_LIMIT = 128  # longer blocks are split
_BUFFER_ELEMENTS = 1 << 19  # scores of one chunk on a CPU: small enough to stay in cache
_BUFFER_ELEMENTS_ACCELERATOR = 1 << 25  # elsewhere: large enough to occupy the device


class _Tile(NamedTuple):
    """Queries [start, stop), whose own blocks lie among [first, last]."""

    start: int
    stop: int
    first: int
    last: int


class _Masks(NamedTuple):
    """The masks of one call: which keys a query may see."""

    query_positions: Tensor  # [B or 1, Tq]
    key_mask: Tensor | None  # [B, Tk], True where a key is real
    documents: Tensor | None  # [B, Tk]
    query_documents: Tensor | None  # [B, Tq]


class _Rules(NamedTuple):
    """The settings of one call."""

    stride: int
    scoring: Scoring  # without sinks, which have a gradient
    scale: float
    seed: int  # of dropout: drawn once, so that backward drops what forward dropped


class _Grid:
    """Keys and values [N, blocks * stride, D] in the working dtype, N = B * Hkv, and the tiles of queries.

    The rows of a tile are its queries for every head of a group: grouped-query heads share keys without a copy.
    Landmark rows of `value` are zero, so that weights of landmarks need no masking.

    If any number is NaN or infinite (`tainted`), masked pairs need extra care, for 0 times NaN is NaN: values that are
    not finite are 0 and marked in `bad [N, positions, D]`; products for gradients take `clean_key`.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, masks: _Masks, rules: _Rules) -> None:
        self.rules = rules
        self.stride = stride = rules.stride
        self.batch, self.kv_heads, length, _ = key.shape
        self.groups = query.shape[1] // self.kv_heads
        self.dtype = working_dtype(query)
        self.blocks = -(-length // stride)
        self._beyond = self.blocks * stride - length
        self._masks = masks
        as_it_is = self._beyond == 0 and key.dtype == self.dtype and key.is_contiguous()
        self.key = key.flatten(0, 1) if as_it_is else self._in_blocks(key).flatten(1, 2)
        self.value = self._in_blocks(value)
        self.value[:, :, -1] = 0.0
        self.value = self.value.flatten(1, 2)
        self.tainted = not all_finite(query, self.key, self.value)
        self.bad = self.clean_key = self.key
        if self.tainted:
            self.bad, self.clean_key = ~self.value.isfinite(), cleaned(self.key)
            self.value = cleaned(self.value)
            self.key = self.key.masked_fill(~self.key.isfinite(), torch.nan)  # infinities would be NaN later
        self.tiles = list(_tiles(masks.query_positions.cpu(), stride, length))
        rows = self.groups * max((tile.stop - tile.start for tile in self.tiles), default=1)
        limit = _BUFFER_ELEMENTS if key.device.type == "cpu" else _BUFFER_ELEMENTS_ACCELERATOR
        self._chunk_blocks = min(self.blocks, max(1, limit // (len(self.key) * rows * stride)))
        self._buffer_shape = (len(self.key) * rows * self._chunk_blocks * stride,)

    def _in_blocks(self, x: Tensor) -> Tensor:
        laid = x.new_empty(*x.shape[:2], self.blocks * self.stride, x.shape[3], dtype=self.dtype)
        laid[:, :, : x.shape[2]] = x
        laid[:, :, x.shape[2] :] = 0.0
        return laid.view(-1, self.blocks, self.stride, x.shape[3])

    def spoil(self, out: Tensor, weights: Tensor, positions: Tensor | slice) -> None:
        """Makes `out [N, rows, D]` NaN, in place, where nonzero `weights [N, rows, positions]` read a bad value."""
        if self.tainted:
            out.masked_fill_(reads_any(weights, self.bad[:, positions]), torch.nan)

    def rows(self, x: Tensor, tile: _Tile) -> Tensor:
        """The tile of x [B,H,Tq,D] as rows [N, groups * queries, D] in the working dtype."""
        part = x[:, :, tile.start : tile.stop].to(self.dtype)
        return part.reshape(len(self.key), -1, x.shape[-1])

    def by_head(self, rows: Tensor) -> Tensor:
        """Rows [N, groups * queries, ...] as [B, H, queries, ...]."""
        return rows.view(self.batch, self.kv_heads * self.groups, -1, *rows.shape[2:])

    def as_rows(self, x: Tensor) -> Tensor:
        """The inverse of `by_head`."""
        return x.reshape(len(self.key), -1, *x.shape[3:])

    def from_blocks(self, grad: Tensor, like: Tensor) -> Tensor:
        """A gradient [N, blocks * stride, D] as one of `like` [B,Hkv,Tk,D]."""
        return grad.view(self.batch, self.kv_heads, -1, grad.shape[-1])[:, :, : like.shape[2]].to(like.dtype)

    def by_block(self, x: Tensor) -> Tensor:
        """The last dimension, positions of whole blocks, as [blocks, stride]."""
        return x.unflatten(-1, (-1, self.stride))

    def hide(self, rows: Tensor, hidden: Tensor, fill: float) -> None:
        """Fills rows [N, groups * queries, positions] where hidden [B or 1, queries or 1, positions], in place."""
        self.by_head(rows).masked_fill_(hidden[:, None], fill)

    def chunks(self, tile: _Tile) -> Iterator[slice]:
        """Ranges of blocks that end before the tile's last own block, each filling at most one buffer."""
        for start in range(0, tile.last, self._chunk_blocks):
            yield slice(start, min(start + self._chunk_blocks, tile.last))

    def positions_of(self, blocks: slice) -> slice:
        return slice(blocks.start * self.stride, blocks.stop * self.stride)

    def buffer(self) -> Tensor:
        return self.key.new_empty(self._buffer_shape)

    def foreign(self, tile: _Tile, positions: Tensor | slice) -> Tensor | None:
        """Mask of padding and of keys of other documents: bool [B, queries or 1, positions]; None if there are none."""
        hidden = None
        if self._masks.key_mask is not None:
            hidden = ~self._padded(self._masks.key_mask)[:, None, positions]
        if self._masks.documents is not None and self._masks.query_documents is not None:
            own = self._masks.query_documents[:, tile.start : tile.stop, None]
            other = own != self._padded(self._masks.documents)[:, None, positions]
            hidden = other if hidden is None else hidden | other
        return hidden if hidden is not None and bool(hidden.any()) else None

    def _padded(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, self._beyond))

    def joint_positions(self, tile: _Tile) -> Tensor:
        """Keys that joint softmaxes may need: landmarks before block `first`, then blocks first to last."""
        device = self.key.device
        landmarks = torch.arange(tile.first, device=device) * self.stride + self.stride - 1
        own = torch.arange(tile.first * self.stride, (tile.last + 1) * self.stride, device=device)
        return torch.cat([landmarks, own])

    def outside_joint(self, tile: _Tile, positions: Tensor) -> Tensor:
        """Mask of keys neither in a query's local set nor among its gates: bool [B or 1, queries, positions]."""
        position = self._masks.query_positions[:, tile.start : tile.stop, None]
        own, block = position // self.stride, positions // self.stride
        is_landmark = positions % self.stride == self.stride - 1
        outside = torch.where(is_landmark, block >= own, (block != own) | (positions > position))
        foreign = self.foreign(tile, positions)
        return outside if foreign is None else outside | foreign


def _tiles(positions: Tensor, stride: int, keys: int) -> Iterator[_Tile]:
    """Cuts queries where the first row crosses block boundaries, so that tiles see whole earlier blocks."""
    # A tile is dense over its own blocks: for short inputs that costs more than larger products save.
    together = min(_TILE_QUERIES, max(_TILE_QUERIES_SHORT, keys // 16))
    length = positions.shape[1]
    span = stride * max(1, together // stride)
    start = 0
    while start < length:
        to_boundary = span - int(positions[0, start]) % span
        stop = min(length, start + min(to_boundary, _TILE_QUERIES_LIMIT))
        own = positions[:, start:stop] // stride
        yield _Tile(start, stop, int(own.min()), int(own.max()))
        start = stop


_HIDDEN = -1e30  # finite, so that a block with nothing visible gives finite weights rather than NaN


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_size: int,
    query_positions: Tensor,
    scoring: Scoring,
    key_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    query_document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Grouped softmax attention (Mohtashami & Jaggi 2023, section 3.1) over keys that start a block.

    Key j belongs to block j // (block_size + 1), and is a landmark if j % (block_size + 1) == block_size.

    Args:
        query: [B,H,Tq,D]; key, value: [B,Hkv,Tk,D] with H a multiple of Hkv.
        query_positions: long [Tq] or [B,Tq], the index of each query among the keys, in [0, Tk).
        key_mask: bool [B,Tk], True where a key is real.
        document_ids, query_document_ids: int [B,Tk] and [B,Tq]; a query sees the keys of its own document only.
        scoring: scale, softcap, sinks and dropout.

    Returns:
        The output [B,H,Tq,D] in query's dtype, and the logarithm of the joint softmax's denominator [B,H,Tq]
        in float32 (float64 for float64 inputs), -inf where a row sees nothing. Both have gradients.

    Raises:
        ValueError: a query position outside the keys, or only one of the two document arguments given.
    """
    if (document_ids is None) != (query_document_ids is None):
        raise ValueError("document_ids and query_document_ids must be given together")
    if query_positions.numel():
        lowest, highest = (int(x) for x in query_positions.aminmax())
        if lowest < 0 or highest >= key.shape[2]:
            raise ValueError(
                f"query_positions run from {lowest} to {highest}; with {key.shape[2]} keys they must lie in "
                f"0..{key.shape[2] - 1}"
            )
    masks = _Masks(query_positions.reshape(-1, query.shape[2]), key_mask, document_ids, query_document_ids)
    seed = int(torch.randint(1 << 62, ())) if scoring.dropout else 0
    rules = _Rules(block_size + 1, scoring._replace(sinks=None), scoring.scale_of(query), seed)
    with torch.autocast(query.device.type, enabled=False):
        return _Blockwise.apply(query, key, value, scoring.sinks, masks, rules)


def complete_first_block(
    key: Tensor, value: Tensor, key_mask: Tensor | None, document_ids: Tensor | None, phase: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Prepends `phase` masked positions, so that the keys start on a block boundary."""
    pad = torch.nn.functional.pad
    if key_mask is None:
        key_mask = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
    if document_ids is not None:
        document_ids = pad(document_ids, (phase, 0))
    return pad(key, (0, 0, phase, 0)), pad(value, (0, 0, phase, 0)), pad(key_mask, (phase, 0)), document_ids


class _Rows(NamedTuple):
    """One tile's queries times scale, and in backward its outputs' gradients: [N, groups * queries, D]."""

    tile: _Tile
    query: Tensor
    out_grad: Tensor | None = None


class _Joint(NamedTuple):
    """The joint softmax of the rows of a tile, over the keys at `positions`."""

    positions: Tensor
    keys: Tensor  # [N, positions, D]
    values: Tensor
    weights: Tensor  # [N, rows, positions]
    gates: Tensor  # [N, rows, tile.last + 1], the weights of the landmarks
    lse: Tensor  # [N, rows]
    slope: Tensor | None  # derivative of the soft cap, like weights
    outside: Tensor  # bool [B or 1, queries, positions], what each query does not see


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, masks: _Masks, rules: _Rules
    ) -> tuple[Tensor, Tensor]:
        grid = _Grid(query, key, value, masks, rules)
        out = torch.empty_like(query, dtype=grid.dtype)
        lse = query.new_empty(query.shape[:3], dtype=grid.dtype)
        buffers = grid.buffer(), grid.buffer()
        for tile in grid.tiles:
            rows = _Rows(tile, grid.rows(query, tile) * rules.scale)
            joint = _joint(grid, rows, sinks)
            weights = _drop(joint.weights, _kept(grid, tile, 0, joint.weights))
            rows_out = torch.bmm(weights, joint.values)
            grid.spoil(rows_out, weights, joint.positions)
            for blocks in grid.chunks(tile):
                weights, _ = _inside(grid, rows, blocks, *buffers)
                _open(grid, weights, joint.gates[..., blocks, None])
                _drop(weights, _kept(grid, tile, blocks.stop, weights))
                rows_out.baddbmm_(weights, grid.value[:, grid.positions_of(blocks)])
                grid.spoil(rows_out, weights, grid.positions_of(blocks))
            out[:, :, tile.start : tile.stop] = grid.by_head(rows_out)
            lse[:, :, tile.start : tile.stop] = grid.by_head(joint.lse)
        ctx.save_for_backward(query, key, value, sinks, out, lse, *masks)
        ctx.rules = rules
        return out.to(query.dtype), lse

    @staticmethod
    @first_derivatives_only("backend='reference' can be differentiated again, in memory of queries by keys")
    def backward(ctx: Any, saved: tuple[Any, ...], out_grad: Tensor, lse_grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks, out, lse, *masks = saved
        with torch.autocast(out_grad.device.type, enabled=False):
            grid = _Grid(query, key, value, _Masks(*masks), ctx.rules)
            return *_gradients(grid, query, key, value, sinks, out, lse, out_grad, lse_grad), None, None


def _gradients(
    grid: _Grid,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    out_grad: Tensor,
    lse_grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value and sinks, in their own dtypes."""
    scale = grid.rules.scale
    query_grad = torch.empty_like(query)
    kv_grads = torch.zeros_like(grid.key), torch.zeros_like(grid.value)
    means = (out_grad.to(grid.dtype) * out).sum(-1, keepdim=True)  # of a row's weight gradients, by its weights
    means -= lse_grad[..., None]  # a score moves the denominator by its weight, as it does the mean
    buffers = grid.buffer(), grid.buffer(), grid.buffer()
    for tile in grid.tiles:
        rows = _Rows(tile, grid.rows(query, tile) * scale, grid.rows(out_grad, tile))
        joint = _joint(grid, rows, sinks, grid.rows(lse[..., None], tile)[..., 0])
        rows_grad = _joint_gradients(grid, rows, joint, grid.rows(means, tile), kv_grads)
        for blocks in grid.chunks(tile):
            _inside_gradients(grid, rows, blocks, joint.gates, buffers, rows_grad, kv_grads)
        query_grad[:, :, tile.start : tile.stop] = grid.by_head(rows_grad * scale)
    sinks_grad = None
    if sinks is not None:
        weights = torch.exp(sinks[:, None].to(grid.dtype) - lse)
        sinks_grad = -(weights * means[..., 0]).sum((0, 2)).to(sinks.dtype)
    grid.by_block(kv_grads[1].transpose(1, 2))[..., -1] = 0.0  # landmarks' values have no weight
    return query_grad, grid.from_blocks(kv_grads[0], key), grid.from_blocks(kv_grads[1], value), sinks_grad


def _joint(grid: _Grid, rows: _Rows, sinks: Tensor | None, lse: Tensor | None = None) -> _Joint:
    """Softmax over each query's local set, its gates and its sink; `lse` is passed if it is known."""
    tile = rows.tile
    positions = grid.joint_positions(tile)
    keys, values = grid.key.index_select(1, positions), grid.value.index_select(1, positions)
    scores = torch.bmm(rows.query, keys.transpose(1, 2))
    slope = grid.rules.scoring.cap_with_slope_(scores)
    outside = grid.outside_joint(tile, positions)
    grid.hide(scores, outside, -torch.inf)
    if lse is None:
        lse = scores.logsumexp(-1)
        if sinks is not None:
            lse = grid.as_rows(torch.logaddexp(grid.by_head(lse), sinks[:, None].to(lse.dtype)))
    weights = scores.sub_(lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp_()
    if grid.tainted:
        grid.hide(weights, outside, 0.0)
    own = weights[..., tile.first :]  # what comes before are landmarks alone
    gates = torch.cat([weights[..., : tile.first], own[..., grid.stride - 1 :: grid.stride]], dim=-1)
    return _Joint(positions, keys, values, weights, gates, lse, slope, outside)


def _joint_gradients(grid: _Grid, rows: _Rows, joint: _Joint, means: Tensor, kv_grads: tuple[Tensor, Tensor]) -> Tensor:
    """Adds the joint softmax's part to the gradients of keys and values, and returns that of the rows' queries.

    A gate counts here as if its block were empty; `_inside_gradients` adds what the block's values give it.
    """
    assert rows.out_grad is not None
    kept = _kept(grid, rows.tile, 0, joint.weights)
    grads = _drop(torch.bmm(rows.out_grad, joint.values.transpose(1, 2)), kept)
    grads.sub_(means).mul_(joint.weights)
    if joint.slope is not None:
        grads.mul_(joint.slope)
    query, keys = rows.query, joint.keys
    if grid.tainted:
        grid.hide(grads, joint.outside, 0.0)
        query, keys = cleaned(query), cleaned(keys)
    kv_grads[0].index_add_(1, joint.positions, torch.bmm(grads.transpose(1, 2), query))
    weights = _drop(joint.weights, kept)  # in place: the gates are a copy
    kv_grads[1].index_add_(1, joint.positions, torch.bmm(weights.transpose(1, 2), rows.out_grad))
    return torch.bmm(grads, keys)


def _inside(grid: _Grid, rows: _Rows, blocks: slice, scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Softmax within each of `blocks`, [N, rows, positions of the blocks], and the derivative of the soft cap.

    `scores` and `weights` are buffers. The result is a view of `weights`; its landmark columns are undefined.
    """
    positions = grid.positions_of(blocks)
    shape = (*rows.query.shape[:2], positions.stop - positions.start)
    scores, weights = _view(scores, shape), _view(weights, shape)
    torch.bmm(rows.query, grid.key[:, positions].transpose(1, 2), out=scores)
    slope = grid.rules.scoring.cap_with_slope_(scores)
    foreign = grid.foreign(rows.tile, positions)
    if foreign is not None:
        grid.hide(scores, foreign, _HIDDEN)
    grid.by_block(scores)[..., -1] = _HIDDEN
    torch.softmax(grid.by_block(scores), -1, out=grid.by_block(weights))
    if foreign is not None:
        grid.hide(weights, foreign, 0.0)  # the weight of a block without visible tokens is lost
    return weights, slope


def _inside_gradients(
    grid: _Grid,
    rows: _Rows,
    blocks: slice,
    gates: Tensor,
    buffers: tuple[Tensor, Tensor, Tensor],
    rows_grad: Tensor,
    kv_grads: tuple[Tensor, Tensor],
) -> None:
    """Adds the part of attention inside `blocks` to the gradients of the rows' queries, of keys and of values."""
    assert rows.out_grad is not None
    positions = grid.positions_of(blocks)
    weights, slope = _inside(grid, rows, blocks, *buffers[:2])
    scores, grads = _view(buffers[0], weights.shape), _view(buffers[2], weights.shape)
    torch.bmm(rows.out_grad, grid.value[:, positions].transpose(1, 2), out=grads)
    foreign = grid.foreign(rows.tile, positions) if grid.tainted else None
    if grid.tainted:
        grads.masked_fill_(grid.bad[:, None, positions].any(-1), torch.nan)
    if foreign is not None:
        grid.hide(grads, foreign, 0.0)
    kept = _kept(grid, rows.tile, blocks.stop, weights)
    _drop(grads, kept)
    w, g, s = (grid.by_block(x) for x in (weights, grads, scores))
    # The backward of softmax is w * (g - sum(w * g)) in each block. At the landmark g is 0, as its value is.
    # With w = -1 there, its column receives the sum itself: the gradient of the gate.
    w[..., -1] = -1.0
    torch.ops.aten._softmax_backward_data.out(g, w, -1, grid.dtype, grad_input=s)  # one pass instead of four
    if slope is not None:
        scores.mul_(slope)
    _open(grid, scores, gates[..., blocks, None])
    _open(grid, weights, gates[..., blocks, None])
    if foreign is not None:
        for x in (scores, weights):  # slopes and gates may be NaN
            grid.hide(x, foreign, 0.0)
    query = cleaned(rows.query) if grid.tainted else rows.query
    rows_grad.baddbmm_(scores, grid.clean_key[:, positions])
    kv_grads[0][:, positions].baddbmm_(scores.transpose(1, 2), query)
    kv_grads[1][:, positions].baddbmm_(_drop(weights, kept).transpose(1, 2), rows.out_grad)


def _open(grid: _Grid, x: Tensor, gates: Tensor) -> None:
    """Multiplies x [N, rows, positions] in place by the `gates` [N, rows, blocks, 1] of its blocks."""
    grid.by_block(x).mul_(gates)
    if grid.tainted:
        grid.by_block(x).masked_fill_(gates == 0, 0.0)


def _kept(grid: _Grid, tile: _Tile, part: int, weights: Tensor) -> Tensor | None:
    """Dropout factors for one part of a tile's weights, the same in forward and backward."""
    if not grid.rules.scoring.dropout:
        return None
    generator = torch.Generator(weights.device).manual_seed(grid.rules.seed ^ (tile.start << 32 | part))
    keep = 1.0 - grid.rules.scoring.dropout
    return torch.empty_like(weights).bernoulli_(keep, generator=generator).div_(keep)


def _drop(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else x.mul_(kept)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: shape[0] * shape[1] * shape[2]].view(shape)
