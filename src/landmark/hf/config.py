"""Properties read from a model's config: landmark settings, kinds of layers, trained range, chunk size, budgets."""

from functools import lru_cache
from typing import Any

from transformers import PretrainedConfig

from landmark.memory.storage import Budgets
from landmark.settings import KvDtype, LandmarkSettings, ReadingSettings
from landmark.stream import stream_length, tokens_that_fit

# A longer chunk costs quadratic attention for little gain; models with a long range are cut here instead.
MAX_CHUNK = 2048


def is_converted(config: PretrainedConfig) -> bool:
    """Whether the config has landmark settings, as those of converted models do."""
    return getattr(text_config(config), "landmark", None) is not None


def landmark_settings(config: PretrainedConfig) -> LandmarkSettings:
    """Landmark settings of a converted model; raises ValueError where `config` has none."""
    config = text_config(config)
    stored = getattr(config, "landmark", None)
    if stored is None:
        raise ValueError(
            f"this {config.model_type} configuration has no landmark settings: call landmark.convert(model) first"
        )
    if not isinstance(stored, dict) or not {"block_size", "landmark_id"} <= set(stored):
        raise ValueError(f"the configuration's landmark settings are damaged: {stored!r}; convert the model again")
    # `rows` is of the embeddings as they were saved: see `model.saved_rows`.
    saved = {name: value for name, value in stored.items() if name != "rows"}
    try:
        # Every forward asks. The types are part of the key, because True equals 1 and is no count.
        return _settings_of(tuple((name, type(value), value) for name, value in saved.items()))
    except TypeError:  # a value that has no hash
        return LandmarkSettings.from_dict(saved)


@lru_cache(maxsize=64)
def _settings_of(saved: tuple[tuple[str, type, Any], ...]) -> LandmarkSettings:
    return LandmarkSettings.from_dict({name: value for name, _, value in saved})


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the text model; of a text-only model, its own."""
    return config.get_text_config(decoder=True)


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """For each layer "landmark", or "sliding" for the native sliding-window layers of a hybrid model.

    A model whose layers all slide has none that reaches far: there landmark attention replaces the window. Raises
    ValueError for layers that are no attention.
    """
    config = text_config(config)
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    unsupported = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unsupported:
        raise ValueError(
            f"{config.model_type} has layers of type {', '.join(unsupported)}: landmarks need attention layers"
        )
    hybrid = "full_attention" in types
    return ["sliding" if hybrid and kind == "sliding_attention" else "landmark" for kind in types]


def trained_positions(config: PretrainedConfig) -> int:
    """Positions that the model was trained on, by its config; raises ValueError where the config has none."""
    config = text_config(config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise ValueError(f"{config.model_type} has no max_position_embeddings: set it to the length it was trained on")
    window = getattr(config, "sliding_window", None)
    uniform = "full_attention" not in (getattr(config, "layer_types", None) or [])
    if window and uniform and getattr(config, "use_sliding_window", True):
        positions = min(positions, window)
    return positions


def chunk_tokens(settings: LandmarkSettings, config: PretrainedConfig) -> int:
    """Ordinary tokens of the longest chunk: `chunk_size`, or by default what fits wherever in a block it begins.

    Chunks of whole blocks may be longer, for they end with a block, and no tail comes before the next one (as in
    section 4.1 of the paper: trained on 512 positions, blocks of 50, retrieve 4 and chunks of 250). Raises ValueError
    for a `chunk_size` that does not fit the trained range, and where no chunk fits.
    """
    size, reading, chunk_size = settings.block_size, settings.reading, settings.reading.chunk_size
    if chunk_size is None:
        return tokens_that_fit(chunk_positions(settings, config), size, size - 1)
    trained = trained_positions(config)
    before = 0 if reading.positions == "true" else settings.position_budget(tail=False)
    most = max(0, trained - before) // settings.stride * size
    whole_blocks = chunk_size % size == 0
    fits = most if whole_blocks else tokens_that_fit(_room(settings, config), size, size - 1)
    if chunk_size > fits:
        others = "" if whole_blocks else f" where it begins inside a block, or {most} in whole blocks"
        raise ValueError(
            f"a chunk of {chunk_size} ordinary tokens does not fit the trained range of {trained} positions: it takes"
            f" {stream_length(chunk_size, size)} with its landmarks, and {before} lie before it: (retrieve"
            f" {reading.retrieve} + 1 + local_blocks {reading.local_blocks}) * stride {settings.stride}{_gap(reading)}"
            f"{'' if whole_blocks else ' and a tail'}; give at most {fits}{others}, or"
            f" {_what_to_lower('retrieve', 'local_blocks', reading=reading)}"
        )
    return chunk_size


def _gap(reading: ReadingSettings) -> str:
    return f" + gap {reading.gap}" if reading.gap and reading.retrieve else ""


def _what_to_lower(*names: str, reading: ReadingSettings) -> str:
    """The settings that leave more room when they are lower, as a remedy."""
    *first, last = (*names, *(("gap",) if _gap(reading) else ()))
    return f"lower {', '.join(first)} or {last}"


def chunk_positions(settings: LandmarkSettings, config: PretrainedConfig) -> int:
    """Stream positions, landmarks included, for a chunk that begins inside a block; ValueError where none fits."""
    return min(MAX_CHUNK, _room(settings, config))


def _room(settings: LandmarkSettings, config: PretrainedConfig) -> int:
    """The same without `MAX_CHUNK`, which bounds chunks of the default size."""
    positions, reading = trained_positions(config), settings.reading
    if reading.positions == "true":
        return positions
    taken = settings.position_budget(tail=True)
    room = positions - taken
    if tokens_that_fit(room, settings.block_size, settings.block_size - 1) < 1:
        raise ValueError(
            f"nothing fits the trained range: (retrieve {reading.retrieve} + 1 + local_blocks {reading.local_blocks}"
            f" + 1) * stride {settings.stride}{_gap(reading)} = {taken} positions, of {positions} trained, leaves no"
            f" room for a chunk; {_what_to_lower('block_size', 'retrieve', 'local_blocks', reading=reading)}"
        )
    return room


def key_value_heads(config: PretrainedConfig) -> int:
    """Key-value heads of a layer; configs of models without grouped-query attention have no such field."""
    config = text_config(config)
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def head_dim(config: PretrainedConfig) -> int:
    """Dimensions of an attention head."""
    config = text_config(config)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_budgets(
    settings: LandmarkSettings,
    config: PretrainedConfig,
    host_budget: int | str | None,
    device_budget: int | str | None,
    kv_dtype: KvDtype | None,
) -> Budgets:
    """Budgets of one landmark layer, an equal share of those of the model.

    Raises ValueError for budgets that are no number of bytes, and for a `kv_dtype` that there is not.
    """
    groups = text_config(config).num_attention_heads // key_value_heads(config)
    reading = settings.reading
    step_blocks = reading.retrieve * (1 if reading.selection in ("per_token", "per_group") else groups)
    layers = layer_kinds(config).count("landmark")
    return Budgets.shared(host_budget, device_budget, kv_dtype, layers=layers, step_blocks=max(1, step_blocks))
