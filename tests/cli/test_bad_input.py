"""Whatever is wrong with a command line, its streams or its files: one line on standard error and exit code 2."""

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from benchmarks.__main__ import BENCHMARKS
from landmark.cli import main as cli
from landmark.cli.main import LANDMARK
from landmark.cli.program import USAGE_ERROR, Command, Program
from landmark.limits import LARGEST, OutFile, OutFolder, Range, inner_type, is_group, limits_of
from reproduce.__main__ import REPRODUCE

PROGRAMS = (LANDMARK, BENCHMARKS, REPRODUCE)
COMMANDS = [(program, command) for program in PROGRAMS for command in program.commands]
every_command = pytest.mark.parametrize(
    ("program", "command"), COMMANDS, ids=[f"{program.name} {command.name}" for program, command in COMMANDS]
)


def hints_of(kind: type) -> dict[str, object]:
    """The types of all options, those of nested groups beside the others."""
    found: dict[str, object] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner = inner_type(hint)
        found |= hints_of(inner) if is_group(inner) else {name: hint}
    return found


def kinds_of(hint: object) -> set[object]:
    """The types that a field may have, without what its annotation says besides."""
    if hasattr(hint, "__metadata__"):
        return kinds_of(get_args(hint)[0])
    if isinstance(hint, types.UnionType):
        return set().union(*map(kinds_of, get_args(hint)))
    return {hint}


# What a command needs before its options are looked at.
NEEDED = {
    (LANDMARK, "read"): ["no.txt", "--out", "new"],
    (LANDMARK, "append"): ["no", "no.txt"],
    (LANDMARK, "add"): ["no", "no.txt"],
    (LANDMARK, "remove"): ["no", "x"],
    (LANDMARK, "ask"): ["no", "x"],
    (LANDMARK, "retrieve"): ["no", "x"],
    (LANDMARK, "view"): ["--file", "no.txt", "--prompt", "x", "--text"],
    (LANDMARK, "contexts info"): ["no"],
    (LANDMARK, "contexts verify"): ["no"],
    (LANDMARK, "contexts delete"): ["no"],
    (LANDMARK, "contexts export"): ["no", "--out", "no.tar"],
    (LANDMARK, "train"): ["--out", "new"],
    (LANDMARK, "tokenizer train"): ["no.txt", "--out", "new"],
    (LANDMARK, "eval perplexity"): ["--texts", "no.txt"],
    (LANDMARK, "eval retrieval"): ["--texts", "no.txt"],
    (BENCHMARKS, "laptop"): ["no.gguf"],
    (BENCHMARKS, "weights"): ["no.gguf"],
    (BENCHMARKS, "long-context read"): ["no"],
    (BENCHMARKS, "long-context ask"): ["no"],
    (BENCHMARKS, "long-context decode"): ["no"],
    (REPRODUCE, "paper"): ["--out", "new"],
    (REPRODUCE, "train"): ["small_books", "--out", "new"],
    (REPRODUCE, "study convert-smollm2"): ["--out", "new"],
    (REPRODUCE, "study untrained-perplexity"): ["no", "no.txt"],
    (REPRODUCE, "study recall-tables"): ["no", "--out", "new"],
    (REPRODUCE, "study smollm2-chat"): ["no", "--out", "new"],
    (REPRODUCE, "study smollm2-perplexity"): ["no", "--texts", "no.txt", "--out", "new"],
    (REPRODUCE, "study smollm2-questions"): ["no", "--work", "new"],
    (REPRODUCE, "study smollm2-library"): ["no", "no.txt", "--work", "new"],
    (REPRODUCE, "study reading-apart"): ["no.txt", "--out", "new.jsonl"],
    (REPRODUCE, "study source-ranking"): ["no"],
    (REPRODUCE, "study key-margins"): ["no"],
    (REPRODUCE, "study group-landmarks"): ["--train", "no.txt", "--test", "no.txt"],
}
NUMBERS = [
    (program, command, name, limit)
    for program, command in COMMANDS
    for name, limits in limits_of(command.load()[1]).items()
    for limit in limits
    if isinstance(limit, Range)
]


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], program: Program = LANDMARK) -> str:
    """The one line with which a command line is refused."""
    try:
        code = program.main(arguments)
    except SystemExit as end:  # by the parser
        code = end.code
    output = capsys.readouterr()
    assert (code, output.out) == (USAGE_ERROR, "")
    (line,) = output.err.splitlines()
    assert line.startswith("landmark: error: ")
    return line


