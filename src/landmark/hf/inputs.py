"""What the caller of a converted model passes, checked: whatever it cannot honour is refused, never ignored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from landmark.hf.cache import demand
from landmark.hf.calls import Reader
from landmark.hf.compat import UnsupportedRelease, cache_argument, renamed_cache
from landmark.hf.sequence_parallel import WindowSlice

# Keyword arguments, behind "landmark_", that change the attention of training: see `WholeCall`.
RULES = ("phase", "gates", "jumps", "block_dropout", "segments")
# Other ways to say where packed documents begin; transformers passes position_ids along with them.
_DOCUMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward of the base model.

    `tokens` are ids `[B, S]` or embeddings `[B, S, C]`, `real [B, S]` says which are no padding, `before [B, P]` what
    the mask says of columns before the input, `first [B]` at which of `position_ids` each row begins, -1 without a
    token. `documents [B, S]` numbers the documents that `position_ids` tell apart (None: one in each row), `options`
    is for the layers.
    """

    tokens: Tensor
    real: Tensor
    padded: bool
    before: Tensor
    first: Tensor | None
    documents: Tensor | None
    past: Any
    use_cache: bool
    rules: dict[str, Any]
    reader: Reader | None
    window_slice: WindowSlice | None
    options: dict[str, Any]

    @classmethod
    def of(cls, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> "Inputs":
        """Raises ValueError, naming the argument and the remedy, for whatever landmark attention cannot honour."""
        if len(args) > 1:
            raise ValueError("pass everything but input_ids to a converted model by keyword")
        options = renamed_cache(base, kwargs | ({"input_ids": args[0]} if args else {}))
        rules = {name: options.pop("landmark_" + name) for name in RULES if "landmark_" + name in options}
        reader, window_slice = options.pop("landmark_reader", None), options.pop("landmark_slice", None)
        past, use_cache = options.pop(cache_argument(base), None), bool(options.pop("use_cache", None))
        ids, embeddings = options.pop("input_ids", None), options.pop("inputs_embeds", None)
        mask, positions = options.pop("attention_mask", None), options.pop("position_ids", None)
        tokens = ids if embeddings is None else embeddings
        if tokens is None or not tokens.shape[1]:
            raise ValueError("pass input_ids or inputs_embeds of at least one token")
        before, real = _real_tokens(mask, tokens)
        positions = None if positions is None else _checked_positions(positions, real)
        first = None if positions is None else _first(positions, real)
        documents = None if positions is None else _documents(positions, real)
        _refuse(base, options, positions is not None)
        padded = mask is not None
        inputs = cls(
            tokens, real, padded, before, first, documents, past, use_cache, rules, reader, window_slice, options
        )
        inputs._check_combination()
        return inputs

    @property
    def name(self) -> str:
        """What the base model calls `tokens`."""
        return "input_ids" if self.tokens.dim() == 2 else "inputs_embeds"

    def _check_combination(self) -> None:
        reading = self.past is not None or self.reader is not None or self.use_cache
        if self.before.shape[1] and not reading:
            raise ValueError(
                f"attention_mask has {self.before.shape[1]} columns more than the input: give one for each token, or"
                " pass the cache that has read what stands before"
            )
        if self.rules and reading:
            raise ValueError(
                f"{', '.join('landmark_' + name for name in self.rules)}: for forwards without a cache or a reader"
            )
        if self.window_slice is not None and (reading or self.padded):
            raise ValueError("landmark_slice: for forwards without a cache, a reader or padding")
        if self.documents is not None and reading:
            raise ValueError(
                "position_ids begin again at 0: a cache or reader reads one text a row; read each document by itself,"
                " or pass packed documents without a cache"
            )
        if self.documents is not None and self.rules.get("segments") is not None:
            raise ValueError("position_ids and landmark_segments both tell documents apart: pass one of them")
        if self.reader is not None and (self.padded or self.past is not None):
            raise ValueError("a landmark_reader reads rows of one length and is its own cache: pass input_ids alone")


def _real_tokens(mask: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `mask` says of columns before the input `[B, P]`, and of the input itself `[B, S]`."""
    shape = tokens.shape[:2]
    if mask is None:
        ones = torch.ones(shape, dtype=torch.bool, device=tokens.device)
        return ones[:, :0], ones
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {given}: a converted model takes [batch, tokens], ones for real tokens")
    mask = mask.to(tokens.device)
    before, mask = mask[:, : mask.shape[1] - shape[1]], mask[:, mask.shape[1] - shape[1] :]
    real = mask == 1
    demand(
        # Of numbers to be added to scores, a row of zeros hides nothing.
        (real | (mask == 0)) & (real.any() if mask.is_floating_point() else True),
        "attention_mask is neither 1 nor 0 somewhere, or has no 1 at all: give ones for real tokens and zeros for"
        " padding; position_ids that begin again at 0 tell packed documents apart",
    )
    return before, real


def _checked_positions(positions: Any, real: Tensor) -> Tensor:
    if not isinstance(positions, Tensor) or positions.dim() > 2 or positions.shape[-1] != real.shape[1]:
        given = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
        raise ValueError(f"position_ids are {given}: give one for each token, [batch, tokens], or leave them out")
    return positions.to(real.device).expand(real.shape)


def _first(positions: Tensor, real: Tensor) -> Tensor:
    """The position of each row's first token `[B]`, -1 where a row has none."""
    places = real.long().argmax(1, keepdim=True)
    return torch.where(real.any(1), positions.gather(1, places)[:, 0], -1)


def _documents(positions: Tensor, real: Tensor) -> Tensor | None:
    """Numbers `[B, S]` of the documents that `positions` tell apart, each counted from 0; None for one in each row."""
    if real.shape[1] == 1:
        return None
    begins = real & (positions == 0) & (real.long().cumsum(1) > 1)
    goes_on = positions[:, 1:] == positions[:, :-1] + 1
    wrong = real[:, 1:] & real[:, :-1] & ~goes_on & ~begins[:, 1:]
    if bool(wrong.any()):
        row, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"position_ids jump from {int(positions[row, place])} to {int(positions[row, place + 1])}: landmark"
            " attention counts positions itself, and takes only those that count on by 1 or begin again at 0, where a"
            " packed document begins (landmark_jumps sets blocks farther apart)"
        )
    return begins.long().cumsum(1) if bool(begins.any()) else None


def _refuse(base: nn.Module, options: dict[str, Any], has_positions: bool) -> None:
    config: Any = base.config
    if options.get("output_attentions", getattr(config, "output_attentions", False)):
        raise ValueError(
            "output_attentions: landmark attention never builds the matrix of weights; cache.trace() tells which"
            " blocks were opened, and how far"
        )
    bounds = [name for name in _DOCUMENT_BOUNDS if options.get(name) is not None]
    if bounds and not has_positions:
        raise ValueError(
            f"{', '.join(bounds)} without position_ids: tell packed documents apart by position_ids that begin again"
            " at 0, or by landmark_segments"
        )
    caches = [name for name, value in options.items() if isinstance(value, Cache)]
    if caches:
        raise UnsupportedRelease(f"the base model was given a cache as {', '.join(caches)}, a name that is not known")


# Cutting padded rows into chunks so that each row is read as if it were alone: padding changes no result.


@dataclass(frozen=True)
class Chunk:
    """The part of an input `[B, S]` that is read at once: of row b the tokens in `columns[b]`, where `real[b]`.

    `columns` and `real` are `[B, W]`; rows that end earlier are padded on the right.
    """

    columns: Tensor
    real: Tensor

    def take(self, tokens: Tensor) -> Tensor:
        """`[B, S]` or `[B, S, C]` to `[B, W]` or `[B, W, C]`."""
        columns = self.columns.view(*self.columns.shape, *[1] * (tokens.dim() - 2))
        return tokens.gather(1, columns.expand(*self.columns.shape, *tokens.shape[2:]))

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Writes `part [B, W, C]` to its columns of `whole [B, S, C]`."""
        row, place = self.real.nonzero(as_tuple=True)
        whole[row, self.columns[row, place]] = part[row, place]


def cut(real: Tensor, first: list[int], then: int) -> list[Chunk]:
    """Chunks of an input whose tokens stand where `real [B, S]`: `first[b]` of each row, after that `then` each.

    One chunk where every row fits its first.
    """
    counts = real.sum(1).tolist()
    # Tokens in their order, padding behind them.
    columns = torch.argsort((~real).long(), dim=1, stable=True)
    starts, stops = [0] * len(counts), [min(count, size) for count, size in zip(counts, first, strict=True)]
    chunks = []
    while not chunks or any(stop > start for start, stop in zip(starts, stops, strict=True)):
        width = max(1, *(stop - start for start, stop in zip(starts, stops, strict=True)))
        steps = torch.arange(width, device=real.device)
        begin, end = (torch.tensor(x, device=real.device)[:, None] for x in (starts, stops))
        places = (begin + steps).clamp(max=real.shape[1] - 1)
        chunks.append(Chunk(columns.gather(1, places), begin + steps < end))
        starts, stops = stops, [min(count, stop + then) for count, stop in zip(counts, stops, strict=True)]
    return chunks


def fill_padding(whole: Tensor, real: Tensor) -> Tensor:
    """`whole [B, S, C]` where padding repeats the token before it, as `Stream.strip` has it."""
    places = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    last = places.masked_fill(~real, 0).cummax(1).values
    return whole.gather(1, last[..., None].expand_as(whole))
