"""How a text is read by the peers of landmark attention, in an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from landmark.hf.calls import Reader


@dataclass(frozen=True)
class SegmentReading:
    """Segments of `chunk_size` ordinary tokens through a reader that `make` makes for each text.

    Of the keys before its segment a token attends to the newest `keep`, and to `extra` more wherever they are. A window
    that slides (attention "sinks") is another thing: there it is the newest `keep`, the token's own included, and the
    first `sinks` of the text.
    """

    attention: str
    chunk_size: int
    make: Callable[[], Reader]
    keep: int = 0
    extra: int = 0
    sinks: int = 4

    def start(self, config: Any) -> dict[str, Any]:
        """Keyword arguments of every forward over one text, segment by segment; they remember what was read."""
        return {"landmark_reader": self.make(), "use_cache": False}

    def attended(self, length: int) -> float:
        """Keys, its own included, that a token attends to on average over `length` tokens."""
        positions = np.arange(length)
        if self.attention == "sinks":
            return float(np.minimum(positions + 1, self.keep + self.sinks).mean())
        inside = positions % self.chunk_size
        before = positions - inside
        return float((inside + 1 + np.minimum(before, self.keep + self.extra)).mean())