@every_command
def test_every_number_has_limits(program: Program, command: Command):
    limits = limits_of(command.load()[1])
    for name, hint in hints_of(command.load()[1]).items():
        if {int, float} & kinds_of(hint):
            assert any(isinstance(limit, Range) for limit in limits[name]), f"--{name} of {command.name}"


@pytest.mark.parametrize(
    ("program", "command", "option", "limit"),
    NUMBERS,
    ids=[f"{program.name} {command.name} {option}" for program, command, option, _ in NUMBERS],
)
def test_numbers_outside_their_limits(program, command, option, limit, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = int in kinds_of(hints_of(command.load()[1])[option])
    bad = ["nan", "inf", "-inf", "-1", "1e400"] if not whole else ["-1", str(10**30), "1.5", "nan", ""]
    if limit.least > 0 and not limit.or_zero:
        bad.append("0")
    flag = "--" + option.replace("_", "-")
    for value in bad:
        line = refused(capsys, [*command.words, *NEEDED.get((program, command.name), []), flag, value], program)
        assert option in line.replace("-", "_")
    assert not list(tmp_path.iterdir())


@every_command
def test_parser_errors_are_one_line(program: Program, command: Command, capsys):
    needed = NEEDED.get((program, command.name), [])
    assert "nonsense" in refused(capsys, [*command.words, *needed, "--nonsense", "x"], program)
    if needed:
        assert "missing" in refused(capsys, command.words, program)
    assert "'x\\udcff' is not UTF-8" in refused(capsys, [*command.words, "x\udcff"], program)


def test_an_empty_value_is_no_folder(capsys):
    assert "the out is empty" in refused(capsys, ["train", "--texts", "a.txt", "--out", ""])
    assert "the out is empty" in refused(capsys, ["train", "--texts", "a.txt", "--out="])


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (LANDMARK, ["read", "BOOK", "--out", "FILE/new"]),
        (LANDMARK, ["read", "BOOK", "--out", "FILE"]),
        (LANDMARK, ["read", "BOOK", "--out", "NONE/new"]),
        (LANDMARK, ["contexts", "export", "NONE", "--out", "FOLDER"]),
        (LANDMARK, ["contexts", "export", "NONE", "--out", "NONE/x.tar"]),
        (LANDMARK, ["train", "--texts", "BOOK", "--out", "FILE/new"]),
        (LANDMARK, ["train", "--texts", "BOOK", "--out", "FOLDER", "--json", "FOLDER"]),
        (LANDMARK, ["tokenizer", "train", "BOOK", "--out", "FILE"]),
        (LANDMARK, ["eval", "passkey", "--out", "FOLDER"]),
        (LANDMARK, ["eval", "passkey", "--out", "NONE/log"]),
        (LANDMARK, ["ask", "FOLDER", "x"]),
        (LANDMARK, ["demo", "--text", "FOLDER"]),
        (LANDMARK, ["demo", "--model", "FILE"]),
        (LANDMARK, ["eval", "perplexity", "--texts", "FOLDER"]),
        (LANDMARK, ["read", "FOLDER", "--out", "NEW"]),
        (LANDMARK, ["tokenizer", "train", "FOLDER", "--out", "NEW"]),
        (REPRODUCE, ["--quick", "--out", "FILE"]),
        (BENCHMARKS, ["ops", "--plot", "FOLDER/x.png/x.png"]),
        (BENCHMARKS, ["gpu", "--out", "FOLDER"]),
        (BENCHMARKS, ["reliability", "--folder", "FILE"]),
        (BENCHMARKS, ["parallel", "--folder", "FILE"]),
        (BENCHMARKS, ["tiers", "disk", "--folder", "FILE"]),
        (BENCHMARKS, ["tiers", "read", "--text", "FOLDER"]),
        (BENCHMARKS, ["tiers", "read", "--model", "FILE"]),
        (BENCHMARKS, ["long-context", "ask", "FOLDER"]),
        (BENCHMARKS, ["long-context", "read", "NEW", "--texts", "FOLDER"]),
        (BENCHMARKS, ["long-context", "read", "NEW"]),
    ],
)
def test_files_and_folders_in_each_others_place(program, arguments, tmp_path, capsys, monkeypatch):
    (tmp_path / "FILE").write_text("a text")
    (tmp_path / "BOOK").write_text("a text of a few words. " * 100)
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(capsys, arguments, program)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["BOOK", "FILE", "FOLDER"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    for limit in (OutFolder(), OutFile()):
        with pytest.raises(ValueError, match="cannot be written"):
            limit.check("out", tmp_path / "a")


def test_limits_say_what_to_give():
    for limit, value, said in [
        (Range(1), 0, "x is 0: give 1 or more"),
        (Range(0, 1), float("nan"), "x is nan: give a number from 0 to 1"),
        (Range(1), LARGEST + 1, f"give a number from 1 to {LARGEST}"),
        (Range(2, 3, "two or three"), 4, "x is 4: give two or three"),
    ]:
        with pytest.raises(ValueError, match=said):
            limit.check("x", value)
    Range(2, 3, or_zero=True).check("x", 0)


# Damaged models.


@pytest.fixture
def damaged(model_folder, tmp_path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def configured(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


DAMAGES = {
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "weights empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "weights garbage": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 3000),
    "weights gone": lambda folder: (folder / "model.safetensors").unlink(),
    "weights missing": lambda folder: configured(folder, num_hidden_layers=3),
    "weights of other shapes": lambda folder: configured(folder, hidden_size=64),
    "config not JSON": lambda folder: (folder / "config.json").write_text("{nope"),
    "config a list": lambda folder: (folder / "config.json").write_text("[1]"),
    "config gone": lambda folder: (folder / "config.json").unlink(),
    "config of another type": lambda folder: configured(folder, hidden_size="wide"),
    "config of no activation": lambda folder: configured(folder, hidden_act="zork"),
    "config without heads": lambda folder: configured(folder, num_attention_heads=0),
    "not converted": lambda folder: configured(folder, landmark=None),
    "landmark settings lost": lambda folder: configured(folder, landmark={}),
    "tokenizer not JSON": lambda folder: (folder / "tokenizer.json").write_text("{nope"),
    "tokenizer a list": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "tokenizer gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer settings a list": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model(damage, damaged, tmp_path, capsys):
    DAMAGES[damage](damaged)
    (tmp_path / "book.txt").write_text("a text of a few words. " * 100)
    arguments = ["read", str(tmp_path / "book.txt"), "--model", str(damaged), "--out", str(tmp_path / "new")]
    line = refused(capsys, arguments)
    assert str(damaged) in line or "landmark" in line
    assert not (tmp_path / "new").exists()
    if "tokenizer" in damage or "landmark" in damage or "converted" in damage:
        return  # training takes such a model, or a tokenizer beside it
    with pytest.raises(ValueError, match=r"(cannot|can) be loaded"):
        train_on(damaged, tmp_path)


def train_on(model: Path, tmp_path: Path) -> None:
    from landmark.training.models import load_model
    from landmark.training.options import TrainOptions
    from landmark.training.plan import plan_of

    load_model(plan_of(TrainOptions(out=tmp_path / "run", texts=("a.txt",), model=str(model), steps=1)), None)


def test_a_gguf_file_that_cannot_be_read(tmp_path, capsys):
    book, short, text = tmp_path / "book.txt", tmp_path / "short.gguf", tmp_path / "text.gguf"
    book.write_text("a text of a few words. " * 100)
    short.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes([1, *[0] * 7]) * 2)
    text.write_text("It was a bright cold day in April. " * 40)
    for model, said in [(short, "damaged or not whole"), (text, "is no GGUF file"), (tmp_path / "a.gguf", "not exist")]:
        arguments = ["train", "--model", str(model), "--texts", str(book), "--out", str(tmp_path / "run")]
        assert said in refused(capsys, arguments)
    assert not (tmp_path / "run").exists()


def test_options_are_held_against_the_model_before_its_weights_are_read(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("landmark.hf.loading.AutoModelForCausalLM", None)
    (tmp_path / "book.txt").write_text("a text of a few words. " * 100)
    book, model = str(tmp_path / "book.txt"), ["--model", str(model_folder)]
    for arguments, said in [
        (["ask", book, "x", *model, "--chunk-size", "5000"], "does not fit"),
        (["ask", book, "x", *model, "--retrieve", "1000"], "nothing fits"),
        (["eval", "passkey", *model, "--haystack", book, "--chunk-size", "1000"], "does not fit"),
        (
            ["eval", "passkey", *model, "--haystack", book, "--attention", "full", "--retrieve", "2"],
            "leave out retrieve",
        ),
        (["eval", "perplexity", *model, "--texts", book, "--lengths", "300,400"], "divide the longest"),
        (["eval", "perplexity", *model, "--texts", book, "--against", "full"], "no setting to compare with"),
        (["eval", "perplexity", *model, "--texts", book, "--lengths", "1"], "give 2 or more"),
        (["read", book, *model, "--out", str(tmp_path / "new"), "--host-budget", "much"], "host_budget is 'much'"),
        (["read", book, *model, "--out", str(tmp_path / "new"), "--device-budget", "nan"], "device_budget is 'nan'"),
        (["ask", str(tmp_path), "x", "--host-budget", "inf"], "host_budget is 'inf'"),
    ]:
        assert said in refused(capsys, arguments)


# Streams, which a process of its own can lose.


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'landmark() {{ {sys.executable} -m landmark.cli.main "$@"; }}; ulimit -v 8000000; {script}'
    variables = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=variables, timeout=120)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("landmark --help >&-", "standard output is closed"),
        ("landmark --help > /dev/full", "No space left on device"),
        ("landmark ask --help > /dev/full", "No space left on device"),
        ("landmark tokenizer train - --out /dev/null/x <&-", "out is /dev/null/x"),
        ("landmark tokenizer train - --out $TARGET/new <&-", "standard input is closed"),
        ("landmark contexts delete $TARGET <&-", "is not deleted: give --yes"),
        (r"printf 'a \xff b' | landmark tokenizer train - --out $TARGET/new", "standard input is not UTF-8: byte 0xff"),
        (r"printf 'a \xff b' | landmark read - --out $TARGET/new", "standard input is not UTF-8: byte 0xff"),
        (r"landmark ask $TARGET $'x\xff'", "is not UTF-8"),
    ],
)
def test_streams_that_are_closed_full_or_not_text(script, said, tmp_path):
    for locale in ("C.UTF-8", "C"):
        ended = shell(script, TARGET=str(tmp_path), LC_ALL=locale)
        (line,) = ended.stderr.decode().splitlines()
        assert said in line
        assert (ended.returncode, ended.stdout) == (USAGE_ERROR, b"")
    assert not list(tmp_path.iterdir())


def test_closed_input_and_error_harm_nothing_that_does_not_need_them(tmp_path):
    ended = shell("landmark --help <&- 2>&-")
    assert (ended.returncode, b"landmark demo" in ended.stdout) == (0, True)
    assert shell("landmark nonsense <&- >&- 2>&-").returncode == USAGE_ERROR


@pytest.mark.parametrize("columns", ["0", "1", "5", "20", "-3", "abc", "1000000"])
def test_help_ends_at_every_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for program, command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            program.main([*command.words, "--help"])
        assert end.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) < 400
    assert os.environ["COLUMNS"] == columns


@every_command
def test_help_fits_two_screens(program: Program, command: Command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        program.main([*command.words, "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 95
