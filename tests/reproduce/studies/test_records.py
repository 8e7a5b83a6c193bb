import pytest

from reproduce.studies.records import Records


def test_records_are_found_again(tmp_path):
    Records(tmp_path / "a", {"model": "m"}).add("one", {"value": 1})
    records = Records(tmp_path / "a", {"model": "m"})
    assert records.by_key == {"one": {"value": 1}}
    assert "one" in records
    assert "two" not in records


def test_an_incomplete_last_line_is_dropped(tmp_path):
    file = tmp_path / "a"
    Records(file, {"model": "m"}).add("one", {"value": 1})
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "tw')
    assert Records(file, {"model": "m"}).by_key == {"one": {"value": 1}}
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": "other"}\n', "another model"),
        ("poems\n", "not a log"),
        ('{"model": "m"}\n{"value": 1}\n', "not a log"),
    ],
)
def test_other_files_are_left_alone(tmp_path, content, message):
    (tmp_path / "a").write_text(content)
    with pytest.raises(ValueError, match=message):
        Records(tmp_path / "a", {"model": "m"})
    assert (tmp_path / "a").read_text() == content
