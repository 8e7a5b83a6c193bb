"""A view of a tiny model: its reads are those of the trace, its passages those of the texts."""

import json

import numpy as np
import pytest
import torch
from made_views import LETTERS, TOKENIZERS, made_up, tokenizer_of, traced
from tokenizers import pre_tokenizers

import landmark
from landmark.hf.tokenizer import encode
from landmark.view import records
from landmark.view.gather import View, _generated

TEXT = "the sea was calm and jim looked at it . " * 8 + LETTERS


@pytest.fixture(scope="module")
def seen(reader):
    return traced(*reader, TEXT, "jim looked", 12)


@pytest.fixture(scope="module")
def view(reader, seen):
    text, prompt, ids, cache = seen
    return View.of_text(*reader, text, prompt, ids, cache.trace(), name="book")


@pytest.fixture
def context(reader, tmp_path):
    with landmark.Context.create(tmp_path / "library", *reader) as context:
        context.append(TEXT, "book")
        context.append(LETTERS * 3, "letters")
        yield context


def test_weights_of_every_token_layer_and_head_sum_to_one(view):
    assert view.local.shape == (12, 2, 4)
    assert view.blocks.shape == view.weights.shape == (12, 2, 4, 2)
    assert np.abs(view.weights.sum(-1) + view.local - 1).max() < 1e-5
    assert view.weights.max() > 0.01


def test_reads_of_a_token_are_those_of_the_query_in_front_of_it(view, seen, reader):
    """Against the same forwards one by one: the last query of the prompt predicts the first generated token."""
    text, prompt, ids, _ = seen
    model, cache = reader[0], landmark.read(reader[0], text.ids)
    for number, chunk in enumerate([prompt.ids.tolist(), *([token] for token in ids[:-1])]):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([chunk]), past_key_values=cache).logits
        assert logits[0, -1].argmax() == ids[number]
        trace = cache.trace()
        ends = (cache.tokens_read()[0] % 5) == 0  # a landmark follows the token that completes a block
        for row, layer in enumerate(view.layers):
            last = trace.blocks[layer].shape[2] - 1 - ends
            assert view.blocks[number, row].tolist() == trace.blocks[layer][0, :, last].tolist()
            np.testing.assert_allclose(view.weights[number, row], trace.gates[layer][0, :, last], atol=1e-6)
            np.testing.assert_allclose(view.local[number, row], trace.local[layer][0, :, last], atol=1e-6)


def test_generated_tokens_make_up_the_answer(view, seen, reader):
    text, prompt, ids, _ = seen
    assert [token.id for token in view.tokens] == ids
    assert view.tokens[0].number == len(text) + len(prompt)
    assert view.texts[-1].text == "".join(token.text for token in view.tokens)
    assert view.texts[-1].text.rstrip("\ufffd") == reader[1].decode(ids).rstrip("\ufffd")


def test_a_context_gives_the_view_of_its_documents(context, reader):
    answer = context.generate("jim looked", max_new_tokens=6, sources=3)
    found = View.of_context(context, answer)
    assert [(text.name, text.text) for text in found.texts[:2]] == [("book", TEXT), ("letters", LETTERS * 3)]
    assert found.texts[2].text == "jim looked"
    assert [text.first for text in found.texts] == [0, *(text.stop for text in found.texts[:-1])]
    assert found.texts[2].first == context.tokens
    assert np.abs(found.weights.sum(-1) + found.local - 1).max() < 1e-5
    for source in found.sources(5):
        assert source.text == next(t.text for t in found.texts if t.name == source.document)[source.first : source.last]


def test_passages_are_those_that_the_context_names(context):
    answer = context.generate("jim looked", max_new_tokens=3, sources=4)
    found = View.of_context(context, answer)
    for source in answer.sources:
        named = [p for p in found.passages(source.block, source.weight) if p.document == source.document]
        assert named == [source]


def test_a_context_that_is_read_in_part(context, reader):
    context.add([("more", TEXT[:60])])
    answer = context.generate("jim looked", max_new_tokens=2)
    assert [text.name for text in View.of_context(context, answer).texts] == ["book", "letters", "prompt", "answer"]
    context.read()
    with pytest.raises(ValueError, match=r"library has grown since this answer was given: ask again"):
        View.of_context(context, answer)


def test_an_empty_context_has_no_view(reader, context, tmp_path):
    answer = context.generate("jim", max_new_tokens=2)
    with landmark.Context.create(tmp_path / "empty", *reader) as empty, pytest.raises(ValueError, match="no text"):
        View.of_context(empty, answer)


