"""`LandmarkCache`: a KV cache with retrieval, in the interface of transformers."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from landmark.hf.columns import Columns
from landmark.hf.compat import require
from landmark.hf.config import (
    chunk_tokens,
    landmark_settings,
    layer_budgets,
    layer_kinds,
    text_config,
    trained_positions,
)
from landmark.hf.rope import Rope
from landmark.hf.sliding import SlidingWindow
from landmark.hf.trace import Forward, Recording, Trace
from landmark.index.constant import has_constant_keys
from landmark.index.options import IndexKind, IndexOptions, index_options
from landmark.memory import LayerMemory, Retrievals
from landmark.memory.storage import ProcessStorage, Storage
from landmark.ops.rotary import Rotation
from landmark.settings import KvDtype, ReadingChanges
from landmark.store.base import Traffic
from landmark.stream import Stream, stream_length

Decode = Literal["auto", "graph", "eager"]  # how steps of decoding are computed, see `landmark.hf.step_graph`


class LandmarkLayer(CacheLayerMixin):
    """One layer of the cache: a memory, or the window of a native sliding layer.

    `update` returns keys and values unchanged; the attention call reads and writes the memory itself.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, memory: LayerMemory | SlidingWindow) -> None:
        super().__init__()
        self.memory = memory

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        raise NotImplementedError("lengths belong to the whole cache: call LandmarkCache.get_seq_length()")

    def get_max_length(self) -> int:
        return -1


class CacheOptions(ReadingChanges, total=False):
    """Keyword arguments of a cache: settings of reading, index, and memory budgets."""

    index: IndexKind | IndexOptions
    host_budget: int | str | None
    device_budget: int | str | None
    kv_dtype: KvDtype | None


# Caches that a thread is reading through, by identity: copies and pickles of one are others.
_IN_FORWARD: set[int] = set()
_BEGINNING = Lock()


