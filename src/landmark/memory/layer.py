"""Memory of one layer: a local window and, behind it, blocks that are retrieved by their landmark keys."""

import copy
from typing import Any

import torch
from torch import Tensor

from landmark.memory.blocks import BlockMemory, OnSearch, Opened
from landmark.memory.decode import FewPart, FewRows, FewTokens, attend_few, serves_few
from landmark.memory.fixed import FixedLayer, StepCounts
from landmark.memory.geometry import Past, first_with_slot, past_of
from landmark.memory.selection import Retrievals
from landmark.memory.storage import ProcessStorage, Storage
from landmark.memory.window import LocalWindow, WindowState, attend_locally
from landmark.ops.decode_cpu import FEW_QUERIES
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.settings import ReadingSettings, check_block_size
from landmark.store.base import Traffic

_PLAIN = Scoring()


class LayerMemory:
    """KV cache and attention of one layer over a text of any length, in chunks (Mohtashami & Jaggi 2023, section 3.2).

    The newest complete blocks, `settings.local_blocks` of them, and the tail are attended to as usual. Older blocks lie
    in memory: each query opens the best of them by their landmark keys, or none on a context miss (appendix D), as
    `settings` has it; `chunk_size` is left to the caller. `storage` makes index and store of the blocks; None keeps all
    on the device.

    `constant_keys` promises that all landmark keys are equal before rotary, as in layer 0 (`landmark.index.constant`).

    Raises ValueError for a `block_size` that is none.
    """

    def __init__(
        self,
        block_size: int,
        settings: ReadingSettings,
        *,
        constant_keys: bool = False,
        storage: Storage | None = None,
    ) -> None:
        check_block_size(block_size)
        self.block_size = block_size
        self.stride = block_size + 1
        self.settings = settings
        self.last: Opened | None = None
        self.on_search: OnSearch | None = None
        # Rotated to their true positions, equal keys differ.
        self._constant_keys = constant_keys and settings.positions == "stingy"
        self._storage = ProcessStorage() if storage is None else storage
        self._window: LocalWindow | None = None
        self._blocks: BlockMemory | None = None
        self._few: FewRows | None = None
        self._seen: list[int] = []

    @property
    def lengths(self) -> Tensor:
        """Stream positions read so far in each row, long [B] on the CPU; empty before the first chunk."""
        return torch.tensor(self._seen, dtype=torch.long)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept: window, blocks and landmarks, without unused capacity."""
        return sum(part.nbytes for part in (self._window, self._blocks) if part is not None)

    @property
    def traffic(self) -> Traffic:
        """Traffic of the store so far."""
        return Traffic() if self._blocks is None else self._blocks.traffic

    @property
    def retrievals(self) -> Retrievals:
        """Queries that had blocks in memory so far, and their context misses."""
        return Retrievals() if self._blocks is None else self._blocks.retrievals

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        lengths: list[int] | None,
        rotation: Rotation,
        scoring: Scoring = _PLAIN,
    ) -> Tensor:
        """Attention of one chunk to the window, to retrieved blocks and to itself; appends it to the window.

        Args:
            query [B,H,T,D], key, value [B,Hkv,T,D]: of the stream, landmarks included, before rotary; the first
                token of each row that was ever read has stream position 0. Rows are right-padded.
            lengths: valid positions of each of the B rows; None if all T are.
            rotation: tables that cover every position in use (the same table, up to length, in every call).
            scoring: scale, softcap and sinks; nothing is dropped.

        Returns the output [B,H,T,D], undefined at padding, without a gradient.

        Raises ValueError if the batch is not the one read before, or if the rotation table ends too early.
        """
        if torch.is_grad_enabled():  # a context manager takes longer than to ask
            with torch.no_grad():
                return self.attend(query, key, value, lengths=lengths, rotation=rotation, scoring=scoring)
        rows, _, width = query.shape[:3]
        valid, scoring = [width] * rows if lengths is None else lengths, scoring._replace(dropout=0.0)
        if serves_few(query, key, value):
            tokens = FewTokens.of(query, key, value)
            part = self.few(tokens, width, valid, rotation)
            if part is not None:
                out = attend_few([part], tokens, scoring)
                if part.error is not None:
                    raise part.error
                return torch.from_numpy(out).to(query.dtype).view(rows, width, query.shape[1], -1).transpose(1, 2)
        starts = self._starts(query.shape[0])
        self._check_chunk(query.shape[0], query.shape[2], starts, valid, rotation)
        window = self._settled(query.shape[0], rotation)
        window.write(key, value, valid, rotation)
        out, self.last = self._attend(window, query, starts, valid, rotation, scoring)
        self._keep(valid)
        return out

    def _attend(
        self,
        window: LocalWindow,
        query: Tensor,
        starts: list[int],
        valid: list[int],
        rotation: Rotation,
        scoring: Scoring,
    ) -> tuple[Tensor, Opened | None]:
        """The output for queries at rotary positions `starts` whose keys are written, and the blocks they opened."""
        local = attend_locally(window, query, valid, rotation, scoring, self.block_size)
        if self._blocks is None or not any(self._blocks.counts):
            return local[0], None
        past = self._past(self._blocks, query, starts, valid)
        return self._blocks.attend(past, rotation, scoring, query, local, self.on_search)

    # A few tokens on a CPU: see `landmark.memory.decode`.

    def few(
        self, tokens: FewTokens, width: int, valid: list[int], rotation: Rotation, first: int = 0
    ) -> FewPart | None:
        """The part of a step of `tokens` that this memory reads, for `attend_few`; None where that does not serve.

        For other arguments see `FewPart` and `attend`, whose errors are raised.
        """
        window, blocks = self._window, None
        if window is None or self.on_search is not None or width > FEW_QUERIES or not window.serves(tokens):
            return None
        starts = self._starts(len(valid))
        self._check_chunk(len(valid), width, starts, valid, rotation)
        self._settled(len(valid), rotation)
        if self._blocks is not None and any(self._blocks.counts):
            blocks = self._blocks.few(tokens.query.shape[1] // tokens.key.shape[1])
            if blocks is None or width > blocks.widest:
                return None
        lies, buffers = self._few, window.with_room(width)
        if lies is None or lies.rotation is not rotation or lies.buffers is not buffers or lies.blocks is not blocks:
            lies = self._few = FewRows.of(self.stride, rotation, buffers, blocks)
        return FewPart(self, lies, first, width, valid, window.lengths, starts)

    def count_few(self, part: FewPart, blocks: Any, gates: Any, local: Any) -> None:
        """Counts the tokens of a part as read, and records what its queries opened."""
        self.last = None
        if self._blocks is not None and part.k:
            asking = [new if count else 0 for new, count in zip(part.valid, self._blocks.counts, strict=True)]
            self._blocks.count(blocks.shape[1] * sum(asking))
            # Copies: views would keep what all texts of the step opened.
            self.last = Opened(blocks.copy(), gates.copy(), local.copy(), asking)
        self._keep(part.valid)

    def _settled(self, rows: int, rotation: Rotation, local_blocks: int | None = None) -> LocalWindow:
        """The window, after complete blocks that do not fit it have moved to memory."""
        if self._window is None:
            self._start(rows, rotation.cos.device)
        assert self._window is not None
        gone = [0] * rows
        try:
            for row, blocks in enumerate(self._leaving_beyond(local_blocks)):
                if blocks and self._blocks is not None:
                    self._blocks.append(row, *self._window.oldest(row, blocks * self.stride), rotation)
                gone[row] = blocks * self.stride
        finally:  # a store may fail on a full disk: the rows before are in memory then, and leave the window
            self._window.drop(gone, rotation)
        return self._window

    def settle(self, rotation: Rotation, local_blocks: int | None = None) -> None:
        """Moves complete blocks that do not fit the local window to memory, as the next chunk would.

        Later results are the same; but the newest chunk can no longer be cropped whole. With `local_blocks`, only so
        many stay: 0 moves all complete blocks.
        """
        if self._window is not None:
            self._settled(len(self._seen), rotation, local_blocks)

    # A step over tensors of fixed shape: see `landmark.memory.fixed`.

    @property
    def has_read(self) -> bool:
        """Whether anything was read."""
        return self._window is not None

    @property
    def overdue(self) -> bool:
        """Whether complete blocks leave the window before the next chunk."""
        return self._window is not None and any(self._leaving)

    @property
    def blocks_read(self) -> list[int]:
        """Blocks of each row that ever entered memory; none without `retrieve`."""
        return [] if self._blocks is None else list(self._blocks.counts)

    def fixed(self, width: int) -> FixedLayer:
        """The tensors of this settled memory for steps of up to `width` positions, in place until blocks are appended.

        Raises ValueError, with the reason, where not all of them lie on the device.
        """
        assert self._window is not None
        window = self._window.fixed((self.settings.local_blocks + 1) * self.stride + width)
        if self._blocks is None or not any(self._blocks.counts):
            return FixedLayer(*window, None, None)
        return FixedLayer(*window, *self._blocks.fixed())

    def holds(self, layer: FixedLayer) -> bool:
        """Whether window and blocks still lie where those of `layer` do."""
        here = self._window is not None and self._window.holds(layer.keys)
        return here and (self._blocks is None or self._blocks.holds(layer.blocks))

    def step_counts(self, valid: list[int], width: int, rotation: Rotation) -> list[StepCounts]:
        """What a step of `width` positions, of which `valid` are real, needs to know of each row, once settled.

        Raises ValueError if the batch is not the one read before, or if the rotation table ends too early.
        """
        assert self._window is not None
        starts = self._starts(len(valid))
        self._check_chunk(len(valid), width, starts, valid, rotation)
        counts, retrieve = self.blocks_read or [0] * len(valid), self.settings.retrieve
        kept = [0 if self._blocks is None else self._blocks.kept(count) for count in counts]
        return [
            StepCounts(length, new, start, count, count - left, first_with_slot(count, left, retrieve, stingy=True))
            for length, new, start, count, left in zip(self._window.lengths, valid, starts, counts, kept, strict=True)
        ]

    def count_step(self, valid: list[int], opened: Opened | None) -> None:
        """Makes `valid` positions of each row of a step part of the window, and records what it `opened`."""
        self.last = opened
        if opened is not None and self._blocks is not None:
            self._blocks.count(opened.blocks.shape[1] * int(opened.asking.sum()))
        self._keep(valid)

    def state(self) -> tuple[WindowState, list[int]]:
        """The local window and the stream positions read so far in each row: all state but the blocks.

        Raises ValueError before anything was read.
        """
        if self._window is None:
            raise ValueError("nothing was read yet: there is no state to keep")
        return self._window.state(), list(self._seen)

    def resume(self, window: WindowState, seen: list[int], blocks: list[int]) -> None:
        """Restores a `state`, with `blocks` blocks of each row in index and store already."""
        self._start(len(seen), window.keys.device)
        self._window, self._seen = LocalWindow.resume(window), list(seen)
        if self._blocks is not None:
            self._blocks.counts = list(blocks)

    def fork(self) -> "LayerMemory":
        """An independent copy that shares the blocks read so far where the store can."""
        branch = copy.copy(self)
        branch._seen, branch._few = list(self._seen), None
        branch._window = None if self._window is None else self._window.fork()
        branch._blocks = None if self._blocks is None else self._blocks.fork()
        branch._storage = self._storage.fork()
        return branch

    def _keep(self, valid: list[int]) -> None:
        """Makes `valid` positions of each row of the chunk part of the window."""
        assert self._window is not None
        # Complete blocks move to memory before the next chunk is read; until then this one can be cropped whole.
        self._window.keep(valid)
        self._seen = [seen + length for seen, length in zip(self._seen, valid, strict=True)]

    def _check_chunk(self, rows: int, width: int, starts: list[int], valid: list[int], rotation: Rotation) -> None:
        if self._window is not None and rows != len(self._seen):
            raise ValueError(f"this memory holds {len(self._seen)} rows, the chunk has {rows}: reorder it first")
        if len(valid) != rows or min(valid) < 0 or max(valid) > width:
            raise ValueError(f"lengths {valid} must give, for each of {rows} rows, 0 to {width} valid positions")
        if rotation.reach is None:
            return
        needed = max(start + length for start, length in zip(starts, valid, strict=True))
        if needed > rotation.reach:
            raise ValueError(
                f"the chunk ends at rotary position {needed} and the rotation table at {rotation.reach}: "
                + self._arithmetic(max(valid))
            )

    def _arithmetic(self, longest: int) -> str:
        if self.settings.positions == "true" and self.settings.retrieve:
            return "with positions='true' it must hold the whole text; use positions='stingy' or a longer table"
        k, local, gap = self.settings.retrieve, self.settings.local_blocks, self.settings.gap
        return (
            f"(retrieve + 1 + local_blocks) * stride + gap + tail + chunk = "
            f"({k} + 1 + {local}) * {self.stride} + {gap} + tail + {longest} must fit; "
            "cut shorter chunks, or lower retrieve, local_blocks, gap or block_size"
        )

    def _starts(self, rows: int) -> list[int]:
        """Rotary position of the next query in each row."""
        if self._window is None:
            return [0] * rows
        if self.settings.positions == "true" and self.settings.retrieve:
            return self._seen
        starts = []
        for row, (leaving, length) in enumerate(zip(self._leaving, self._window.lengths, strict=True)):
            blocks = self._blocks
            k = 0 if blocks is None else min(self.settings.retrieve, blocks.kept(blocks.counts[row] + leaving))
            before = (k + 1) * self.stride + self.settings.gap if k else 0
            starts.append(before + length - leaving * self.stride)
        return starts

    @property
    def _leaving(self) -> list[int]:
        """Complete blocks beyond those of the settings in the window of each row."""
        return self._leaving_beyond(None)

    def _leaving_beyond(self, local_blocks: int | None) -> list[int]:
        """Complete blocks beyond `local_blocks`, by default those of the settings, in the window of each row."""
        assert self._window is not None
        local = self.settings.local_blocks if local_blocks is None else local_blocks
        return [max(0, length // self.stride - local) for length in self._window.lengths]

    def _start(self, rows: int, device: torch.device) -> None:
        self._window = LocalWindow(rows)
        self._seen = [0] * rows
        if self.settings.retrieve:
            index = self._storage.index(
                rows, self.settings.max_blocks, constant_keys=self._constant_keys, device=device
            )
            store = self._storage.store(rows, self.settings.max_blocks, device=device)
            self._blocks = BlockMemory(
                rows,
                block_size=self.block_size,
                settings=self.settings,
                index=index,
                store=store,
            )

    def _past(self, blocks: BlockMemory, query: Tensor, starts: list[int], valid: list[int]) -> Past:
        return past_of(
            counts=tuple(blocks.counts),
            kept=tuple(blocks.kept(count) for count in blocks.counts),
            retrieve=self.settings.retrieve,
            stingy=self.settings.positions == "stingy",
            stride=self.stride,
            starts=tuple(starts),
            valid=tuple(valid),
            width=query.shape[2],
            device=query.device,
            gap=self.settings.gap,
        )

    def reorder(self, rows: Tensor) -> None:
        """Makes row i a copy of row `rows[i]` (long [B']): beams, repeated rows, dropped rows."""
        wanted = rows.tolist()
        if self._window is None or wanted == list(range(len(self._seen))):
            return
        self._seen = [self._seen[row] for row in wanted]
        for part in (self._window, self._blocks):
            if part is not None:
                part.reorder(wanted)

    def check_crop(self, length: int | Tensor) -> list[int]:
        """Positions that a `crop` to `length` drops from each row; raises ValueError where `crop` would."""
        if self._window is None:
            return []
        targets = [length] * len(self._seen) if isinstance(length, int) else length.tolist()
        drops = [max(0, seen - target) for seen, target in zip(self._seen, targets, strict=True)]
        for drop, local in zip(drops, self._window.lengths, strict=True):
            if drop > local:
                raise ValueError(
                    f"cannot take back {drop} stream positions: only the newest {local} are still in the "
                    "local window; raise local_blocks to keep more in reach"
                )
        return drops

    def crop(self, length: int | Tensor) -> None:
        """Drops the newest stream positions until each row has at most `length` (int, or long [B]).

        The newest chunk can always be dropped whole, as if it had never been read. Raises ValueError, and changes
        nothing, if blocks would have to come back from memory.
        """
        drops = self.check_crop(length)
        if self._window is not None:
            self._seen = [seen - drop for seen, drop in zip(self._seen, drops, strict=True)]
            self._window.lengths = [local - drop for local, drop in zip(self._window.lengths, drops, strict=True)]
