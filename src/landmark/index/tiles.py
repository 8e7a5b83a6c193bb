"""Encoded blocks in tiles, by list, as compiled loops search them."""

from typing import NamedTuple

import numpy as np

from landmark.index.basis import Array
from landmark.index.coarse_loops import CODES
from landmark.index.list_loops import LANES, Tiles


class Blocks(NamedTuple):
    """Encoded blocks, one after the other."""

    numbers: Array  # [n]
    codes: Array  # [n,CODES]
    rests: Array  # [n]

    def and_then(self, more: "Blocks") -> "Blocks":
        """These and others behind them."""
        return Blocks._make(map(np.concatenate, zip(self, more, strict=True)))


def tiles_of(belongs: Array, blocks: Blocks, lists: int, newest: int) -> Tiles:
    """Tiles of `blocks`, each in the list that it `belongs [n]` to, with room for so many of the `newest`."""
    order = np.argsort(belongs, kind="stable")
    sizes = np.bincount(belongs, minlength=lists)
    first = np.concatenate(([0], np.cumsum(-(-sizes // LANES))))
    count = first[-1] + -(-newest // LANES)
    tiles = Tiles(
        np.full((count, LANES), -1, np.int32),
        np.zeros((count, CODES, LANES), np.int8),
        np.zeros((count, LANES), blocks.rests.dtype),
        np.append(first, first[-1]),
    )
    own = belongs[order]
    lanes = first[own] * LANES + np.arange(len(own)) - (np.cumsum(sizes) - sizes)[own]
    _put(tiles, lanes, Blocks(*(x[order] for x in blocks)))
    return tiles


def put_newest(tiles: Tiles, blocks: Blocks, listed: int) -> None:
    """Puts blocks among the newest, of which number `listed` is the first."""
    first = tiles.first
    _put(tiles, first[-2] * LANES + blocks.numbers - listed, blocks)
    first[-1] = first[-2] + -(-(blocks.numbers[-1] + 1 - listed) // LANES)


def blocks_of(tiles: Tiles, oldest: int) -> tuple[Array, Blocks]:
    """The list of every block in `tiles` from number `oldest` on, the newest being the last list, and the blocks."""
    first = tiles.first
    kept = tiles.numbers[: first[-1]].reshape(-1) >= oldest
    belongs = np.repeat(np.arange(len(first) - 1), np.diff(first) * LANES)[kept]
    codes = tiles.codes[: first[-1]].swapaxes(1, 2).reshape(-1, CODES)
    numbers, rests = (x[: first[-1]].reshape(-1)[kept] for x in (tiles.numbers, tiles.rests))
    return belongs, Blocks(numbers, codes[kept], rests)


def _put(tiles: Tiles, lanes: Array, blocks: Blocks) -> None:
    """Puts blocks at `lanes [n]`, counted through all tiles."""
    places = lanes // LANES, lanes % LANES
    tiles.numbers[places], tiles.rests[places] = blocks.numbers, blocks.rests
    tiles.codes.swapaxes(1, 2)[places] = blocks.codes
