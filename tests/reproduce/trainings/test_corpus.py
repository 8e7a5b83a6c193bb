import pytest

from reproduce.trainings.corpus import Corpus


def test_files_come_by_name(data):
    corpus = Corpus.of(data / "books")
    assert corpus.name == "books"
    assert corpus.train == tuple(str(data / "books" / "train" / name) for name in ("a.txt", "b.txt"))
    assert len(corpus.validation) == len(corpus.test) == 2


def test_folders_without_texts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"train does not exist: put text files there"):
        Corpus.of(tmp_path)
    (tmp_path / "train" / "folder").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train holds no text files"):
        Corpus.of(tmp_path)
