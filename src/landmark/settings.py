"""Settings of a landmark model and of reading through its memory, and the checks of their values. Imports no torch.

A new setting of reading is a line in `ReadingChanges` (what callers and command lines may give), a line in
`ReadingSettings` (its default, with its check) and the code that uses it: everything between passes them whole.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, Unpack, get_args

from landmark.limits import FromZero, MaybeFromOne, Share, is_whole

# Who chooses the blocks to open: each query of each head; each query, for the heads that share keys and values; each
# query, for all heads; each head, for all queries of the chunk. "per_head" looks ahead within a chunk: an earlier query
# reads what a later one asked for, so that what a model predicts there depends on tokens after it, and on how the text
# is cut into chunks. Between chunks nothing looks ahead.
Selection = Literal["per_token_and_head", "per_group", "per_token", "per_head"]
SELECTIONS: tuple[str, ...] = get_args(Selection)
# Rotary positions of opened blocks: within the trained range, close to the query, or where they stood.
Positions = Literal["stingy", "true"]

# In which blocks are kept below the device; without one, as the model computes them.
KvDtype = Literal["int8"]

# What of a context is checked when it is opened, each with what stands before it: the manifest with the sizes of files;
# all landmark keys; every committed byte. Everything else is checked when it is first read.
Verification = Literal["manifest", "landmarks", "all"]

# With its landmark a block fills a tile of 64.
DEFAULT_BLOCK_SIZE = 63

_NAMES = {"top_k": "retrieve", "spoken": "chat"}  # of settings that were saved under another name


class ReadingChanges(TypedDict, total=False):
    """Settings of reading that replace a model's own: keyword arguments, and options of the commands that read."""

    retrieve: FromZero
    """Blocks opened per query; 0 reads with local attention alone."""
    local_blocks: FromZero
    """Newest complete blocks that stay in sight beside the tail; 0 is the paper's rule."""
    chunk_size: MaybeFromOne
    """Ordinary tokens read in one forward. Default: what fits the trained range, at most 2,048 positions."""
    max_blocks: MaybeFromOne
    """Newest blocks kept in memory. Default: all."""
    selection: Selection
    """Who chooses blocks: each query of each head, of each group of heads that share keys and values, or of all heads;
    or per_head, all queries of a chunk together, which looks ahead within it."""
    miss_threshold: Share
    """Open no blocks where they would get less than this share of a query's attention, from 0 to below 1."""
    positions: Positions
    """Rotary positions of opened blocks: stingy, within the trained range, or true."""
    gap: FromZero
    """Stingy positions left free between old blocks and the newest, which keep their distance."""
    allow_nonfinite: bool
    """Read and answer also where the model computes NaN or infinity."""


@dataclass(frozen=True)
class ReadingSettings:
    """How a text is read through memory (Mohtashami & Jaggi 2023, section 3.2).

    - `retrieve`: blocks opened per query, the paper's k; 0 reads with local attention alone.
    - `local_blocks`: newest complete blocks that stay in sight beside the tail. One keeps a question in sight while it
      is answered (docs/shipped_model.md); 0 is the paper's rule.
    - `chunk_size`: ordinary tokens read in one forward; None takes what fits the trained range, and `MAX_CHUNK`
      positions, wherever in a block a chunk begins. A multiple of the block size may be larger: chunks then end where
      blocks end.
    - `max_blocks`: newest blocks kept in memory; None keeps all.
    - `selection`: who chooses the blocks to open, see `Selection`.
    - `miss_threshold`: a query whose blocks would get a smaller share of its attention together opens none (the context
      miss of appendix D).
    - `positions`: rotary positions of opened blocks, see `Positions`.
    - `gap`: stingy positions that are left free between old blocks and the `retrieve` newest ones, so that what is long
      past is not taken for the recent text; 0 is the paper's rule. They come out of the trained range.
    - `allow_nonfinite`: reads on where the model computes NaN or infinity, which is an error otherwise.

    Raises ValueError, naming the value and the remedy, for settings that mean nothing.
    """

    retrieve: int = 4
    local_blocks: int = 1
    chunk_size: int | None = None
    max_blocks: int | None = None
    selection: Selection = "per_token_and_head"
    miss_threshold: float = 0.0
    positions: Positions = "stingy"
    gap: int = 0
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        _check_count("retrieve", self.retrieve, 0, "0 or more (0 means local attention only)")
        _check_count("local_blocks", self.local_blocks, 0, "0 or more (0 is the paper's rule)")
        _check_choice("selection", self.selection, SELECTIONS)
        _check_choice("positions", self.positions, get_args(Positions))
        _check_count("gap", self.gap, 0, "0 or more rotary positions")
        if self.gap and self.positions == "true":
            raise ValueError(f'gap is {self.gap}: true positions leave no gap; give gap=0, or positions="stingy"')
        if not isinstance(self.allow_nonfinite, bool):
            raise ValueError(f"allow_nonfinite is {self.allow_nonfinite!r}: give True or False")
        if self.max_blocks is not None:
            _check_count("max_blocks", self.max_blocks, 1, "1 or more, or None to keep all")
        if self.chunk_size is not None:
            _check_count("chunk_size", self.chunk_size, 1, "1 or more: the ordinary tokens of a chunk")
        share = self.miss_threshold
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
            raise ValueError(
                f"miss_threshold is {share!r}: give a share of attention, 0 (always open blocks) or more and less"
                " than 1 (for no blocks at all, retrieve is 0)"
            )

    def changed(self, **changes: Unpack[ReadingChanges]) -> "ReadingSettings":
        """These settings, but for `changes`; raises ValueError for what is no setting of reading."""
        known = _names(ReadingSettings)
        if unknown := sorted(changes.keys() - known):
            raise ValueError(f"{', '.join(unknown)}: no setting of reading, which are {', '.join(sorted(known))}")
        return replace(self, **changes)


