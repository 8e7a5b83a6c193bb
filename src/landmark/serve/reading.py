"""A job that reads documents into the next version of a context. It survives a restart, and leaves nothing if it fails.

The newest version can be asked all the while. Its fork shares its bytes (hard links), so that a version costs what is
added to it.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from landmark.contexts import folder as folders
from landmark.contexts.context import Context
from landmark.contexts.manifest import has_manifest
from landmark.serve.engine import Paused
from landmark.serve.errors import Refusal
from landmark.serve.records import CANCELLED, DONE, FAILED, READING, Job, Record, read_json, texts_file, version_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("landmark.serve")


class Cancelled(Exception):
    """Raised between two chunks of a job that a client cancelled."""


class Accounts(Protocol):
    """What owners may use, and what they used."""

    def check_reading(self, record: Record, version: Path) -> None:
        """Refusal for an owner whose contexts take too many bytes, that of `record` those of the folder `version` which
        grows, or who has read too many tokens."""
        ...

    def count_read(self, owner: str, tokens: int) -> None:
        """Counts tokens that were read."""
        ...


@dataclass(eq=False)
class ReadingJob:
    """Implements `landmark.serve.engine.Reading` for one job of a record in `folder`; `finished` is called at its end.

    `options` are keywords of `Context.open`.
    """

    record: Record
    job: Job
    folder: Path
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    options: dict[str, Any]
    accounts: Accounts
    finished: Callable[["ReadingJob"], None]

    @property
    def owner(self) -> str:
        return self.record.owner

    def run(self, between: Callable[[], None]) -> None:
        """Reads; Paused, and the job stays to be done, where `between` raises that."""
        try:
            self._check_wanted()
            self._read(between)
        except Paused:
            raise
        except Cancelled:
            self._end(CANCELLED)
        except Refusal as error:
            self._end(FAILED, error.message)
        except (ValueError, OSError) as error:
            log.warning("reading job %s failed: %s", self.job.id, error)
            self._end(FAILED, _told(error))
        except Exception:
            self._end(FAILED, "the server failed; its log says how")
            raise
        else:
            self._end(DONE)

    def _check_wanted(self) -> None:
        if self.job.status == CANCELLED or self.record.expired:
            raise Cancelled

    def _read(self, between: Callable[[], None]) -> None:
        self.job.status = READING
        self.record.save(self.folder)
        texts = read_json(texts_file(self.folder, self.job))["documents"]

        path = version_folder(self.folder, self.job.version)

        def move(tokens: int) -> None:
            self.job.tokens_read += tokens
            self.accounts.count_read(self.owner, tokens)
            self.accounts.check_reading(self.record, path)
            between()
            self._check_wanted()

        with self._writing(path) as context:
            context.add(context.missing([(one["name"], one["text"]) for one in texts]))
            unread = context.tokens - context.tokens_read
            if self.job.tokens is None:
                self.job.tokens = unread
                self.record.save(self.folder)
            self.job.tokens_read = self.job.tokens - unread
            context.read(progress=move)

    def _writing(self, path: Path) -> Context:
        """The next version, open for writing: where a restart left it, a fork of the newest, or an empty one."""
        begun = has_manifest(path)
        if not begun and not self.record.version:
            return Context.create(path, self.model, self.tokenizer, **self.options)
        if not begun:
            folders.fork(version_folder(self.folder, self.record.version), path)
        return Context.open(path, self.model, self.tokenizer, write=True, verify="manifest", **self.options)

    def _end(self, status: str, error: str | None = None) -> None:
        """Makes the version the newest, or removes it. The record decides: what it does not name is removed later."""
        self.job.status, self.job.error = status, error
        gone = self.job.version
        if status == DONE:
            gone, self.record.version = self.record.version, self.job.version
        else:
            remove_version(self.folder, gone)  # first: the disk may be full
        if self.folder.exists():
            self.record.save(self.folder)
            texts_file(self.folder, self.job).unlink(missing_ok=True)
        self.finished(self)
        remove_version(self.folder, gone)


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder, 0 without one. Files may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def remove_version(folder: Path, version: int) -> None:
    """Removes a version if it is there; one that cannot be removed now is removed at the next start."""
    path = version_folder(folder, version)
    if version and path.is_dir():
        with suppress(ValueError, OSError):
            folders.delete(path)


def _told(error: Exception) -> str:
    """What a client is told: nothing of the server's files."""
    if isinstance(error, OSError):
        return f"the server could not write ({error.strerror or type(error).__name__})"
    return "these documents cannot be read into this context; the server's log has the reason"
