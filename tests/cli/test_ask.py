"""`landmark ask`, of a text and of a context."""

import json

import pytest
from cli_texts import BOOK, ask

import landmark
from landmark.cli import main as cli
from landmark.cli.answering import Continuation


def test_ask_reads_a_text_streams_the_answer_and_names_what_it_read(model_folder, book, capsys):
    arguments = ["ask", str(book), "jim looked", "--model", str(model_folder)]
    arguments += ["--max-new-tokens", "7", "--sources", "3"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new_tokens"] == 7
    assert len(found["sources"]) == 3
    text = book.read_text(encoding="utf-8")
    assert found["read_seconds"] > 0
    for source in found["sources"]:
        assert source["document"] == str(book)
        assert text[source["first"] : source["last"]] == source["text"] != ""
        assert source["start"] == source["block"] * 5 < source["stop"] <= source["start"] + 5
    assert all(0 < source["weight"] < 1 for source in found["sources"])

    assert cli.main(arguments) == 0
    output = capsys.readouterr()
    assert output.out.startswith(found["answer"])
    first = found["sources"][0]
    assert f"block {first['block']}, weight {first['weight']:.3f}" in output.out
    assert f"{found['tokens_read']:,} tokens read" in output.err


@pytest.mark.parametrize("kind", ["text", "context"])
def test_an_answer_ends_with_its_line_unless_a_number_of_tokens_is_given(kind, tmp_path, capsys):
    """The model in the package was never taught to end: after a passkey it writes the next one."""
    source = tmp_path / "book.txt"
    text = landmark.book_path().read_text(encoding="utf-8")[:3000]
    source.write_text("\n\nThe pass key is 48213. Remember it. 48213 is the pass key.\n\n" + text, encoding="utf-8")
    if kind == "context":
        assert cli.main(["read", str(source), "--out", str(tmp_path / "library")]) == 0
        source = tmp_path / "library"
    arguments = ["ask", str(source), "What is the pass key? The pass key is "]
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] == "48213."
    assert found["new_tokens"] <= 10
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("48213.\n")
    assert cli.main([*arguments, "--json", "--max-new-tokens", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 20


@pytest.mark.parametrize(
    ("pieces", "said", "ended"),
    [
        (["48", "213.", "\n", "\nThe"], "48213.", [False, False, True, True]),
        (["\n \n", "the sea\r", "\n"], "\n \nthe sea", [False, False, True]),
        (["a", "b"], "ab", [False, False]),
    ],
)
def test_the_first_line_that_is_not_blank_is_the_answer(pieces, said, ended):
    written = []
    going = Continuation(None, written.append)
    found = []
    for piece in pieces:
        going.take(piece)
        found.append(going.ended())
    assert found == ended
    assert going.of("".join(pieces)) == said
    assert "".join(written).rstrip("\r") == said
    asked = Continuation(7)
    asked.take("a\nb")
    assert not asked.ended()
    assert asked.of("a\nb") == "a\nb"
    assert asked.max_new_tokens == 7


def test_what_was_read_of_the_question_is_no_passage_of_the_text(model_folder, tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("jim looked at", encoding="utf-8")
    question = "the captain said nothing and went on " * 5
    arguments = ["ask", str(text), question, "--model", str(model_folder), "--json", "--sources", "9"]
    assert cli.main(arguments) == 0
    sources = json.loads(capsys.readouterr().out)["sources"]
    assert sources
    assert "jim looked at".find("".join(source["text"] for source in sources)) >= 0


def test_sampling_follows_the_seed(model_folder, book, capsys):
    arguments = ["ask", str(book), "jim", "--model", str(model_folder), "--json"]
    answers = []
    for seed in ("1", "1", "2"):
        assert cli.main([*arguments, "--temperature", "1.5", "--max-new-tokens", "9", "--seed", seed]) == 0
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sources", "-1"], "sources is -1"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0: give 1 or more"),
        (["--temperature", "-1"], "temperature is -1.0: give 0 for the most likely"),
        (["--chunk-size", "5000"], "does not fit the trained range"),
        (["--retrieve", "-2"], "retrieve is -2"),
        (["--host-budget", "1KB"], "too small for a single query"),
        (["--verify", "all"], "verify is all, of a context"),
    ],
)
def test_mistakes_with_a_text(model_folder, book, arguments, said, capsys):
    refused(["ask", str(book), "jim", "--model", str(model_folder), *arguments], said, capsys)


def test_a_text_needs_a_prompt_and_a_file(book, capsys):
    refused(["ask", str(book), ""], "prompt is empty", capsys)
    refused(["ask", "/nonexistent.txt", "jim"], "does not exist", capsys)


def refused(arguments, said, capsys):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1


def test_the_same_answer_of_a_text_within_any_budget(model_folder, book, capsys):
    answers = [
        ask(book, capsys, "--model", str(model_folder), *options)
        for options in ([], ["--host-budget", "12KB"], ["--index", "exact"])
    ]
    assert len({answer["answer"] for answer in answers}) == 1
    assert [answer["traffic"]["file_bytes"] > 0 for answer in answers] == [False, True, False]


def test_the_same_answer_of_a_text_and_of_its_context(context, files, model_folder, capsys):
    of_context, of_text = ask(context, capsys), ask(files[0], capsys, "--model", str(model_folder))
    for name in ("answer", "tokens_read", "new_tokens"):
        assert of_context[name] == of_text[name]
    assert list(of_context) == list(of_text)
    assert of_context["sources"] == of_text["sources"]


def test_a_context_keeps_all_blocks(context, capsys):
    refused(["ask", str(context), "jim", "--max-blocks", "20"], "a context keeps all blocks", capsys)


# Of a context.


def test_ask_names_where_it_looked(context, files, capsys):
    answer = ask(context, capsys, "--sources", "3")
    assert answer["new_tokens"] == 7
    assert answer["tokens_read"] > 100
    assert answer["traffic"]["requested"] > 0
    assert len(answer["sources"]) == 3
    for source in answer["sources"]:
        assert source["document"] == files[0]
        assert BOOK[source["first"] : source["last"]] == source["text"] != ""
    assert cli.main(["ask", str(context), "jim looked", "--max-new-tokens", "7"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(answer["answer"])
    assert f"{files[0]}, characters " in output.out
    assert "answered from" in output.err


def test_the_same_answer_within_any_budget_and_with_any_exact_index(context, capsys):
    answers = [
        ask(context, capsys, *options)
        for options in ([], ["--host-budget", "12KB"], ["--index", "exact"], ["--index", "hierarchical"])
    ]
    assert len({answer["answer"] for answer in answers}) == 1


@pytest.mark.parametrize("command", ["ask", "append"])
def test_a_damaged_block_is_found_before_the_context_opens(context, files, command, capsys):
    blocks = next((context / "segments").glob("*.blocks"))
    data = bytearray(blocks.read_bytes())
    data[100] ^= 4
    blocks.write_bytes(data)
    rest = ["jim"] if command == "ask" else []
    refused([command, str(context), *rest, "--verify", "all"], f"{blocks.name} is damaged in block 0, layer 0", capsys)
