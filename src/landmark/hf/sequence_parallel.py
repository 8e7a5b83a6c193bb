"""Sequence parallelism: each process holds a slice of one window, and in attention a share of the heads.

Everything in a decoder but attention is computed position by position, so a process needs only its slice of a window.
Attention is computed head by head: before it, an all-to-all turns slices of every head into whole streams of some
heads; after it, another one turns them back (Jacobs et al. 2023, "DeepSpeed Ulysses"). In between stands the attention
of a whole window, so everything that `WholeCall` can do works here as well.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PretrainedConfig

from landmark.hf.calls import WholeCall
from landmark.hf.config import key_value_heads, text_config
from landmark.ops.scoring import Scoring
from landmark.stream import Stream, stream_length


@dataclass(frozen=True)
class WindowSlice:
    """Slice `index`, from 0, of a window cut into `slices` equal ones, one for each process of `torch.distributed`.

    Passed as `landmark_slice` to a converted model's forward without a cache, it makes all processes work on the same
    window: each passes all ordinary tokens `[B, S]` and gets the outputs of those in its slice.
    """

    index: int
    slices: int

    def positions(self, width: int) -> range:
        """Stream positions of the slice in a window of `width`; the last ones may be past its end."""
        size = -(-width // self.slices)
        return range(self.index * size, (self.index + 1) * size)

    def tokens(self, tokens: int, block_size: int, phase: int) -> range:
        """Ordinary tokens of the slice, in a window of `tokens` that begins at `phase` of a block."""
        positions = self.positions(stream_length(tokens, block_size, phase))
        # Before position x there are (x + phase) // (block_size + 1) landmarks; all else are tokens.
        start, stop = (x - (x + phase) // (block_size + 1) for x in (positions.start, positions.stop))
        return range(min(start, tokens), min(stop, tokens))


def check_heads(config: PretrainedConfig, processes: int) -> None:
    """Raises ValueError unless `processes` divides the query heads and key-value heads of a model."""
    heads, key_heads = text_config(config).num_attention_heads, key_value_heads(config)
    if heads % processes or key_heads % processes:
        raise ValueError(
            f"{processes} processes cannot share {heads} query heads and {key_heads} key-value heads evenly: start a "
            f"number of processes that divides both, or give each whole windows (--parallel fsdp)"
        )


@dataclass(frozen=True, kw_only=True)
class SlicedCall(WholeCall):
    """Attention over a whole window of `width` stream positions, of which `stream` is the slice of this process."""

    window_slice: WindowSlice
    width: int

    @property
    def start(self) -> int:
        """Position in the window at which the slice begins."""
        return self.window_slice.positions(self.width).start

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Attention of one layer: `query [B,H,T/P,D]`, `key`, `value [B,Hkv,T/P,D]` to `[B,H,T/P,D]`, P processes."""
        slices = self.window_slice.slices
        shares = [heads.unflatten(1, (slices, -1)) for heads in (query, key, value)]
        whole = _exchange(torch.cat(shares, 2).movedim(1, 0)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        query, key, value = whole[:, :, : self.width].split([share.shape[2] for share in shares], 1)
        if scoring.sinks is not None:
            scoring = scoring._replace(sinks=scoring.sinks.chunk(slices)[self.window_slice.index])
        out = super().attend(module, query, key, value, scoring)
        out = nn.functional.pad(out, (0, 0, 0, whole.shape[2] - self.width))
        return _exchange(out.unflatten(2, (slices, -1)).movedim(2, 0)).movedim(0, 1).flatten(1, 2)


def cut_slice(window_slice: WindowSlice, tokens: Tensor, call: WholeCall) -> tuple[Tensor, SlicedCall]:
    """The slice of this process: of ordinary tokens `[B, S]` or their embeddings, and of the call over them."""
    stream = call.stream
    positions = window_slice.positions(stream.width)
    own = window_slice.tokens(tokens.shape[1], call.block_size, call.phase)
    within = stream.positions[:, own.start : own.stop] - positions.start
    part = Stream(within, stream.lengths, stream.tokens, len(positions))
    settings: dict[str, Any] = {field.name: getattr(call, field.name) for field in fields(call)}
    settings["stream"] = part
    sliced = SlicedCall(**settings, window_slice=window_slice, width=stream.width)
    return tokens[:, own.start : own.stop], sliced


def _exchange(parts: Tensor) -> Tensor:
    """All-to-all: sends `parts[p]` to process p and receives its part; `[P, ...]` to `[P, ...]`, differentiable."""
    # Imported here, because not every build of PyTorch has it.
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    world: Any = torch.distributed.group.WORLD
    return all_to_all_single_autograd(parts.contiguous(), None, None, world)
