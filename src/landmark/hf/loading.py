"""Configurations, weights and tokenizers as transformers loads them, and one line for what is wrong with their files.

A damaged file may run into any error, by the place of the damage and the release of transformers; weights that are
missing into none at all, for transformers makes them up. Here both are a ValueError that names the folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

SHOWN = 3  # names of weights in a message
LONGEST = 300  # characters of somebody else's message


def read_config(path: str | PathLike[str], **options: Any) -> PretrainedConfig:
    """The configuration in a folder or on the hub; raises ValueError where none can be read."""
    with _told(f"no model can be loaded from {path}"):
        return AutoConfig.from_pretrained(path, **options)


def read_tokenizer(path: str | PathLike[str]) -> Any:
    """The tokenizer in a folder or on the hub; raises ValueError where none can be read."""
    with _told(f"the tokenizer at {path} cannot be loaded"):
        return AutoTokenizer.from_pretrained(path)


def read_weights(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in a folder or on the hub, all of its weights read from there; `options` go to transformers.

    Raises ValueError where files are damaged or do not belong together, and where weights are missing.
    """
    # Weights that do not fit are told below; transformers would tell them in a table on the screen.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _told(f"the model at {path} cannot be loaded"), _silence():
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    model, found = loaded
    if mismatched := sorted(found["mismatched_keys"]):
        name, saved, wanted = mismatched[0]
        raise ValueError(
            f"the model at {path} cannot be loaded: its configuration makes {name} {list(wanted)}, the saved weights "
            f"are {list(saved)}: take configuration and weights of one model"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"the model at {path} cannot be loaded: its files lack the weights {', '.join(missing[:SHOWN])}{more}: "
            "take configuration and weights of one model, whole"
        )
    return model


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:LONGEST] or "no reason given"
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} ({kind}{said}): give a whole one, as save_pretrained writes it") from error


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
