"""The check that a model computes finite numbers while it reads: NaN in memory would hide every block behind it."""

import torch
from torch import Tensor

from landmark.stream import Stream

_FEW = 1 << 14  # numbers; of a larger tensor only the range is kept


class FiniteCheck:
    """The tensors of one forward that enter memory or leave the model, each with the place it belongs to.

    All are looked at together at the end, in few operations, so that an accelerator is waited for once. Padding of the
    `stream` may be anything; None where there is none.
    """

    def __init__(self, stream: Stream | None = None) -> None:
        self._padding: Tensor | None = None
        if stream is not None and min(stream.rows, default=stream.width) < stream.width:
            steps = torch.arange(stream.width, device=stream.lengths.device)
            self._padding = (steps >= stream.lengths[:, None])[:, None, :, None]
        self._places: list[str] = []
        self._numbers: list[Tensor] = []

    def watch(self, place: str, *tensors: Tensor) -> None:
        """Adds tensors `[B,H,T,D]`, which are computed at `place`."""
        for tensor in tensors:
            if tensor.numel():
                shown = tensor if self._padding is None else tensor.masked_fill(self._padding, 0.0)
                self._places.append(place)
                # The range is NaN where there is one.
                few = shown.numel() <= _FEW
                self._numbers.append(shown.reshape(-1) if few else torch.stack(torch.aminmax(shown)))

    def watch_range(self, place: str, ends: Tensor) -> None:
        """Adds the lowest and highest numbers [n] of tensors at `place`, padding left out: NaN where there is one."""
        self._places.append(place)
        self._numbers.append(ends)

    def check(self) -> None:
        """Raises ValueError, naming the first place, unless all that was added is finite."""
        if not self._numbers or bool(torch.cat(self._numbers).isfinite().all()):
            return
        watched = zip(self._places, self._numbers, strict=True)
        place = next(place for place, numbers in watched if not numbers.isfinite().all())
        raise not_finite(place)


def not_finite(place: str) -> ValueError:
    """The error of numbers at `place` that are not finite."""
    return ValueError(
        f"numbers that are not finite (NaN or infinity) in {place}: the weights of"
        " this layer or of one before are damaged, or too large for their dtype; load a sound copy, try float32"
        " or bfloat16, or read all the same with allow_nonfinite=True"
    )


def check_logits(logits: Tensor) -> None:
    """Raises ValueError for logits that are not finite."""
    finite = FiniteCheck()
    finite.watch("the logits", logits.detach())
    finite.check()
