"""API keys: who may come in, and how much each may use.

A key is 32 random bytes, so that its SHA-256 is all that the file needs to keep of it.
"""

import hashlib
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from landmark.serve.errors import over_quota
from landmark.serve.records import read_json, write_json

log = logging.getLogger("landmark.serve")
_PREFIX = "lm-"
_SECONDS = 30.0  # between two writes of what was used
LOCAL = "local"  # who everybody is on a server without keys


@dataclass(frozen=True)
class Quota:
    """The most that a key may have or use: contexts, their bytes on disk, tokens of a day (UTC). None for no limit."""

    contexts: int | None = None
    bytes: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Caller:
    """Whom a request comes from."""

    name: str
    quota: Quota = Quota()


class Keys:
    """The keys in a file, by the hash of each."""

    def __init__(self, callers: dict[str, Caller]) -> None:
        self._callers = callers

    @classmethod
    def load(cls, path: Path) -> "Keys":
        """The keys in a file; ValueError for one that is not whole."""
        return cls(_read(path)[1])

    def caller(self, key: str) -> Caller | None:
        """Whose key this is. The look-up is by hash, so that its time tells nothing of other keys."""
        return self._callers.get(_digest(key))

    def named(self, name: str) -> Caller:
        """The caller of this name; one whose key is gone has no quota, and nobody can call in that name."""
        return next((caller for caller in self._callers.values() if caller.name == name), Caller(name))

    def __len__(self) -> int:
        return len(self._callers)


def new_key(path: Path, name: str, quota: Quota) -> str:
    """Adds a key for `name` to a file, which is made if need be, and returns it; it cannot be seen again.

    Raises ValueError if there is one for `name`, and for a file that is not whole.
    """
    kept = _read(path)[0] if path.exists() else []
    if any(one["name"] == name for one in kept):
        raise ValueError(f"{path} has a key for {name}: take another name, or remove its entry from the file")
    key = _PREFIX + token_urlsafe(32)
    kept.append({"name": name, "sha256": _digest(key), "created": time.time(), "quota": asdict(quota)})
    write_json(path, {"keys": kept})
    return key


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Caller]]:
    """The entries of a file of keys, and whose they are by hash; ValueError for a file that is not whole."""
    try:
        kept = read_json(path)["keys"]
        return kept, {one["sha256"]: Caller(one["name"], Quota(**one["quota"])) for one in kept}
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} is no file of keys ({error}): make one with landmark serve --new-key") from error


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


class Usage:
    """Tokens that each caller used today (UTC), kept in a file so that a restart gives nothing back."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._day, self._tokens = _today(), Counter[str]()
        self._saved = time.monotonic()
        if path is not None and path.exists():
            kept = read_json(path)
            try:
                if kept["day"] == self._day:
                    self._tokens.update({str(name): int(tokens) for name, tokens in kept["tokens"].items()})
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{path} is no count of used tokens ({error}): restore it, or remove it") from error

    def check(self, caller: Caller) -> None:
        """Refusal for a caller that has used up the tokens of the day."""
        self._turn_page()
        most = caller.quota.tokens
        if most is not None and self._tokens[caller.name] >= most:
            raise over_quota(f"tokens a day, at most {most:,}")

    def add(self, name: str, tokens: int) -> None:
        """Counts tokens that were read or generated."""
        self._turn_page()
        self._tokens[name] += tokens
        if time.monotonic() - self._saved > _SECONDS:
            try:
                self.save()
            except OSError as error:  # of a full disk, say: the engine that counts goes on
                self._saved = time.monotonic()
                log.warning("what was used is not kept: %s", error)

    def save(self) -> None:
        if self._path is not None:
            write_json(self._path, {"day": self._day, "tokens": dict(self._tokens)})
        self._saved = time.monotonic()

    def _turn_page(self) -> None:
        if self._day != (today := _today()):
            self._day, self._tokens = today, Counter()


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
