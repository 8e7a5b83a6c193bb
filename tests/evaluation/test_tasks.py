"""Prompts of tasks: their length, where statements stand, and what is the same for the same seed."""

import numpy as np
import pytest
import torch
from chat_tokenizer import chat_tokenizer

from landmark.data.chat import NOT_MENTIONED
from landmark.evaluation.recall import NAMES, nothing_invented, recall, words_found
from landmark.evaluation.tasks import Draft, Group, Hidden, Prompts, Task

SENTENCES = " ".join(f"It was the {n}th day of the voyage and nothing was seen." for n in range(60))


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(chat_tokenizer(), SENTENCES, samples=11)


def decoded(prompts: Prompts, ids: torch.Tensor) -> str:
    return prompts.tokenizer.decode(ids)


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_have_the_length_and_state_what_they_ask_for(prompts, chat):
    group = recall(NAMES)
    for index in range(0, 11, 2):
        asked = prompts.prompts(group, 5000, index, chat)
        assert [prompt.task.name for prompt in asked] == list(NAMES)
        text = decoded(prompts, asked[0].text)
        longest = max(len(prompt.question) for prompt in asked)
        assert len(asked[0].text) + longest + max(task.answer_tokens for task in group.tasks) == 5000
        for prompt in asked:
            assert torch.equal(prompt.text, asked[0].text)
            context = decoded(prompts, prompt.text[prompt.context.start : prompt.context.stop])
            stated = [context.index(line) for line in prompt.draft.text.asked]
            assert stated == sorted(stated), "in this order"
            assert all(line in context for line in prompt.draft.text.others)
            if prompt.task.name == "absent":
                assert prompt.draft.references == (NOT_MENTIONED,)
            else:
                assert min(abs(place / len(context) - prompt.depth) for place in stated) < 0.12
                assert words_found(" ".join(prompt.draft.text.asked), prompt.draft) == 1
            question = decoded(prompts, prompt.question)
            assert question.endswith("assistant\n" if chat else prompt.draft.prefix or prompt.draft.question)
            assert (text + question).count("<s>") == (2 if chat else 0)
        assert text.startswith("<s>user\nRead the following") == chat


def test_statements_stand_between_sentences(prompts):
    draft = Draft(Hidden((" Here it is.",), (" And there.",)), "?", ("x",))
    told = Group((Task("told", words_found, 5),), lambda rng, chat, length: [draft])
    for index in range(11):
        (prompt,) = prompts.prompts(told, 900, index, False)
        text = decoded(prompts, prompt.text)
        assert text.replace(" Here it is.", "").replace(" And there.", "") in f"{SENTENCES}{SENTENCES}"
        for line in (" Here it is.", " And there."):
            before, after = text.split(line)
            assert not before or before.endswith(".") or not after
            assert not after or after.startswith((" ", "It"))


def test_depths_are_uniform_for_each_task(prompts):
    group = recall(["named", "facts", "queries"])
    for number, task in enumerate(group.tasks):
        asked = [prompts.prompts(group, 9000, index, True)[number] for index in range(11)]
        assert sorted(prompt.depth for prompt in asked) == prompts.depths
        found = []
        for prompt in asked:
            context = decoded(prompts, prompt.text[prompt.context.start : prompt.context.stop])
            found += [context.index(line) / len(context) for line in prompt.draft.text.asked]
        assert np.abs(np.sort(found) - np.linspace(0, 1, len(found))).max() < 0.15, task.name


def test_prompts_depend_on_seed_length_and_number_only(prompts):
    named = recall(["named"])
    again = Prompts(chat_tokenizer(), SENTENCES, samples=11)
    again.prompts(named, 2500, 1, False)
    (one,) = prompts.prompts(named, 3000, 4, True)
    assert torch.equal(one.text, again.prompts(named, 3000, 4, True)[0].text)
    assert one.draft == again.prompts(named, 3000, 4, True)[0].draft
    (other,) = Prompts(chat_tokenizer(), SENTENCES, samples=11, seed=1).prompts(named, 3000, 4, True)
    assert one.draft.references != other.draft.references
    (plainly,) = prompts.prompts(named, 3000, 4, False)
    assert one.draft.references == plainly.draft.references, "in both forms"


def test_too_short_for_a_group(prompts):
    for names in ("passkey",), NAMES:
        group = recall(names)
        with pytest.raises(ValueError, match=rf"too short for {group.name} .* give \d+ tokens or more") as error:
            prompts.check_length(group, 100, True)
        least = int(str(error.value).split("give ")[1].split()[0])
        prompts.check_length(group, least + 300, True)  # other lengths draw other facts


def test_unknown_tasks():
    with pytest.raises(ValueError, match="no task 'pass': choose of passkey, named"):
        recall(["named", "pass"])


def test_no_haystack():
    with pytest.raises(ValueError, match="no token"):
        Prompts(chat_tokenizer(), "", samples=1)


def draft(*references: str) -> Draft:
    return Draft(Hidden(()), "Where does Oslo live?", references)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The codes are AB12 and 345.", 1),
        ("ab12", 0.5),
        ("AB123, 3456", 0),
        ("it is 345!", 0.5),
        ("", 0),
    ],
)
def test_all_references_must_be_whole_words(answer, score):
    assert words_found(answer, draft("AB12", "345", "345")) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (NOT_MENTIONED, 1),
        ("It is NOT MENTIONED where Oslo lives.", 1),
        ("The text does not say where Oslo lives.", 1),
        ("It doesn't state that.", 1),
        ("There is no mention of it.", 1),
        ("No. It is mentioned.", 0),
        ("It does not live.", 0),
        ("Oslo lives in Paris. That is not mentioned in the text.", 0),
        ("The code is 4711, not mentioned.", 0),
        ("I do not know.", 0),
        ("It is mentioned.", 0),
    ],
)
def test_nothing_may_be_invented(answer, score):
    assert nothing_invented(answer, draft(NOT_MENTIONED)) == score
