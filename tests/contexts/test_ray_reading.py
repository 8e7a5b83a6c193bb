"""Documents read apart by two workers of Ray on this machine. A worker takes seconds to start: one cluster for all."""

import os
import socket
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="the extra ray")
pytest.importorskip("ray.data", reason="the extra ray")

from storing import s3_server  # noqa: E402

from landmark import Collection  # noqa: E402
from landmark.cli import main as cli  # noqa: E402
from landmark.cli.options import load  # noqa: E402
from landmark.contexts import ray_reading, remote_cache  # noqa: E402
from landmark.contexts.collection_folder import verify_collection  # noqa: E402
from landmark.contexts.collection_manifest import DOCUMENTS  # noqa: E402
from landmark.contexts.ray_reading import LOCAL, read_by_ray  # noqa: E402
from landmark.contexts.remote import local_copy  # noqa: E402

TEXTS = [(f"{number}.txt", f"document {number} of keys and ships . " * (20 + 10 * number)) for number in range(4)]
# Ray's workers would give way to all other tests, and would not start in time.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@pytest.fixture(scope="module")
def s3():
    with s3_server() as settings:
        yield settings


@pytest.fixture(scope="module")
def cluster(s3, tmp_path_factory):
    """Two workers, with little memory for objects, that know the store."""
    with pytest.MonkeyPatch.context() as patch:
        settings = {**s3, remote_cache.FOLDER: str(tmp_path_factory.mktemp("cache")), **QUIET}
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init(
            "local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, logging_level="ERROR",
            log_to_driver=False,
        )  # fmt: skip
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """The same documents read here."""
    path = tmp_path_factory.mktemp("here") / "set"
    with Collection.create(path, model) as collection:
        for name, text in TEXTS:
            collection.add(text, name)
    return path


def committed(path: Path) -> dict[str, bytes]:
    """What was read of all documents."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.glob(f"{DOCUMENTS}/*/segments/*")}


def test_a_worker_that_is_killed_changes_no_bit(cluster, expected, model, folder, tmp_path):
    killed = tmp_path / "killed"

    def dying():
        """The model, in a process that dies in the middle of its first document, once."""
        from landmark.contexts.apart import DocumentContext

        usual = DocumentContext._commit

        def commit(self):
            usual(self)
            if not killed.exists():
                killed.touch()
                os.kill(os.getpid(), 9)

        DocumentContext._commit = commit
        return load(folder)

    read = []
    with Collection.create(tmp_path / "set", model) as collection:
        read_by_ray(collection, TEXTS, dying, LOCAL, workers=2, progress=read.append)
        assert collection.documents == Collection.open(expected, model).documents
        assert sorted(read) == sorted(member.tokens for member in collection.documents)
    assert killed.exists()
    assert committed(tmp_path / "set") == committed(expected)
    assert verify_collection(tmp_path / "set") == []


def test_what_was_read_is_not_read_again_in_a_store(cluster, expected, model, folder, tmp_path):
    url, flag, log = f"s3://bucket/{tmp_path.name}", tmp_path / "failed", tmp_path / "log"

    def failing():
        """The model, in a process that notes what it reads, and fails at one document as long as there is no flag."""
        from landmark.contexts.apart import ApartReader

        usual = ApartReader.read

        def read(self, documents, document, progress=None):
            if document.member.name == "3.txt" and not flag.exists():
                raise ValueError("this text cannot be read")
            usual(self, documents, document, progress)
            with log.open("a") as lines:
                lines.write(f"{document.member.name}\n")

        ApartReader.read = read
        return load(folder)

    with Collection.create(url, model) as collection:
        with pytest.raises(ValueError, match=r"3\.txt: this text cannot be read"):
            read_by_ray(collection, TEXTS, failing, LOCAL, workers=1)
        assert collection.documents == []
        flag.touch()
        read_by_ray(collection, TEXTS, failing, LOCAL, workers=1)
    assert sorted(log.read_text().split()) == [name for name, _ in TEXTS]
    assert committed(local_copy(url)) == committed(expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--apart", "--ray", "127.0.0.1:9"], "ray is 127.0.0.1:9, and no cluster answers there"),
        (
            ["--apart", "--ray", "nowhere"],
            "no cluster answers there (that is no HOST:PORT): give HOST:PORT of its head",
        ),
        (["--apart", "--ray", "nohost:1x"], "that is no HOST:PORT"),
        (["--apart", "--ray", ":6379"], "that is no HOST:PORT"),
        (["--apart", "--ray", "127.0.0.1:65536"], "that is no HOST:PORT"),
        (["--ray", "local"], "give --apart too"),
        (["--apart", "--ray", "local", "--share", "{tmp}"], "--share is for one machine"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, said, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0][1])
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert cli.main(["read", str(text), "--out", str(tmp_path / "set"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_what_answers_may_be_no_cluster(monkeypatch):
    monkeypatch.setattr(ray_reading, "_MOST_SECONDS", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ValueError, match=r"said nothing of a cluster within 0\.1 s\)") as raised,
    ):
        ray_reading.check_address(f"127.0.0.1:{other.getsockname()[1]}")
    assert "\n" not in str(raised.value)


def test_the_address_of_a_cluster(cluster):
    ray_reading.check_address(ray.get_runtime_context().gcs_address)


def test_without_ray(monkeypatch):
    monkeypatch.setattr(ray_reading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'landmark-attention\[ray\]'"):
        ray_reading.check_address(LOCAL)


def test_the_command(cluster, expected, folder, tmp_path, capsys):
    files = []
    for name, text in TEXTS[:2]:
        (tmp_path / name).write_text(text)
        files.append(str(tmp_path / name))
    out = tmp_path / "set"
    command = ["read", "--apart", "--ray", LOCAL, "--ray-workers", "1", "--model", str(folder), "--out", str(out)]
    assert cli.main([*command, *files]) == 0
    assert "2 documents of" in capsys.readouterr().out
    both = committed(out)
    assert both == {name: data for name, data in committed(expected).items() if name in both}
    assert len(both) == 12
    assert cli.main([*command, *files]) == 0
    assert ": nothing added; 2 documents, " in capsys.readouterr().out
