"""The settings and the lock of a training's folder: it resumes with the same settings, in one process at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from landmark.files import try_lock
from landmark.settings import current_names

RUN_FILE = "run.json"
KEPT = ("checkpoint-*", "model*", "adapter")  # files of a training that are worth keeping
SHOWN = 3  # differences listed in a message


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Records `settings` in `out`; raises ValueError if `out` holds a training with other settings.

    The settings of a training that failed before its first checkpoint are replaced.
    """
    check_claim(out, settings)
    path = out / RUN_FILE
    if not path.exists() or _changes(path, settings):
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Locks the training in `out`; raises ValueError if another process holds the lock.

    The system releases the lock when the process ends, however it ends.
    """
    with (out / RUN_FILE).open(encoding="utf-8") as file:
        if not try_lock(file.fileno()):
            raise ValueError(f"{out} is being trained by another process: wait until it ends, or give another --out")
        yield


def check_claim(out: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError, with the differences, if `out` holds a training with other settings.

    It holds one from the first checkpoint on: what failed before that may be replaced.
    """
    path = out / RUN_FILE
    changes = _changes(path, settings) if path.exists() else []
    if not changes:
        return
    if not any(any(out.glob(kept)) for kept in KEPT):
        with only_one(out):
            return
    rest = [f"{len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
    raise ValueError(
        f"{out} holds a training with other settings ({'; '.join(changes[:SHOWN] + rest)}): "
        "give the same ones to resume it, or another --out"
    )


def _changes(path: Path, settings: dict[str, Any]) -> list[str]:
    """The differences between `settings` and those recorded in `path`, each as a few words."""
    recorded = json.loads(path.read_text(encoding="utf-8"), object_hook=current_names)
    then, now = (dict(_leaves({name: all.get(name) for name in settings})) for all in (recorded, settings))
    # A setting that did not exist yet equals one that is not given.
    changed = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    return [f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in changed]


def _leaves(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its full name, such as recipe.stages.0.steps."""
    if not isinstance(settings, dict | list):
        yield name, settings
        return
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
