"""The study of a library: documents are written, read by the command, and asked about in every way."""

import json

from landmark.contexts.collection import Collection
from landmark.evaluation.recall import NAMES
from reproduce.studies import smollm2_library
from reproduce.studies.options import LibraryOptions
from reproduce.studies.smollm2_models import Pair


def test_documents_are_written_and_then_asked_about(pair, tmp_path, monkeypatch, capsys, known_heads):
    monkeypatch.setattr(Pair, "load", lambda options: pair)
    book = tmp_path / "book.txt"
    book.write_text("It was a calm sea. Jim looked at the ships.\n\n" * 400, encoding="utf-8")
    options = LibraryOptions(
        original="tiny", texts=(book,), work=tmp_path / "work", tokens=6_000, parts=2, characters=700, json=True
    )
    assert smollm2_library.run(options) == 0
    assert "landmark read" in capsys.readouterr().out
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((tmp_path / "work/texts").iterdir())}
    assert len(texts) > 6
    assert sum("pass key" in text.lower() or "passkey" in text.lower() for text in texts.values()) == 1
    assert all(len(text) >= 700 for text in list(texts.values())[:3])

    with Collection.create(tmp_path / "work/library", pair.converted, pair.tokenizer) as library:
        for name, text in texts.items():
            library.add(text, name)
    assert smollm2_library.run(options) == 0
    *rows, size = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (size["tokens"] > 5_000, size["documents"]) == (True, len(texts))
    asked = {(row["kind"], row["way"]): row["of"] for row in rows}
    for way in smollm2_library.WAYS:
        assert asked["passkey", way] == 1
        assert asked["named", way] == asked["absent", way] == 2
        assert asked["all", way] == 2 * len(NAMES) - 1

    def again(*_: object) -> None:
        raise AssertionError("answers are kept")

    monkeypatch.setattr(smollm2_library, "_answered", again)
    assert smollm2_library.run(options) == 0