def byte_table() -> dict[str, int]:
    """How ByteLevel spells the bytes that occur in UTF-8."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    characters = map(chr, [*range(0xD800), *range(0x10000, 0x110000, 0x1000)])
    return {letter: byte for c in characters for letter, byte in zip(spell(c)[0][0], c.encode(), strict=True)}


SPELLED = byte_table()
BYTES = {
    "byte_level": lambda name: b"" if name == "<s>" else bytes(SPELLED[letter] for letter in name),
    "sentencepiece": lambda name: (
        bytes([int(name[3:5], 16)])
        if name.startswith("<0x")
        else name.replace("<s>", "").replace("\u2581", " ").encode()
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_passages_decoded_are_the_text_at_their_offsets(kind):
    tokenizer = tokenizer_of(kind)
    view, ids = made_up(tokenizer, ("one", LETTERS * 3), ("two", LETTERS))
    covered = {text.name: "" for text in view.texts}
    split = 0
    bytes_of = BYTES[kind]
    for block in range(view.block_count):
        for passage in view.passages(block):
            text = next(text for text in view.texts if text.name == passage.document)
            assert passage.text == text.text[passage.first : passage.last]
            own = [bytes_of(name) for name in tokenizer.convert_ids_to_tokens(ids[passage.start : passage.stop])]
            decoded = b"".join(own)
            if passage.start == text.first or own[0] == b"":  # the space that the tokenizer puts in front of a text
                decoded = decoded.removeprefix(b" ") if not passage.text.startswith(" ") else decoded
            # Tokens may hold a part of a character: the passage names it whole, and nothing more.
            parts = passage.text.encode().partition(decoded)
            assert parts[1] == decoded
            before, behind = len(parts[0]), len(parts[2])
            split += bool(before or behind)
            if before:
                assert before < len(passage.text[0].encode())
            if behind:
                assert behind < len(passage.text[-1].encode())
            covered[text.name] += passage.text[max(0, len(covered[text.name]) - passage.first) :]
    assert split > 3
    assert covered == {text.name: text.text for text in view.texts}


def test_ranking_is_the_mean_over_tokens_layers_and_heads():
    view, _ = made_up(tokenizer_of("byte_level"), ("one", LETTERS * 3))
    for token in (None, 2):
        chosen = slice(None) if token is None else slice(token, token + 1)
        ranked = view.weights_of_blocks(token)
        assert [weight for _, weight in ranked] == sorted((weight for _, weight in ranked), reverse=True)
        for block, weight in ranked:
            total = view.weights[chosen][view.blocks[chosen] == block].sum()
            assert weight == pytest.approx(total / view.local[chosen].size)
        assert sum(weight for _, weight in ranked) == pytest.approx(1 - view.local[chosen].mean())
    first = view.sources(3)[0]
    assert (first.block, first.weight) == view.weights_of_blocks()[0]


def test_records_have_every_token_layer_and_head(tmp_path):
    view, _ = made_up(tokenizer_of("byte_level"), ("one", LETTERS))
    view.save(tmp_path / "reads.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "reads.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == list(records.records(view))
    assert len(lines) == len(view.tokens) * 3 * 2
    assert {line["layer"] for line in lines} == {0, 1, 3}
    for line in lines:
        assert sum(line["weights"]) + line["local"] == pytest.approx(1, abs=1e-5)
        assert len(line["weights"]) == len(line["blocks"])
        assert -1 not in line["blocks"]


def test_what_was_not_recorded_is_refused(reader, seen):
    text, prompt, ids, cache = seen
    trace = cache.fork().trace()
    with pytest.raises(ValueError, match=r"was not recorded: call cache.start_trace\(\)"):
        View.of_text(*reader, text, prompt, ids, trace)
    with pytest.raises(ValueError, match="the prompt is empty"):
        View.of_text(*reader, text, encode(reader[1], ""), ids, cache.trace())
    with pytest.raises(ValueError, match="nothing was generated"):
        View.of_text(*reader, text, prompt, [], cache.trace())


def test_a_text_in_the_local_window_opens_nothing(reader):
    text, prompt, ids, cache = traced(*reader, "jim", " sea", 1)
    with pytest.raises(ValueError, match=r"no block was opened for these \d+ tokens"):
        View.of_text(*reader, text, prompt, ids, cache.trace())


def test_endings_of_files(tmp_path):
    view, _ = made_up(tokenizer_of("byte_level"), ("one", LETTERS))
    with pytest.raises(ValueError, match=r"page.txt ends in '.txt': end its name in one of .html, .jsonl, .png"):
        view.save(tmp_path / "page.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_add_to_the_answer_what_they_complete(kind):
    """A first space stays, a character of several tokens comes with its last, special tokens add nothing."""
    tokenizer = tokenizer_of(kind)
    text = " Jim sea \U0001f600 calm"
    ids = [*encode(tokenizer, text, continues=True).ids.tolist(), tokenizer.eos_token_id]
    before = encode(tokenizer, "it was calm and").ids.tolist()
    tokens = _generated(tokenizer, before, ids, 40)
    assert "".join(token.text for token in tokens) == text
    assert [token.number for token in tokens] == list(range(40, 40 + len(ids)))
    place = next(i for i, token in enumerate(tokens) if "\U0001f600" in token.text)
    assert [token.text for token in tokens[place - 3 : place]] == ["", "", ""]
    assert (tokens[-1].text, tokens[-1].name) == ("", "</s>")
