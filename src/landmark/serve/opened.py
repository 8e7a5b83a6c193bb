"""Contexts that are kept open, within the server's memory. They are opened beside the engine's thread."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from landmark.contexts.context import Context

Key = tuple[Path, int]  # a folder, and the number of its last change
_MOST = 16


class OpenContexts:
    """At most 16 contexts that were asked last, and all that requests still hold.

    `open_context` opens the one in a folder; `reckon` says, before that, how many bytes of memory it will take, and
    `check_room` raises Refusal where there is no room for so many more. Its methods may be called by any thread.
    """

    def __init__(
        self,
        open_context: Callable[[Path], Context],
        reckon: Callable[[Path], int],
        check_room: Callable[[int], None],
    ) -> None:
        self._open = open_context
        self._reckon = reckon
        self._check_room = check_room
        self._kept: OrderedDict[Key, Context] = OrderedDict()  # by when they were asked
        self._known: WeakValueDictionary[Key, Context] = WeakValueDictionary()  # these, and those that others hold
        self._bytes: dict[Key, int] = {}
        self._opening: dict[Key, threading.Event] = {}  # set when that is over
        self._lock = threading.RLock()

    def get(self, path: Path, change: int) -> Context:
        """The context in a folder as of its `change`; raises as `landmark.Context.open` does, and Refusal."""
        key = path, change
        while (found := self._held_or_opened(key)) is None:
            pass
        with self._lock:
            self._kept[key] = found
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return found

    def _held_or_opened(self, key: Key) -> Context | None:
        """The context, opened by one thread at a time; None after another thread has opened it, or could not."""
        done = threading.Event()
        with self._lock:
            if (found := self._known.get(key)) is not None:
                return found
            opening = self._opening.setdefault(key, done)
        if opening is not done:
            opening.wait()
            return None
        try:
            return self._opened(key)
        finally:
            with self._lock:
                del self._opening[key]
            done.set()

    def _opened(self, key: Key) -> Context:
        needed = self._reckon(key[0])
        with self._lock:
            self._check_room(needed)
            self._bytes[key] = needed  # from here on it counts
        try:
            found = self._open(key[0])
        except BaseException:
            with self._lock:
                self._bytes.pop(key, None)
            raise
        self._known[key] = found
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all that are open or being opened, as they were reckoned."""
        with self._lock:
            for key in [key for key in self._bytes if key not in self._known and key not in self._opening]:
                del self._bytes[key]
            return sum(self._bytes.values())

    def shrink(self, most: int) -> bool:
        """Closes those that were not asked for longest and that no request holds; whether all take at most `most`."""
        with self._lock:
            for key in list(self._kept):
                if self.nbytes <= most:
                    break
                context = self._kept.pop(key)
                del context
                held = self._known.get(key)
                if held is not None:  # a request holds it: closing it would free nothing
                    self._kept[key] = held
            return self.nbytes <= most

    def forget(self, path: Path) -> None:
        """Closes all states of a context but those that requests hold, so that what it lost is freed."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == path]:
                del self._kept[key]

    def give_up(self, path: Path) -> None:
        """Forgets a context in which damage was found; the next request opens it anew, whoever still holds it."""
        with self._lock:
            self.forget(path)
            for key in [key for key in self._known if key[0] == path]:
                del self._known[key]

    def clear(self) -> None:
        """Closes all but those that requests hold."""
        with self._lock:
            self._kept.clear()
