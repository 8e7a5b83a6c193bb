"""What clients see of a context and of a job."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from landmark.contexts import either
from landmark.serve.contexts import Contexts, Given
from landmark.serve.protocol import ContextFields, DocumentFields, JobFields
from landmark.serve.records import Job, Record


def job_fields(job: Job) -> JobFields:
    """A job as JSON."""
    return JobFields(
        id=job.id,
        status=job.status,  # type: ignore[arg-type]
        documents=job.documents,
        tokens_read=job.tokens_read,
        tokens=job.tokens,
        error=job.error,
        created=job.created,
    )


def context_fields(contexts: Contexts, found: Record | Given, owner: str) -> ContextFields:
    """A context as `owner` sees it."""
    path = contexts.newest(found)
    facts = {"tokens": 0, "bytes": 0, "documents": []} if path is None else _facts(path)
    if isinstance(found, Given):
        return ContextFields(
            id=found.name,
            name=found.name,
            status="ready",
            shared=True,
            writable=False,
            created=_facts(found.path)["created"],
            expires=None,
            ttl=None,
            **_shown(facts),
        )
    job = found.job
    return ContextFields(
        id=found.id,
        name=found.name,
        status="ready" if path is not None else "reading" if job else "empty",
        shared=found.shared,
        writable=found.owner == owner,
        created=found.created,
        expires=found.expires,
        ttl=None if found.expires is None else max(0.0, found.expires - time.time()),
        job=None if job is None else job_fields(job),
        **_shown(facts),
    )


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("tokens", "bytes", "documents")}


@lru_cache(maxsize=256)
def _facts(path: Path) -> dict[str, Any]:
    """Sizes of a version, which never changes, or of a given context when it was first looked at."""
    found, held = either.described(path)
    documents = [DocumentFields(name=one.name, tokens=one.tokens, bytes=one.bytes) for one in held]
    created = path.stat().st_mtime
    return {"tokens": found["tokens"], "bytes": found["bytes"], "documents": documents, "created": created}
