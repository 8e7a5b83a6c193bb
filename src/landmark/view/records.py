"""A view as lines of JSON: one for each generated token, layer and head."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from landmark.files import written_whole
from landmark.view.gather import View


def records(view: View) -> Iterator[dict[str, Any]]:
    """For each generated token, layer and head: the blocks that were opened, by age, their weights, the local weight.

    `index` counts the generated tokens and `number` all that were read. The weights sum to 1 with `local`.
    """
    for index, token in enumerate(view.tokens):
        for row, layer in enumerate(view.layers):
            for head in range(view.local.shape[2]):
                opened = view.blocks[index, row, head] >= 0
                yield {
                    "index": index,
                    "number": token.number,
                    "id": token.id,
                    "text": token.text,
                    "layer": layer,
                    "head": head,
                    "blocks": view.blocks[index, row, head, opened].tolist(),
                    "weights": view.weights[index, row, head, opened].tolist(),
                    "local": float(view.local[index, row, head]),
                }


def write(view: View, path: Path) -> None:
    """Writes `records`."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(view))
