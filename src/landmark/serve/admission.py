"""Who may take memory: requests wait, or are refused, until what they are reckoned to need is there."""

from collections.abc import Callable
from pathlib import Path

from landmark.contexts.context import Context
from landmark.serve.engine import Engine
from landmark.serve.errors import bad_request, memory_taken
from landmark.serve.memory import Reckoning, context_blocks
from landmark.serve.opened import OpenContexts


class Admission:
    """The memory of open contexts and running answers, of at most `budget` bytes; the contexts are `opened`."""

    def __init__(
        self, reckoning: Reckoning, budget: int, open_context: Callable[[Path], Context], engine: Callable[[], Engine]
    ) -> None:
        self._reckoning = reckoning
        self._budget = budget
        self._engine = engine
        self.opened = OpenContexts(open_context, lambda path: reckoning.context(context_blocks(path)), self._check_room)

    @property
    def nbytes(self) -> int:
        """Bytes that are taken, as they were reckoned."""
        return self.opened.nbytes + self._running()

    def of_answers(self, choices: int, tokens: int, context: Context | None) -> int:
        """Bytes of an answer with so many choices, each of so many tokens with its prompt.

        Refusal for more than the budget can ever give.
        """
        blocks = None if context is None else context.blocks
        answers = choices * self._reckoning.answer(tokens, blocks)
        self._check_possible(answers + (0 if blocks is None else self._reckoning.context(blocks)), "this answer")
        return answers

    def fits(self, running: int) -> bool:
        """Whether there is room for answers of so many bytes; contexts that nobody asks are closed for them."""
        return self.opened.shrink(self._budget - running)

    def _running(self) -> int:
        return sum(work.nbytes for work in list(self._engine().running))

    def _check_room(self, nbytes: int) -> None:
        """Refusal for a context of so many bytes, if there is no room for it."""
        self._check_possible(nbytes + self._reckoning.answer(1, 0), "this context")
        if not self.opened.shrink(self._budget - self._running() - nbytes):
            raise memory_taken()

    def _check_possible(self, nbytes: int, what: str) -> None:
        if nbytes > self._budget:
            raise bad_request(f"{what} needs {nbytes:,} bytes of memory, and the server has {self._budget:,} for it")
