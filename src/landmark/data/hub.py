"""Access to the Hugging Face hub that fails within seconds, with one-line errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, is_offline_mode, snapshot_download, try_to_load_from_cache

# HTTPError is the base class of all request errors, whichever HTTP library the hub uses.
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    LocalEntryNotFoundError,
)

TIMEOUT = 5.0  # seconds


def check_reachable(name: str, kind: Literal["dataset", "model"], token: str | bool | None = None) -> None:
    """Raises ValueError unless the hub has `name` and answers now: its libraries would retry for most of a minute.

    A folder needs no hub, and in offline mode (HF_HUB_OFFLINE=1) the libraries themselves fail at once.
    """
    if is_offline_mode() or Path(name).exists():
        return
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT, token=token)
    except HTTPError as error:
        no_folder = f"there is no folder {name}, and " if kind == "model" else ""
        raise ValueError(
            f"{no_folder}the Hugging Face hub does not give {name} ({first_line(error)}): check the name and the "
            "connection, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from None  # a hundred lines of an HTTP library, which say no more


def check_model(name: str, file: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError unless `name` is a path, a model on the hub, or one that was downloaded, with its `file`.

    `options` are those of transformers that locate a model.
    """
    if Path(name).exists():
        return
    place = {key: options[key] for key in ("cache_dir", "revision") if options.get(key) is not None}
    try:
        downloaded = try_to_load_from_cache(name, file, **place) is not None
    except HFValidationError:
        raise ValueError(
            f"no model at {name}: there is no such folder, nor can a model on the Hugging Face hub have that name"
        ) from None
    if not downloaded and not options.get("local_files_only"):
        check_reachable(name, "model", options.get("token"))


def dataset_files(name: str, revision: str, pattern: str, *, download: bool) -> list[Path]:
    """The files of a data set at one commit that match `pattern`, by name: those on this machine, or after a download.

    Raises ValueError if the download fails.
    """
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=pattern, local_files_only=not download
        )
    except LocalEntryNotFoundError:
        return []
    except HTTPError as error:
        raise ValueError(
            f"the download of {name} failed ({first_line(error)}): run the same command again to resume it"
        ) from error
    return sorted(Path(folder).glob(pattern))


def load(source: str, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset`; raises ValueError, naming `source` and the reason, if it fails."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError
    except ImportError:
        raise ValueError(f"{source!r} needs the datasets library: pip install 'landmark-attention[data]'") from None
    try:
        return load_dataset(*args, **kwargs)
    except ConnectionError as error:
        raise ValueError(
            f"{source!r} is not on this machine ({first_line(error)}): run the same command with a connection to the "
            "Hugging Face hub and without HF_HUB_OFFLINE"
        ) from error
    # RuntimeError: data sets with loading scripts.
    except (OSError, ValueError, RuntimeError, DatasetGenerationError) as error:
        raise ValueError(f"{source!r} cannot be loaded: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error) or type(error).__name__).splitlines()[0]
