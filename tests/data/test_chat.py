"""Recall windows in the chat_format of a chat model."""

import numpy as np
import pytest
from chat_tokenizer import chat_tokenizer
from transformers import PreTrainedTokenizerFast

from landmark.data.chat import NOT_MENTIONED, ChatFormat, Facts, marked
from landmark.data.recall import ANSWER, HIDDEN, REPLY, RecallTask, RecallWindows, random_name
from landmark.training.stages import Stage, StageBatches


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the two of the template."""
    return chat_tokenizer()


def windows(tokenizer, length=1500, **changes) -> RecallWindows:
    task = RecallTask(**({"keys": (2, 4), "questions": (1, 3), "chat": 1.0} | changes))
    return RecallWindows(task, tokenizer.backend_tokenizer, length, ChatFormat.of(tokenizer))


def filler(length=1500) -> np.ndarray:
    return np.full(length, 5)


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_window_is_a_conversation_of_the_template(tokenizer):
    piece = windows(tokenizer).window(filler(), np.random.default_rng(0))
    text = decoded(tokenizer, piece.ids)
    assert len(piece.ids) == len(piece.kinds) == 1500
    assert text.startswith("<s>user\n")
    assert text.endswith("</s>")
    turns = text.removeprefix("<s>").removesuffix("</s>").split("</s>\n<s>")
    assert [turn.split("\n")[0] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)


def test_what_is_answered_is_what_was_stated(tokenizer):
    made = windows(tokenizer)
    for seed in range(30):
        piece = made.window(filler(), np.random.default_rng(seed))
        text = decoded(tokenizer, piece.ids)
        stated, _, asked = text.partition("</s>")
        hidden = decoded(tokenizer, piece.ids[piece.kinds == HIDDEN])
        for run in np.split(piece.ids, np.flatnonzero(np.diff(piece.kinds == ANSWER)) + 1)[1::2]:
            answer = decoded(tokenizer, run)
            assert answer in asked
            assert answer == NOT_MENTIONED or (answer in stated and answer in hidden)


def test_an_answer_ends_with_the_token_that_ends_it(tokenizer):
    piece = windows(tokenizer).window(filler(), np.random.default_rng(3))
    replies = (piece.kinds == ANSWER) | (piece.kinds == REPLY)
    ends = np.flatnonzero(replies & ~np.append(replies[1:], False))
    assert len(ends)
    assert all(piece.ids[end] == tokenizer.eos_token_id for end in ends)


def test_facts_share_no_name_and_questions_without_an_answer_have_one_of_their_own():
    for seed in range(200):
        facts = Facts(np.random.default_rng(seed), random_name)
        drawn = [facts.draw() for _ in range(4)]
        assert len({fact.question for fact in drawn}) == 4
        asked = facts.unanswerable()
        assert asked.answer == NOT_MENTIONED
        assert asked.question not in {fact.question for fact in drawn}


def test_every_value_of_an_answer_is_a_value_of_its_statements():
    kinds = set()
    for seed in range(300):
        fact = Facts(np.random.default_rng(seed), random_name).draw()
        hidden = [text[start:stop] for text, places in map(marked, fact.statements) for start, stop in places]
        text, places = marked(fact.answer)
        assert places
        assert [text[start:stop] for start, stop in places] == list(dict.fromkeys(hidden)) or len(hidden) > 1
        assert {text[start:stop] for start, stop in places} == set(hidden)
        assert not set("<>{}") & set(text + fact.question + "".join(marked(one)[0] for one in fact.statements))
        kinds.add((len(fact.statements) > 1, "VAR" in fact.question, "pass key" in fact.question))
    assert len(kinds) == 4  # one value, several, variables, pass keys


def test_facts_that_do_not_fit_are_fewer(tokenizer):
    piece = windows(tokenizer, length=900, keys=(6, 6), questions=(6, 6)).window(filler(900), np.random.default_rng(0))
    assert len(piece.ids) == 900
    with pytest.raises(ValueError, match="too short for a conversation"):
        windows(tokenizer, length=250, keys=(1, 1), questions=(1, 1)).window(filler(60), np.random.default_rng(0))


def test_a_tokenizer_without_a_template_is_told(tokenizer):
    mute = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    with pytest.raises(ValueError, match="no chat template"):
        ChatFormat.of(mute)
    stage = Stage(1, 700, 1, recall_fraction=0.5, recall=RecallTask(chat=0.5))
    with pytest.raises(ValueError, match="chat template"):
        StageBatches(filler(2000), tokenizer.backend_tokenizer, [stage], block_size=63, seed=0)
    batches = StageBatches(
        filler(2000), tokenizer.backend_tokenizer, [stage], block_size=63, seed=0, chat_format=ChatFormat.of(tokenizer)
    )
    assert batches[0]["input_ids"].shape[0] == 1


def test_chat_is_a_share():
    with pytest.raises(ValueError, match="chat"):
        RecallTask(chat=1.5)
