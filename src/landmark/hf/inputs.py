"""The arguments of a converted model's forward, validated.

What landmark attention cannot honour raises an error and is never ignored.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from landmark.hf.calls import Reader
from landmark.hf.compat import UnsupportedRelease, cache_argument, rename_cache_argument, require
from landmark.hf.sequence_parallel import WindowSlice

# Keyword arguments, prefixed with "landmark_", that change the attention of training: see `WholeCall`.
TRAINING_ARGUMENTS = ("phase", "gates", "jumps", "block_dropout", "documents")
# Other ways to mark where packed documents begin; transformers passes position_ids along with them.
_DOCUMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward of the base model.

    `tokens` are ids `[B, S]` or embeddings `[B, S, C]`, `real [B, S]` is False at padding, `before [B, P]` is the mask
    of columns before the input, `first [B]` the position id of each row's first token, -1 without one. `documents
    [B, S]` numbers the documents that `position_ids` separate (None: one in each row). `training` holds the
    `TRAINING_ARGUMENTS` given, `options` what is passed on to the layers.
    """

    tokens: Tensor
    real: Tensor
    padded: bool
    before: Tensor
    first: Tensor | None
    documents: Tensor | None
    past: Any
    use_cache: bool
    training: dict[str, Any]
    reader: Reader | None
    window_slice: WindowSlice | None
    options: dict[str, Any]

    @classmethod
    def of(cls, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> "Inputs":
        """Validates the arguments of `base.forward`; raises ValueError, naming the argument and the remedy."""
        if len(args) > 1:
            raise ValueError("pass everything but input_ids to a converted model by keyword")
        options = rename_cache_argument(base, kwargs | ({"input_ids": args[0]} if args else {}))
        training = {
            name: options.pop("landmark_" + name) for name in TRAINING_ARGUMENTS if "landmark_" + name in options
        }
        reader, window_slice = options.pop("landmark_reader", None), options.pop("landmark_slice", None)
        if unknown := sorted(name for name in options if name.startswith("landmark_")):
            known = ", ".join("landmark_" + name for name in (*TRAINING_ARGUMENTS, "reader", "slice"))
            raise ValueError(f"{', '.join(unknown)}: unknown to a converted model, which takes {known}")
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
            tokens, real, padded, before, first, documents, past, use_cache, training, reader, window_slice, options
        )
        inputs._check_combination()
        return inputs

    @property
    def name(self) -> str:
        """The argument under which the base model takes `tokens`."""
        return "input_ids" if self.tokens.dim() == 2 else "inputs_embeds"

    def _check_combination(self) -> None:
        reading = self.past is not None or self.reader is not None or self.use_cache
        if self.before.shape[1] and not reading:
            raise ValueError(
                f"attention_mask has {self.before.shape[1]} columns more than the input: give one for each token, or"
                " pass the cache that has read the columns before it"
            )
        if self.training and reading:
            raise ValueError(
                f"{', '.join('landmark_' + name for name in self.training)}: for forwards without a cache or a reader"
            )
        if self.window_slice is not None and (reading or self.padded):
            raise ValueError("landmark_slice: for forwards without a cache, a reader or padding")
        if self.documents is not None and reading:
            raise ValueError(
                "position_ids begin again at 0: a cache or reader reads one text a row; read each document by itself,"
                " or pass packed documents without a cache"
            )
        if self.documents is not None and self.training.get("documents") is not None:
            raise ValueError("position_ids and landmark_documents both separate documents: pass one of them")
        if self.reader is not None and (self.padded or self.past is not None):
            raise ValueError("a landmark_reader reads rows of one length and is its own cache: pass input_ids alone")


def _real_tokens(mask: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Whether columns before the input `[B, P]`, and those of the input `[B, S]`, hold tokens and no padding."""
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
    require(
        # In an additive mask, a row of zeros hides nothing.
        (real | (mask == 0)) & (real.any() if mask.is_floating_point() else True),
        "attention_mask is neither 1 nor 0 somewhere, or has no 1 at all: give ones for real tokens and zeros for"
        " padding; position_ids that begin again at 0 separate packed documents",
    )
    return before, real


def _checked_positions(positions: Any, real: Tensor) -> Tensor:
    if not isinstance(positions, Tensor) or positions.dim() > 2 or positions.shape[-1] != real.shape[1]:
        given = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
        raise ValueError(f"position_ids are {given}: give one for each token, [batch, tokens], or leave them out")
    return positions.to(real.device).expand(real.shape)


def _first(positions: Tensor, real: Tensor) -> Tensor:
    """The position of each row's first token `[B]`, -1 where a row has none."""
    columns = real.long().argmax(1, keepdim=True)
    return torch.where(real.any(1), positions.gather(1, columns)[:, 0], -1)


def _documents(positions: Tensor, real: Tensor) -> Tensor | None:
    """Numbers `[B, S]` of the documents that `positions` separate, each counted from 0; None for one in each row."""
    if real.shape[1] == 1:
        return None
    begins = real & (positions == 0) & (real.long().cumsum(1) > 1)
    goes_on = positions[:, 1:] == positions[:, :-1] + 1
    wrong = real[:, 1:] & real[:, :-1] & ~goes_on & ~begins[:, 1:]
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"position_ids jump from {int(positions[row, column])} to {int(positions[row, column + 1])}: landmark"
            " attention counts positions itself, and takes only those that count on by 1 or begin again at 0, where a"
            " packed document begins (landmark_jumps sets blocks farther apart)"
        )
    return begins.long().cumsum(1) if bool(begins.any()) else None


def _refuse(base: nn.Module, options: dict[str, Any], has_positions: bool) -> None:
    config: Any = base.config
    if options.get("output_attentions", getattr(config, "output_attentions", False)):
        raise ValueError(
            "output_attentions: landmark attention never builds the matrix of weights; cache.trace() has the"
            " blocks opened and their gates"
        )
    bounds = [name for name in _DOCUMENT_BOUNDS if options.get(name) is not None]
    if bounds and not has_positions:
        raise ValueError(
            f"{', '.join(bounds)} without position_ids: separate packed documents by position_ids that begin again"
            " at 0, or by landmark_documents"
        )
    caches = [name for name, value in options.items() if isinstance(value, Cache)]
    if caches:
        raise UnsupportedRelease(f"the base model was given a cache as {', '.join(caches)}, a name that is not known")
