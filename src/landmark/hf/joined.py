"""Several texts read by one forward: their tokens stand side by side, and each attends through a cache of its own.

All that a decoder computes but attention belongs to one token alone, so projections, feed-forward networks and the head
read their weights once for all texts. Attention is handed out: each text's queries, keys and values go to the memories
of its own cache. Texts may be of any length and of different contexts, and one may complete a block where another does
not: nothing is padded, and no text sees another.

A model that mixes tokens elsewhere would mix texts. That is not guessed from its name: `why_apart` reads some tokens
both ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from landmark.hf.cache import LandmarkCache
from landmark.hf.calls import StreamCall
from landmark.hf.chunks import ChunkCall, attend_side_by_side
from landmark.hf.compat import cache_kwargs
from landmark.hf.config import landmark_settings
from landmark.hf.finite import check_logits
from landmark.hf.hooks import chunk_call, forward_arguments
from landmark.hf.inputs import Inputs
from landmark.hf.model import ordinary_tokens
from landmark.memory.decode import FewTokens
from landmark.ops.scoring import Scoring
from landmark.stream import Stream

# Relative distance of logits computed together and apart: rounding through all layers, and far from another text's.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUNDING_16_BITS = 0.1


@dataclass(frozen=True)
class JoinedCall(StreamCall):
    """Attention of chunks of several texts, one row each, in one stream `[1, T]`: `parts[i]` at `spans[i]` of it.

    A part that fails leaves its error in `errors`, by its number, and zeros in the place of its output; the others go
    on.
    """

    parts: list[ChunkCall]
    spans: list[slice]
    errors: dict[int, Exception] = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, parts: list[ChunkCall]) -> "JoinedCall":
        """The call of chunks that are read whole: one token and more each, without padding."""
        spans, positions, width = [], [], 0
        for part in parts:
            positions.append(part.stream.positions + width)
            spans.append(slice(width, width + part.stream.width))
            width += part.stream.width
        joined = torch.cat(positions, 1)
        lengths, tokens = (torch.tensor([count], device=joined.device) for count in (width, joined.shape[1]))
        first = parts[0]
        return cls(Stream(joined, lengths, tokens, width), first.ropes, first.rotations, first.kinds, parts, spans)

    @property
    def start(self) -> Tensor:
        """What is added to the places `[T]` in this stream to give the positions in each text's own, `[1, T]`."""
        starts = [part.start - span.start for part, span in zip(self.parts, self.spans, strict=True)]
        widths = torch.tensor([part.stream.width for part in self.parts], device=starts[0].device)
        return torch.cat(starts, 1).repeat_interleave(widths, 1)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        out = query.new_zeros(*query.shape[:3], value.shape[3])
        for number, (part, span) in enumerate(zip(self.parts, self.spans, strict=True)):
            if number not in self.errors:
                own = query[:, :, span], key[:, :, span], value[:, :, span]
                try:
                    out[:, :, span] = part.attend(module, *own, scoring)
                except Exception as error:
                    self.errors[number] = error
        return out

    def attend_few(self, module: nn.Module, tokens: FewTokens, scoring: Scoring) -> Any:
        """`attend` of few tokens on a CPU: [T,H*Dv], an array; the memories of all texts share its compiled calls."""
        return attend_side_by_side(self.parts, module, tokens, scoring, self.errors)

    def finish(self, hidden: Tensor) -> None:
        finite = bool(hidden.isfinite().all())
        for number, (part, span) in enumerate(zip(self.parts, self.spans, strict=True)):
            if number not in self.errors:
                try:
                    part.finish(hidden[:, span], finite)
                except Exception as error:
                    self.errors[number] = error


@torch.no_grad()
def read_together(
    model: PreTrainedModel, caches: Sequence[LandmarkCache], tokens: Sequence[Tensor]
) -> list[Tensor | Exception]:
    """Reads the next token of several texts, `tokens[i] [1, 1]` through `caches[i]` of one row, in one forward.

    Returns for each the logits `[1, V]` of the token behind it; or the error that it alone failed with, such as the
    ValueError of an interrupted cache, or of one that insists on CUDA graphs. Its cache is interrupted then.
    """
    base: Any = model.base_model
    found: list[Any] = [None] * len(caches)
    parts: dict[int, ChunkCall] = {}
    inputs = Inputs.of(base, (), {"input_ids": tokens[0]})  # those of the others differ in their token
    for number, (cache, ids) in enumerate(zip(caches, tokens, strict=True)):
        try:
            if cache.decode == "graph":
                raise ValueError(
                    'decode="graph" is for texts that are read alone, and this one is read with others:'
                    " make its cache without it"
                )
            parts[number], _ = chunk_call(base, cache, replace(inputs, tokens=ids), None, earlier=[])
        except Exception as error:
            found[number] = error
    if not parts:
        return found
    call = JoinedCall.of(list(parts.values()))
    ids = torch.cat([tokens[number] for number in parts], 1)
    logits = model(**forward_arguments(base, call, ids, None)).logits
    finite = bool(logits.isfinite().all())
    for place, number in enumerate(parts):
        one = logits[:, place]
        found[number] = call.errors.get(place) or (one if finite else _checked(one, caches[number]))
    return found


def _checked(logits: Tensor, cache: LandmarkCache) -> Tensor | Exception:
    """`logits [1, V]`, or the error that they are not finite where the cache asks for that."""
    if not cache.settings.reading.allow_nonfinite:
        try:
            check_logits(logits)
        except ValueError as error:
            return error
    return logits


@torch.no_grad()
def why_apart(model: PreTrainedModel) -> str | None:
    """Why `model` cannot read texts together, None where it can.

    Two short texts, the next token of one of which completes a block, are continued both ways.
    """
    size, device = landmark_settings(model.config).block_size, model.device
    ordinary = min(ordinary_tokens(model), 100)
    ids = [torch.arange(count, device=device)[None] * 7 % ordinary for count in (size, 2 * size + 2)]
    ids = [row + (row == landmark_settings(model.config).landmark_id) for row in ids]
    caches = [LandmarkCache(model.config) for _ in ids]
    for cache, row in zip(caches, ids, strict=True):
        model(input_ids=row[:, :-1], **cache_kwargs(model, cache))
    last = [row[:, -1:] for row in ids]
    branches = [cache.fork() for cache in caches]
    try:
        together = read_together(model, branches, last)
    except Exception as error:
        return f"its layers fail where texts stand side by side: {error}"
    for cache, token, found in zip(caches, last, together, strict=True):
        if isinstance(found, Exception):
            return f"a text fails beside another: {found}"
        alone = model(input_ids=token, **cache_kwargs(model, cache)).logits[:, -1].double()
        tolerance = _ROUNDING.get(found.dtype, _ROUNDING_16_BITS)
        if not (found.double() - alone).norm() <= tolerance * alone.norm():
            return "what it computes for a text depends on the texts beside it"
    return None