@dataclass(frozen=True)
class LandmarkSettings:
    """The `landmark` entry of a converted model's configuration.

    A landmark follows each `block_size` ordinary tokens; row `landmark_id` of the vocabulary is its embedding.
    `reading` is how the model reads unless a cache says otherwise. `trained_tokens` counts the ordinary tokens that the
    model was trained on with landmarks; None where nobody counted.
    """

    block_size: int
    landmark_id: int
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    trained_tokens: int | None = None

    def __post_init__(self) -> None:
        check_block_size(self.block_size)
        _check_count("landmark_id", self.landmark_id, 0, "0 or more: a row of the vocabulary")
        if self.trained_tokens is not None:
            _check_count("trained_tokens", self.trained_tokens, 0, "0 or more: a number of tokens")

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "LandmarkSettings":
        """The settings that `to_dict` gave, of this release or an earlier one; raises ValueError for unknown ones."""
        saved = current_names(saved)
        of_reading = {name: saved.pop(name) for name in _names(ReadingSettings) if name in saved}
        if unknown := sorted(saved.keys() - (_names(cls) - {"reading"})):
            raise ValueError(f"unknown landmark settings {unknown}: the model was saved by a newer version of landmark")
        for name in ("block_size", "landmark_id"):
            if name not in saved:
                raise ValueError(f"the landmark settings have no {name}: they are not those of a converted model")
        return cls(reading=ReadingSettings(**of_reading), **saved)

    def to_dict(self) -> dict[str, Any]:
        """All settings in one flat dictionary, as JSON keeps them."""
        return {name: value for name, value in asdict(self).items() if name != "reading"} | asdict(self.reading)

    def changed(self, **changes: Unpack[ReadingChanges]) -> "LandmarkSettings":
        """The same model read in another way."""
        return replace(self, reading=self.reading.changed(**changes))

    @property
    def stride(self) -> int:
        """Stream positions of a block with its landmark."""
        return self.block_size + 1

    def position_budget(self, *, tail: bool) -> int:
        """Rotary positions that stand before a chunk: slots, the gap, the local window and, perhaps, a tail."""
        return position_budget(self.block_size, self.reading, tail=tail)


def position_budget(block_size: int, reading: ReadingSettings, *, tail: bool) -> int:
    """Rotary positions before a chunk: `retrieve` + 1 slots, `gap`, `local_blocks` and, with a `tail`, one block more.

    Slot 0 is that of all blocks but the newest.
    """
    blocks = reading.retrieve + 1 + reading.local_blocks + tail
    return blocks * (block_size + 1) + (reading.gap if reading.retrieve else 0)


def check_block_size(block_size: int) -> None:
    """Raises ValueError unless `block_size` is a positive int."""
    if not is_whole(block_size, 1):
        raise ValueError(f"block_size is {block_size!r}: give a whole number of ordinary tokens per block, 1 or more")


def check_verification(verify: str) -> None:
    """Raises ValueError for a `Verification` that there is not."""
    _check_choice("verify", verify, get_args(Verification))


def current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings under the names of today; raises ValueError where one has both of its names."""
    for earlier, name in _NAMES.items():
        if earlier in saved and name in saved:
            raise ValueError(f"{earlier} and {name} are one setting, and both are given: leave {earlier} out")
    return {_NAMES.get(name, name): value for name, value in saved.items()}


def _names(kind: type) -> set[str]:
    return {item.name for item in fields(kind)}


def _check_count(name: str, value: Any, least: int, wanted: str) -> None:
    if not is_whole(value, least):
        raise ValueError(f"{name} is {value!r}: give a whole number, {wanted}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
