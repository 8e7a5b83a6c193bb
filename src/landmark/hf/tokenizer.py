"""Tokenizers of converted models: checked against the model, and texts encoded with character offsets."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from landmark.data.encoder import TextEncoder
from landmark.data.text import encoded
from landmark.hf.config import landmark_settings
from landmark.hf.loading import read_tokenizer
from landmark.hf.model import ordinary_tokens


def quiet_transformers() -> None:
    """Switches off the progress bars of transformers and its warnings about text lengths, which are wrong here."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(path: str | PathLike[str], model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, a folder or hub name, checked against the converted `model`.

    Raises ValueError where there is none, where it has ids without a row in the model's embeddings, and where an
    ordinary token, or the one for unknown characters, has the landmark's row: text would be read as landmarks.
    """
    try:
        tokenizer = read_tokenizer(path)
    except ValueError as error:
        raise ValueError(f"no tokenizer at {path}: save the model's tokenizer there ({error})") from error
    return checked(tokenizer, path, model)


def checked(
    tokenizer: PreTrainedTokenizerBase, path: str | PathLike[str], model: PreTrainedModel
) -> PreTrainedTokenizerBase:
    """The `tokenizer` that was read from `path`; raises ValueError as `load_tokenizer` does."""
    check_offsets(tokenizer, path)
    landmark = landmark_settings(model.config).landmark_id
    ordinary = ordinary_tokens(model)
    reserved = landmark in tokenizer.all_special_ids
    if len(tokenizer) > (max(ordinary, landmark + 1) if reserved else ordinary):
        raise ValueError(
            f"the tokenizer at {path} has {len(tokenizer)} tokens, the model {ordinary} rows for text:"
            " use the tokenizer that the model was trained with"
        )
    if landmark < len(tokenizer) and not reserved:
        raise ValueError(
            f"the landmark's row {landmark} is the token {tokenizer.convert_ids_to_tokens(landmark)!r} of the"
            f" tokenizer at {path}: use the tokenizer that the model was trained with"
        )
    if reserved:
        _check_never_text(tokenizer, landmark)
    return tokenizer


def check_offsets(tokenizer: PreTrainedTokenizerBase, path: str | PathLike[str]) -> None:
    """Raises ValueError for a tokenizer that does not give the characters of its tokens."""
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer at {path} has no character offsets: a tokenizer.json is needed")


def _check_never_text(tokenizer: PreTrainedTokenizerBase, landmark: int) -> None:
    """Raises ValueError if a text could be encoded as the special token `landmark`."""
    name: str = tokenizer.convert_ids_to_tokens(landmark)  # type: ignore[assignment]
    begins = landmark in bos_tokens(tokenizer).ids
    if begins or any(landmark in encode(tokenizer, text).ids for text in (name, f"a {name} b", "\U0010ffff")):
        raise ValueError(
            f"the tokenizer makes the landmark's token {name!r} out of texts: convert the model with a landmark_id"
            " that is no part of any text"
        )


@dataclass(frozen=True)
class EncodedText:
    """A text as ordinary tokens: `ids [N]`, and `offsets`, the characters (start, stop) of each."""

    text: str
    ids: Tensor
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: "EncodedText") -> "EncodedText":
        shift = len(self.text)
        moved = [(start + shift, stop + shift) for start, stop in other.offsets]
        return EncodedText(self.text + other.text, torch.cat((self.ids, other.ids)), self.offsets + moved)

    def characters(self, start: int, stop: int) -> tuple[int, int]:
        """Characters (start, stop) of the tokens `start:stop`; tokens past the end of the text are left out."""
        covered = self.offsets[start:stop]
        return (covered[0][0], covered[-1][1]) if covered else (len(self.text), len(self.text))


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, continues: bool = False) -> EncodedText:
    """Encodes `text` without special tokens, even where it contains their names.

    A text that `continues` another, like a prompt after a document, gets no space in front, even where the tokenizer
    puts one in front of every text. Raises ValueError for what is no text, or none that UTF-8 can encode.
    """
    encoded("the text", text)
    tokens = text_encoder(tokenizer).encode(text, continues=continues)
    return EncodedText(text, torch.from_numpy(tokens.ids), [(first, last) for first, last in tokens.offsets.tolist()])


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """The encoder of texts with the vocabulary and rules of `tokenizer`."""
    backend: Any = tokenizer.backend_tokenizer
    return TextEncoder(backend)


def bos_tokens(tokenizer: PreTrainedTokenizerBase) -> EncodedText:
    """The tokens that begin every text: the bos token, or none."""
    ids = tokenizer("")["input_ids"][:1]
    starts = ids if ids and ids[0] == tokenizer.bos_token_id else []
    return EncodedText("", torch.tensor(starts, dtype=torch.long), [(0, 0)] * len(starts))
