"""What the commands that read texts share: a model with its tokenizer, and a progress bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from landmark.cli import streams


def load(path: Path | None, check: Callable[[Any], object] = lambda config: None) -> tuple[Any, Any]:
    """A converted model and its tokenizer from one folder, that of the package if None; on a GPU if there is one.

    `check` gets the configuration before the weights are read, to tell of options that do not go with the model.
    Raises ValueError where a file is missing or damaged.
    """
    from landmark.assets import model_path
    from landmark.hf import from_pretrained
    from landmark.hf.config import landmark_settings
    from landmark.hf.loading import read_config, read_tokenizer, to_default_device
    from landmark.hf.tokenizer import load_tokenizer, quiet_transformers

    folder = model_path() if path is None else path
    if not folder.is_dir():
        raise ValueError(f"no model at {folder}: give the folder that `landmark train` or save_pretrained wrote")
    quiet_transformers()
    config = read_config(folder)
    landmark_settings(config)
    check(config)
    read_tokenizer(folder)  # before the weights, which may take minutes
    model = to_default_device(from_pretrained(folder))
    return model, load_tokenizer(folder, model)


@contextmanager
def tokens_read(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr over `total` tokens, moved by calling what it gives; only where someone looks."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = streams.console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda tokens: progress.advance(task, tokens)
