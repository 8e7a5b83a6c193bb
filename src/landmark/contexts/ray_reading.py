"""Documents of a collection read apart by the processes of a Ray cluster, as tasks of Ray Data.

A worker loads the model once, and reads each document to where the collection expects it: into its folder, which all
machines share, or on the worker's machine and from there to the store. What is read is named by its content, so that a
task that is run again, and a command that is, goes on or finds it done. The one manifest is written at the end.
"""

import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landmark.contexts import compatibility, disk
from landmark.contexts.apart import ApartReader, UnreadDocument
from landmark.contexts.collection import Collection
from landmark.contexts.collection_manifest import DOCUMENTS, Member
from landmark.contexts.manifest import Layout
from landmark.contexts.remote_cache import Copy
from landmark.contexts.remote_store import Store
from landmark.contexts.snapshot import Snapshot
from landmark.urls import url_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOCAL = "local"
_STORE_BYTES = 100 << 20  # of a cluster on this machine: texts pass through, and Ray puts what is more on disk
_MOST_TASKS = 4096  # of more documents, several are a task
_RETRIES = 3  # of a task whose worker died
_SECONDS = 5.0  # until a connection is there
_MOST_SECONDS = 60.0  # until a cluster has answered; loading Ray takes some of them

Load = Callable[[], "tuple[PreTrainedModel, PreTrainedTokenizerBase]"]


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address`, or to one on this machine that ends with the block.

    A process that is connected to a cluster stays so. Raises ValueError where Ray is not installed, and where no
    cluster answers.
    """
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray
    import ray.data

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    local = {"object_store_memory": _STORE_BYTES, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, **quiet, **local)
    except (SystemExit, Exception) as error:  # Ray ends a process that it cannot connect
        ray.shutdown()
        raise ValueError(f"ray is {address}, and no cluster can be had there ({_line(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raises ValueError where Ray is not installed, and for an address at which no cluster answers within a minute."""
    if find_spec("ray") is None:
        raise ValueError("--ray needs the package ray: pip install 'landmark-attention[ray]'")
    if address != LOCAL:
        _check_answers(address)


@cache
def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise _no_cluster(address, "that is no HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from error
    # ray.init waits for minutes for something that answers and is no head node, and prints lines of its own.
    asking = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(asking, timeout=_MOST_SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(
            address, f"what answers there said nothing of a cluster within {_MOST_SECONDS:g} s"
        ) from error
    if asked.returncode:
        raise _no_cluster(address, (asked.stderr.strip().splitlines() or ["no reason"])[-1][:300])


def _no_cluster(address: str, why: str) -> ValueError:
    return ValueError(
        f"ray is {address}, and no cluster answers there ({why}): give HOST:PORT of its head node, whose port is"
        f" 6379 by default, or {LOCAL} for a cluster on this machine"
    )


def read_by_ray(
    collection: Collection,
    documents: Sequence[tuple[str, str]],
    load: Load,
    address: str,
    *,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Reads `documents`, pairs of a name and a text that the collection lacks, and adds all of them in one change.

    `load` gives a worker the model that the collection was opened with. There is a worker for each GPU of the cluster,
    or each core where there is none, or as many as `workers`. `progress` is called with the tokens of each document.
    Raises ValueError for what a worker raises, and where a worker dies again and again at one document; what was read
    until then is found by the next call.
    """
    reader = collection.reader
    made = {
        "load": load,
        "where": url_of(collection.where) or str(collection.path.absolute()),
        "header": reader.header,
        "layout": reader.layout,
        "allow_nonfinite": reader.allow_nonfinite,
    }
    members = {}
    with cluster(address) as ray:
        found = _mapped(ray, documents, made, workers)
        try:
            for row in found.iter_rows():
                if error := row.pop("error"):
                    raise ValueError(f"{row['name']}: {error}")
                member = Member(**row)
                members[member.name] = member
                if progress is not None:
                    progress(member.tokens)
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"workers of {address} died ({_line(error)}): run the same command again, which finds what was read"
            ) from error
    collection.add_read(members[name] for name, _ in documents)


def _mapped(ray: Any, documents: Sequence[tuple[str, str]], made: dict[str, Any], workers: int | None) -> Any:
    """The data set of what `_Worker`s, made with the arguments `made`, return for the documents; nothing runs yet."""
    rows = [{"name": name, "text": text} for name, text in documents]
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    size = min(workers or gpus or int(resources.get("CPU", 1)), len(rows))
    _set_up(ray)
    with warnings.catch_warnings():
        # Without a bound Ray would run a document that ends its worker for ever. The argument goes with Ray 2.64.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn")
        return ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_TASKS)).map(
            _Worker,
            fn_constructor_kwargs=made,
            compute=ray.data.ActorPoolStrategy(size=size),
            ray_remote_args_fn=lambda: {"max_task_retries": _RETRIES},
            **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
        )


def _set_up(ray: Any) -> None:
    """Rows of results are small: Ray Data would reserve more memory for them than a small cluster has."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1 << 20
    context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well


class _Worker:
    """A process that reads documents. Its model is loaded with the first one, so that errors are those of a task."""

    def __init__(self, load: Load, where: str, header: dict[str, Any], layout: Layout, allow_nonfinite: bool) -> None:
        self._load = load
        self._where = where
        self._header = header
        self._layout = layout
        self._allow_nonfinite = allow_nonfinite
        self._reader: ApartReader | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The entry of a document that was read; `error` says why it was not."""
        name, text = row["name"], row["text"]
        try:
            reader = self._reader = self._reader or self._loaded()
            document = reader.tokenized(name, text)
            self._read(reader, document)
            return {**asdict(document.member), "error": ""}
        except (ValueError, OSError) as error:
            nothing = Member(name, "", "", 0, 0, 0, 0)
            return {**asdict(nothing), "error": str(error)}

    def _loaded(self) -> ApartReader:
        model, tokenizer = self._load()
        place = disk.open_folder(Path.cwd())  # for the messages of a snapshot that has no files
        compatibility.check_header(Snapshot.empty(place, self._header, self._layout), model, tokenizer)
        return ApartReader(model, tokenizer, self._header, self._layout, self._allow_nonfinite)

    def _read(self, reader: ApartReader, document: UnreadDocument) -> None:
        url = url_of(self._where)
        if url is None:
            reader.read(disk.open_folder(Path(self._where, DOCUMENTS)), document)
            return
        store, copy, key = Store(url), Copy(url), document.member.key
        if not store.has_document(key):
            with copy.changing():
                copy.make_room(document.member, self._layout)
            documents = copy.draft / DOCUMENTS
            reader.read(disk.open_folder(documents), document)
            store.put_document(documents / key)
            copy.drop(key)


def _line(error: BaseException) -> str:
    """What an error says at its end, which in Ray's is the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
