"""Opened blocks as places in the text."""

import torch

from landmark.evaluation.passages import passages
from landmark.hf import Span
from landmark.hf.tokenizer import EncodedText, encode


def test_passages_name_tokens_and_characters(tokenizer):
    text = encode(tokenizer, "the sea ü was calm") + encode(tokenizer, " and jim looked")
    spans = [Span(1, 3, 6, 0.5), Span(0, 0, 3, 0.25), Span(2, 6, 9, 0.1)]
    found = passages(spans, text, 2)
    assert [(p.block, p.weight) for p in found] == [(1, 0.5), (0, 0.25)]
    for passage in found:
        assert text.text[passage.first : passage.last] == passage.text
        decoded = tokenizer.decode(text.ids[passage.start : passage.stop])
        # A token may hold half of a character; the passage names it whole.
        assert decoded.strip("�") in passage.text


def test_characters_go_on_over_joined_texts(tokenizer):
    first, second = encode(tokenizer, "the sea"), encode(tokenizer, " was calm")
    both = first + second
    assert both.text == "the sea was calm"
    assert both.characters(len(first), len(both)) == (7, 16)
    assert both.characters(len(both), len(both) + 5) == (16, 16)
    assert len(both) == len(first) + len(second)


def test_passages_look_at_their_own_tokens_alone():
    class Counting(list):
        looked = 0

        def __getitem__(self, places):
            found = super().__getitem__(places)
            Counting.looked += len(found) if isinstance(places, slice) else 1
            return found

        def __iter__(self):
            raise AssertionError("all tokens are looked at")

    text = "the sea " * 10_000
    offsets = Counting((start, start + 4) for start in range(0, len(text), 4))
    encoded = EncodedText(text, torch.zeros(len(offsets), dtype=torch.long), offsets)
    (found,) = passages([Span(9, 15_000, 15_008, 0.5)] * 2, encoded, 1)
    assert found.text == "the sea " * 4
    assert Counting.looked == 8
