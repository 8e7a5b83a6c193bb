"""Attention calls: how all layers attend in one forward of a converted model.

`WholeCall` is the grouped softmax over a whole input (training), `SegmentCall` hands segments to a `Reader`. Three more
are defined where their parts are: `chunks.ChunkCall` reads through a cache, `joined.JoinedCall` reads chunks of several
texts through theirs, `sequence_parallel.SlicedCall` shares a window among processes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landmark.hf.compat import UnsupportedRelease
from landmark.hf.rope import Rope
from landmark.hf.sliding import sliding_attention
from landmark.ops.attention import grouped_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.stream import Stream


@dataclass(frozen=True)
class StreamCall:
    """Base of all calls over a stream of tokens and landmarks; implements `AttentionCall` but for `attend`.

    `kinds[layer]` is "landmark" or "sliding", `calls` lists the layers that have attended so far.
    """

    stream: Stream
    ropes: list[Rope]
    rotations: dict[Rope, Rotation]
    kinds: list[str]
    calls: list[int] = field(default_factory=list, kw_only=True)

    def rotates(self, layer: int) -> bool:
        """Whether the call rotates this layer's queries and keys: native sliding layers rotate as they always did."""
        return self.kinds[layer] == "landmark" and self.ropes[layer].style != "none"

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Attention of one layer, see `AttentionCall.attend`."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises UnsupportedRelease unless each layer attended by this call exactly once."""
        for layer in range(len(self.kinds)):
            if self.calls.count(layer) != 1:
                raise UnsupportedRelease(
                    f"layer {layer} attended {self.calls.count(layer)} times through landmark attention in one forward"
                    " instead of once (was set_attn_implementation() called after conversion? landmark.convert(model)"
                    " puts that right)"
                )

    @property
    def start(self) -> int | Tensor:
        """Stream position of the first token, or of each row's `[B, 1]`."""
        return 0

    @property
    def outputs(self) -> list[Any]:
        """Outputs of the base model for the earlier parts of the same input."""
        return []

    def join(self, last: Tensor, earlier: list[Tensor]) -> Tensor:
        """Hidden states of the whole input, from `last [B, T, C]` of this stream and those of the `earlier` parts."""
        return torch.cat([*earlier, self.stream.strip(last)], 1)

    def finish(self, hidden: Tensor) -> None:
        """Counts the tokens as read, once every layer has attended; `hidden [B,T,C]` is what the last one gave."""


# The whole input at once: training.


@dataclass(frozen=True)
class WholeCall(StreamCall):
    """The grouped softmax over a whole input (section 3.1 of the paper): training, and any forward without a cache.

    `positions [T]` or `[B, T]` are rotary positions. Without `gates` landmarks are read as tokens of plain attention.
    `block_dropout` is the probability that a layer closes a block to all later queries of its row. `documents [B, T]`
    numbers the documents packed into one window: a query sees tokens, and blocks by their landmark, of its own only.
    """

    block_size: int
    positions: Tensor
    phase: int = 0
    gates: bool = True
    block_dropout: float = 0.0
    documents: Tensor | None = None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        if self.kinds[layer] == "sliding":
            positions = torch.arange(query.shape[-2], device=query.device)[None]
            return sliding_attention(query, key, value, positions, positions, scoring, self.documents)
        if self.rotates(layer):
            rotation = self.rotations[self.ropes[layer]]
            positions = self.positions if self.positions.dim() == 1 else self.positions[:, None]
            query, key = rotation.apply(query, positions), rotation.apply(key, positions)
        if not self.gates:
            return _causal_attention(query, key, value, scoring, self.documents)
        return grouped_attention(
            query,
            key,
            value,
            scoring,
            block_size=self.block_size,
            phase=self.phase,
            key_mask=self._open_blocks(key) if self.block_dropout else None,
            document_ids=self.documents,
        )

    def _open_blocks(self, key: Tensor) -> Tensor:
        """Mask `[B, T]` that hides the landmarks of dropped blocks and nothing else."""
        positions = torch.arange(key.shape[2], device=key.device)
        landmark = (positions + self.phase) % (self.block_size + 1) == self.block_size
        dropped = torch.rand(key.shape[0], key.shape[2], device=key.device) < self.block_dropout
        return ~(dropped & landmark)


