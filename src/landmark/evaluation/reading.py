"""How an evaluation reads a text, the number of keys that a token attends to, and the cost."""

from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np

from landmark.hf import LandmarkCache
from landmark.hf.config import head_dim, key_value_heads, landmark_settings, text_config, trained_positions
from landmark.settings import ReadingChanges, ReadingSettings
from landmark.stream import stream_length

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ATTENTIONS = ("landmark", "full", "local")
NOTHING = ReadingSettings(retrieve=0, local_blocks=0)


class TextReading(Protocol):
    """What `perplexity.score` needs of a way to read a text; `Reading` says what each of these is."""

    @property
    def attention(self) -> str: ...

    @property
    def settings(self) -> ReadingSettings: ...

    @property
    def chunk_size(self) -> int | None: ...

    @property
    def looks_ahead(self) -> bool: ...

    def start(self, config: "PretrainedConfig") -> dict[str, Any]: ...

    def attended(self, length: int) -> float: ...


@dataclass(frozen=True)
class Reading:
    """A way to read a text.

    - `landmark`: in chunks through a cache, as `settings` say (section 3.2 of the paper). With `per_head`, all tokens
      of a chunk choose together, so that what a token attends to depends on later ones.
    - `local`: the same with `retrieve` 0 and chunks of one block: a window sliding over `local_blocks` blocks.
    - `full`: the attention of training over the whole text at once (section 3.1); `settings` are unused.
    """

    attention: str
    block_size: int
    settings: ReadingSettings = NOTHING

    @classmethod
    def of(
        cls,
        config: "PretrainedConfig",
        attention: str = "landmark",
        *,
        window: int | None = None,
        **reading: Unpack[ReadingChanges],
    ) -> "Reading":
        """The reading of a converted model with this `config`; what is not in `reading` is the model's own setting.

        `window` is for `local`: how many last ordinary tokens a token sees on average, itself included, rounded up to
        whole blocks. Raises ValueError for what does not go together or does not fit the trained range.
        """
        if attention not in ATTENTIONS:
            raise ValueError(f"attention is {attention!r}: choose one of {', '.join(ATTENTIONS)}")
        stored = landmark_settings(config)
        if attention == "full":
            _check_left_out("full attention sees everything", {**reading, "window": window})
            return cls("full", stored.block_size)
        if attention == "local":
            reading = _sliding(stored.block_size, window, reading)
        else:
            _check_left_out("a window is for local attention", {"window": window})
        cache = LandmarkCache(config, **reading)
        return cls(attention, stored.block_size, cache.settings.reading.changed(chunk_size=cache.chunk_tokens))

    @property
    def chunk_size(self) -> int | None:
        """Ordinary tokens of a forward; None for all at once."""
        return self.settings.chunk_size

    def check_length(self, config: "PretrainedConfig", length: int) -> None:
        """Raises ValueError when `length` ordinary tokens are more than true positions can carry."""
        trained, positions = trained_positions(config), self.settings.positions
        fits = stream_length(length, self.block_size) <= trained
        if positions == "true" and self.attention != "full" and not fits:
            raise ValueError(
                f"{length} tokens and their landmarks go beyond the trained range of {trained} positions,"
                ' which positions="true" cannot leave: convert the model with positions="stingy"'
            )

    def cache(self, config: "PretrainedConfig") -> LandmarkCache | None:
        """A cache to read a text through, None for full attention."""
        if self.attention == "full":
            return None
        return LandmarkCache(config, **asdict(self.settings))

    def start(self, config: "PretrainedConfig") -> dict[str, Any]:
        """Keyword arguments of every forward over one text, chunk by chunk; they remember what was read."""
        cache = self.cache(config)
        return {"use_cache": False} if cache is None else {"past_key_values": cache}

    @property
    def looks_ahead(self) -> bool:
        """Whether what a token attends to depends on later tokens of its chunk."""
        settings = self.settings
        together = settings.selection == "per_head" and settings.retrieve > 0 and settings.chunk_size != 1
        return self.attention == "landmark" and together

    def attended(self, length: int) -> float:
        """Ordinary keys, its own included, that a token attends to on average over `length` tokens."""
        return float(self.attended_keys(length).mean())

    def attended_keys(self, length: int) -> np.ndarray:
        """Ordinary keys in sight of each token, `[length]`: local ones and those of the blocks chosen for it."""
        positions = np.arange(length)
        if self.attention == "full":
            return positions + 1
        opened = np.minimum(self.settings.retrieve, self.blocks_in_memory(length))
        return positions - self._blocks_behind(length) * self.block_size + 1 + opened * self.block_size

    def scored(self, length: int) -> float:
        """Landmarks that a token scores on average over `length` tokens: of blocks in memory and in the local window.

        Landmarks stand beside the ordinary keys that `attended` counts.
        """
        if self.attention == "full":
            return float((np.arange(length) // self.block_size).mean())
        local = np.arange(length) // self.block_size - self._blocks_behind(length)
        searched = self.blocks_in_memory(length) if self.settings.retrieve else 0
        return float((local + searched).mean())

    def blocks_in_memory(self, length: int) -> np.ndarray:
        """Blocks in memory when each token is read, `[length]`: those whose landmarks it scores."""
        behind = self._blocks_behind(length)
        most = self.settings.max_blocks
        return behind if most is None else np.minimum(behind, most)

    def _blocks_behind(self, length: int) -> np.ndarray:
        """Blocks that have left the local window when each token is read, `[length]`."""
        chunk = self.settings.chunk_size
        assert chunk is not None, "full attention has no blocks behind it"
        starts = np.arange(length) // chunk * chunk
        return np.maximum(starts // self.block_size - self.settings.local_blocks, 0)


def local_like(config: "PretrainedConfig", reading: Reading, length: int) -> Reading:
    """The smallest local attention that sees at least as many keys as `reading` over `length` tokens."""
    wanted = reading.attended(length)
    for blocks in count():
        local = Reading.of(config, "local", local_blocks=blocks)
        # Once the window covers the text, more blocks add nothing.
        if local.attended(length) >= wanted or blocks * reading.block_size >= length:
            return local
    raise AssertionError("unreachable: the window grows until it covers the text")


def _sliding(block_size: int, window: int | None, reading: ReadingChanges) -> ReadingChanges:
    """The settings of a window that slides by blocks, over `window` tokens if that is given."""
    left = {
        name: value for name, value in reading.items() if name not in ("local_blocks", "positions", "allow_nonfinite")
    }
    # 0 opens no blocks, as local attention does.
    _check_left_out("local attention opens no blocks", {name: value or None for name, value in left.items()})
    sliding: ReadingChanges = {**reading, "retrieve": 0, "chunk_size": block_size}
    if window is None:
        return sliding
    if window < 1:
        raise ValueError(f"window is {window}: give the number of ordinary tokens, 1 or more")
    if "local_blocks" in reading:
        raise ValueError("window and local_blocks both say how far local attention sees: give one of them")
    return {**sliding, "local_blocks": _blocks_in_sight(window, block_size)}


def _check_left_out(why: str, given: dict[str, Any]) -> None:
    named = [f"{name} ({value})" for name, value in given.items() if value is not None]
    if named:
        raise ValueError(f"{why}: leave out {', '.join(named)}")


def _blocks_in_sight(window: int, block_size: int) -> int:
    """Blocks before a chunk of one block, of which a token sees (block_size + 1) / 2 tokens on average."""
    return max(0, int(np.ceil((window - (block_size + 1) / 2) / block_size)))


# The cost of full attention, and of reading through memory.


@dataclass(frozen=True)
class Costs:
    """Size of the KV cache after a text in bytes, and number of query-key scores; all layers and heads."""

    kv_bytes: int
    scores: int


def full_attention_costs(config: "PretrainedConfig", tokens: int, bytes_per_number: int) -> Costs:
    """Costs of causal attention: token i scores i keys, and all keys and values stay in the KV cache."""
    config = text_config(config)
    layers = config.num_hidden_layers
    kv_bytes = 2 * layers * key_value_heads(config) * head_dim(config) * bytes_per_number * tokens
    return Costs(kv_bytes, layers * config.num_attention_heads * (tokens * (tokens + 1) // 2))


def reading_scores(config: "PretrainedConfig", reading: Reading, tokens: int) -> int:
    """Query-key scores of reading through memory: all landmarks in memory, and the ordinary keys attended to.

    Landmarks in the local window are left out, one in `block_size + 1` local keys.
    """
    config = text_config(config)
    scored = reading.attended_keys(tokens) + reading.blocks_in_memory(tokens)
    return config.num_hidden_layers * config.num_attention_heads * int(scored.astype(np.int64).sum())
