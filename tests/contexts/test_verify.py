"""Every damaged byte is found and named by `verify`, and raises Damage when it is read."""

import random
from dataclasses import replace

import numpy as np
import pytest
from faults import content
from flips import REGIONS, committed_byte, flipped, read_all
from made import HEADER, LAYOUT, Content, add, commit, short_segments, tokens_of

from landmark.contexts.disk import Damage, OpenFile, record_checksums
from landmark.contexts.folder import fork
from landmark.contexts.manifest import KINDS, PART, Committed, extended, publish, read_manifest
from landmark.contexts.snapshot import Snapshot, open_reader
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
            with pytest.raises(Damage, match=file.name.replace("landmarks", "(landmarks|blocks)")):
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


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_behind_the_commit_where_none_can_be(path, tmp_path, kind):
    """A writer extends the last segment alone, and that of a fork's first owner may go on."""
    fork(path, tmp_path / "fork")
    file = path / "segments" / f"000001.{kind}"
    data = file.read_bytes()
    with file.open("ab") as end:
        end.write(b"x")
    assert verify(tmp_path / "fork") == []
    assert [(damage.file, damage.what) for damage in verify(path)] == [
        (file, f"has 1 bytes behind the {len(data)} that were committed")
    ]
    with pytest.raises(Damage, match="has 1 bytes behind the"):
        open_reader(path)
    file.write_bytes(data)


def test_a_state_has_no_bytes_behind_the_commit(path):
    file = path / open_reader(path).manifest.state_name
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    assert len(verify(path)) == 1
    with pytest.raises(Damage, match="has 1 bytes behind the"):
        open_reader(path)
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"name": "a", "tokens": 1}', "has no characters"),
        (b'{"name": 5, "tokens": 1, "characters": 2, "bytes": 3, "crc32": 4}', "name is 5"),
        (b'{"name": "a", "tokens": -1, "characters": 2, "bytes": 3, "crc32": 4}', "tokens is -1"),
        (
            b'{"name": "a", "tokens": 1, "characters": 2, "bytes": 3, "crc32": 4}',
            "has documents of 1 tokens and 3 bytes",
        ),
        (b"[]", "a line is a list"),
    ],
)
def test_lines_that_no_document_has(tmp_path, line, what):
    """Their checksums are right: another program may have written them."""
    path, data = tmp_path / "one", line + b"\n"
    with create(path, HEADER, LAYOUT) as writer:
        commit(writer, add(writer, Content(), (1,), ()))
    manifest = read_manifest(path)
    (entry,) = manifest.segments
    (path / "segments" / "000001.documents").write_bytes(data)
    publish(path, replace(manifest, segments=(replace(entry, documents=extended(Committed(), data)),)))
    with pytest.raises(Damage, match=what):
        open_reader(path).documents()
    assert any(what in str(damage) for damage in verify(path))


@pytest.mark.parametrize("field", ["token", "byte", "character", "line", "line_bytes"])
@pytest.mark.parametrize("value", [1, 2**31])
def test_parts_that_no_document_has(tmp_path, field, value):
    """A part that says another place is refused, however its checksum fits: no other text is read for its tokens."""
    path = tmp_path / "one"
    with create(path, HEADER, LAYOUT) as writer:
        commit(writer, add(writer, Content(), (1, 2, 3), ()))
    manifest = read_manifest(path)
    (entry,) = manifest.segments
    segment = open_reader(path).segments[0]
    expected = list(segment.parts().passages(0, entry.token_count))
    file = segment.path("parts")
    records = np.frombuffer(file.read_bytes(), PART).copy()
    records[1][field] += value
    records["crc32"] = record_checksums(records)
    file.write_bytes(records.tobytes())
    publish(path, replace(manifest, segments=(replace(entry, parts=extended(Committed(), records.tobytes())),)))
    assert verify(path)
    with pytest.raises(Damage):
        assert list(open_reader(path).segments[0].parts().passages(0, entry.token_count)) == expected


def test_many_bytes_are_checked_before_they_are_taken_into_memory(tmp_path, monkeypatch):
    """A file with a hole has any size: none of it is read at once."""
    path = tmp_path / "one"
    with create(path, HEADER, LAYOUT) as writer:
        commit(writer, add(writer, Content(), (1, 2, 3), (1, 2)))
    manifest = read_manifest(path)
    (entry,) = manifest.segments
    size = 96 << 20
    reads, usual = [], OpenFile.read
    monkeypatch.setattr(OpenFile, "read", lambda file, n, at=0: reads.append(n) or usual(file, n, at))
    uses = {"text": Snapshot.documents, "tokens": tokens_of, "documents": Snapshot.documents}
    for kind, use in uses.items():
        with (path / "segments" / f"000001.{kind}").open("r+b") as file:
            file.truncate(size)
        changed = replace(entry, **{kind: Committed(size, 1)})
        publish(path, replace(manifest, segments=(changed,)))
        assert any("checksum does not fit" in damage.what for damage in verify(path))
        with pytest.raises(Damage):
            use(open_reader(path))
    assert max(reads) < 16 << 20


def test_very_much_damage_is_not_listed_to_the_end(path, monkeypatch):
    monkeypatch.setattr("landmark.contexts.verify.MOST_DAMAGES", 2)
    kept = {file: file.read_bytes() for file in (path / "segments").glob("*.landmarks")}
    try:
        for file, data in kept.items():
            file.write_bytes(b"x" * len(data))
        assert 2 <= len(verify(path)) <= 5
    finally:
        for file, data in kept.items():
            file.write_bytes(data)
