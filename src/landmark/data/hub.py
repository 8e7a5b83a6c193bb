"""What is asked of the Hugging Face hub and its libraries, and their failures, told in one line and within seconds."""

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, is_offline_mode, snapshot_download

# HTTPError is the base of all that a request may raise; the hub's library has it from one of two others.
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # pyright: ignore[reportPrivateImportUsage]

TIMEOUT = 5.0  # seconds


def check_reachable(name: str, kind: Literal["dataset", "model"]) -> None:
    """Raise ValueError unless the hub answers for `name` now: its libraries would try for most of a minute.

    A folder needs no hub. In offline mode (HF_HUB_OFFLINE=1) the libraries themselves say at once what is missing.
    """
    if is_offline_mode() or Path(name).exists():
        return
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
    except HTTPError as error:
        raise ValueError(
            f"the Hugging Face hub does not give {name} ({first_line(error)}): check the name and the connection, "
            "or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from error


def dataset_files(name: str, revision: str, pattern: str, *, download: bool) -> list[Path]:
    """The files of a data set at one commit that match `pattern`, by name: those on this machine, or after a download.

    Raises ValueError where the download breaks off.
    """
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=pattern, local_files_only=not download
        )
    except LocalEntryNotFoundError:
        return []
    except HTTPError as error:
        raise ValueError(
            f"the download of {name} broke off ({first_line(error)}): run the same command to go on with it"
        ) from error
    return sorted(Path(folder).glob(pattern))


def load(source: str, *args: Any, **kwargs: Any) -> Any:
    """What `datasets.load_dataset` loads; raises ValueError, naming `source` and the reason, where it cannot."""
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
    # RuntimeError is what it raises for data sets that are read by a program of their own.
    except (OSError, ValueError, RuntimeError, DatasetGenerationError) as error:
        raise ValueError(f"{source!r} cannot be loaded: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of what an error says, or what it is called."""
    return (str(error) or type(error).__name__).splitlines()[0]
