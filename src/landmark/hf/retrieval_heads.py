"""Heads whose landmark scores rank passages: how their scores become one for each block, and which heads of a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from landmark.assets import retrieval_heads_path
from landmark.hf.block_search import BlockSearch, SearchOf
from landmark.hf.config import landmark_settings, layer_kinds, text_config
from landmark.hf.tokenizer import encode
from landmark.index.constant import has_constant_keys
from landmark.limits import is_whole

Pooling = Literal["max", "mean", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
# Some blocks get weight whatever is asked: what these get is subtracted.
BACKGROUND = (
    "What is this text about?",
    "He looked at her for a moment and said nothing.",
    "Who said so, and when?",
    "It was late in the evening when they came home.",
)


@dataclass(frozen=True)
class RetrievalHeads:
    """Heads, pairs of a layer and a query head counted from 0, and how the tokens of a query are pooled.

    The weight of a block for a token is the softmax of the head's landmark scores over all blocks. It is pooled over
    the query's tokens ("max", "mean", or the "last" one alone) and averaged over the heads; the score of a block is
    that less what four sentences about nothing in particular give it.

    Raises ValueError for heads or a pooling that cannot be.
    """

    heads: tuple[tuple[int, int], ...]
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}: choose one of {', '.join(POOLINGS)}")
        pairs = all(len(pair) == 2 and all(is_whole(number, 0) for number in pair) for pair in self.heads)
        if not self.heads or not pairs:
            raise ValueError(f"heads are {self.heads}: give one pair (layer, head) or more, counted from 0")

    @property
    def layers(self) -> list[int]:
        """The layers of the heads."""
        return sorted({layer for layer, _ in self.heads})

    def check(self, config: PretrainedConfig) -> None:
        """Raises ValueError for heads that a model with this `config` has not, or whose landmarks are all alike."""
        known = searchable_heads(config)
        for pair in self.heads:
            if pair not in known:
                raise ValueError(
                    f"layer {pair[0]} has no head {pair[1]} with landmarks of its own: choose from layers"
                    f" {sorted({layer for layer, _ in known})} and heads 0 to {max(head for _, head in known)}"
                )

    def pooled(self, scores: Mapping[int, Tensor]) -> Tensor:
        """The weight of each block [N] from scores [H,T,N] by layer."""
        return torch.stack([pooled(scores[layer][head], self.pooling) for layer, head in self.heads]).mean(0)

    def to_dict(self) -> dict[str, Any]:
        """The heads as JSON values."""
        return {"heads": [list(pair) for pair in self.heads], "pooling": self.pooling}

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RetrievalHeads":
        """The heads in a JSON file that `save` wrote; raises ValueError for any other, and where there is none."""
        try:
            return _of_saved(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            wanted = "give a file that `landmark eval retrieval --save-heads` wrote"
            raise ValueError(f"heads is {path}, which cannot be read ({error.strerror}): {wanted}") from error
        except KeyError as error:
            raise ValueError(f"{path} is no file of heads that `landmark eval retrieval` wrote: no {error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is no file of heads that `landmark eval retrieval` wrote: {error}") from error

    @classmethod
    def of_model(cls, config: PretrainedConfig, given: "RetrievalHeads | None" = None) -> "RetrievalHeads":
        """The heads that are `given`, or those chosen for this model.

        The package has them for its own model and for SmolLM2-135M-Instruct with its adapter (docs/retrieval.md), not
        for what was trained further or otherwise, of whatever shape. Raises ValueError where there are none, and for
        heads that the model has not.
        """
        if (heads := given or cls.known(config)) is not None:
            heads.check(config)
            return heads
        raise ValueError(
            "no heads are known that rank passages in this model: choose them with `landmark eval retrieval"
            " --choose-on TEXTS --save-heads FILE`, and give that file"
        )

    @classmethod
    def known(cls, config: PretrainedConfig) -> "RetrievalHeads | None":
        """Those chosen for this model, None where there are none."""
        known_by = _known_by(config)
        entries = json.loads(retrieval_heads_path().read_text(encoding="utf-8"))
        return next((_of_saved(entry) for entry in entries if entry["known_by"] == known_by), None)


def pooled(scores: Tensor, pooling: Pooling) -> Tensor:
    """Weights [...,N] of N blocks from scores [...,T,N]: the softmax over blocks, pooled over the T tokens."""
    if pooling == "last":
        return scores[..., -1, :].softmax(-1)
    weights = scores.softmax(-1)
    return weights.amax(-2) if pooling == "max" else weights.mean(-2)


def landmark_heads(config: PretrainedConfig) -> list[tuple[int, int]]:
    """Layers and query heads that have landmarks."""
    config = text_config(config)
    layers = [layer for layer, kind in enumerate(layer_kinds(config)) if kind == "landmark"]
    return [(layer, head) for layer in layers for head in range(config.num_attention_heads)]


def searchable_heads(config: PretrainedConfig) -> list[tuple[int, int]]:
    """Those of them whose landmarks differ from block to block."""
    return [(layer, head) for layer, head in landmark_heads(config) if not has_constant_keys(layer)]


def _of_saved(saved: Any) -> RetrievalHeads:
    if not isinstance(saved, dict):
        raise ValueError(f"it holds {type(saved).__name__}, not an object with heads and pooling")
    return RetrievalHeads(tuple((layer, head) for layer, head in saved["heads"]), saved["pooling"])


def _known_by(config: PretrainedConfig) -> dict[str, int | None]:
    """What tells the models whose heads are known: the shape, and the training by its number of tokens."""
    config = text_config(config)
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    settings = landmark_settings(config)
    training = {"block_size": settings.block_size, "trained_tokens": settings.trained_tokens}
    return {name: getattr(config, name) for name in names} | training


class BlockRanker:
    """Scores the blocks of a `search` for queries by the weights of `heads`; `search_of` is that of its `scores`."""

    def __init__(
        self,
        search: BlockSearch,
        tokenizer: PreTrainedTokenizerBase,
        heads: RetrievalHeads,
        search_of: SearchOf = lambda layer, search: search,
    ) -> None:
        self._search = search
        self._tokenizer = tokenizer
        self._heads = heads
        self._search_of = search_of
        self._background = torch.stack([self._weights(text, whole=False) for text in BACKGROUND]).mean(0)

    def scores(self, query: str, *, whole: bool = True) -> Tensor:
        """The score of every block [N], on the CPU.

        Raises ValueError for a query that is empty or too long; without `whole` the last tokens of a long one count.
        """
        return self._weights(query, whole=whole) - self._background

    def _weights(self, query: str, *, whole: bool = True) -> Tensor:
        ids = encode(self._tokenizer, query, continues=True).ids
        if not whole:
            ids = ids[-self._search.longest_query :]
        return self._heads.pooled(self._search.scores(ids, self._heads.layers, self._search_of)).cpu()
