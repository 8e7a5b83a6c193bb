"""The tasks of RULER against their definition."""

import json
import re
from collections import Counter

import pytest
from chat_tokenizer import chat_tokenizer

from landmark.evaluation.ruler import DATA_SETS, NAMES, NEEDLES, NOISE, groups, match_all, match_part
from landmark.evaluation.tasks import Draft, Group, Hidden, Prompt, Prompts

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("ala", "eme", "ini") for c in "lmnrst"]
ESSAY = " ".join(f"The {one} of {other} was seen by nobody." for one, other in zip(WORDS, WORDS[7:], strict=False))
LENGTH = 9000
NEEDLE = r"One of the special magic (numbers|uuids) for ([\w-]+) is: ([\w-]+)\."
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data sets")
    paragraphs = [
        {
            "context": f"Paragraph {n} says that the {word} is green and that {' '.join(WORDS[n : n + 12])} are not.",
            "qas": [
                {"question": f"What colour is the {word}?", "answers": [{"text": "green"}, {"text": "it is green"}]},
                {"question": "Why?", "answers": [], "is_impossible": True},
            ],
        }
        for n, word in enumerate(WORDS[:24])
    ]
    articles = [{"paragraphs": paragraphs[start : start + 4]} for start in range(0, 24, 4)]
    (folder / "squad.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    hotpot = [
        {
            "question": f"Who saw {word}?",
            "answer": f"Captain {word}",
            "context": [[f"On {word} {part}", [f"Captain {word} was there.", f" Part {part}."]] for part in (1, 2)],
        }
        for word in WORDS[:24]
    ]
    (folder / "hotpotqa.json").write_text(json.dumps(hotpot), encoding="utf-8")
    return {"qa_1": folder / "squad.json", "qa_2": folder / "hotpotqa.json"}


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(chat_tokenizer(), ESSAY, samples=3)


@pytest.fixture(scope="module")
def tasks(files) -> dict[str, Group]:
    return dict(zip(NAMES, groups(NAMES, ESSAY, files), strict=True))


def made(prompts: Prompts, group: Group, index: int = 1, length: int = LENGTH, chat: bool = False) -> Prompt:
    prompts.check_length(group, length, chat)
    (prompt,) = prompts.prompts(group, length, index, chat)
    return prompt


def context(prompts: Prompts, prompt: Prompt) -> str:
    return prompts.tokenizer.decode(prompt.text[prompt.context.start : prompt.context.stop])


def whole(prompts: Prompts, prompt: Prompt) -> str:
    return prompts.tokenizer.decode([*prompt.text, *prompt.question])


@pytest.mark.parametrize("name", NAMES)
def test_length_answer_and_determinism(prompts, tasks, name):
    for index, depth in enumerate(prompts.depths):
        prompt = made(prompts, tasks[name], index)
        length = len(prompt.text) + len(prompt.question) + prompt.task.answer_tokens
        assert LENGTH * 0.99 <= length <= LENGTH
        text, references = context(prompts, prompt), prompt.draft.references
        assert all(reference in text for reference in references) or name in DATA_SETS
        assert any(reference in text for reference in references)
        assert match_all(" ".join(references), prompt.draft) == 1
        if name in NEEDLES and len(references) == 1:
            assert text.index(references[0]) / len(text) == pytest.approx(depth, abs=0.03)
    again = made(Prompts(chat_tokenizer(), ESSAY, samples=3), tasks[name])
    assert whole(prompts, again) == whole(prompts, made(prompts, tasks[name]))
    other = made(Prompts(chat_tokenizer(), ESSAY, samples=3, seed=1), tasks[name])
    assert whole(prompts, other) != whole(prompts, again)


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_as_many_and_of_the_kind_that_the_definition_says(prompts, tasks, name):
    prompt = made(prompts, tasks[name])
    text, task = context(prompts, prompt), NEEDLES[name]
    found = re.findall(NEEDLE, text)
    asked = re.search(r"What (?:is|are all) the special magic (\w+) for (.*) mentioned", prompt.draft.question)
    assert asked is not None
    keys = re.split(r", and |, ", asked[2])
    assert [value for key in keys for kind, name, value in found if name == key] == list(prompt.draft.references) or (
        sorted(value for kind, name, value in found if name in keys) == sorted(prompt.draft.references)
    )
    assert len(keys) == task.queries
    assert len(prompt.draft.references) == task.queries * task.values
    many = max(task.keys, task.queries) * task.values
    assert len(found) > 20 if task.haystack == "needle" else len(found) == many
    assert {kind for kind, _, _ in found} == {task.value_type}
    for kind, values in ((task.key_type, {key for _, key, _ in found}), (task.value_type, {v for _, _, v in found})):
        form = {"numbers": r"\d{7}", "uuids": UUID.pattern, "words": r"[a-z]+-[a-z]+"}[kind]
        assert all(re.fullmatch(form, value) for value in values)
    if task.haystack == "noise":
        assert set(text.splitlines()[:-1]) == {NOISE.strip(), re.search(NEEDLE, text)[0]}
    if task.haystack == "essay":
        assert re.sub(f" {NEEDLE}", "", text) in ESSAY * 3


