"""What clients see of a context and of a job."""

import time
from typing import Any

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
    """A context as `owner` sees it: another's job is not among it."""
    contents = contexts.contents(found)
    documents = [DocumentFields(name=one.name, tokens=one.tokens, bytes=one.bytes) for one in contents.documents]
    shown: dict[str, Any] = {"tokens": contents.tokens, "bytes": contents.bytes, "documents": documents}
    if isinstance(found, Given):
        return ContextFields(
            id=found.name,
            name=found.name,
            status="ready",
            shared=True,
            writable=False,
            created=found.path.stat().st_mtime,
            expires=None,
            ttl=None,
            **shown,
        )
    own = found.owner == owner
    job = found.job if own else None
    return ContextFields(
        id=found.id,
        name=found.name,
        status="ready" if documents else "reading" if job else "empty",
        shared=found.shared,
        writable=own,
        created=found.created,
        expires=found.expires,
        ttl=None if found.expires is None else max(0.0, found.expires - time.time()),
        job=None if job is None else job_fields(job),
        **shown,
    )
