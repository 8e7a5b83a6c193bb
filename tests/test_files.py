"""Write-then-rename, and the lock between processes."""

import pytest

from landmark.files import try_lock, unfinished, written_whole


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "settings.json"
    with written_whole(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), written_whole(path) as partial, partial.open("w", encoding="ascii") as file:
        file.writelines(["half of the sec", "\N{SNOWMAN}"])
    assert path.read_text() == "first"
    assert unfinished(path).read_text() == "half of the sec"
    with written_whole(path) as partial:
        partial.write_text("second")
    assert path.read_text() == "second"
    assert not unfinished(path).exists()


def test_a_folder_is_whole_or_absent(tmp_path):
    with written_whole(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_lock_has_one_holder(tmp_path):
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert try_lock(first.fileno())
        assert not try_lock(second.fileno())
        first.close()
        assert try_lock(second.fileno())
