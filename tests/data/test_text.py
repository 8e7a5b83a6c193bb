import json

import pytest

from landmark.data.text import Document, read_documents, read_text


def test_text_comes_back_exactly_as_stored(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("naïve\r\n\ttext\r".encode())
    assert read_text(path) == "naïve\r\n\ttext\r"
    assert list(read_documents(str(path))) == [Document(str(path), "naïve\r\n\ttext\r")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"good\xff bad", "not UTF-8: byte 0xff at offset 4"),
        (b"%PDF-1.7 stream", "a PDF, not a text: .* with pdftotext"),
        (b"PK\x03\x04\x14\x00", "a zip archive, .* with pandoc"),
        (b"\x1f\x8b\x08\x00", "compressed, not a text: .* with gunzip"),
    ],
)
def test_unusable_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt is {message}"):
        read_text(path)


def test_missing_file_and_directory_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt does not exist"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a directory"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match="cannot be read: File name too long"):
        read_text(tmp_path / ("long" * 100))


@pytest.mark.parametrize(
    "source",
    ["hf:", "hf:name", "hf:name:train", "hf:name::train:text", "json:x.json", "csv:", "hf:a:b:c:d:e"],
)
def test_malformed_sources_are_errors(source):
    with pytest.raises(ValueError, match=r"form|column"):
        list(read_documents(source))


def test_table_rows_are_documents_and_blank_rows_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in ("one", " ", "two")))
    assert [document.text for document in read_documents(f"json:{path}:text")] == ["one", "two"]
    with pytest.raises(ValueError, match="no column 'body'; it has text, n"):
        list(read_documents(f"json:{path}:body"))
    with pytest.raises(ValueError, match="row 0: column 'n' holds int"):
        list(read_documents(f"json:{path}:n"))
