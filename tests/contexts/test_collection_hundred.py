"""A hundred small documents and the model in the package: one added, removed, replaced, and ninety shared."""

import numpy as np
import pytest

import landmark
from landmark import Collection, Context, Retriever
from landmark.contexts.apart import DocumentContext
from landmark.contexts.collection_folder import verify_collection
from landmark.data.recall import passkey_question, passkey_statement

LENGTH = 400  # characters: four or five blocks
KEY = "48213"
NAMES_OF_A_DOCUMENT = 20_000  # bytes on disk of folders, lock and manifest


def used(*folders):
    """Bytes on disk of all files and folders below, those with several names once."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return sum({path.lstat().st_ino: path.lstat().st_blocks * 512 for path in paths}.values())


@pytest.fixture(scope="module")
def small():
    return landmark.from_pretrained(landmark.model_path())


@pytest.fixture(scope="module")
def texts():
    """By name; the one named `hidden` has a passkey."""
    book = landmark.book_path().read_text(encoding="utf-8")
    starts = np.linspace(20_000, len(book) - 2 * LENGTH, 110).astype(int).tolist()
    found = {f"part {number}": book[start : start + LENGTH] for number, start in enumerate(starts)}
    found["hidden"] = found.pop("part 55")[: LENGTH // 2] + passkey_statement(KEY) + book[:LENGTH]
    return found


def asked(context):
    """The answer to the question for the passkey, and the document of the best passage for it."""
    answer = context.generate(passkey_question(), max_new_tokens=5)
    return answer.text, Retriever(context).search(passkey_question().strip(), 1)[0].document


def test_a_hundred_documents(tmp_path, small, texts, monkeypatch):
    names = [*[name for name in texts if name != "hidden"][:99], "hidden"]
    with Collection.create(tmp_path / "one", small) as one:
        for name in names:
            assert one.add(texts[name], name)
        assert asked(one.context) == (KEY, "hidden")

        rest = [name for name in texts if name not in names][:10]
        read, usual = [], DocumentContext.reading
        monkeypatch.setattr(DocumentContext, "reading", lambda *given: read.append(given) or usual(*given))
        with Collection.create(tmp_path / "two", small, share=[tmp_path / "one"]) as two:
            for name in [*names[10:], *rest]:
                assert two.add(texts[name], name)
            assert asked(two.context) == (KEY, "hidden")
        assert len(read) == len(rest) == 10
        with Collection.create(tmp_path / "ten", small) as ten:
            for name in rest:
                ten.add(texts[name], name)
        apart = used(tmp_path / "one", tmp_path / "two") - used(tmp_path / "one")
        assert apart <= used(tmp_path / "ten") + 90 * NAMES_OF_A_DOCUMENT
        assert used(tmp_path / "one") > 5 * apart

        size = used(tmp_path / "one", tmp_path / "two")
        one.remove("hidden")
        one.replace(names[0], "The sea was calm. " * 20)
        assert asked(one.context)[0] != KEY
        assert "hidden" not in {match.document for match in Retriever(one.context).search("pass key", 200)}
        assert len(one.documents) == 99
        two = Collection.open(tmp_path / "two", small, write=True)
        two.remove("hidden")
        assert used(tmp_path / "one", tmp_path / "two") < size
        assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        two.close()
    for path in (tmp_path / "one", tmp_path / "two"):
        assert verify_collection(path) == []
        assert len(Context.open(path, small).documents) == 99