def jumping_positions(width: int, block_size: int, phase: int, jumps: Tensor | None, device: torch.device) -> Tensor:
    """Rotary positions of a window of `width`: `[T]`, or `[B, T]` that advance by `jumps [B, n]` after each landmark.

    The positional augmentation of the paper's appendix E: distances within a block stay, blocks stand farther apart.
    Raises ValueError for fewer jumps than the window has landmarks.
    """
    positions = torch.arange(width, device=device)
    if jumps is None:
        return positions
    landmarks_before = (positions + phase) // (block_size + 1)
    needed = int(landmarks_before[-1])
    if jumps.dim() != 2 or jumps.shape[1] < needed or bool((jumps < 0).any()):
        raise ValueError(f"jumps {tuple(jumps.shape)}: give {needed} numbers of 0 or more for each row")
    return positions + nn.functional.pad(jumps, (1, 0)).cumsum(1)[:, landmarks_before]


def documents_of_stream(stream: Stream, documents: Tensor) -> Tensor:
    """Document numbers of stream positions `[B, T]` from those of ordinary tokens, `documents [B, S]`.

    A landmark belongs to the document of the token before it. It opens its block to that document alone, which loses
    nothing: a document that ended earlier in the block has no later query. Positions after a row's end are undefined.
    Raises ValueError unless there is one whole number for each token.
    """
    shape = tuple(stream.positions.shape)
    whole = isinstance(documents, Tensor) and documents.dtype in (torch.int32, torch.long)
    if not whole or documents.shape != shape:
        given = f"{documents.dtype} of {tuple(documents.shape)}" if isinstance(documents, Tensor) else repr(documents)
        raise ValueError(
            f"landmark_documents is {given}: give a tensor of whole numbers, one for each token of {shape}"
        )
    documents = documents.to(stream.positions.device)
    zero = documents.new_zeros(())
    ordinary = stream.insert(torch.ones_like(documents), zero) == 1
    inserted = stream.insert(documents, zero)
    return torch.where(ordinary, inserted, inserted.roll(1, dims=1))


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, documents: Tensor | None) -> Tensor:
    """Causal attention that reads landmarks as tokens: one block without an end."""
    if scoring.softcap is None and scoring.sinks is None and documents is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=scoring.dropout, is_causal=True, scale=scoring.scale, enable_gqa=True
        )
    # The landmark of the block would come after the last key.
    return grouped_attention(query, key, value, scoring, block_size=key.shape[-2], document_ids=documents)


# Segment by segment: recurrent readers.

ENDLESS = 1 << 62  # a block so long that no landmark ever ends it


class Reader(ABC):
    """Attention over a text that is read in segments of at most `segment` ordinary tokens, with a state of its own.

    All rows of a batch are equally long. `block_size` is `ENDLESS` where streams have no landmarks. `seen` counts the
    ordinary tokens read, those of the first block before the text (the phase of a training window) included.
    `recomputable` is whether a layer may attend again in the backward pass, as gradient checkpointing lets it, to the
    same result and without a change of state.
    """

    block_size = ENDLESS
    recomputable = False

    def __init__(self, segment: int, *, phase: int = 0) -> None:
        if segment < 1:
            raise ValueError(f"a segment has {segment} tokens: give 1 or more")
        self.segment = segment
        self.seen = phase

    @abstractmethod
    def reach(self, width: int) -> int:
        """Rotary positions needed to attend over a segment of `width` stream positions."""

    @abstractmethod
    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        """Attention of one layer: `query [B,H,T,D]`, `key`, `value [B,Hkv,T,D]`, before rotary, to `[B,H,T,D]`.

        `module` is the attention module of the layer, `module.layer_idx` its number. Updates the reader's state.
        """

    def lay_out(self, tokens: Tensor) -> Stream:
        """The stream of the next segment, `tokens [B, S]` or embeddings `[B, S, C]`."""
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Stream.lay_out(real, torch.full((len(tokens),), self.seen, device=tokens.device), self.block_size)


@dataclass(frozen=True)
class SegmentCall(StreamCall):
    """Attention of one segment, computed by `reader`; `earlier` are the outputs of the input's earlier segments."""

    reader: Reader
    earlier: list[Any]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        rotation = self.rotations[self.ropes[module.layer_idx]]  # type: ignore[index]
        return self.reader.attend(module, query, key, value, rotation, scoring)

    @property
    def outputs(self) -> list[Any]:
        return self.earlier

    def finish(self, hidden: Tensor) -> None:
        self.reader.seen += self.stream.positions.shape[1]
