import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.data.recall import (
    ANSWER,
    COPY,
    HIDDEN,
    TEXT,
    RecallTask,
    RecallWindows,
    passkey_question,
    passkey_statement,
    random_key,
)

FILLER_ID = 2  # "!" in any byte-level vocabulary with two special tokens, and in no template


def digits_of(tokenizer, piece, kind) -> str:
    return tokenizer.decode(piece.ids[piece.kinds == kind].tolist())


@given(seed=st.integers(0, 2**32), digits=st.integers(1, 9))
def test_keys_have_the_digits_asked_for(seed, digits):
    key = random_key(np.random.default_rng(seed), digits)
    assert len(key) == digits
    assert key.isdigit()


def test_the_pass_key_pieces_are_what_evaluation_would_tokenize(tokenizer):
    windows = RecallWindows(RecallTask(), tokenizer, 300)
    question = windows.question(None, "48213")
    prompt = tokenizer.encode(passkey_question()).ids
    assert question.ids[: len(prompt)].tolist() == prompt
    assert question.kinds[len(prompt)] == ANSWER, "the prompt ends right where the digits start"
    assert digits_of(tokenizer, question, ANSWER) == "48213"
    statement = windows.statement(None, "48213")
    assert statement.ids.tolist() == tokenizer.encode(passkey_statement("48213")).ids
    assert digits_of(tokenizer, statement, HIDDEN) == digits_of(tokenizer, statement, COPY) == "48213"


@given(
    seed=st.integers(0, 2**32),
    keys=st.tuples(st.integers(1, 2), st.integers(2, 4)),
    questions=st.tuples(st.integers(1, 2), st.integers(2, 5)),
)
def test_every_question_follows_its_statement_and_has_its_answer(tokenizer, seed, keys, questions):
    windows = RecallWindows(RecallTask(keys, questions), tokenizer, 900)
    piece = windows.window(np.full(900, FILLER_ID), np.random.default_rng(seed))
    text = tokenizer.decode(piece.ids.tolist())
    stated = {}
    for match in re.finditer(r"(pass key|key of \w+) is (\d{5})\. Remember it|\? The ([\w ]+) is (\d{5})\.\n", text):
        if match[1]:
            stated[match[1]] = match[2]
        else:
            assert stated[match[3]] == match[4]
    asked = text.count("?")
    assert keys[0] <= len(stated) <= keys[1]
    assert questions[0] <= asked <= questions[1]
    assert (piece.kinds == ANSWER).sum() == 5 * asked
    assert (piece.kinds == HIDDEN).sum() == (piece.kinds == COPY).sum() == 5 * len(stated)
    assert (piece.ids[piece.kinds == TEXT] == FILLER_ID).all()
    assert len(piece.ids) == len(piece.kinds) == 900


def test_filler_stays_in_order(tokenizer):
    filler = np.arange(400)
    piece = RecallWindows(RecallTask(), tokenizer, 400).window(filler, np.random.default_rng(5))
    kept = piece.ids[piece.kinds == TEXT]
    assert kept.tolist() == list(range(len(kept)))


def test_the_same_seed_gives_the_same_window(tokenizer):
    windows = RecallWindows(RecallTask((2, 3), (2, 3)), tokenizer, 600)
    first, second, other = (windows.window(np.zeros(600), np.random.default_rng(seed)).ids for seed in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()


def test_distances_from_statement_to_question_vary(tokenizer):
    windows = RecallWindows(RecallTask(), tokenizer, 600)
    distances = []
    for seed in range(200):
        kinds = windows.window(np.zeros(600), np.random.default_rng(seed)).kinds
        distances.append(np.argmax(kinds == ANSWER) - np.argmax(kinds == HIDDEN))
    assert min(distances) < 100
    assert max(distances) > 400


def test_impossible_tasks_are_errors(tokenizer):
    with pytest.raises(ValueError, match="a window holds 100"):
        RecallWindows(RecallTask((1, 4), (1, 4)), tokenizer, 100)
    with pytest.raises(ValueError, match="keys must be two numbers"):
        RecallTask(keys=(2, 1))
    with pytest.raises(ValueError, match="answer_weight"):
        RecallTask(answer_weight=0.0)
    with pytest.raises(ValueError, match="digits"):
        RecallTask(digits=0)
