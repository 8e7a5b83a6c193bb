"""What stands for a CUDA graph where there is none: operations that are repeated on the same tensors."""

from collections.abc import Callable
from typing import Any

import torch

from landmark.hf import step_graph


class Recorded:
    """Counts captures and repeated steps. A step is repeated by computing it, into the tensors of the first time."""

    def __init__(self, traced: Callable[[Any], Any] = lambda step: step) -> None:
        self.captures = self.steps = 0
        self.traced = traced

    def capture(self, step, device):
        self.captures += 1
        step = self.traced(step)
        found = step()

        def replay() -> None:
            self.steps += 1
            for old, new in zip(tensors(found), tensors(step()), strict=True):
                old.copy_(new)

        return replay, found


def stand_in(monkeypatch) -> Recorded:
    """Lets steps of decoding on a CPU be repeated like graphs."""
    recorded = Recorded()
    monkeypatch.setattr(step_graph, "_has_graphs", lambda device: True)
    monkeypatch.setattr(step_graph, "_captured", recorded.capture)
    return recorded


def tensors(found) -> list[torch.Tensor]:
    return [found.hidden, found.ranges, *(found.opened or ())]
