"""What `convert` decides once for a model, and the arithmetic of its position range."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import PretrainedConfig

from landmark.memory import Positions, Selection
from landmark.memory.storage import Budgets
from landmark.settings import check_rules, current_names
from landmark.stream import stream_length, tokens_that_fit

# With its landmark a block fills a tile of 64.
DEFAULT_BLOCK_SIZE = 63
# Measured on the model in the package (docs/shipped_model.md): one block keeps a question in sight while it is
# answered, and leaves more room for the chunk than two.
DEFAULT_LOCAL_BLOCKS = 1
# A longer chunk costs quadratic attention for little gain; models with a long range are cut here instead.
MAX_CHUNK = 2048


@dataclass(frozen=True)
class Settings:
    """The `landmark` entry of a converted model's configuration.

    `trained_tokens` is how many ordinary tokens the model was trained on with landmarks; None where nobody counted.
    """

    block_size: int
    landmark_id: int
    retrieve: int = 4
    selection: Selection = "per_token_and_head"
    local_blocks: int = DEFAULT_LOCAL_BLOCKS
    positions: Positions = "stingy"
    trained_tokens: int | None = None

    def __post_init__(self) -> None:
        check_rules(
            block_size=self.block_size,
            retrieve=self.retrieve,
            selection=self.selection,
            local_blocks=self.local_blocks,
            positions=self.positions,
        )
        count = self.trained_tokens
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
            raise ValueError(f"trained_tokens is {count!r}: give a number of tokens, 0 or more")

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Settings":
        """Settings of a converted model; raises ValueError when `config` has none."""
        stored = getattr(config, "landmark", None)
        if stored is None:
            raise ValueError(
                f"this {config.model_type} configuration has no landmark settings: call landmark.convert(model) first"
            )
        if not isinstance(stored, dict) or not {"block_size", "landmark_id"} <= set(stored):
            raise ValueError(f"the configuration's landmark settings are damaged: {stored!r}; convert the model again")
        stored = {
            name: value for name, value in current_names(stored).items() if name != "rows"
        }  # see `model.saved_rows`
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(stored) - known)
        if unknown:
            raise ValueError(f"unknown landmark settings {unknown}: the model was saved by a newer version of landmark")
        return cls(**stored)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def stride(self) -> int:
        return self.block_size + 1


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    return config.get_text_config(decoder=True)


def layer_kinds(config: PretrainedConfig) -> list[str]:
    """For each layer "landmark", or "sliding" for the native sliding-window layers of a hybrid model.

    A model whose every layer slides has no layer that reaches far, so there landmarks take the place of the window.
    """
    config = text_config(config)
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    foreign = sorted(set(types) - {"full_attention", "sliding_attention"})
    if foreign:
        raise ValueError(
            f"{config.model_type} has layers of type {', '.join(foreign)}: landmarks need attention layers"
        )
    hybrid = "full_attention" in types
    return ["sliding" if hybrid and kind == "sliding_attention" else "landmark" for kind in types]


def trained_positions(config: PretrainedConfig) -> int:
    """Number of positions the model was trained on, as far as its configuration tells."""
    config = text_config(config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise ValueError(
            f"{config.model_type} names no max_position_embeddings: set it to the length it was trained on"
        )
    window = getattr(config, "sliding_window", None)
    uniform = "full_attention" not in (getattr(config, "layer_types", None) or [])
    if window and uniform and getattr(config, "use_sliding_window", True):
        positions = min(positions, window)
    return positions


def chunk_tokens(settings: Settings, config: PretrainedConfig, chunk_size: int | None = None) -> int:
    """Ordinary tokens of the longest chunk: `chunk_size`, or by default what fits wherever in a block it begins.

    Chunks of whole blocks may be longer than that, for they end with a block, and no tail stands before the next one
    (as in section 4.1 of the paper: trained on 512 positions, blocks of 50, retrieve 4 and chunks of 250). Raises
    ValueError for a `chunk_size` that the trained range does not carry, and when nothing fits it.
    """
    size = settings.block_size
    if chunk_size is None:
        return tokens_that_fit(chunk_positions(settings, config), size, size - 1)
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}: give the ordinary tokens of a chunk, 1 or more")
    trained, strides = trained_positions(config), settings.retrieve + 1 + settings.local_blocks
    before = 0 if settings.positions == "true" else strides * settings.stride
    most = max(0, trained - before) // settings.stride * size
    whole_blocks = chunk_size % size == 0
    fits = most if whole_blocks else chunk_tokens(settings, config)
    if chunk_size > fits:
        others = "" if whole_blocks else f" where it begins inside a block, or {most} in whole blocks"
        raise ValueError(
            f"a chunk of {chunk_size} ordinary tokens does not fit the trained range of {trained} positions: it takes"
            f" {stream_length(chunk_size, size)} with its landmarks, and {before} lie before it: (retrieve"
            f" {settings.retrieve} + 1 + local_blocks {settings.local_blocks}) * stride {settings.stride}"
            f"{'' if whole_blocks else ' and a tail'}; give at most {fits}{others}, or lower retrieve or local_blocks"
        )
    return chunk_size


def chunk_positions(settings: Settings, config: PretrainedConfig) -> int:
    """Stream positions a chunk that begins inside a block may take, landmarks included; ValueError when none fits."""
    positions = trained_positions(config)
    if settings.positions == "true":
        return min(MAX_CHUNK, positions)
    strides = settings.retrieve + 1 + settings.local_blocks + 1
    taken = strides * settings.stride
    room = min(MAX_CHUNK, positions - taken)
    if tokens_that_fit(room, settings.block_size, settings.block_size - 1) < 1:
        raise ValueError(
            f"nothing fits the trained range: (retrieve {settings.retrieve} + 1 + local_blocks {settings.local_blocks}"
            f" + 1) * stride {settings.stride} = {taken} positions, of {positions} trained, leaves no room for a chunk;"
            " lower block_size, retrieve or local_blocks"
        )
    return room


def layer_budgets(
    settings: Settings, config: PretrainedConfig, host_budget: int | str | None, device_budget: int | str | None
) -> Budgets:
    """The share that each landmark layer of a model has in budgets for all of them.

    Raises ValueError for budgets that are no number of bytes.
    """
    heads = config.num_attention_heads
    groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
    step_blocks = settings.retrieve * (groups if settings.selection != "per_token" else 1)
    layers = layer_kinds(config).count("landmark")
    return Budgets.shared(host_budget, device_budget, layers=layers, step_blocks=max(1, step_blocks))
