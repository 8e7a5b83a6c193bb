"""What the server keeps of a context and of its jobs beside the context itself: JSON files, whole or absent."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from landmark.contexts import disk

QUEUED, READING, DONE, CANCELLED, FAILED = "queued", "reading", "done", "cancelled", "failed"
RECORD, COLLECTION, _TEXTS = "record.json", "collection", "texts"
_MOST_JOBS = 20  # finished ones that are remembered


@dataclass
class Job:
    """The reading of documents into a context. `tokens_read` of `tokens` are those of this job.

    With `replace` they take the places of those that have their names.
    """

    id: str
    documents: list[str]
    replace: bool = False
    status: str = QUEUED
    tokens_read: int = 0
    tokens: int | None = None
    error: str | None = None
    created: float = field(default_factory=time.time)

    @property
    def open(self) -> bool:
        """Whether it is still to be done."""
        return self.status in (QUEUED, READING)


@dataclass
class Record:
    """A context of a client: a folder with this record, and a collection of its documents."""

    id: str
    name: str
    owner: str
    shared: bool = False
    created: float = field(default_factory=time.time)
    expires: float | None = None
    jobs: list[Job] = field(default_factory=list)

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= time.time()

    @property
    def job(self) -> Job | None:
        """The first job that is still to be done."""
        return next((job for job in self.jobs if job.open), None)

    def save(self, folder: Path) -> None:
        """Writes it; once this returns, no crash takes it back."""
        finished = [job for job in self.jobs if not job.open]
        for job in finished[:-_MOST_JOBS]:
            self.jobs.remove(job)
        write_json(folder / RECORD, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """The record in a folder; ValueError where there is none that is whole."""
        fields = read_json(folder / RECORD)
        try:
            jobs = [Job(**job) for job in fields.pop("jobs")]
            return cls(**fields, jobs=jobs)
        except (LookupError, TypeError) as error:
            raise ValueError(f"{folder / RECORD} is no record of a context ({error}): move {folder} away") from error


def collection_folder(folder: Path) -> Path:
    """The folder of the documents of a record in `folder`; it is made with the first of them."""
    return folder / COLLECTION


def texts_file(folder: Path, job: Job) -> Path:
    return folder / f"{_TEXTS}-{job.id}.json"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one durable step, for the eyes of this user alone."""
    folder = disk.open_folder(path.parent)
    data = json.dumps(value, ensure_ascii=True).encode()
    partial = folder / (path.name + ".tmp")
    disk.discard(partial)  # what a crash left
    disk.publish_bytes(data, partial, folder / path.name, mode=0o600)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError, naming the file, for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): restore it, or remove it") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} is no JSON object: restore it, or remove it")
    return dict(value)
