"""The contexts of a server: those that clients made, and those that it was started with."""

import logging
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from landmark.contexts import disk, either
from landmark.contexts.collection import Collection
from landmark.contexts.collection_folder import is_unused
from landmark.contexts.collection_manifest import Member, is_collection
from landmark.contexts.collection_writer import CollectionWriter
from landmark.contexts.context import Context
from landmark.contexts.documents import check_document
from landmark.contexts.lock import take_lock
from landmark.contexts.segments import Document
from landmark.files import bytes_in
from landmark.serve.engine import Engine
from landmark.serve.errors import Refusal, bad_request, no_such_context, too_busy
from landmark.serve.opened import OpenContexts
from landmark.serve.reading import Accounts, ReadingJob, new_documents
from landmark.serve.records import CANCELLED, DONE, RECORD, Job, Record, collection_folder, texts_file, write_json
from landmark.settings import KvDtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("landmark.serve")
_MOST_JOBS = 32  # of one owner that are still to be done
_ID = re.compile(r"ctx-[0-9a-f]{16}")


@dataclass(frozen=True)
class Given:
    """A context that the server was started with: everybody may ask it, nobody may change it."""

    name: str
    path: Path


@dataclass(frozen=True)
class Contents:
    """What is in a context; `generation` counts its changes."""

    generation: int = 0
    tokens: int = 0
    bytes: int = 0
    documents: Sequence[Document | Member] = ()


