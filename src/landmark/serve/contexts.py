"""The contexts of a server: those that clients made, and those that it was started with."""

import logging
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from landmark.contexts import disk
from landmark.contexts.context import Context
from landmark.contexts.lock import take_lock
from landmark.serve.engine import Engine
from landmark.serve.errors import Refusal, bad_request, no_such_context
from landmark.serve.reading import Accounts, ReadingJob, bytes_in, remove_version
from landmark.serve.records import CANCELLED, RECORD, Job, Record, texts_file, version_folder, write_json
from landmark.settings import Verification

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("landmark.serve")
_OPEN = 16  # contexts that are kept open
_ID = re.compile(r"ctx-[0-9a-f]{16}")


@dataclass(frozen=True)
class Given:
    """A context that the server was started with: everybody may ask it, nobody may change it."""

    name: str
    path: Path


class Contexts:
    """All contexts of a server. Its methods are called by the engine's thread only, or before it starts.

    `folder` keeps those of clients, None if they may make none; `given` is by name.
    """

    def __init__(
        self,
        folder: Path | None,
        given: Mapping[str, Path],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        engine: Engine,
        verify: Verification,
        options: dict[str, Any],
        accounts: Accounts,
    ) -> None:
        self.folder = folder
        self.given = {name: Given(name, path) for name, path in given.items()}
        self.records: dict[str, Record] = {}
        self.model = model
        self.tokenizer = tokenizer
        self._engine = engine
        self._verify: Verification = verify
        self._options = options
        self._accounts = accounts
        self._open: OrderedDict[Path, Context] = OrderedDict()
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = take_lock(disk.open_folder(folder))  # one server for a folder

    def resume(self) -> None:
        """Loads all records, removes what a crash left, and goes on with the jobs that are not done.

        Raises ValueError for a record that cannot be read.
        """
        for place in sorted(self._folders()):
            if not (place / RECORD).exists():
                shutil.rmtree(place)  # a context that was being made, or deleted
                continue
            record = Record.load(place)
            self.records[record.id] = record
            self._remove_strays(record)
            for job in record.jobs:
                if job.open:
                    self._start(record, job)

    def _folders(self) -> Iterable[Path]:
        """The folders of records. There may be others, which are not ours."""
        names = () if self.folder is None else self.folder.iterdir()
        return (path for path in names if _ID.fullmatch(path.name))

    def _remove_strays(self, record: Record) -> None:
        place = self.place(record)
        kept = {record.version, *(job.version for job in record.jobs if job.open)}
        for path in place.glob("version-*"):
            version = int(path.name.removeprefix("version-"))
            if version not in kept:
                remove_version(place, version)
        texts = {texts_file(place, job) for job in record.jobs if job.open}
        for path in set(place.glob("texts-*")) - texts:
            path.unlink()

    def place(self, record: Record) -> Path:
        """The folder of a record."""
        assert self.folder is not None
        return self.folder / record.id

    # Finding.

    def visible(self, owner: str) -> list[Record]:
        """The records that an owner may ask."""
        return [r for r in self.records.values() if (r.owner == owner or r.shared) and not r.expired]

    def names(self, owner: str) -> list[str]:
        """The names of contexts that an owner may ask."""
        return list(dict.fromkeys([*(record.name for record in self.visible(owner)), *self.given]))

    def find(self, owner: str, name: str) -> Record | Given:
        """The context of this name or id that `owner` may ask: an own one before a shared one before a given one.

        Raises Refusal where there is none, which says the same of another's.
        """
        found = [record for record in self.visible(owner) if name in (record.id, record.name)]
        found.sort(key=lambda record: (record.owner != owner, record.created))
        if found:
            return found[0]
        if name in self.given:
            return self.given[name]
        raise no_such_context()

    def own(self, owner: str, name: str) -> Record:
        """The context of this name or id that `owner` may change; Refusal where there is none."""
        record = self.find(owner, name)
        if isinstance(record, Given) or record.owner != owner:
            raise Refusal(403, "this context is shared: only who made it may change it", code="not_yours")
        return record

    def opened(self, owner: str, name: str) -> Context:
        """The newest version of a context, to be asked; Refusal while nothing of it is read."""
        found = self.find(owner, name)
        path = self.newest(found)
        if path is None:
            assert isinstance(found, Record)
            what = "is still being read" if found.job else "is empty"
            raise Refusal(409, f"the context {what}", code="context_not_ready", retry_after=2)
        return self.opened_at(path)

    def newest(self, found: Record | Given) -> Path | None:
        """The folder of the newest version; None for none."""
        if isinstance(found, Given):
            return found.path
        return version_folder(self.place(found), found.version) if found.version else None

    def opened_at(self, path: Path) -> Context:
        """The context in a folder, kept open for a while."""
        if path not in self._open:
            opened = Context.open(path, self.model, self.tokenizer, verify=self._verify, **self._options)
            self._open[path] = opened
        self._open.move_to_end(path)
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[path]

    # Making and changing.

    def create(self, owner: str, name: str, *, shared: bool, ttl: float | None) -> Record:
        """A new empty context; Refusal for a name that the owner has already, and where clients may make none."""
        if self.folder is None:
            raise Refusal(403, "this server keeps no contexts of clients: start it with --data", code="read_only")
        if any(
            record.owner == owner and record.name == name and not record.expired for record in self.records.values()
        ):
            raise Refusal(409, f"you have a context named {name}: delete it, or take another name", param="name")
        if shared and (name in self.given or any(r.shared and r.name == name for r in self.records.values())):
            raise Refusal(409, f"there is a shared context named {name}: take another name", param="name")
        record = Record(f"ctx-{token_hex(8)}", name, owner, shared, expires=_expiry(ttl))
        self.place(record).mkdir(mode=0o700)
        record.save(self.place(record))
        self.records[record.id] = record
        return record

    def set_expiry(self, record: Record, ttl: float | None) -> None:
        record.expires = _expiry(ttl)
        record.save(self.place(record))

    def add(self, record: Record, documents: Sequence[tuple[str, str]]) -> Job:
        """Starts a job that reads documents, pairs of a name and a text.

        Documents that the context holds already are left out; Refusal for another text under a known name.
        """
        place, version = self.place(record), record.last_version + 1
        self._check_new(record, documents)
        job = Job(f"job-{token_hex(8)}", [name for name, _ in documents], version)
        write_json(texts_file(place, job), {"documents": [{"name": name, "text": text} for name, text in documents]})
        record.jobs.append(job)
        record.last_version = version
        record.save(place)
        self._start(record, job)
        return job

    def _check_new(self, record: Record, documents: Sequence[tuple[str, str]]) -> None:
        names = [name for name, _ in documents]
        waiting = {name for job in record.jobs if job.open for name in job.documents}
        twice = sorted({name for name in names if names.count(name) > 1 or name in waiting})
        path = self.newest(record)
        if path is not None and not twice:
            try:
                self.opened_at(path).missing(documents)
            except ValueError:
                known = {document.name for document in self.opened_at(path).documents}
                twice = sorted(known & set(names)) or names[:1]
        if twice:
            raise Refusal(409, f"the context has a document named {twice[0]}: rename it", param="documents")
        for name, text in documents:
            if not text.strip():
                raise bad_request(f"document {name} is empty", "documents")

    def _start(self, record: Record, job: Job) -> None:
        place = self.place(record)
        reading = ReadingJob(
            record, job, place, self.model, self.tokenizer, self._options, self._accounts, self._finished
        )
        self._engine.read(reading)

    def _finished(self, reading: ReadingJob) -> None:
        self._forget(reading.folder)
        if reading.record.id not in self.records:
            shutil.rmtree(reading.folder, ignore_errors=True)

    def cancel(self, record: Record, job: Job) -> None:
        """Ends a job before its next chunk; the context is as it was before."""
        if job.open:
            job.status = CANCELLED
            record.save(self.place(record))

    def bytes_of(self, owner: str, but: Record | None = None) -> int:
        """Bytes on disk of the contexts of an owner, with what is being read; all `but` one."""
        own = (record for record in self.records.values() if record.owner == owner and record is not but)
        places = [self.place(record) for record in own]
        return sum(map(bytes_in, places))

    def delete(self, record: Record) -> None:
        """Removes a context: its record first, so that no crash brings it back."""
        place = self.place(record)
        for job in record.jobs:
            if job.open:
                job.status = CANCELLED
        del self.records[record.id]
        (place / RECORD).unlink()
        self._forget(place)
        shutil.rmtree(place, ignore_errors=True)  # what a job still holds goes when that ends

    def _forget(self, place: Path) -> None:
        for path in [path for path in self._open if path.is_relative_to(place)]:
            del self._open[path]

    def remove_expired(self) -> int:
        """Deletes contexts whose time is over; their number."""
        expired = [record for record in self.records.values() if record.expired]
        for record in expired:
            self.delete(record)
        return len(expired)

    def close(self) -> None:
        self._open.clear()
        if self.folder is not None:
            self._lock.close()


def _expiry(ttl: float | None) -> float | None:
    return None if ttl is None else time.time() + ttl
