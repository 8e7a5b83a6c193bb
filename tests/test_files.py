"""Write-then-rename, and the lock between processes."""

import pytest

from landmark.files import bytes_in, files_below, try_lock, unfinished, written_whole


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


def test_a_file_of_two_names_counts_once(tmp_path):
    (tmp_path / "one" / "inner").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "inner" / "a").write_bytes(b"abc")
    (tmp_path / "two" / "b").hardlink_to(tmp_path / "one" / "inner" / "a")
    (tmp_path / "two" / "c").write_bytes(b"ab")
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "nowhere"]
    assert sorted((file.st_size, file.st_nlink) for file in files_below(folders)) == [(2, 1), (3, 2)]
    assert bytes_in(folders) == 5
