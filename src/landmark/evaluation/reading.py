"""How a text is read in an evaluation, and how many keys a token attends to that way."""

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from landmark.hf import LandmarkCache
from landmark.hf.config import Settings, text_config, trained_positions
from landmark.memory import Selection
from landmark.stream import stream_length

ATTENTIONS = ("landmark", "full", "local")


@dataclass(frozen=True)
class Reading:
    """One way to read a text.

    - `landmark`: chunks of `chunk_size` ordinary tokens through a cache that opens `retrieve` blocks per query, chosen
      by `selection` among the newest `max_blocks` (all if None), and keeps `local_blocks` in sight (section 3.2 of
      the paper). A query whose blocks would get less than `miss_threshold` of its attention opens none (appendix D).
    - `local`: the same with `retrieve` 0 and chunks of one block: a window sliding over `local_blocks` blocks.
      With `per_head`, all tokens of a chunk choose together, so that what a token attends to depends on later ones.
    - `full`: the attention of training over the whole text at once (section 3.1); the counts are 0.
    """

    attention: str
    block_size: int
    retrieve: int = 0
    local_blocks: int = 0
    chunk_size: int = 0
    max_blocks: int | None = None
    selection: Selection = "per_token_and_head"
    miss_threshold: float = 0.0

    @classmethod
    def of(
        cls,
        config: Any,
        attention: str = "landmark",
        *,
        retrieve: int | None = None,
        local_blocks: int | None = None,
        local: int | None = None,
        max_blocks: int | None = None,
        selection: Selection | None = None,
        miss_threshold: float = 0.0,
    ) -> "Reading":
        """The reading of a converted model with this `config`; what is None is the model's own setting.

        `local` is in ordinary tokens: for `landmark` the length of a chunk, by default the longest that fits;
        for `local` how many last tokens a token sees on average, itself included, rounded up to whole blocks.
        Raises ValueError for what does not go together or does not fit the trained range.
        """
        if attention not in ATTENTIONS:
            raise ValueError(f"attention is {attention!r}: choose one of {', '.join(ATTENTIONS)}")
        size = Settings.of(text_config(config)).block_size
        opening: dict[str, Any] = {"retrieve": retrieve or None, "max_blocks": max_blocks, "selection": selection}
        opening["miss_threshold"] = miss_threshold or None
        sight = {"local_blocks": local_blocks, "local": local}
        if attention == "full":
            _check_left_out("full attention sees everything", opening | sight | {"retrieve": retrieve})
            return cls("full", size)
        if local is not None and local < 1:
            raise ValueError(f"local is {local}: give the number of ordinary tokens, 1 or more")
        if attention == "local":
            _check_left_out("local attention opens no blocks", opening)
            if local is not None and local_blocks is not None:
                raise ValueError("local and local_blocks both say how far local attention sees: give one of them")
            retrieve, local_blocks = 0, _blocks_in_sight(local, size) if local is not None else local_blocks
        cache = LandmarkCache(
            config,
            retrieve=retrieve,
            local_blocks=local_blocks,
            max_blocks=max_blocks,
            selection=selection,
            miss_threshold=miss_threshold,
            chunk_size=size if attention == "local" else local,
        )
        chosen = cache.settings
        return cls(
            attention,
            size,
            chosen.retrieve,
            chosen.local_blocks,
            cache.chunk_tokens,
            max_blocks,
            chosen.selection,
            miss_threshold,
        )

    def check_length(self, config: Any, length: int) -> None:
        """Raises ValueError when `length` ordinary tokens are more than true positions can carry."""
        trained, positions = trained_positions(config), Settings.of(text_config(config)).positions
        fits = stream_length(length, self.block_size) <= trained
        if positions == "true" and self.attention != "full" and not fits:
            raise ValueError(
                f"{length} tokens and their landmarks go beyond the trained range of {trained} positions,"
                ' which positions="true" cannot leave: convert the model with positions="stingy"'
            )

    def cache(self, config: Any) -> LandmarkCache | None:
        """A cache to read a text through, None for full attention."""
        if self.attention == "full":
            return None
        return LandmarkCache(
            config,
            retrieve=self.retrieve,
            local_blocks=self.local_blocks,
            max_blocks=self.max_blocks,
            selection=self.selection,
            miss_threshold=self.miss_threshold,
            chunk_size=self.chunk_size,
        )

    def start(self, config: Any) -> dict[str, Any]:
        """Keyword arguments of every forward over one text, chunk by chunk; they remember what was read."""
        cache = self.cache(config)
        return {"use_cache": False} if cache is None else {"past_key_values": cache}

    @property
    def looks_ahead(self) -> bool:
        """Whether what a token attends to depends on later tokens of its chunk."""
        return (
            self.attention == "landmark" and self.selection == "per_head" and self.retrieve > 0 and self.chunk_size > 1
        )

    def attended(self, length: int) -> float:
        """Ordinary keys, its own included, that a token attends to on average over `length` tokens."""
        return float(self.attended_keys(length).mean())

    def attended_keys(self, length: int) -> np.ndarray:
        """Ordinary keys in sight of each token, `[length]`: local ones and those of the blocks chosen for it."""
        positions = np.arange(length)
        if self.attention == "full":
            return positions + 1
        opened = np.minimum(self.retrieve, self.blocks_in_memory(length))
        return positions - self._blocks_behind(length) * self.block_size + 1 + opened * self.block_size

    def blocks_in_memory(self, length: int) -> np.ndarray:
        """Blocks in memory when each token is read, `[length]`: those whose landmarks it scores."""
        behind = self._blocks_behind(length)
        return behind if self.max_blocks is None else np.minimum(behind, self.max_blocks)

    def _blocks_behind(self, length: int) -> np.ndarray:
        """Blocks that have left the local window when each token is read, `[length]`."""
        assert self.attention != "full"
        starts = np.arange(length) // self.chunk_size * self.chunk_size
        return np.maximum(starts // self.block_size - self.local_blocks, 0)


def local_like(config: Any, reading: Reading, length: int) -> Reading:
    """The smallest local attention that sees at least as many keys as `reading` over `length` tokens."""
    wanted = reading.attended(length)
    for blocks in count():
        local = Reading.of(config, "local", local_blocks=blocks)
        # Once the window covers the text, more blocks add nothing.
        if local.attended(length) >= wanted or blocks * reading.block_size >= length:
            return local
    raise AssertionError("unreachable: the window grows until it covers the text")


def _check_left_out(why: str, given: dict[str, Any]) -> None:
    named = [f"{name} ({value})" for name, value in given.items() if value is not None]
    if named:
        raise ValueError(f"{why}: leave out {', '.join(named)}")


def _blocks_in_sight(local: int, block_size: int) -> int:
    """Blocks behind a chunk of one block, of which a token sees (block_size + 1) / 2 on average."""
    return max(0, int(np.ceil((local - (block_size + 1) / 2) / block_size)))


# Settings of a comparison as people write them: `full@512`, `landmark@4096,retrieve=0`, `local@4096`.


# What full attention over a text would have cost, beside what reading it through memory does.


@dataclass(frozen=True)
class Costs:
    """Bytes of keys and values at the end of a text, query-key scores on the way; all layers and heads."""

    kv_bytes: int
    scores: int


def full_attention(config: Any, tokens: int, bytes_per_number: int) -> Costs:
    """Costs of plain causal attention: token i scores i keys, every key and value stays."""
    config = text_config(config)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    kv_bytes = 2 * layers * kv_heads * head_dim * bytes_per_number * tokens
    return Costs(kv_bytes, layers * heads * (tokens * (tokens + 1) // 2))


def reading_scores(config: Any, reading: Reading, tokens: int) -> int:
    """Scores computed by reading through memory: all landmarks in memory, and the ordinary keys attended to.

    Landmarks in the local window are left out, one in `block_size + 1` local keys.
    """
    config = text_config(config)
    scored = reading.attended_keys(tokens) + reading.blocks_in_memory(tokens)
    return config.num_hidden_layers * config.num_attention_heads * int(scored.astype(np.int64).sum())