def test_the_wording_of_one_needle_and_of_several(prompts, tasks):
    one, several = (whole(prompts, made(prompts, tasks[f"niah_{name}"])) for name in ("single_1", "multivalue"))
    assert one.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about"
        " the number afterwards.\nThe grass is green."
    )
    key = one.split(" mentioned in the provided text is")[0].split(" for ")[-1]
    assert one.endswith(
        f"\nWhat is the special magic number for {key} mentioned in the provided text?"
        f" The special magic number for {key} mentioned in the provided text is"
    )
    assert several.startswith("Some special magic numbers are hidden within the following text.")
    assert " I will quiz you about the numbers afterwards.\n" in several
    assert several.endswith(" mentioned in the provided text are")
    in_chat = whole(prompts, made(prompts, tasks["niah_single_1"], chat=True))
    assert in_chat.startswith("<s>user\nA special magic number")
    assert f"provided text?</s>\n<s>assistant\n The special magic number for {key}" not in one
    assert "provided text?</s>\n<s>assistant\n The special magic number for" in in_chat


def test_variables_are_a_chain_of_four_hops_behind_an_example(prompts, tasks):
    prompt = made(prompts, tasks["vt"])
    text = context(prompts, prompt)
    value = re.search(r"assigned the value (\d{5}) in the text", prompt.draft.question)[1]
    lines = [line.strip() for line in text.splitlines() if line.startswith("VAR")]
    names = prompt.draft.references
    assert len(names) == 5
    assert lines == [f"VAR {names[0]} = {value}"] + [f"VAR {names[n + 1]} = VAR {names[n]}" for n in range(4)]
    assert prompt.draft.prefix.endswith(f"5 variables are assigned the value {value}, they are: ")
    example = prompt.draft.before
    shown = re.search(r"they are:  ((?:[A-Z]{3} ?){5})\n\nMemorize", example)[1].split()
    assert match_all(" ".join(shown), Draft(Hidden(()), "", tuple(shown))) == 1
    assert all(f"VAR {name} = " in example for name in shown)


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (LENGTH, 30, 3)])
def test_common_words_come_as_often_as_the_definition_says(prompts, tasks, length, often, seldom):
    prompt = made(prompts, tasks["cwe"], length=length)
    text = context(prompts, prompt)
    counts = Counter(re.findall(r"\d+\. ([\w-]+)", text))
    assert [int(number) for number in re.findall(r"(\d+)\.", text)] == list(range(1, sum(counts.values()) + 1))
    assert {word for word, count in counts.items() if count == often} == set(prompt.draft.references)
    assert {count for word, count in counts.items() if word not in prompt.draft.references} == {seldom}
    assert len(prompt.draft.references) == 10
    assert prompt.draft.before.count("Memorize the ones that appear most often.") == 2, "an example and the task"


def test_frequent_words_follow_a_zeta_distribution(prompts, tasks):
    prompt = made(prompts, tasks["fwe"])
    counts = Counter(context(prompts, prompt).split())
    words = [word for word, _ in counts.most_common(4)]
    assert words[0] == "..."
    assert tuple(words[1:]) == prompt.draft.references
    assert all(re.fullmatch("[a-z]{6}", word) for word in counts if word != "...")
    for place, word in enumerate(words, 1):
        assert counts[word] == pytest.approx(counts["..."] / place**2, abs=1.5)


@pytest.mark.parametrize("name", DATA_SETS)
def test_documents_that_are_needed_stand_among_others(prompts, tasks, name):
    for index in range(3):
        prompt = made(prompts, tasks[name], index, length=4000)
        text = context(prompts, prompt)
        documents = re.split(r"(?:^|\n\n)Document \d+:\n", text)[1:]
        asked = prompt.draft.question.split()[-1].strip("?")
        needed = [place for place, document in enumerate(documents) if f"{asked} " in document.split("green")[0]]
        assert len(needed) >= (1 if name == "qa_1" else 2)
        assert [int(n) for n in re.findall(r"Document (\d+):\n", text)] == list(range(1, len(documents) + 1))
        assert prompt.draft.query in prompt.draft.question
        assert prompt.draft.prefix == " Answer:"


def test_scores():
    draft = Draft(Hidden(()), "", ("Ab", "cd", "ef"))
    assert match_all("xabx, CD", draft) == pytest.approx(2 / 3)
    assert match_all("", draft) == 0
    assert match_part("the cd", draft) == 1
    assert match_part("the dc", draft) == 0


def test_what_cannot_be_asked(prompts, tasks, tmp_path):
    with pytest.raises(ValueError, match="qa_1 needs its data set: name it"):
        groups(["qa_1"], ESSAY, {"qa_1": None})
    with pytest.raises(ValueError, match=r"qa_2 needs its data set: .*nowhere is no file"):
        groups(["qa_2"], ESSAY, {"qa_2": tmp_path / "nowhere"})
    for name, text in (("qa_1", "[]"), ("qa_2", "{"), ("qa_1", '{"data": []}'), ("qa_2", "[]")):
        (tmp_path / "file").write_text(text)
        with pytest.raises(ValueError, match=r"is not the|has no question"):
            groups([name], ESSAY, {name: tmp_path / "file"})
    with pytest.raises(ValueError, match="haystack has 2 words"):
        groups(["cwe"], "Call me ishmael now.", {})
    for name, group in tasks.items():
        with pytest.raises(ValueError, match=f"too short for {name} .* give \\d+ tokens or more"):
            prompts.check_length(group, 150, False)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"answer": None}, "empty, or no text"),
        ({"answer": ""}, "empty, or no text"),  # would be in every answer
        ({"question": 7}, "empty, or no text"),
        ({"context": []}, "empty, or no text"),
        ({"context": "title"}, "is not the HotpotQA data set"),
    ],
)
def test_a_data_set_is_of_questions_answers_and_documents(asked, said, tmp_path):
    file = tmp_path / "hotpotqa.json"
    whole = {"question": "Who?", "answer": "Jim", "context": [["title", ["Jim was there."]]]}
    file.write_text(json.dumps([whole, whole | asked]), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        groups(["qa_2"], ESSAY, {"qa_2": file})
