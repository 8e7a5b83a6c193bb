"""Manifests that anyone may have written: refused in one line, or a context that holds what it held."""

import copy
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import HEADER, LAYOUT, landmarks_of, tokens_of

from landmark.contexts.disk import Damage
from landmark.contexts.manifest import MOST_BYTES, has_manifest, read_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create

FIXTURE = Path(__file__).parents[1] / "fixtures" / "context"
ODD = (-1, 0, 1, 7, 2**31, 2**53, 2**64, 10**400, 0.5, -0.0, True, None, "", "x", "\ud800", [], {}, [[]], float("inf"))


def fields_of(path):
    return json.loads((path / "manifest.json").read_bytes())


def rewrite(path, fields):
    """Writes a manifest of these fields, with the checksum that belongs to them."""
    write_rest(path, json.dumps({name: value for name, value in fields.items() if name != "crc32"})[1:].encode())


def write_rest(path, rest):
    (path / "manifest.json").write_bytes(b'{"crc32": "%08x",\n%s' % (zlib.crc32(rest), rest))


def places(value, path=()):
    """Where something stands in JSON: the keys that lead there."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


def changed(fields, place, value):
    """`fields` with another value at a place; `...` takes away what is there."""
    fields, inner = copy.deepcopy(fields), None
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return fields


def all_of(path):
    """Everything that a context holds, read as it is read for answers; the values can be compared."""
    snapshot = open_reader(path)
    tensors, metadata = snapshot.state()
    documents = snapshot.documents()
    found = [snapshot.blocks, metadata, {name: x.numpy().tobytes() for name, x in tensors.items()}]
    found += [x.numpy().tobytes() for x in landmarks_of(snapshot)]
    found += [documents, [snapshot.text(document) for document in documents], tokens_of(snapshot).tobytes()]
    for segment in snapshot.segments:
        found.append(list(segment.parts().passages(0, segment.entry.token_count)))
        found.append(segment.parts().tokens(0, segment.entry.token_count).tobytes())
    return found


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A context with the state of a KV cache, and all that it holds."""
    path = shutil.copytree(FIXTURE, tmp_path_factory.mktemp("held") / "context")
    return path, all_of(path)


@settings(max_examples=200)
@given(data=st.data())
def test_a_changed_manifest_is_refused_or_the_context_is_what_it_was(held, data):
    path, expected = held
    sound, fields = (path / "manifest.json").read_bytes(), fields_of(path)
    place = data.draw(st.sampled_from([place for place in places(fields) if place and place[0] != "crc32"]))
    before = fields
    for key in place:
        before = before[key]
    near = [before - 1, before + 1, before * 2] if type(before) is int else []
    try:
        rewrite(path, changed(fields, place, data.draw(st.sampled_from([..., *near, *ODD]))))
        error = refusal(lambda: all_of(path) == expected or pytest.fail("read wrongly"))
        if error:
            assert len(error.splitlines()) == 1
            assert len(error) < 600
            assert refusal(lambda: verify_all(path)), "what cannot be read is verified as if it could"
    finally:
        (path / "manifest.json").write_bytes(sound)


def refusal(use):
    """The text of the ValueError that a call raises, if it does."""
    try:
        use()
    except ValueError as error:
        return str(error)
    return None


