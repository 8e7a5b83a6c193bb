"""Users of a server who know what it must hold: whatever was acknowledged, and of a request that got no answer all or
nothing. Each has one context and asks, adds, replaces, removes, cancels and deletes at random."""

import random
import time
from hashlib import sha256
from pathlib import Path

import httpx
from serving import NAME

from landmark.contexts.collection_folder import verify_collection
from landmark.contexts.collection_manifest import DOCUMENTS, is_collection, read_collection
from landmark.serve.records import Record, collection_folder

WORDS = ("the", "sea", "was", "calm", "and", "jim", "looked", "at", "it", "for", "a", "long", "while", "he", "spoke")
_BUSY = (429, 503)
_SECONDS = 240.0  # longest wait for a job

Documents = dict[str, str]  # texts by name


class Wrong(AssertionError):
    """The server does not hold what it must, or answers what it must not."""


class User:
    """One user. `documents` are those that its context holds when its jobs are done, None without a context."""

    def __init__(self, url: str, name: str, seed: str, *, most_words: int = 400) -> None:
        self.url, self.name = url, name
        self.documents: Documents | None = None
        self.could: list[Documents | None] = []  # what else they may be: a request got no answer
        self.counts: dict[str, int] = {}
        self._jobs: dict[str, Documents] = {}  # of jobs that may still run, what stood under their names
        self._draw = random.Random(seed)
        self._most_words = most_words
        self._http = httpx.Client(base_url=f"{url}/v1", timeout=600)

    def reconnect(self) -> None:
        """Begins anew after a restart of the server."""
        self.close()
        self._http = httpx.Client(base_url=f"{self.url}/v1", timeout=600)

    def close(self) -> None:
        self._http.close()

    def act(self) -> None:
        """One request, drawn at random from those that make sense; httpx.TransportError if no answer came."""
        if self.documents is None:
            self._create()
            return
        acts = [self._add] * 3 + [self._ask] * 3 + [self._go_away, self._look, self._replace, self._remove]
        acts += [self._cancel] + ([self._delete] if self._draw.random() < 0.2 else [])
        self._draw.choice(acts)()

    # Requests.

    def _create(self) -> None:
        new = self._new(self._draw.randint(0, 2))
        body = {"name": self.name, "documents": _listed(new)}
        self._change("POST", "/contexts", body, new, new)

    def _add(self) -> None:
        held = self.documents or {}
        if len(held) > 12:
            self._remove()
            return
        new = self._new(self._draw.randint(1, 2))
        self._change("POST", f"/contexts/{self.name}/documents", {"documents": _listed(new)}, held | new, new)

    def _replace(self) -> None:
        held = self.documents or {}
        if name := self._idle():
            new = {name: self._text()}
            body = {"text": new[name]}
            self._change("PUT", f"/contexts/{self.name}/documents/{name}", body, held | new, new)

    def _remove(self) -> None:
        if name := self._idle():
            left = {other: text for other, text in (self.documents or {}).items() if other != name}
            self._change("DELETE", f"/contexts/{self.name}/documents/{name}", None, left)

    def delete(self) -> None:
        """Deletes the context, if there is one."""
        if self.documents is not None:
            self._delete()

    def _delete(self) -> None:
        self._change("DELETE", f"/contexts/{self.name}", None, None)
        if self.documents is None:
            self._jobs.clear()

    def _cancel(self) -> None:
        if not self._jobs:
            return
        job, before = self._draw.choice(list(self._jobs.items()))
        now = dict(self.documents or {})
        after = {name: text for name, text in now.items() if name not in before} | {
            n: t for n, t in before.items() if t
        }
        self.could = [after]
        response = self._sent("DELETE", f"/contexts/{self.name}/jobs/{job}", also=(404,))
        self.could = []
        del self._jobs[job]
        # A job that ended long ago is forgotten.
        status = "done" if response.status_code == 404 else response.json()["status"]
        if status == "cancelled":
            self.documents = after
        elif status != "done":
            raise Wrong(f"a job that was cancelled is {status}")

    def _ask(self) -> None:
        tokens = self._draw.randint(1, 30)
        asked = self._sent("POST", "/completions", self._question(tokens), also=(409,))
        if asked.status_code == 409 and any(map(self._is_sure, self.documents or {})):
            raise Wrong(f"{self.name} cannot be asked: {asked.text}")

    def _go_away(self) -> None:
        body = {**self._question(2000), "stream": True}
        with self._http.stream("POST", "/completions", json=body) as response:
            self._count(f"streams {response.status_code}")
            if response.status_code not in (200, 409, *_BUSY):
                raise Wrong(f"a stream got {response.status_code}")
            for _ in zip(response.iter_lines(), range(self._draw.randint(0, 8)), strict=False):
                pass

    def _look(self) -> None:
        self._sent("GET", f"/contexts/{self.name}/jobs")
        self._sent("GET", "/contexts")

    def _question(self, tokens: int) -> dict[str, object]:
        return {"model": f"{NAME}@{self.name}", "prompt": self._draw.choice(WORDS) + " ", "max_tokens": tokens}

    def _change(
        self, method: str, path: str, body: object, after: Documents | None, new: Documents | None = None
    ) -> None:
        """A request after which the context holds `after`; a job reads the `new` documents."""
        before = self.documents
        self.could = [after]
        response = self._sent(method, path, body)
        self.could = []
        if response.status_code in _BUSY:
            return
        self.documents, found = after, response.json()
        job = found.get("job") if "job" in found else found
        if new and job and job["status"] in ("queued", "reading"):
            self._jobs[job["id"]] = {name: (before or {}).get(name, "") for name in new}

    def _sent(self, method: str, path: str, body: object = None, also: tuple[int, ...] = ()) -> httpx.Response:
        response = self._http.request(method, path, json=body)
        self._count(f"{method} {response.status_code}")
        if response.status_code not in (200, 201, 202, *_BUSY, *also):
            raise Wrong(f"{self.name}: {method} {path} got {response.status_code}: {response.text}")
        return response

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # Texts.

    def _new(self, count: int) -> Documents:
        return {f"{self._draw.getrandbits(48):x}.txt": self._text() for _ in range(count)}

    def _text(self) -> str:
        return " ".join(self._draw.choices(WORDS, k=self._draw.randint(20, self._most_words)))

    def _idle(self) -> str | None:
        """The name of a document that no job works on."""
        busy = {name for names in self._jobs.values() for name in names}
        idle = sorted(set(self.documents or {}) - busy)
        return self._draw.choice(idle) if idle else None

    # What must be there.

    def settle(self) -> None:
        """Waits for all jobs; Wrong unless the context then holds what it must."""
        end = time.monotonic() + _SECONDS
        while True:
            response = self._http.get(f"/contexts/{self.name}")
            if response.status_code in _BUSY:
                time.sleep(0.2)
                continue
            found = response.json() if response.status_code == 200 else None
            if found is None or found["job"] is None:
                break
            if time.monotonic() > end:
                raise Wrong(f"{self.name}: a job did not end within {_SECONDS} s: {found['job']}")
            time.sleep(0.02)
        held = None if found is None else {one["name"]: one["bytes"] for one in found["documents"]}
        possible = [self.documents, *self.could]
        self.documents = next((one for one in possible if _sizes(one) == held), self.documents)
        if _sizes(self.documents) != held:
            raise Wrong(f"{self.name} holds {held}, and must hold one of {[_sizes(one) for one in possible]}")
        if found is not None:
            jobs = self._http.get(f"/contexts/{self.name}/jobs").json()["data"]
            if failed := [job for job in jobs if job["status"] == "failed"]:
                raise Wrong(f"{self.name}: jobs failed: {failed}")
        self._jobs, self.could = {}, []

    def check_disk(self, data: Path) -> int:
        """Looks at the files while no server runs; the number of documents, all of which verify and are known.

        Those that were acknowledged as read must be among them. Wrong if one is missing, damaged, or not known.
        """
        sure = {name: text for name, text in (self.documents or {}).items() if self._is_sure(name)}
        known = {(name, _digest(text)) for one in (self.documents, *self.could) for name, text in (one or {}).items()}
        known |= {(name, _digest(text)) for names in self._jobs.values() for name, text in names.items()}
        held = _members(data / "contexts", self.name)
        if unknown := set(held.items()) - known:
            raise Wrong(f"{self.name}: {unknown} is on disk, and was never sent, or was removed")
        lost = [name for name, text in sure.items() if held.get(name) != _digest(text)]
        if lost:
            raise Wrong(f"{self.name}: {lost} is lost")
        return len(held)

    def _is_sure(self, name: str) -> bool:
        """Whether a document was read for sure: no job works on it, and no request without an answer concerns it."""
        texts = {(one or {}).get(name) for one in (self.documents, *self.could)}
        return len(texts) == 1 and not any(name in names for names in self._jobs.values())

    def note_done(self) -> None:
        """Looks at which jobs are done: their documents are committed from here on."""
        for job in self._sent("GET", f"/contexts/{self.name}/jobs", also=(404,)).json().get("data", []):
            if job["status"] == "done":
                self._jobs.pop(job["id"], None)


def _members(folder: Path, name: str) -> dict[str, str]:
    """SHA-256 by name of the documents on disk of the context of this name; Wrong if one is damaged."""
    for place in folder.glob("ctx-*"):
        if (place / "record.json").exists() and Record.load(place).name == name:
            path = collection_folder(place)
            if not is_collection(path):
                return {}
            if damage := verify_collection(path):
                raise Wrong(f"{name}: {damage}")
            return {member.name: member.sha256 for member in read_collection(path).members}
    return {}


def strays(data: Path) -> list[Path]:
    """Folders of documents that no manifest names, and texts of jobs that are done; for a server that is idle."""
    found = list((data / "contexts").glob("ctx-*/texts-*"))
    for path in (data / "contexts").glob("ctx-*/collection"):
        keys = {member.key for member in read_collection(path).members}
        found += [folder for folder in (path / DOCUMENTS).iterdir() if folder.name not in keys]
    return found


def _listed(documents: Documents) -> list[dict[str, str]]:
    return [{"name": name, "text": text} for name, text in documents.items()]


def _sizes(documents: Documents | None) -> dict[str, int] | None:
    return None if documents is None else {name: len(text.encode()) for name, text in documents.items()}


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
