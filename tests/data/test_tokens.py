import json

import numpy as np
import pytest

from landmark.data import tokens
from landmark.data.tokenizer import train_tokenizer
from landmark.data.tokens import TokenFile, tokenize

EOS_ID = 1


@pytest.fixture
def sources(tmp_path) -> list[str]:
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    for number, path in enumerate(paths):
        path.write_text(f"the whale of the sea\n{number} ships " * (20 + number))
    return [str(path) for path in paths]


def test_ids_are_the_texts_with_a_separator_each(sources, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.data.text.PIECE_CHARACTERS", 64)
    file = tokenize(sources, tokenizer, tmp_path / "out", eos_id=EOS_ID)
    assert file.ids.dtype == np.uint16
    assert [document.name for document in file.documents] == sources
    for document in file.documents:
        ids = file.ids[document.start : document.stop].tolist()
        assert ids[-1] == EOS_ID
        with open(document.name) as text:
            assert tokenizer.decode(ids[:-1]) == text.read()
    assert file.documents[-1].stop == len(file)


def test_interrupted_tokenization_continues_and_ends_the_same(sources, tokenizer, tmp_path, monkeypatch):
    whole = tokenize(sources, tokenizer, tmp_path / "whole", eos_id=EOS_ID)

    def interrupt(document: tokens.TokenizedDocument) -> None:
        if document.name == sources[1]:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tokenize(sources, tokenizer, out, eos_id=EOS_ID, on_document=interrupt)
    # Half of the third document and half of its line reached the disk.
    with open(out / tokens.DATA, "ab") as data, open(out / tokens.JOURNAL, "a") as journal:
        data.write(b"\x05\x00\x06")
        journal.write('{"name": "')
    with pytest.raises(ValueError, match="no complete tokenized text"):
        TokenFile.open(out)

    written = []
    write = tokens._write_document
    monkeypatch.setattr(
        tokens, "_write_document", lambda data, text, *rest: written.append(text) or write(data, text, *rest)
    )
    resumed = tokenize(sources, tokenizer, out, eos_id=EOS_ID)
    assert len(written) == 1, "only the third document is tokenized again"
    assert resumed.documents == whole.documents
    assert resumed.checksum == whole.checksum


def test_what_failed_is_in_nobodys_way(sources, tokenizer, tmp_path):
    out = tmp_path / "out"
    for wrong in (["typo.txt"], [sources[0], "typo.txt"], [sources[0], sources[1], "typo.txt"]):
        with pytest.raises(ValueError, match=r"typo\.txt does not exist"):
            tokenize(wrong, tokenizer, out, eos_id=EOS_ID)
    # Of the two documents that are finished the first is still the same.
    right = [sources[0], sources[2]]
    found = tokenize(right, tokenizer, out, eos_id=EOS_ID)
    whole = tokenize(right, tokenizer, tmp_path / "whole", eos_id=EOS_ID)
    assert (found.documents, found.checksum) == (whole.documents, whole.checksum)


def test_folders_of_earlier_releases_are_refused_with_the_remedy(sources, tokenizer, tmp_path):
    out = tmp_path / "out"
    tokenize(sources, tokenizer, out)
    for name in ("settings.json", tokens.MANIFEST):
        path = out / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    for attempt in (lambda: tokenize(sources, tokenizer, out), lambda: TokenFile.open(out)):
        with pytest.raises(ValueError, match=r"earlier release.*delete the folder and tokenize again"):
            attempt()


def test_a_complete_folder_is_reused(sources, tokenizer, tmp_path, monkeypatch):
    first = tokenize(sources, tokenizer, tmp_path / "out")
    monkeypatch.setattr(tokens, "_write_document", None)
    assert tokenize(sources, tokenizer, tmp_path / "out").checksum == first.checksum


def test_differences_are_named(sources, tokenizer, tmp_path):
    out = tmp_path / "out"
    tokenize(sources, tokenizer, out, eos_id=EOS_ID)
    with pytest.raises(ValueError, match="another eos_id"):
        tokenize(sources, tokenizer, out)
    with pytest.raises(ValueError, match=r"made with other sources \(.* now "):
        tokenize(sources[:2], tokenizer, out, eos_id=EOS_ID)
    other = train_tokenizer(sources, 262, tmp_path / "other")
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenize(sources, other, out, eos_id=EOS_ID)
    with pytest.raises(ValueError, match="another tokenizer"):
        TokenFile.open(out, tokenizer=other)
    with open(sources[1], "a") as text:
        text.write("!")
    with pytest.raises(ValueError, match=r"b\.txt has changed"):
        tokenize(sources, tokenizer, out, eos_id=EOS_ID)


@pytest.mark.parametrize("file", [tokens.DATA, tokens.JOURNAL])
def test_damage_is_found(sources, tokenizer, tmp_path, file):
    out = tmp_path / "out"
    tokenize(sources, tokenizer, out)
    content = bytearray((out / file).read_bytes())
    content[10] ^= 1
    (out / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: (tokens|documents)_sha256"):
        TokenFile.open(out)


def test_truncation_is_found_even_without_reading_the_data(sources, tokenizer, tmp_path):
    out = tmp_path / "out"
    tokenize(sources, tokenizer, out)
    content = (out / tokens.DATA).read_bytes()
    (out / tokens.DATA).write_bytes(content[:-2])
    with pytest.raises(ValueError, match="damaged: tokens_bytes"):
        TokenFile.open(out, verify=False)


def test_foreign_folders_are_left_alone(sources, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files"):
        tokenize(sources, tokenizer, tmp_path / "out")


def test_other_versions_are_refused(sources, tokenizer, tmp_path):
    out = tmp_path / "out"
    tokenize(sources, tokenizer, out)
    manifest = json.loads((out / tokens.MANIFEST).read_text())
    (out / tokens.MANIFEST).write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        TokenFile.open(out)
