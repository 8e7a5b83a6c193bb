"""The memory of contexts and answers, reckoned before they take it, so that a server never takes more than it has.

Reckoned are upper bounds of what grows: landmark keys, cached blocks, traces. The model, Python and the temporaries of
one forward come on top (docs/serving.md has how this compares with what was measured).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landmark.contexts import caches
from landmark.contexts.either import manifest_of
from landmark.hf.config import landmark_settings, text_config
from landmark.process_memory import available_bytes
from landmark.store.base import parse_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIXED = 8_000_000  # of a context or an answer: windows, tables, Python's objects
_COPIES = 2  # of landmark keys beside the codes and lists of an index, of a trace beside its parts, of a growing buffer
_TRACED = 8 + 4  # bytes of a block's number and its gate
_SHARE = 0.8  # of the machine's free memory


@dataclass(frozen=True)
class Reckoning:
    """Bytes of memory, for one model and its settings of reading.

    Attributes:
        block: of a block's keys and values in all layers.
        landmarks: of its landmark keys.
        size: tokens of a block.
        traced: of what is kept of the blocks that one token opened.
        budget: of the cached blocks of one context (`--host-budget`).
    """

    block: int
    landmarks: int
    size: int
    traced: int
    budget: int

    @classmethod
    def of(cls, model: "PreTrainedModel", host_budget: int | str | None) -> "Reckoning":
        """For a model, and a budget as `landmark.Context.open` takes it."""
        layout, config, settings = (
            caches.layout(model),
            text_config(model.config),
            landmark_settings(model.config),
        )
        heads: int = config.num_attention_heads
        budget = caches.DEFAULT_HOST_BUDGET if host_budget is None else host_budget
        return cls(
            block=layout.block_bytes,
            landmarks=layout.landmark_bytes,
            size=settings.block_size,
            traced=len(layout.blocks) * heads * settings.reading.retrieve * _TRACED,
            budget=parse_bytes("host_budget", budget),
        )

    def context(self, blocks: int) -> int:
        """Of an open context of so many blocks, which are on disk: landmark keys, and what an index makes of them."""
        return FIXED + _COPIES * blocks * self.landmarks

    def answer(self, tokens: int, context_blocks: int | None) -> int:
        """Of an answer of so many tokens with its prompt, after a context of so many blocks, or after none.

        Without a context all its blocks lie in memory, otherwise as many as its budget holds.
        """
        blocks = tokens // self.size + 1
        if context_blocks is None:
            held = _COPIES * blocks * (self.block + self.landmarks)
        else:
            held = min(self.budget, (context_blocks + blocks) * self.block) + _COPIES * blocks * self.landmarks
        return FIXED + held + _COPIES * tokens * self.traced

    def of_answers(self, memory: int | None, *, reads: bool) -> int:
        """What of a server's `memory`, by default a share of the machine's that is free, open contexts and answers get.

        The rest is that of the job that reads: its cached blocks, texts and tokens. Raises ValueError where it is not
        enough for one small context and one short answer.
        """
        given = int(_SHARE * available_bytes()) if memory is None else memory
        reading = self.budget + 8 * FIXED if reads else 0
        least = reading + self.context(0) + self.answer(1, 0)
        if given < least:
            raise ValueError(
                f"memory is {given:,} bytes, and this server needs {least:,} at least beside its model: give more"
                " --memory, or less --host-budget"
            )
        return given - reading


def context_blocks(path: Path) -> int:
    """Blocks of the context or collection in a folder, by its manifest alone."""
    return manifest_of(path).blocks