class LandmarkCache(Cache):
    """A KV cache with retrieval: reads any length in bounded memory. Pass it to `forward` or `generate`.

    Complete blocks that leave the local window move to memory: their landmark keys to an index, their keys and values
    to a store. Each query opens the few blocks whose landmarks it scores highest (Mohtashami & Jaggi 2023, section
    3.2). Length is counted in ordinary tokens; in padded batches, in columns of `input_ids`, as transformers counts.

    Args:
        config: that of a converted model.
        reading: settings of reading (`ReadingSettings`) that replace the model's in this cache, such as `retrieve=8`.
            `chunk_size` is the most ordinary tokens of one forward, by default what fits the trained range, and 2,048
            positions, wherever in a block a chunk begins; longer inputs are cut. A multiple of block_size may be
            larger, up to `(retrieve + 1 + local_blocks) * stride + gap` and the chunk with its landmarks in the trained
            range: chunks then end where blocks end, and after a tail the next chunk is shorter by it (in a batch, by
            the longest tail). With a `miss_threshold` above 0, a query opens no blocks where they would get less than
            that share of its attention (the context miss of appendix D); landmark keys decide that, so such blocks are
            neither loaded nor computed.
            `selection="per_head"` looks ahead within a chunk.
        index: how landmark keys are searched, a kind ("auto", "exact", "hierarchical") or `IndexOptions`.
        host_budget, device_budget: bytes of host and device memory ("256MB", or a number) for the blocks of all layers.
            Blocks that do not fit are offloaded: to host memory, or with a host budget to temporary files. Without
            budgets all blocks stay on the device.
        kv_dtype: "int8" keeps blocks below the device in int8 with scales, in about a quarter of the bytes of float32;
            they are dequantized when they are fetched, and read so everywhere, also before they were offloaded. None
            keeps them as they are. Landmark keys and the local window are not changed by it.
        storage: the storage of each landmark layer, instead of these four.
        decode: "graph" repeats every step of decoding as a CUDA graph, and is an error where that cannot be; "eager"
            never does; "auto" does where it can. `eager_reason` is then why the last step was none, and None if it was.

    Raises ValueError for settings that leave no room for a chunk, and for invalid budgets and indexes.
    """

    is_compileable = False  # type: ignore[assignment]  # a property in transformers

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        index: IndexKind | IndexOptions = "auto",
        host_budget: int | str | None = None,
        device_budget: int | str | None = None,
        kv_dtype: KvDtype | None = None,
        storage: Mapping[int, Storage] | None = None,
        decode: Decode = "auto",
        **reading: Unpack[ReadingChanges],
    ) -> None:
        if decode not in get_args(Decode):
            raise ValueError(f"decode is {decode!r}: choose one of {', '.join(get_args(Decode))}")
        self.decode: Decode = decode
        self.eager_reason: str | None = None
        config = text_config(config)
        self.settings = landmark_settings(config).changed(**reading)
        self.chunk_tokens = chunk_tokens(self.settings, config)
        chunk_size = self.settings.reading.chunk_size
        self._whole_blocks = chunk_size is not None and chunk_size % self.settings.block_size == 0
        self.trained_positions = trained_positions(config)
        self._identity = _identity(config)
        self.kinds = layer_kinds(config)
        self._window = getattr(config, "sliding_window", None)
        if storage is None:
            budgets = layer_budgets(self.settings, config, host_budget, device_budget, kv_dtype)
            shared = ProcessStorage(index_options(index), budgets)
            storage = dict.fromkeys(range(len(self.kinds)), shared)
        self._storage = storage
        super().__init__(layers=[*self._fresh_layers()])
        self._columns = Columns(self.chunk_tokens + (self.settings.reading.local_blocks + 1) * self.settings.block_size)
        self._tokens: Tensor | None = None
        self._in_chunk = False
        self._forwards = 0
        self._recording = Recording()
        self._rotations: tuple[int, dict[Rope, Rotation]] | None = None

    def _fresh_layers(self) -> list[CacheLayerMixin]:
        return [LandmarkLayer(self._fresh_memory(index, kind)) for index, kind in enumerate(self.kinds)]

    def _fresh_memory(self, index: int, kind: str) -> LayerMemory | SlidingWindow:
        if kind == "sliding":
            assert self._window is not None
            return SlidingWindow(self._window)
        return LayerMemory(
            self.settings.block_size,
            self.settings.reading,
            constant_keys=has_constant_keys(index),
            storage=self._storage[index],
        )

    @property
    def memories(self) -> list[LayerMemory | SlidingWindow]:
        """The memory, or native sliding window, of each layer."""
        return [layer.memory for layer in self.layers]  # type: ignore[union-attr]

    def memory(self, layer: int) -> LayerMemory | SlidingWindow:
        """That of one layer; each layer of each step asks for its own."""
        return self.layers[layer].memory  # type: ignore[union-attr]

    @property
    def chunk_positions(self) -> int:
        """Stream positions of the longest chunk, landmarks included."""
        size = self.settings.block_size
        return stream_length(self.chunk_tokens, size, size - 1)

    @property
    def next_chunk(self) -> int:
        """Ordinary tokens (in padded batches, columns) of the longest chunk that may come next."""
        return min(self._next_chunks(self.tokens_read()), default=self.chunk_tokens)

    def next_chunks(self, rows: int, device: torch.device) -> list[int]:
        """Ordinary tokens of the longest chunk that may come next, for each row."""
        read = self.tokens(rows, device)
        # Without whole blocks tails do not matter, and there is no need to synchronize with the device.
        return self._next_chunks(read.tolist() if self._whole_blocks else [0] * rows)

    def _next_chunks(self, read: list[int]) -> list[int]:
        size = self.settings.block_size if self._whole_blocks else 1
        return [self.chunk_tokens - tokens % size for tokens in read]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept, all layers and rows together."""
        return sum(memory.nbytes for memory in self.memories)

    def tokens(self, rows: int, device: torch.device) -> Tensor:
        """Ordinary tokens read so far in each row, `[B]`; raises ValueError if the number of rows changed."""
        if self._tokens is None:
            self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        if len(self._tokens) != rows:
            raise ValueError(
                f"this cache holds {len(self._tokens)} rows, the input has {rows}: use a cache of its own,"
                " or for beams or several answers to each row call cache.batch_repeat_interleave(number) before"
            )
        return self._tokens

    def tokens_read(self) -> list[int]:
        """Ordinary tokens read so far in each row; empty before the first chunk."""
        return [] if self._tokens is None else self._tokens.tolist()

    def stream_positions(self, stream: Stream) -> Tensor:
        """Stream position of a chunk's first token in each row, `[B, 1]`, counted from the start of the text."""
        seen = self.tokens(len(stream.lengths), stream.lengths.device)
        return (seen + seen // self.settings.block_size)[:, None]

    def rotations(self, positions: int, make: Callable[[int], dict[Rope, Rotation]]) -> dict[Rope, Rotation]:
        """Rotary tables for at least `positions`, from `make`; cached until a longer chunk needs longer ones.

        Never beyond the trained range: a demand beyond it counts a tail where there is none.
        """
        positions = min(positions, self.trained_positions)
        if self._rotations is None or self._rotations[0] < positions:
            self._rotations = positions, make(positions)
        return self._rotations[1]

    def positions_needed(self, stream: Stream) -> int:
        """Rotary positions that reading a chunk takes; raises ValueError where the trained range is too short."""
        if self.settings.reading.positions == "stingy":
            return self.settings.position_budget(tail=True) + stream.width
        needed = int(self.stream_positions(stream).max()) + stream.width
        if needed > self.trained_positions:
            raise ValueError(
                f'positions="true" carries {self.trained_positions} positions, the trained range, and this text'
                f' reaches {needed}, landmarks included: use positions="stingy" or a shorter text'
            )
        return needed

    def begin(self) -> None:
        """Marks the beginning of a chunk; `advance` marks its end.

        Raises ValueError if an earlier chunk was interrupted: its layers have read different parts of the text.
        """
        self.check_complete()
        self._in_chunk = True

    def check_complete(self) -> None:
        """Raises ValueError if a forward through this cache was interrupted."""
        if self._in_chunk:
            raise ValueError(
                "a forward through this cache was interrupted, and its layers have read different parts of the text:"
                " read into a new cache, or continue from a fork made before"
            )

    def advance(self, stream: Stream) -> None:
        """Counts a chunk that all layers have read, and records the blocks that they opened."""
        assert self._tokens is not None
        self._in_chunk = False
        before, self._tokens = self._tokens, self._tokens + stream.tokens
        opened = {}
        for index, memory in enumerate(self.memories):
            last = memory.last if isinstance(memory, LayerMemory) else None
            if last is not None:
                opened[index] = last
        self._recording = self._recording.followed_by(Forward(before, stream.lengths, stream.width, opened))

    def count_columns(self, ids: Tensor | None, real: Tensor) -> None:
        """Counts an input that was read whole: `ids [B, S]`, None for embeddings; `real [B, S]` is False at padding."""
        self._columns = self._columns.followed_by(ids, real)
        self._forwards += 1

    def check_model(self, config: PretrainedConfig) -> None:
        """Raises ValueError unless the cache was made for the model of `config`, or one like it."""
        mine, theirs = self._identity, _identity(config)
        wrong = [name for name, value in mine.items() if value != theirs[name]]
        if wrong:
            raise ValueError(
                "this cache was made for another model: "
                + ", ".join(f"{name} {mine[name]}, not {theirs[name]}" for name in wrong)
                + "; use landmark.LandmarkCache(model.config)"
            )

    def check_position(self, mask: Tensor, first: Tensor | None) -> None:
        """Raises ValueError unless an input continues the text that was read.

        `mask [B, P]` is the attention mask of the columns before the input, `first [B]` the position id of each row's
        first token, -1 without one.
        """
        columns = self._columns
        if mask.shape[1]:
            if mask.shape[1] != columns.count:
                raise ValueError(
                    f"attention_mask has {mask.shape[1]} columns before the input, and the cache has"
                    f" read {columns.count}: give a mask of these and the input, or of the input alone"
                )
            require(columns.masked(mask), "attention_mask hides or shows other tokens than when the cache read them")
        if first is not None:
            assert self._tokens is not None
            tokens = torch.as_tensor(columns.tokens(), device=first.device)
            # Position ids of padded rows are not defined: generate counts on from those of padding.
            padded = tokens != columns.count
            require(
                (first == columns.count) | (first == self._tokens.to(first.device)) | (first < 0) | padded,
                f"position_ids do not continue the {columns.count} tokens that the cache has read: pass only"
                " what it has not read, to assisted decoding and prompt lookup with past_key_values=cache.fork()",
            )

    @contextmanager
    def in_forward(self) -> Iterator[Callable[[], bool]]:
        """A forward of a model through this cache; what it gives says whether exactly one input was read since.

        Raises ValueError while another thread is in one.
        """
        with _BEGINNING:
            if id(self) in _IN_FORWARD:
                raise ValueError("another thread reads through this cache: give each a cache.fork() of its own")
            _IN_FORWARD.add(id(self))
        expected = self._forwards + 1
        try:
            yield lambda: self._forwards == expected
        finally:
            _IN_FORWARD.discard(id(self))

    def check_continues(self, input_ids: Tensor) -> None:
        """Raises ValueError unless `input_ids [B, S]` begin with the columns that were read and are longer."""
        count = self._columns.count
        if input_ids.shape[1] <= count:
            raise ValueError(
                f"the prompt has {input_ids.shape[1]} tokens and the cache has read {count}: pass all of them and at"
                " least one new token, or only new tokens with past_key_values=cache.fork()"
            )
        if not self._columns.begin(input_ids):
            raise ValueError(
                f"the prompt does not begin with the {count} tokens that the cache has read: pass those first, or only"
                " new tokens with past_key_values=cache.fork()"
            )

    def start_trace(self) -> None:
        """Clears the recording and records every forward from now on; by default only the last one is recorded."""
        self._recording = Recording(keep_all=True)

    def trace(self) -> Trace:
        """What the queries of the last forward, or of all since `start_trace()`, attended to."""
        return self._recording.trace(self.settings.block_size)

    def settle(self, ropes: list[Rope], local_blocks: int | None = None) -> None:
        """Moves complete blocks beyond the local window to memory now, as the next chunk would.

        `ropes` are those of the model's layers. With `local_blocks`, only so many stay in the window.
        """
        if self._rotations is None:
            return
        for memory, rope in zip(self.memories, ropes, strict=True):
            if isinstance(memory, LayerMemory):
                memory.settle(self._rotations[1][rope], local_blocks)

    def resume(self, tokens: Tensor) -> None:
        """Continues after `tokens [B]` ordinary tokens that the memories hold already; length counts from 0."""
        self._tokens = tokens
        self.restart_length()

    def restart_length(self) -> None:
        """Counts length from 0 from now on: pass `generate` new tokens only."""
        self._columns = Columns(self._columns.keep)

    def fork(self, *, keep_trace: bool = False) -> "LandmarkCache":
        """An independent cache that continues from here and, where its storage can, shares the blocks read so far.

        Its length counts from 0: pass `generate` new tokens only. Its trace is empty; with `keep_trace` it holds what
        was recorded so far. Raises ValueError if a forward through this cache was interrupted.
        """
        self.check_complete()
        branch = copy.copy(self)
        branch.layers = [LandmarkLayer(memory.fork()) for memory in self.memories]
        branch._storage = {layer: storage.fork() for layer, storage in self._storage.items()}
        branch._recording = self._recording if keep_trace else self._recording.cleared()
        branch.restart_length()
        branch._tokens = None if self._tokens is None else self._tokens.clone()
        return branch

    @property
    def traffic(self) -> Traffic:
        """Cache hits, cache misses and bytes moved so far, of all layers; stores without a budget count nothing."""
        return sum((m.traffic for m in self.memories if isinstance(m, LayerMemory)), Traffic())

    @property
    def retrievals(self) -> Retrievals:
        """Queries that had blocks in memory so far, and those of them with a context miss, of all layers."""
        return sum((m.retrievals for m in self.memories if isinstance(m, LayerMemory)), Retrievals())

    # The interface of transformers.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._columns.count

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._columns.count + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._columns.count

    def reset(self) -> None:
        self.layers = self._fresh_layers()
        self._tokens, self._rotations = None, None
        self.restart_length()
        self._in_chunk = False
        self._recording = self._recording.cleared()

    def _take_rows(self, rows: Tensor) -> None:
        if self._tokens is None:
            return
        rows = rows.to(self._tokens.device)
        self._tokens = self._tokens[rows]
        self._columns = self._columns.of_rows(rows)
        for memory in self.memories:
            memory.reorder(rows)
        self._recording = self._recording.of_rows(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._take_rows(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._tokens is not None:
            self._take_rows(torch.arange(len(self._tokens)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the newest tokens: as many as a negative number names, or all but a positive number of columns.

        Assisted decoding passes the former; transformers before 5.18 passed the latter. Columns are counted as
        transformers counts; of rows that end in padding only the tokens among them are dropped. Raises ValueError, and
        changes nothing, where the tokens have left the local window: raise `local_blocks` then.
        """
        dropped = self._columns.count - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if self._tokens is None or dropped <= 0:
            return
        columns, tokens_dropped = self._columns.cropped(dropped)
        tokens = self._tokens - tokens_dropped.to(self._tokens.device)
        lengths = tokens + tokens // self.settings.block_size
        for memory in self.memories:
            memory.check_crop(lengths)
        for memory in self.memories:
            memory.crop(lengths)
        self._tokens, self._columns = tokens, columns


def _identity(config: PretrainedConfig) -> dict[str, object]:
    """Properties, by name, in which a cache and the model that reads through it must agree."""
    config = text_config(config)
    return {
        "layers": layer_kinds(config),
        "block_size": landmark_settings(config).block_size,
        "trained positions": trained_positions(config),
        "window": getattr(config, "sliding_window", None),
    }
