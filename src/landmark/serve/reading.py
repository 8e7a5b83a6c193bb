"""A job that reads documents into the collection of a context. It survives a restart, and leaves nothing if it fails.

The context can be asked all the while: all documents of a job become part of it in one step, when they are read.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from landmark.contexts.collection import Collection
from landmark.contexts.collection_manifest import Member
from landmark.contexts.collection_writer import missing_from
from landmark.serve.engine import Paused
from landmark.serve.errors import Refusal
from landmark.serve.records import CANCELLED, DONE, FAILED, READING, Job, Record, read_json, texts_file
from landmark.settings import LandmarkSettings

log = logging.getLogger("landmark.serve")
_PAUSE = 10  # times what looking at the bytes of an owner takes, between two looks


class Cancelled(Exception):
    """Raised between two chunks of a job that a client cancelled."""


class Accounts(Protocol):
    """What owners may use, and what they used."""

    def check_reading(self, owner: str) -> None:
        """Refusal for an owner whose contexts take too many bytes, or who has read too many tokens."""
        ...

    def count_read(self, owner: str, tokens: int) -> None:
        """Counts tokens that were read."""
        ...


@dataclass(eq=False)
class ReadingJob:
    """Implements `landmark.serve.engine.ReadingWork` for one job of a record in `folder`.

    `open_collection` opens the collection for writing; `collection` is that, while it reads. `finished` is called when
    the job has ended.
    """

    record: Record
    job: Job
    folder: Path
    open_collection: Callable[[], Collection]
    accounts: Accounts
    finished: Callable[["ReadingJob"], None]
    collection: Collection | None = None

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
        self.job.status, self.job.tokens_read = READING, 0
        self.record.save(self.folder)
        texts = read_json(texts_file(self.folder, self.job))["documents"]
        with self.open_collection() as self.collection:
            try:
                self._add(self.collection, [(one["name"], one["text"]) for one in texts], between)
            except Paused:
                raise
            except BaseException:
                with suppress(ValueError, OSError):  # else it goes with the next change
                    self.collection.discard_unfinished()
                raise
            finally:
                self.collection = None

    def _add(self, collection: Collection, documents: list[tuple[str, str]], between: Callable[[], None]) -> None:
        look = 0.0

        def move(tokens: int) -> None:
            nonlocal look
            self.job.tokens_read += tokens
            self.accounts.count_read(self.owner, tokens)
            between()
            self._check_wanted()
            if (began := time.monotonic()) >= look:
                self.accounts.check_reading(self.owner)
                look = time.monotonic() + _PAUSE * (time.monotonic() - began)

        new = new_documents(collection.documents, documents, replace=self.job.replace)
        size = LandmarkSettings.from_dict(collection.header["settings"]).block_size
        tokenized = collection.tokenized(new, move)
        self.job.tokens = sum(size * document.member.blocks for document in tokenized)
        collection.add_tokenized(tokenized, move)
        self.job.tokens_read = self.job.tokens  # those that another context shares, or that were read before, too

    def _end(self, status: str, error: str | None = None) -> None:
        self.job.status, self.job.error = status, error
        self.finished(self)
        if self.folder.exists():
            try:
                self.record.save(self.folder)
                texts_file(self.folder, self.job).unlink(missing_ok=True)
            except OSError as reason:  # the job is done again at the next start, and finds what it did
                log.warning("the end of reading job %s is not kept: %s", self.job.id, reason)


def new_documents(
    members: Sequence[Member], documents: Iterable[tuple[str, str]], *, replace: bool
) -> list[tuple[str, str]]:
    """The documents whose texts no member has; Refusal for what `landmark.Collection.missing` does not take."""
    try:
        return missing_from("the context", members, documents, replace=replace)
    except ValueError as error:
        raise Refusal(409, str(error), param="documents", code="document_exists") from error


def _told(error: Exception) -> str:
    """What a client is told: nothing of the server's files."""
    if isinstance(error, OSError):
        return f"the server could not write ({error.strerror or type(error).__name__})"
    return "these documents cannot be read into this context; the server's log has the reason"
