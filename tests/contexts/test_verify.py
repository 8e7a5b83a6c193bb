"""Every damaged byte is found and named by `verify`, and raises Damage when it is read."""

import random

import pytest
from faults import content
from flips import REGIONS, committed_byte, flipped, read_all
from made import HEADER, LAYOUT, add, commit, short_segments

from landmark.contexts.disk import Damage
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("contexts") / "one"
    with short_segments(4), create(path, HEADER, LAYOUT) as writer:
        for generation in range(5):
            now, then = content("one", generation), content("one", generation + 1)
            commit(writer, add(writer, now, then.documents[len(now.documents) :], then.blocks[len(now.blocks) :]))
        add(writer, then, (99,), (99,))  # not committed: not read
    return path


@pytest.mark.parametrize("region", REGIONS)
def test_every_flipped_bit_is_named(path, region):
    draw, snapshot = random.Random(region), open_reader(path)
    for _ in range(20):
        file, offset = committed_byte(snapshot, region, draw)
        with flipped(file, offset, draw.randrange(8)):
            damages = verify(path)
            assert [damage.file for damage in damages] == [file]
            if region == "blocks":
                read_all(path)
            else:
                with pytest.raises(Damage, match=file.name):
                    read_all(path)
    assert verify(path) == []


def test_block_and_layer_are_named(path):
    segment = open_reader(path).segments[1]
    layer_start = segment.blocks.layer_starts[1]
    with flipped(segment.path("blocks"), segment.blocks.record_bytes + layer_start, 0):
        (damage,) = verify(path)
    assert damage.what == f"is damaged in block {segment.first + 1}, layer 1"


def test_landmark_record_is_named(path):
    segment = open_reader(path).segments[1]
    with flipped(segment.path("landmarks"), LAYOUT.landmark_record.itemsize, 0):
        (damage,) = verify(path)
    assert damage.what == f"is damaged in record 1, the landmarks of block {segment.first + 1}"


def test_document_is_named(path):
    snapshot = open_reader(path)
    document = next(document for document in snapshot.documents() if document.bytes)
    with flipped(snapshot.segments[document.segment].path("text"), document.start, 0):
        (damage,) = verify(path)
        with pytest.raises(Damage, match="in document"):
            snapshot.text(document)
    assert damage.what == f"is damaged in document {document.name!r}"


def test_what_is_not_committed_is_not_looked_at(path):
    file = open_reader(path).segments[-1].path("blocks")
    with flipped(file, file.stat().st_size - 1, 0):
        assert verify(path) == []


@pytest.mark.parametrize(
    "name",
    ["000001.blocks", "000002.landmarks", "000001.tokens", "000001.text", "000001.documents", "000001.parts"],
)
def test_missing_and_short_files(path, name):
    file = path / "segments" / name
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    assert [damage.what.split(":")[0] for damage in verify(path)] == ["was cut short"]
    with pytest.raises(
        Damage, match=f"{name} was cut short: it has {len(data) - 1} bytes and {len(data)} were committed"
    ):
        open_reader(path)
    file.unlink()
    assert [(damage.file, damage.what) for damage in verify(path)] == [(file, "is missing")]
    with pytest.raises(Damage, match=f"{name} is missing"):
        open_reader(path)
    file.write_bytes(data)
    assert verify(path) == []


def test_missing_state(path):
    file = path / "state-5.safetensors"
    data = file.read_bytes()
    file.unlink()
    assert [(damage.file, damage.what) for damage in verify(path)] == [(file, "is missing")]
    with pytest.raises(Damage, match="is missing"):
        open_reader(path)
    file.write_bytes(data)


def test_progress_reaches_the_end(path):
    calls = []
    verify(path, lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (open_reader(path).manifest.committed_bytes,) * 2


def test_what_is_no_context_cannot_be_verified(tmp_path):
    with pytest.raises(ValueError, match="is not a context"):
        verify(tmp_path)


@pytest.mark.parametrize("region", ["tokens", "text", "parts"])
def test_what_sources_are_made_of_is_checked(path, region):
    draw, snapshot = random.Random(region), open_reader(path)
    for _ in range(20):
        file, offset = committed_byte(snapshot, region, draw)
        segment = snapshot.segments[int(file.stem) - 1]
        with flipped(file, offset, draw.randrange(8)), pytest.raises(Damage, match=file.name):
            every_quote(segment)
    every_quote(segment)


def test_the_name_that_a_source_gives_is_checked(path):
    segment = open_reader(path).segments[0]
    part = next(part for part in segment.parts() if part.token < part.token_stop)
    with (
        flipped(segment.path("documents"), part.line + len('{"name": "'), 0),
        pytest.raises(Damage, match=f"between bytes {part.line} and"),
    ):
        every_quote(segment)


def every_quote(segment):
    list(segment.parts())
    list(segment.parts().passages(0, segment.entry.token_count))
