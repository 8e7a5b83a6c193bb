"""The page as a file: whole texts in it, nothing of them as markup, no more than a page may hold."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_views import HOSTILE, LETTERS, made_up, tokenizer_of

from landmark.view import page


class Elements(HTMLParser):
    """The elements of a page, and the contents of its scripts and styles by id."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.contents: dict[str, str] = {}
        self.links: list[str] = []
        self.inside: str | None = None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        self.inside = found.get("id", tag) if tag in ("script", "style", "title") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.contents[self.inside] = self.contents.get(self.inside, "") + data


def texts_of(elements: Elements) -> str:
    names = sorted((n for n in elements.contents if n.startswith("text-")), key=lambda name: int(name[5:]))
    return "".join(text for name in names for text in json.loads(elements.contents[name]))


def array(elements: Elements, name: str, kind: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(elements.contents[name]), kind)


@pytest.fixture(scope="module")
def view():
    return made_up(tokenizer_of("byte_level"), (HOSTILE, HOSTILE + LETTERS * 3), ("two", HOSTILE))[0]


@pytest.fixture(scope="module")
def source(view):
    return page.render(view)


def test_all_texts_are_there_and_none_is_markup(view, source):
    elements, plain = Elements(source), Elements(page.render(made_up(tokenizer_of("byte_level"), ("a", "b " * 9))[0]))
    assert texts_of(elements) == "".join(text.text for text in view.texts)
    assert set(elements.names) == set(plain.names)
    assert elements.names.count("img") == 0
    assert elements.contents["title"] == f"landmark: {HOSTILE}".replace("\r\n", "\n") or "\x00" in HOSTILE
    assert json.loads(elements.contents["facts"])["texts"][0]["name"] == HOSTILE


def test_no_character_turns_the_source_around(source):
    body = source[source.index("<body>") :]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]", body)


def test_nothing_is_loaded_and_only_its_own_script_runs(source):
    elements = Elements(source)
    assert elements.links == ["data:,"]
    assert "://" not in source.split("<body>")[0]
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', source)
    assert policy.startswith("default-src 'none'")
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(elements.contents[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_segments_differ_from_passages_by_their_edges(view, source):
    edges = json.loads(Elements(source).contents["edges"])
    assert any(behind > 0 for _, behind in edges.values())  # characters on the border of two blocks
    segments = [segment for text in view.texts for segment in page._segments(text, view.block_size)]
    blocks = [
        (text, block)
        for text in view.texts
        for block in range(text.first // view.block_size, (text.stop - 1) // view.block_size + 1)
    ]
    assert len(segments) == len(blocks)
    for number, ((text, block), (_, (before, behind))) in enumerate(zip(blocks, segments, strict=True)):
        begin = sum(
            len(own) for (other, _), (own, _) in zip(blocks[:number], segments[:number], strict=True) if other is text
        )
        units = text.text[begin:].encode("utf-16-le")
        length = len(segments[number][0].encode("utf-16-le")) // 2 + behind
        [passage] = [p for p in view.passages(block) if p.document == text.name]
        assert units[2 * before : 2 * length].decode("utf-16-le") == passage.text


def test_the_page_has_every_read_or_the_strongest(view, monkeypatch):
    def reads(source):
        elements = Elements(source)
        starts, weights = array(elements, "starts", np.uint32), array(elements, "weights", np.uint16)
        cells, opened = array(elements, "cells", np.uint16), array(elements, "opened", np.uint16)
        tokens = np.repeat(np.arange(len(view.tokens)), np.diff(starts))
        return {(int(t), int(c), int(b)): int(w) for t, c, b, w in zip(tokens, cells, opened, weights, strict=True)}

    found, expected = reads(page.render(view)), {}
    for token, layer, head, place in np.argwhere(view.blocks >= 0):
        key = int(token), int(layer * 2 + head), int(view.blocks[token, layer, head, place])
        expected[key] = view.weights[token, layer, head, place] * 65535
    assert found.keys() == expected.keys()
    monkeypatch.setattr(page, "MOST_READS", 20)
    fewer = reads(page.render(view))
    assert len(fewer) == 20
    assert min(fewer.values()) >= sorted(found.values())[-20]
    assert set(fewer.items()) <= set(found.items())


def test_local_weights_are_there(view, source):
    local = array(Elements(source), "local", np.uint16).reshape(view.local.shape) / 65535
    np.testing.assert_allclose(local, view.local, atol=1e-5)


def test_a_broken_writing_leaves_the_page_before(view, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    view.save(path)
    before = path.read_bytes()
    assert before.decode() == page.render(view)
    monkeypatch.setattr(page, "_facts", lambda view: object())
    with pytest.raises(TypeError):
        view.save(path)
    assert path.read_bytes() == before
