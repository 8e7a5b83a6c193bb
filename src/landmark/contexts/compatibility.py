"""Compatibility of a context with a model and tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import landmark
from landmark.contexts.either import manifest_of
from landmark.contexts.snapshot import Snapshot
from landmark.data.tokens import tokenizer_fingerprint
from landmark.hf.fingerprint import (
    config_fingerprint_like,
    differences,
    fingerprint_like,
    model_fingerprint,
    numbers_of,
)
from landmark.hf.tokenizer import load_tokenizer
from landmark.settings import LandmarkSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def tokenizer_of(model: "PreTrainedModel") -> "PreTrainedTokenizerBase":
    """The tokenizer saved beside a model; ValueError if the model has no name_or_path."""
    if not model.name_or_path:
        raise ValueError("the model has no name_or_path, the folder it was loaded from: pass its tokenizer")
    return load_tokenizer(model.name_or_path, model)


def header(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", settings: LandmarkSettings
) -> dict[str, Any]:
    """The header of a context: the settings it is read with, and the fingerprint of its model and tokenizer.

    Who allows numbers that are not finite does so each time.
    """
    return {
        "landmark": landmark.__version__,
        "model": model.name_or_path,
        "settings": settings.to_dict() | {"allow_nonfinite": False},
        "fingerprint": model_fingerprint(model) | _fingerprint_of_tokenizer(tokenizer),
    }


def recorded_numbers(path: Path) -> tuple[Any, Any]:
    """The `dtype` and the `weights` of `landmark.from_pretrained` with which a context was read."""
    return numbers_of(entry_of(manifest_of(path).header, "fingerprint"))


def check_header(snapshot: Snapshot, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ValueError, naming the difference, if the context was read by another model or tokenizer."""
    kept = entry_of(snapshot.header, "fingerprint")
    now = fingerprint_like(kept, model) | _fingerprint_of_tokenizer(tokenizer)
    _compare(snapshot.path, snapshot.header, kept, now, model.name_or_path)


def check_model(path: Path, config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
    """Raises ValueError as `check_header` does, for what config and tokenizer decide: before weights are read."""
    header = manifest_of(path).header
    kept = entry_of(header, "fingerprint")
    now = config_fingerprint_like(kept, config)
    if tokenizer is not None:
        now |= _fingerprint_of_tokenizer(tokenizer)
    _compare(path, header, {name: kept.get(name) for name in now}, now, config.name_or_path)


def check_same_model(first: Path, other: Path) -> None:
    """Raises ValueError, naming the difference, if two contexts or collections were not read by one model.

    What one of their manifests does not say, in contexts of earlier releases, is left to opening them.
    """
    headers = [manifest_of(path).header for path in (first, other)]
    kept, now = (entry_of(header, "fingerprint") for header in headers)
    said = kept.keys() & now.keys()
    for name, _, _ in differences({key: kept[key] for key in said}, {key: now[key] for key in said}):
        models = " and ".join(header.get("model") or "a model without a name" for header in headers)
        raise ValueError(
            f"{other} was read with other {name} than {first} (by {models}): serve each from a server of its own"
        )


def _compare(path: Path, header: dict[str, Any], kept: dict[str, Any], now: dict[str, Any], model: str | None) -> None:
    """Raises ValueError for the first difference of two fingerprints; the second is that of `model`."""
    by = header.get("model")
    remedy = f"give the model that read it (--model {by})" if by else "give the model that read it"
    for name, before, after in differences(kept, now):
        raise ValueError(
            f"{path} was read with other {name}: {before}, now {after}; {by or 'a model without a name'} read it, and"
            f" this is {model or 'a model without a name'}: {remedy}, or read the text again"
        )


def entry_of(header: dict[str, Any], name: str) -> dict[str, Any]:
    """An entry that every header has; ValueError for one that some other program made without it."""
    found = header.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"the context's manifest has no {name} of the model that read it: read the text again")
    return found


def _fingerprint_of_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    text_to_ids: Any = tokenizer.backend_tokenizer
    return {"tokenizer": tokenizer_fingerprint(text_to_ids)}
