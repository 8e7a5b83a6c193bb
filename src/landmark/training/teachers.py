"""Teachers of a conversion: the same model before it got landmarks, with its own full attention over a whole window."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from landmark.readers.recurrent import Recurrent


class Teacher(ABC):
    """Gives the next-token logits that a student is to have."""

    @abstractmethod
    def logits(self, student: Any, input_ids: Tensor) -> Tensor:
        """Logits `[B, T, V]` of windows `[B, T]` of ordinary tokens, without gradient."""


class FrozenCopy(Teacher):
    """A second copy of the model, never converted; for students whose every weight is trained."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)

    def logits(self, student: Any, input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.to(input_ids.device)(input_ids=input_ids, use_cache=False).logits


class AdaptersOff(Teacher):
    """The student itself without its adapters, reading without landmarks: no second copy of the weights."""

    def logits(self, student: Any, input_ids: Tensor) -> Tensor:
        whole_window = Recurrent(input_ids.shape[1], 0)  # nothing carried: full attention
        was_training = student.training
        student.eval()  # no dropout, no recomputation
        try:
            with torch.no_grad(), student.disable_adapter():
                return student(input_ids=input_ids, use_cache=False, landmark_reader=whole_window).logits
        finally:
            student.train(was_training)
