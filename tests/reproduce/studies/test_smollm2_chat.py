import re

import pytest

from reproduce.studies import chat_prompts
from reproduce.studies.chat_prompts import FORMS, TEST_PROMPTS
from reproduce.studies.smollm2_chat import compared, figures

OLD = {"What is the capital of France?"}  # its form is trained on, with other countries


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_prompts_are_many_and_none_is_close_to_a_training_prompt():
    assert len(set(TEST_PROMPTS)) == len(TEST_PROMPTS) >= 100
    trained = [words(form.format(part)) for form, parts in FORMS for part in parts]
    near = {p for p in TEST_PROMPTS for t in trained if len(words(p) & t) > 0.5 * len(words(p) | t)}
    assert near == OLD


def test_no_test_prompt_is_a_training_prompt():
    assert not set(TEST_PROMPTS) & set(chat_prompts.training_prompts(300))


def test_where_conversion_changes_nothing_answers_are_identical(same_pair):
    found = compared(same_pair, "Hello", 12)
    assert found["identical"]
    assert found["original"] == found["converted"]
    assert found["prefix"] == found["tokens"] <= 12
    assert found["divergence"] == pytest.approx(0, abs=1e-5)


def test_the_common_beginning_ends_at_the_first_other_token(pair):
    found = compared(pair, "What is a landmark?", 12)
    assert not found["identical"]
    assert 0 <= found["prefix"] < 12
    assert found["divergence"] > 0.01


def test_figures_count_prompts():
    record = {"tokens": 10, "identical": True, "prefix": 10, "divergence": 0.0, "refused": False}
    other = {"tokens": 30, "identical": False, "prefix": 4, "divergence": 0.5, "refused": True}
    found = figures([record, record, record, other])
    assert (found["prompts"], found["identical"], found["refused"], found["tokens"]) == (4, 3, 1, 15)
    assert found["identical_low"] < found["identical_share"] == 0.75 < found["identical_high"]
    assert found["prefix"] == pytest.approx(8.5)
    assert found["divergence"] == pytest.approx(0.125)
