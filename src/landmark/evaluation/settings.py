"""Settings of a comparison as people write them: `full@512`, `landmark@4096,top_k=0`, `local@4096`."""

from typing import Any

from landmark.evaluation.perplexity import Setting
from landmark.evaluation.reading import Reading, local_like

COUNTS = ("top_k", "local_blocks", "local")
FORM = "ATTENTION@LENGTH[,top_k=N][,local_blocks=N][,local=N], e.g. landmark@4096,top_k=0"


def parse_setting(text: str, config: Any, compared: Setting) -> Setting:
    """The setting that `text` names, to be compared with `compared` on a converted model with this `config`.

    What a landmark setting leaves out is as in `compared`, when that reads through memory too. A local
    setting without numbers sees at least as many keys per token as `compared`. Raises ValueError otherwise.
    """
    head, *parts = text.split(",")
    attention, at, length_text = head.partition("@")
    given = {name: number for name, _, number in (part.partition("=") for part in parts)}
    unknown = [name for name in given if name not in COUNTS]
    if not at or not length_text.isdecimal() or unknown or not all(n.isdecimal() for n in given.values()):
        raise ValueError(f"{text!r} is no setting to compare with: write {FORM}")
    length, counts = int(length_text), {name: int(number) for name, number in given.items()}
    reading = compared.reading
    if attention == "local" and not counts:
        return Setting(local_like(config, reading, length), length)
    if attention == "landmark" and reading.attention == "landmark":
        inherited = {
            "top_k": reading.top_k,
            "local_blocks": reading.local_blocks,
            "local": reading.chunk_size,
        }
        counts = inherited | counts
    return Setting(Reading.of(config, attention, **counts), length)
