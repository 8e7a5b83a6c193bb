"""The routes of contexts: make, list, get, expire, delete; of their documents; and of the jobs that read these."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, UploadFile
from fastapi.responses import StreamingResponse

from landmark.data.text import decoded
from landmark.serve.context_fields import context_fields, job_fields
from landmark.serve.errors import Refusal, bad_request, no_such_context
from landmark.serve.http import Here, Who, in_engine
from landmark.serve.keys import Caller
from landmark.serve.names import document_name
from landmark.serve.protocol import (
    ContextChange,
    ContextFields,
    ContextList,
    ContextRequest,
    Deleted,
    DocumentBody,
    DocumentsRequest,
    JobFields,
    JobList,
)
from landmark.serve.records import Job, Record
from landmark.serve.responses import DONE, EVENTS, sse
from landmark.serve.server import Server

_SECONDS = 0.2  # between two looks at a job's progress
router = APIRouter(prefix="/v1/contexts")


@router.post("", status_code=201)
async def create(body: ContextRequest, caller: Who, server: Here) -> ContextFields:
    """Makes a context; documents that come with it are read by a job."""
    contexts = server.contexts
    documents = [(document_name(one.name), one.text) for one in body.documents]

    def make() -> ContextFields:
        server.check_room(caller, new_context=True)
        record = contexts.create(caller.name, body.name, documents, shared=body.shared, ttl=body.ttl)
        return context_fields(contexts, record, caller.name)

    return await in_engine(server, make)


@router.get("")
async def list_all(caller: Who, server: Here) -> ContextList:
    """The contexts that the caller may ask."""
    contexts = server.contexts

    def listed() -> ContextList:
        found = [*contexts.visible(caller.name), *contexts.given.values()]
        return ContextList(data=[context_fields(contexts, one, caller.name) for one in found])

    return await in_engine(server, listed)


@router.get("/{context}")
async def get(context: str, caller: Who, server: Here) -> ContextFields:
    """One context, by its name or id."""
    contexts = server.contexts
    return await in_engine(server, lambda: context_fields(contexts, contexts.find(caller.name, context), caller.name))


@router.patch("/{context}")
async def change(context: str, body: ContextChange, caller: Who, server: Here) -> ContextFields:
    """Sets when a context expires."""
    contexts = server.contexts

    def set_expiry() -> ContextFields:
        record = contexts.own(caller.name, context)
        contexts.set_expiry(record, body.ttl)
        return context_fields(contexts, record, caller.name)

    return await in_engine(server, set_expiry)


@router.delete("/{context}")
async def delete(context: str, caller: Who, server: Here) -> Deleted:
    """Deletes a context."""

    def remove() -> Deleted:
        record = server.contexts.own(caller.name, context)
        server.contexts.delete(record)
        return Deleted(id=record.id)

    return await in_engine(server, remove)


# Documents and the jobs that read them.


@router.post("/{context}/documents", status_code=202)
async def add_documents(context: str, body: DocumentsRequest, caller: Who, server: Here) -> JobFields:
    """Adds texts; they are read by the job that it returns."""
    return await _add(server, caller, context, [(document_name(one.name), one.text) for one in body.documents])


@router.post("/{context}/files", status_code=202)
async def add_files(context: str, files: list[UploadFile], caller: Who, server: Here) -> JobFields:
    """Adds uploaded files, texts in UTF-8; they are read by the job that it returns."""
    return await _add(server, caller, context, [await _uploaded(file) for file in files])


@router.put("/{context}/documents/{document}", status_code=202)
async def put_document(context: str, document: str, body: DocumentBody, caller: Who, server: Here) -> JobFields:
    """Adds a text under this name, in the place of another one; the job that it returns reads it."""
    return await _add(server, caller, context, [(document_name(document), body.text)], replace=True)


@router.delete("/{context}/documents/{document}")
async def delete_document(context: str, document: str, caller: Who, server: Here) -> Deleted:
    """Removes a document. Its space comes back, unless another context of the caller has the same text."""

    def remove() -> Deleted:
        server.contexts.remove_document(server.contexts.own(caller.name, context), document_name(document))
        return Deleted(id=document, object="context.document.deleted")

    return await in_engine(server, remove)


async def _add(
    server: Server, caller: Caller, context: str, documents: list[tuple[str, str]], *, replace: bool = False
) -> JobFields:
    def begin() -> JobFields:
        record = server.contexts.own(caller.name, context)
        server.check_room(caller)
        return job_fields(server.contexts.add(record, documents, replace=replace))

    return await in_engine(server, begin)


async def _uploaded(file: UploadFile) -> tuple[str, str]:
    """Name and text of an uploaded file."""
    name = document_name(file.filename or "")
    try:
        return name, decoded(name, await file.read())
    except ValueError as error:
        raise bad_request(str(error), "files") from error


@router.get("/{context}/jobs", response_model=JobList, responses=EVENTS)
async def jobs(request: Request, context: str, caller: Who, server: Here, stream: bool = False) -> Any:
    """The jobs of a context of the caller's own; with `stream` events of their progress, up to the end of the last."""
    record = await in_engine(server, lambda: server.contexts.own(caller.name, context))
    if stream:
        return StreamingResponse(_progress(server, record, request), media_type="text/event-stream")
    return JobList(data=await in_engine(server, lambda: [job_fields(job) for job in record.jobs]))


@router.delete("/{context}/jobs/{job}")
async def cancel(context: str, job: str, caller: Who, server: Here) -> JobFields:
    """Cancels a job; the context is as it was before. A job that is done stays done."""

    def end() -> JobFields:
        record = server.contexts.own(caller.name, context)
        found = next((one for one in record.jobs if one.id == job), None)
        if found is None:
            raise Refusal(404, "there is no such job", param="job", code="job_not_found")
        server.contexts.cancel(record, found)
        return job_fields(found)

    return await in_engine(server, end)


async def _progress(server: Server, record: Record, request: Request) -> AsyncIterator[str]:
    """An event for each change of the jobs of a record, and the last state of each."""
    told: dict[str, str] = {}

    def state() -> tuple[list[JobFields], Job | None]:
        if record.id not in server.contexts.records:
            raise no_such_context([])
        return [job_fields(job) for job in record.jobs], record.job

    while not await request.is_disconnected():
        try:
            jobs, unfinished = await in_engine(server, state)
        except Refusal:
            return
        for job in jobs:
            text = job.model_dump_json()
            if told.get(job.id) != text:
                told[job.id] = text
                yield sse(json.loads(text))
        if unfinished is None:
            yield DONE
            return
        await asyncio.sleep(_SECONDS)
