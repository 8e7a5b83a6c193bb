"""What stands in front of an index, or of a block store: it does some things itself and leaves it all others."""

from typing import Any


class Delegating:
    """Base of what does all that it does not define as `inner` does it."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        # A copy in the making is asked for methods of its own, before it has `inner`.
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)
