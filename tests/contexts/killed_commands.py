"""Commands killed at any instant, each followed by the same command: it ends as if nothing had happened."""

import random
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from children import Ran, command, run
from forking import PROMPT, WORDS, logits

from landmark import Context
from landmark.contexts.manifest import has_manifest
from landmark.contexts.verify import verify

NAMES = ("read", "append", "fork", "delete", "export")
_KILLED = -9


@contextmanager
def many_commits() -> Iterator[None]:
    """Commits after every few chunks, and segments of few blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("landmark.contexts.context.COMMIT_SECONDS", 0.0)
        patch.setattr("landmark.contexts.context._CHUNKS", 6)
        patch.setattr("landmark.contexts.writer.SEGMENT_BYTES", 60_000)
        yield


def write_texts(folder: Path, number: int, words: int) -> list[Path]:
    """Files of random words."""
    folder.mkdir()
    draw = random.Random(0)
    files = [folder / f"text {index}.txt" for index in range(number)]
    for file in files:
        file.write_text(" ".join(draw.choices(WORDS, k=words)) + " . ", encoding="utf-8")
    return files


@dataclass(frozen=True)
class Killed:
    """How the killed command ended, how the one after it did, and what is wrong then, if anything."""

    first: Ran
    again: Ran
    wrong: str | None


class Trial:
    """The trials of one of the commands `NAMES`, in the folder `root`."""

    def __init__(self, name: str, model: Any, root: Path, words: int = 50) -> None:
        self.name, self.model = name, model
        self.folder, self._scratch, self._base = root / "work", root / "scratch", root / "base"
        root.mkdir()
        self._scratch.mkdir()
        self._files = write_texts(root / "texts", 2, words)
        self._base.mkdir()
        with Context.create(root / "context", model) as context:
            context.append(self._files[0].read_text(encoding="utf-8"), str(self._files[0]))
        self._held(root / "context")  # processes that are forked from here need not compile anything
        if name != "read":
            (root / "context").rename(self._base / "context")
        self._begin()
        self.undisturbed = self._run()
        assert self.undisturbed.code == 0, self.undisturbed.error
        self.expected = self._result()

    def kill(self, *, after: float | None = None, at: int | None = None) -> Killed:
        """Kills the command after some seconds, or before a call to the disk, and runs it again."""
        self._begin()
        first = self._run(kill_after=after, kill_at=at)
        wrong = self._damage()
        done = not wrong and first.code == _KILLED and self._is_done()
        again = self._run()
        if wrong is None and again.code != 0 and not (done and again.code == 2):
            wrong = f"exit code {again.code}: {again.error.strip()}"
        if wrong is None and (result := self._result()) != self.expected:
            wrong = f"other result: {_differences(self.expected, result)}"
        return Killed(first, again, wrong)

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._base, self.folder)

    def _run(self, **kill: Any) -> Ran:
        return run(self._call(), self._scratch, **kill)

    def _call(self) -> Callable[[], object]:
        context = self.folder / "context"
        if self.name == "read":
            return command("read", *self._files, "--out", context, "--model", self.model.name_or_path)
        if self.name == "append":
            return command("append", context, self._files[1])
        if self.name == "delete":
            return command("contexts", "delete", context, "--yes")
        if self.name == "export":
            return command("contexts", "export", context, "--out", self.folder / "context.tar")
        return lambda: Context.open(context, self.model).fork(self.folder / "fork").close()

    def _damage(self) -> str | None:
        """What a kill broke of what was there before it."""
        context = self.folder / "context"
        if not has_manifest(context):
            return None if self.name in ("read", "delete") else "the context is gone"
        return f"damage after the kill: {found[0]}" if (found := verify(context)) else None

    def _is_done(self) -> bool:
        """Whether the kill came after the end of all work: then the same command may refuse to do it again."""
        if self.name == "delete":
            return not (self.folder / "context").exists()
        made = {"fork": self.folder / "fork", "export": self.folder / "context.tar"}.get(self.name)
        return made is not None and made.exists() and self._result() == self.expected

    def _result(self) -> dict[str, Any]:
        """All that is in the folder: names, and what the contexts hold and answer."""
        found: dict[str, Any] = {"names": sorted(map(self._name, self.folder.rglob("*")))}
        for path in sorted(self.folder.iterdir()):
            if path.suffix == ".tar":
                with tarfile.open(path) as tar:
                    tar.extractall(self._scratch / "unpacked", filter="data")
                found[path.name] = self._held(self._scratch / "unpacked" / "context")
                shutil.rmtree(self._scratch / "unpacked")
            elif has_manifest(path):
                found[path.name] = self._held(path)
        return found

    def _name(self, path: Path) -> str:
        """States are numbered by commits, of which there may have been more."""
        return re.sub(r"state-\d+", "state-N", str(path.relative_to(self.folder)))

    def _held(self, path: Path) -> dict[str, Any]:
        context = Context.open(path, self.model)
        answer = context.generate(PROMPT, max_new_tokens=3)
        return {
            "documents": [(document.name, context.text(document)) for document in context.documents],
            "tokens": (context.tokens_read, context.tokens, context.blocks),
            "damages": [str(damage) for damage in verify(path)],
            "answer": (answer.text, answer.sources),
            "logits": logits(context).numpy().tobytes(),
        }


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return f"in {', '.join(names)}; files {sorted({*expected['names']} ^ {*found['names']})}"
