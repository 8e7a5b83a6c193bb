"""`LandmarkCache`: the memories of all layers in the form transformers asks of a cache."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Unpack

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
from landmark.hf.trace import Recording, Trace
from landmark.index.constant import has_constant_keys
from landmark.index.options import IndexKind, IndexOptions
from landmark.memory import LayerMemory, Retrievals
from landmark.memory.storage import ProcessStorage, Storage
from landmark.ops.rotary import Rotation
from landmark.settings import ReadingChanges
from landmark.store.base import Traffic
from landmark.stream import Stream, stream_length

# One layer of a cache in the form transformers asks for.


class LandmarkLayer(CacheLayerMixin):
    """One layer of the cache: a memory, or the window of a native sliding layer.

    Keys and values pass through `update` untouched; the attention call works on `memory` or `window` itself.
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
        raise NotImplementedError("lengths belong to the whole cache: ask LandmarkCache.get_seq_length()")

    def get_max_length(self) -> int:
        return -1


class CacheOptions(ReadingChanges, total=False):
    """Keyword arguments of a cache: how it reads, how it searches, and how much of it stays in memory."""

    index: IndexKind | IndexOptions
    host_budget: int | str | None
    device_budget: int | str | None


class LandmarkCache(Cache):
    """Reads any length in bounded device memory: pass it as `past_key_values`, to `forward` or `generate`.

    `config` is that of a converted model. Keyword arguments change for this cache how the model reads
    (`ReadingSettings`): `retrieve=8` opens eight blocks per query, `max_blocks` keeps only the newest. Length is
    counted in ordinary tokens (for padded batches, in columns of `input_ids`, as transformers counts). `selection`
    "per_head" looks ahead within a chunk: earlier queries of it read what later ones asked for.

    With a `miss_threshold` from 0 to below 1, a query of a head fetches nothing, and attends locally alone, if the
    blocks chosen for it would get a smaller share of its attention together (the context miss of the paper's appendix
    D). Their landmarks tell that, so what nobody opens is neither loaded nor computed. `retrievals` counts how often.

    `index` says how landmarks are searched: a kind ("auto", "exact", "hierarchical") or `IndexOptions`. Keys and
    values of all blocks stay on the device, unless `host_budget` or `device_budget` bound the bytes ("256MB", or a
    number) that all layers together hold in host and device memory: then blocks that do not fit lie in temporary files.
    `storage` names the storage of each landmark layer instead of these three.

    `chunk_size` is the most ordinary tokens that one forward reads at once, by default what fits the trained range
    wherever in a block it begins; longer inputs are cut. A multiple of block_size may be larger, until `(retrieve + 1 +
    local_blocks) * stride` and the chunk with its landmarks fill the range: chunks then end where blocks end, and
    after a tail the next one is shorter by it (in a batch, by the longest tail).

    Raises ValueError when the settings leave no room for a chunk, or for budgets and indexes that mean nothing.
    """

    is_compileable = False  # type: ignore[assignment]  # a property there, fixed here

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        index: IndexKind | IndexOptions = "auto",
        host_budget: int | str | None = None,
        device_budget: int | str | None = None,
        storage: Mapping[int, Storage] | None = None,
        **reading: Unpack[ReadingChanges],
    ) -> None:
        config = text_config(config)
        self.settings = landmark_settings(config).changed(**reading)
        self.chunk_tokens = chunk_tokens(self.settings, config)
        chunk_size = self.settings.reading.chunk_size
        self._whole_blocks = chunk_size is not None and chunk_size % self.settings.block_size == 0
        self.trained_positions = trained_positions(config)
        self._model = _model(config)
        self._kinds = layer_kinds(config)
        self._window = getattr(config, "sliding_window", None)
        if storage is None:
            options = IndexOptions(index) if isinstance(index, str) else index
            shared = ProcessStorage(options, layer_budgets(self.settings, config, host_budget, device_budget))
            storage = dict.fromkeys(range(len(self._kinds)), shared)
        self._storage = storage
        super().__init__(layers=[*self._fresh_layers()])
        self._columns = Columns(self.chunk_tokens + (self.settings.reading.local_blocks + 1) * self.settings.block_size)
        self._tokens: Tensor | None = None
        self._under_way = False
        self._forwards = self._expected = 0
        self._recording = Recording()
        self._rotations: tuple[int, dict[Rope, Rotation]] | None = None

    def _fresh_layers(self) -> list[CacheLayerMixin]:
        return [LandmarkLayer(self._fresh_memory(index, kind)) for index, kind in enumerate(self._kinds)]

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

    @property
    def chunk_positions(self) -> int:
        """Stream positions of the longest chunk, landmarks included."""
        size = self.settings.block_size
        return stream_length(self.chunk_tokens, size, size - 1)

    @property
    def next_chunk(self) -> int:
        """Ordinary tokens (in padded batches, columns) that the next forward may read at once."""
        return min(self._next_chunks(self.tokens_read()), default=self.chunk_tokens)

    def next_chunks(self, rows: int, device: torch.device) -> list[int]:
        """Ordinary tokens that the next forward may read at once in each row."""
        read = self.tokens(rows, device)
        # Where tails do not matter, a device need not be waited for.
        return self._next_chunks(read.tolist() if self._whole_blocks else [0] * rows)

    def _next_chunks(self, read: list[int]) -> list[int]:
        size = self.settings.block_size if self._whole_blocks else 1
        return [self.chunk_tokens - tokens % size for tokens in read]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept, all layers and rows together."""
        return sum(memory.nbytes for memory in self.memories)

    def tokens(self, rows: int, device: torch.device) -> Tensor:
        """Ordinary tokens read so far in each row, `[B]`; raises ValueError for another number of rows than before."""
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
        """Stream position of the chunk's first token in each row, `[B, 1]`, counted from the start of the text."""
        seen = self.tokens(len(stream.lengths), stream.lengths.device)
        return (seen + seen // self.settings.block_size)[:, None]

    def rotations(self, positions: int, make: Callable[[int], dict[Rope, Rotation]]) -> dict[Rope, Rotation]:
        """Rotations that reach `positions`; made once, and again when a longer chunk needs longer tables.

        Never beyond the trained range: whoever asks for more counts a tail where there is none.
        """
        positions = min(positions, self.trained_positions)
        if self._rotations is None or self._rotations[0] < positions:
            self._rotations = positions, make(positions)
        return self._rotations[1]

    def positions_needed(self, stream: Stream) -> int:
        """Rotary positions that reading the chunk `stream` takes; ValueError where the trained range ends before."""
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
        """A chunk is about to be read by all layers; `advance` says that it was.

        Raises ValueError if an earlier one broke off: then layers have read different parts of the text.
        """
        self.check_whole()
        self._under_way = True

    def check_whole(self) -> None:
        """Raises ValueError if a forward through this cache broke off half way."""
        if self._under_way:
            raise ValueError(
                "a forward through this cache broke off, and its layers have read different parts of the text: read"
                " into a new cache, or go on from a fork made before"
            )

    def advance(self, stream: Stream) -> None:
        """Counts a chunk that all layers have read, and keeps what they opened."""
        assert self._tokens is not None
        self._under_way = False
        self._tokens = self._tokens + stream.tokens
        opened = {}
        for index, memory in enumerate(self.memories):
            last = memory.last if isinstance(memory, LayerMemory) else None
            if last is not None:
                opened[index] = last
        self._recording = self._recording.followed_by(opened)

    def count_columns(self, ids: Tensor | None, real: Tensor) -> None:
        """Counts an input of which every chunk was read: `ids [B, S]`, None for embeddings, `real` where no padding."""
        self._columns = self._columns.followed_by(ids, real)
        self._forwards += 1

    def check_model(self, config: PretrainedConfig) -> None:
        """Raises ValueError where this cache was made for another model than that of `config`, or for other blocks."""
        mine, theirs = self._model, _model(config)
        wrong = [name for name, value in mine.items() if value != theirs[name]]
        if wrong:
            raise ValueError(
                "this cache was made for another model: "
                + ", ".join(f"{name} {mine[name]}, not {theirs[name]}" for name in wrong)
                + "; use landmark.LandmarkCache(model.config)"
            )

    def check_place(self, mask: Tensor, first: Tensor | None) -> None:
        """Raises ValueError unless an input goes on where this cache stands.

        `mask [B, P]` is what the attention mask says of the columns before the input, `first [B]` the position of each
        row's first token (-1: none).
        """
        columns = self._columns
        if mask.shape[1]:
            if mask.shape[1] != columns.count:
                raise ValueError(
                    f"attention_mask has {mask.shape[1]} columns before the input, and the cache counts"
                    f" {columns.count} as read: give a mask of these and the input, or of the input alone"
                )
            require(columns.masked(mask), "attention_mask hides or shows other tokens than when the cache read them")
        if first is not None:
            assert self._tokens is not None
            tokens = torch.as_tensor(columns.tokens(), device=first.device)
            # Positions over padding are anybody's guess: generate counts on from what stands in its place.
            padded = tokens != columns.count
            require(
                (first == columns.count) | (first == self._tokens.to(first.device)) | (first < 0) | padded,
                f"position_ids do not go on behind the {columns.count} tokens that the cache counts as read: pass only"
                " what it has not read, to assisted decoding and prompt lookup with past_key_values=cache.fork()",
            )

    def expect_forward(self) -> None:
        """Notes that one input is about to be read; `was_read` tells whether it was."""
        self._expected = self._forwards + 1

    def was_read(self) -> bool:
        """Whether exactly one input was read since `expect_forward()`."""
        return self._forwards == self._expected

    def check_continues(self, input_ids: Tensor) -> None:
        """Raises ValueError unless `input_ids [B, S]` begin with the columns that were read, and go on."""
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
        """Forgets what was recorded and keeps every forward from here on; otherwise only the last one is kept."""
        self._recording = Recording(keep_all=True)

    def trace(self) -> Trace:
        """The blocks opened in the last forward, or in all since `start_trace()`."""
        return self._recording.trace(self.settings.block_size)

    def settle(self, ropes: list[Rope]) -> None:
        """Moves complete blocks that are too many for the local window to memory, as the next chunk would.

        `ropes` are those of the model's layers.
        """
        if self._rotations is None:
            return
        for memory, rope in zip(self.memories, ropes, strict=True):
            if isinstance(memory, LayerMemory):
                memory.settle(self._rotations[1][rope])

    def resume(self, tokens: Tensor) -> None:
        """Goes on after `tokens [B]` ordinary tokens, which the memories hold already; its length counts from 0."""
        self._tokens = tokens
        self.restart_length()

    def restart_length(self) -> None:
        """Counts its length from 0 from here on: pass `generate` only what is new."""
        self._columns = Columns(self._columns.keep)

    def fork(self) -> "LandmarkCache":
        """A cache that goes on from here by itself and, where its storage can, shares the blocks read so far.

        Its length counts from 0: pass `generate` only what is new.
        """
        self.check_whole()
        branch = copy.copy(self)
        branch.layers = [LandmarkLayer(memory.fork()) for memory in self.memories]
        branch._recording = self._recording.cleared()
        branch.restart_length()
        branch._tokens = None if self._tokens is None else self._tokens.clone()
        return branch

    @property
    def traffic(self) -> Traffic:
        """What reading blocks has moved so far, all layers together; stores without a budget count nothing."""
        return sum((m.traffic for m in self.memories if isinstance(m, LayerMemory)), Traffic())

    @property
    def retrievals(self) -> Retrievals:
        """How often queries found blocks in memory so far, and how often they opened none, all layers together."""
        return sum((m.retrievals for m in self.memories if isinstance(m, LayerMemory)), Retrievals())

    # What transformers asks of a cache.

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
        self._under_way = False
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
        """Takes back the newest tokens, as many as a negative number says, or down to a positive one.

        (Assisted decoding passes the former; transformers before 5.18 passed the latter.)

        Columns are counted as transformers counts; of rows that end in padding only the tokens among them are taken
        back. Raises ValueError, and changes nothing, when they have left the local window: raise `local_blocks` then.
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


def _model(config: PretrainedConfig) -> dict[str, object]:
    """What a cache and the model that reads through it must agree on, by name."""
    config = text_config(config)
    return {
        "layers": layer_kinds(config),
        "block_size": landmark_settings(config).block_size,
        "trained positions": trained_positions(config),
        "window": getattr(config, "sliding_window", None),
    }
