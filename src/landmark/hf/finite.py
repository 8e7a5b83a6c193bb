"""The check that a model computes finite numbers while it reads: NaN in memory would hide every block behind it."""

import torch
from torch import Tensor

from landmark.stream import Stream


class FiniteCheck:
    """The tensors of one forward that enter memory or leave the model, each with the place it belongs to.

    Of each only its least and greatest number are kept, and looked at together at the end, so that an accelerator is
    waited for once. Padding of the `stream` may be anything; None where there is none.
    """

    def __init__(self, stream: Stream | None = None) -> None:
        self._padding: Tensor | None = None
        if stream is not None and min(stream.rows, default=stream.width) < stream.width:
            steps = torch.arange(stream.width, device=stream.lengths.device)
            self._padding = (steps >= stream.lengths[:, None])[:, None, :, None]
        self._places: list[str] = []
        self._ranges: list[Tensor] = []

    def watch(self, place: str, *tensors: Tensor) -> None:
        """Adds tensors `[B,H,T,D]`, which are computed at `place`."""
        for tensor in tensors:
            if tensor.numel():
                shown = tensor if self._padding is None else tensor.masked_fill(self._padding, 0.0)
                self._places.append(place)
                self._ranges.append(torch.stack(torch.aminmax(shown)))  # NaN where there is one

    def check(self) -> None:
        """Raises ValueError, naming the first place, unless all that was added is finite."""
        if not self._ranges:
            return
        finite = torch.stack(self._ranges).isfinite().all(1).tolist()
        if not all(finite):
            raise ValueError(
                f"numbers that are not finite (NaN or infinity) in {self._places[finite.index(False)]}: the weights of"
                " this layer or of one before are damaged, or too large for their dtype; load a sound copy, try float32"
                " or bfloat16, or read all the same with allow_nonfinite=True"
            )
