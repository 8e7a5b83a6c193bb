"""A data folder with books/ and math/, cut from the book in the package."""

from pathlib import Path

import pytest

from landmark.assets import book_path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    text = book_path().read_text(encoding="utf-8")
    for corpus, start in (("books", 0), ("math", 100_000)):
        for number, part in enumerate(("train", "validation", "test")):
            (folder / corpus / part).mkdir(parents=True)
            for name in ("a", "b"):
                piece = text[start + 30_000 * number :][:30_000]
                (folder / corpus / part / f"{name}.txt").write_text(piece, encoding="utf-8")
    return folder