def verify_all(path):
    for damage in verify(path):
        raise damage


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("generation",), float("nan"), "NaN"),
        (("generation",), "/../../x", "generation is '/../../x'"),
        (("generation",), 10**400, "more than 40 digits"),
        (("generation",), 0, "generation is 0, and state is an object"),
        (("state",), None, "generation is 1, and state is None"),
        (("version",), "2", "format version is '2'"),
        (("version",), ..., "format version is None"),
        (("header",), [], "header is a list"),
        (("header", "model"), 5, "header: model is 5"),
        (("header", "settings"), "x", "header: settings is 'x'"),
        (("header", "inner"), float("inf"), "Infinity"),
        (("header", "name"), "\ud800", "UTF-8 cannot encode"),
        (("unknown",), 1, "unknown field 'unknown'"),
        (("blocks",), [], "blocks has 0 entries"),
        (("blocks", 0, 4), "load", "dtype is 'load'"),
        (("blocks", 0, 4), "int8", "dtype is 'int8'"),
        (("blocks", 0, 0), -2, "heads is -2"),
        (("blocks", 0), [2, 3], "has 2 entries"),
        (("landmarks", 0), [2**16, 2**16], "landmarks is too large"),
        (("landmarks",), [[1, 4]], "landmarks has 1 entries"),
        (("segments",), {"a": 1}, "segments is an object"),
        (("segments", 0, "first"), 7, "first is 7, and the segments before have 0 blocks"),
        (("segments", 0, "blocks"), -1, "blocks is -1"),
        (("segments", 0, "blocks"), 1.5, "blocks is 1.5"),
        (("segments", 0, "owned"), 1, "owned is 1"),
        (("segments", 0, "tokens", "bytes"), 5, "no multiple of 12"),
        (("segments", 0, "parts", "bytes"), 53, "no multiple of 52"),
        (("segments", 0, "text", "evil"), 1, "unknown field 'evil'"),
        (("segments", 0, "text", "crc32"), 2**32, "crc32 is 4294967296"),
        (("segments", 0, "documents"), {"bytes": 0, "crc32": 0}, "bytes of parts, text, tokens alone"),
        (("segments", 0, "parts"), {"bytes": 0, "crc32": 0}, "bytes of documents, text, tokens alone"),
    ],
)
def test_the_wrong_value_is_named(path, place, value, what):
    rewrite(path, changed(fields_of(path), place, value))
    with pytest.raises(Damage) as error:
        read_manifest(path)
    assert what in str(error.value)
    assert [damage.file for damage in verify(path)] == [path / "manifest.json"]


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("segments", 0, "blocks"), 3, "counts 3 blocks, and layer 0 of the state 384 positions of 8 a block"),
        (("segments", 0, "blocks"), 0, "counts 0 blocks"),
        (("segments", 0, "tokens", "bytes"), 12, "000001.tokens is damaged"),
        (("blocks", 0, 1), 4, "layer 0 of the state 384 positions of 4 a block"),
        (("blocks", 0), [4, 8, 4, 4, "float32"], "keys ['F32', [1, 2, 8, 8]]"),
        (("blocks", 0, 4), "bfloat16", "keys ['F32', [1, 2, 8, 8]]"),
        (("blocks",), [[2, 8, 8, 8, "float32"]], "landmarks has 2 entries"),
    ],
)
def test_verify_finds_counts_that_are_false(held, tmp_path, place, value, what):
    path = shutil.copytree(held[0], tmp_path / "context")
    rewrite(path, changed(fields_of(path), place, value))
    assert any(what in str(damage) for damage in verify(path)), verify(path)
    with pytest.raises(Damage):
        all_of(path)


@pytest.mark.parametrize(
    "rest",
    [
        b'"format": "landmark context", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'"format": "landmark context", "version": ' + b"9" * 5000 + b"}",
        b'"format": "landmark context", "version": 2, "segments": [' + b"{}," * 100_000 + b"{}]}",
        b'"format": "landmark context", "version": 2, "x": "\xff"}',
        b'"format": "landmark context", "version": 2',
        b'"format": "landmark context"]',
    ],
    ids=["deep", "digits", "segments", "utf8", "end", "no object"],
)
def test_what_is_no_json_of_a_manifest(path, rest):
    write_rest(path, rest)
    with pytest.raises(Damage, match="is no manifest that can be read"):
        read_manifest(path)
    assert has_manifest(path)


def test_many_segments_and_values_are_refused_before_anything_is_made_of_them(path):
    fields = fields_of(path)
    rewrite(path, {**fields, "segments": [1] * 20_000})
    with pytest.raises(Damage, match="segments has 20000 entries"):
        read_manifest(path)
    rewrite(path, {**fields, "header": {"list": [0] * 100_001}})
    with pytest.raises(Damage, match="header has more than 100000 values"):
        read_manifest(path)
    rewrite(path, {**fields, "header": {"list": [[[]]] * 10 + [json.loads("[" * 40 + "]" * 40)]}})
    with pytest.raises(Damage, match="nested too deeply"):
        read_manifest(path)


def test_a_file_that_is_too_large_is_not_read(path):
    os.truncate(path / "manifest.json", 20 << 30)  # sparse
    with pytest.raises(Damage, match=f"has {20 << 30} bytes, and a manifest has {MOST_BYTES} at most"):
        read_manifest(path)
    assert has_manifest(path)
    assert len(verify(path)) == 1


@pytest.mark.parametrize(
    "header", [{"model": 5}, {"x": "a" * MOST_BYTES}, {"settings": []}, {"x": "\ud800"}, {"x": [0] * 200_000}]
)
def test_a_header_that_could_not_be_read_again_is_not_written(tmp_path, header):
    with pytest.raises(ValueError, match="header"):
        create(tmp_path / "new", HEADER | header, LAYOUT)
    assert not (tmp_path / "new").exists()
