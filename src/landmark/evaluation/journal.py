"""Answered samples on disk, one line each, so that a long evaluation goes on where it was interrupted."""

import hashlib
import json
from pathlib import Path
from typing import Any

from landmark.data.tokens import tokenizer_fingerprint
from landmark.evaluation.passkey import PassKeys, Sample
from landmark.hf.fingerprint import model_fingerprint


def contents(model: Any, keys: PassKeys) -> dict[str, str]:
    """What answers come from, by its contents: hashes of the model's weights and configuration, tokenizer and text.

    Paths are left out: the same model in another folder gives the same answers, another one in the same folder not.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)  # an answer ends there
    tokenizer = tokenizer_fingerprint(keys.tokenizer.backend_tokenizer)
    return {
        "tokenizer": _sha256([tokenizer, keys.opening.tolist(), keys.question.tolist()]),
        "model": _sha256([model_fingerprint(model), ends]),
        "haystack": _sha256(keys.haystack.tolist()),
    }


def _sha256(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Journal:
    """The file `path`: a first line with the `settings` of the evaluation, then a line for each sample.

    The settings must name all that decides about an answer, by its contents: see `contents`.
    A run that was killed while writing leaves a line without an end; its sample is asked again. Raises
    ValueError when the file holds samples of other settings (naming the difference) or something else, and
    leaves it as it is.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.samples: dict[tuple[int, int], Sample] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        data = self.path.read_bytes() if self.path.exists() else b""
        header = (json.dumps(settings) + "\n").encode()
        if header.startswith(data):  # new, empty, or cut short in its first line
            self.path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        first, *rest = self._lines(finished)
        for name in {**settings, **first}:
            if name not in first:
                raise ValueError(
                    f"{path} does not say with which {name} it was made, as those of earlier releases do not:"
                    " choose another file or delete it"
                )
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}):"
                    " choose another file or delete it"
                )
        for line in rest:
            sample = self._sample(line)
            self.samples[sample.length, sample.index] = sample
        if finished != data:
            self.path.write_bytes(finished)

    def add(self, sample: Sample) -> None:
        self.samples[sample.length, sample.index] = sample
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.to_dict()) + "\n")

    def _sample(self, line: dict[str, Any]) -> Sample:
        try:
            return Sample(**line)
        except TypeError:
            raise ValueError(f"{self.path} is not a log of pass keys: choose another file") from None

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is not a log of pass keys: choose another file")
        return lines