class Contexts:
    """All contexts of a server. Its methods are called by the engine's thread only, or before it starts.

    `folder` keeps those of clients, None if they may make none; `given` is by name. `opened` are the open ones;
    `options` are keywords of `landmark.Context.open`; what clients make keeps its blocks in `kv_dtype`.
    """

    def __init__(
        self,
        folder: Path | None,
        given: Mapping[str, Path],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        engine: Engine,
        opened: OpenContexts,
        options: dict[str, Any],
        kv_dtype: KvDtype | None,
        accounts: Accounts,
    ) -> None:
        self.folder = folder
        self.given = {name: Given(name, path) for name, path in given.items()}
        self.records: dict[str, Record] = {}
        self.model = model
        self.tokenizer = tokenizer
        self._engine = engine
        self._opened = opened
        self._options = options
        self._kv_dtype: KvDtype | None = kv_dtype
        self._accounts = accounts
        self._contents: dict[Path, Contents] = {}
        self._jobs: dict[str, ReadingJob] = {}  # that are to be done, by id
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
        """Removes what jobs that ended left behind, where a crash came before they did."""
        place = self.place(record)
        texts = {texts_file(place, job) for job in record.jobs if job.open}
        for path in set(place.glob("texts-*")) - texts:
            path.unlink()
        if record.job is None and is_collection(collection_folder(place)):
            with suppress(ValueError), CollectionWriter.open(collection_folder(place)) as writer:
                writer.discard_unfinished()

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
        raise no_such_context(self.names(owner))

    def own(self, owner: str, name: str) -> Record:
        """The context of this name or id that `owner` may change; Refusal where there is none."""
        record = self.find(owner, name)
        if isinstance(record, Given) or record.owner != owner:
            raise Refusal(403, "this context is shared: only who made it may change it", code="not_yours")
        return record

    def contents(self, found: Record | Given) -> Contents:
        """What is in a context now; of a given one, what was in it when it was first looked at."""
        path = self._path(found)
        if path not in self._contents:
            if isinstance(found, Record) and not is_collection(path):
                return Contents()
            facts, documents = either.described(path)
            self._contents[path] = Contents(facts["generation"], facts["tokens"], facts["bytes"], documents)
        return self._contents[path]

    def _path(self, found: Record | Given) -> Path:
        return found.path if isinstance(found, Given) else collection_folder(self.place(found))

    def to_ask(self, owner: str, name: str) -> tuple[Path, int]:
        """The folder of a context and the number of its last change; Refusal while nothing of it is read."""
        found = self.find(owner, name)
        contents = self.contents(found)
        if isinstance(found, Record) and not contents.documents:
            what = "is still being read" if found.job else "is empty"
            raise Refusal(409, f"the context {what}", code="context_not_ready", retry_after=2)
        return self._path(found), 0 if isinstance(found, Given) else contents.generation

    def asked(self, owner: str, name: str) -> Context:
        """A context, opened to be asked. Called beside the engine's thread, which says which one it is."""
        return self._opened.get(*self._engine.call(lambda: self.to_ask(owner, name)).result())

    # Making and deleting.

    def create(
        self, owner: str, name: str, documents: Sequence[tuple[str, str]], *, shared: bool, ttl: float | None
    ) -> Record:
        """A new context, in one step with the job that reads its `documents`, if there are any.

        Refusal for a name that the owner has already, where clients may make none, and as by `add`.
        """
        if self.folder is None:
            raise Refusal(403, "this server keeps no contexts of clients: start it with --data", code="read_only")
        if any(
            record.owner == owner and record.name == name and not record.expired for record in self.records.values()
        ):
            raise Refusal(409, f"you have a context named {name}: delete it, or take another name", param="name")
        if shared and (name in self.given or any(r.shared and r.name == name for r in self.records.values())):
            raise Refusal(409, f"there is a shared context named {name}: take another name", param="name")
        record = Record(f"ctx-{token_hex(8)}", name, owner, shared, expires=_expiry(ttl))
        place = self.place(record)
        try:
            place.mkdir(mode=0o700)
            disk.sync_folder(self._lock.folder)  # the record is durable, and so must be the folder that it is in
            if documents:
                self.add(record, documents)
            else:
                record.save(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self.records[record.id] = record
        return record

    def set_expiry(self, record: Record, ttl: float | None) -> None:
        record.expires = _expiry(ttl)
        record.save(self.place(record))

    def delete(self, record: Record) -> None:
        """Removes a context: its record first, so that no crash and no power cut brings it back."""
        place = self.place(record)
        folder = disk.open_folder(place)
        disk.remove(folder / RECORD)
        disk.sync_folder(folder)
        del self.records[record.id]
        for job in record.jobs:
            if job.open:
                job.status = CANCELLED
        self._changed(record)
        shutil.rmtree(place, ignore_errors=True)  # what a job still holds goes when that ends

    def remove_expired(self) -> None:
        """Deletes contexts whose time is over."""
        for record in [record for record in self.records.values() if record.expired]:
            try:
                self.delete(record)
            except OSError as error:  # nobody can ask it any more; the next call tries again
                log.warning("an expired context cannot be deleted: %s", error)

    def bytes_of(self, owner: str) -> int:
        """Bytes on disk of the contexts of an owner, with what is being read; what they share counts once."""
        return bytes_in(self.place(record) for record in self.records.values() if record.owner == owner)

    # Documents.

    def add(self, record: Record, documents: Sequence[tuple[str, str]], *, replace: bool = False) -> Job:
        """Starts a job that reads documents, pairs of a name and a text; with `replace` for others of their names.

        Texts that the context holds already are left out. Refusal for another text under a known name without
        `replace`, for one that a job works on, and for too many jobs.
        """
        for name, text in documents:
            try:
                check_document(name, text)
            except ValueError as error:
                raise bad_request(str(error), "documents") from error
            self._check_idle(record, name)
        waiting = sum(job.open for other in self.records.values() if other.owner == record.owner for job in other.jobs)
        if waiting >= _MOST_JOBS:
            raise too_busy(10, f"{waiting} of your jobs are still to be done")
        held: Any = self.contents(record).documents  # of a record those of a collection
        new = new_documents(held, documents, replace=replace)
        job = Job(f"job-{token_hex(8)}", [name for name, _ in new], replace)
        if new:
            self._keep(record, job, new)
            self._start(record, job)
        else:
            job.status, job.tokens = DONE, 0
        return job

    def _keep(self, record: Record, job: Job, documents: Sequence[tuple[str, str]]) -> None:
        """Writes a job down, with its texts; it is none of the record's if that cannot be done."""
        place = self.place(record)
        texts = texts_file(place, job)
        try:
            write_json(texts, {"documents": [{"name": name, "text": text} for name, text in documents]})
            record.jobs.append(job)
            record.save(place)
        except BaseException:
            if job in record.jobs:
                record.jobs.remove(job)
            with suppress(OSError):
                texts.unlink(missing_ok=True)
            raise

    def _check_idle(self, record: Record, name: str) -> None:
        """Refusal for a document that a job is to read."""
        if any(job.open and name in job.documents for job in record.jobs):
            what = f"a document named {name} is being read: wait until its job is done, or cancel it"
            raise Refusal(409, what, param="documents", code="document_exists")

    def remove_document(self, record: Record, name: str) -> None:
        """Removes a document; Refusal where there is none of this name, or where a job is to read it."""
        self._check_idle(record, name)
        if not any(member.name == name for member in self.contents(record).documents):
            raise Refusal(404, "the context has no such document", param="document", code="document_not_found")
        reading = next((job for job in self._jobs.values() if job.record is record and job.collection), None)
        if reading is not None and reading.collection is not None:  # it has the lock
            reading.collection.remove(name)
        else:
            with CollectionWriter.open(self._path(record)) as writer:
                writer.remove([name])
        self._changed(record)

    def cancel(self, record: Record, job: Job) -> None:
        """Ends a job before its next chunk; the context is as it was before."""
        if job.open:
            job.status = CANCELLED
            record.save(self.place(record))

    def _start(self, record: Record, job: Job) -> None:
        place = self.place(record)
        reading = ReadingJob(record, job, place, lambda: self._to_read(record), self._accounts, self._finished)
        self._jobs[job.id] = reading
        self._engine.read(reading)

    def _to_read(self, record: Record) -> Collection:
        """The collection of a record, open for writing; it shares the documents of its owner's other contexts."""
        path = self._path(record)
        others = [self._path(one) for one in self.records.values() if one.owner == record.owner and one is not record]
        options: dict[str, Any] = {**self._options, "share": others}
        if is_unused(path):
            return Collection.create(path, self.model, self.tokenizer, kv_dtype=self._kv_dtype, **options)
        return Collection.open(path, self.model, self.tokenizer, write=True, verify="manifest", **options)

    def _finished(self, reading: ReadingJob) -> None:
        del self._jobs[reading.job.id]
        self._changed(reading.record)
        if reading.record.id not in self.records:
            shutil.rmtree(reading.folder, ignore_errors=True)

    def _changed(self, record: Record) -> None:
        path = self._path(record)
        self._contents.pop(path, None)
        self._opened.forget(path)

    def close(self) -> None:
        self._opened.clear()
        if self.folder is not None:
            self._lock.close()


def _expiry(ttl: float | None) -> float | None:
    return None if ttl is None else time.time() + ttl
