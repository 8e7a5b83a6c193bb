"""Settings of a comparison as people write them: `full@512`, `landmark@4096,top_k=0`, `local@4096`."""

import re
from collections.abc import Callable
from typing import Any

from landmark.evaluation.perplexity import Setting
from landmark.evaluation.reading import Reading, local_like

# What each option of a setting must look like, and what it means.
OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "top_k": (r"\d+", int),
    "local_blocks": (r"\d+", int),
    "local": (r"\d+", int),
    "max_blocks": (r"\d+", int),
    "selection": (r"\w+", str),
    "miss_threshold": (r"\d*\.?\d+", float),
}
FORM = (
    "ATTENTION@LENGTH[,top_k=N][,local_blocks=N][,local=N][,max_blocks=N][,selection=NAME]"
    "[,miss_threshold=X], e.g. landmark@4096,top_k=0"
)


def parse_setting(text: str, config: Any, compared: Setting) -> Setting:
    """The setting that `text` names, to be compared with `compared` on a converted model with this `config`.

    What a landmark setting leaves out is as in `compared`, when that reads through memory too. A local
    setting without numbers sees at least as many keys per token as `compared`. Raises ValueError otherwise.
    """
    head, *parts = text.split(",")
    attention, at, length_text = head.partition("@")
    given = [(name, value) for name, _, value in (part.partition("=") for part in parts)]
    understood = all(name in OPTIONS and re.fullmatch(OPTIONS[name][0], value) for name, value in given)
    if not at or not length_text.isdecimal() or not understood:
        raise ValueError(f"{text!r} is no setting to compare with: write {FORM}")
    length, options = int(length_text), {name: OPTIONS[name][1](value) for name, value in given}
    reading = compared.reading
    if attention == "local" and not options:
        return Setting(local_like(config, reading, length), length)
    if attention == "landmark" and reading.attention == "landmark":
        inherited = {
            "top_k": reading.top_k,
            "local_blocks": reading.local_blocks,
            "local": reading.chunk_size,
            "max_blocks": reading.max_blocks,
            "selection": reading.selection,
            "miss_threshold": reading.miss_threshold,
        }
        options = inherited | options
    return Setting(Reading.of(config, attention, **options), length)
