"""The package from outside: what importing it costs, and how the command answers."""

import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import landmark
from benchmarks.__main__ import BENCHMARKS
from landmark.cli import main as cli
from landmark.cli.program import READER_GONE, USAGE_ERROR, Command
from reproduce.__main__ import REPRODUCE

HEAVY = ("torch", "transformers", "datasets", "matplotlib")
ROOT = Path(__file__).parents[1]  # where benchmarks and reproduce are
PROGRAMS = {
    "landmark.cli.main:LANDMARK": cli.LANDMARK,
    "benchmarks.__main__:BENCHMARKS": BENCHMARKS,
    "reproduce.__main__:REPRODUCE": REPRODUCE,
}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def main_of(where: str, arguments: list[str]) -> str:
    """Code that runs a program."""
    module, name = where.split(":")
    return f"from {module} import {name}; {name}.main({arguments!r})"


def heavy_modules_after(code: str) -> str:
    report = f"import sys; print('HEAVY', *[m for m in {HEAVY} if m in sys.modules])"
    result = run_python(f"{code}\n{report}")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].removeprefix("HEAVY").strip()


def test_import_is_light():
    assert heavy_modules_after("import landmark; assert 'convert' in dir(landmark)") == ""


@pytest.mark.parametrize("where", PROGRAMS)
def test_help_is_light_and_names_every_command(where: str):
    assert heavy_modules_after(main_of(where, ["--help"])) == ""
    for command in PROGRAMS[where].commands:
        assert f"  {command.name} " in PROGRAMS[where].help()


@pytest.mark.parametrize("where", PROGRAMS)
def test_help_of_each_command_is_light(where: str):
    module, name = where.split(":")
    code = f"""
import sys
from {module} import {name}
for words in {[[*command.words] for command in PROGRAMS[where].commands]}:
    try:
        {name}.main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0, (words, end.code)
    heavy = [m for m in {HEAVY} if m in sys.modules]
    assert not heavy, (words, heavy)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") == len(PROGRAMS[where].commands)


def test_everything_public_is_there_without_any_extra():
    code = """
import sys
for extra in ("triton", "peft", "bitsandbytes", "gguf", "datasets", "matplotlib", "faiss", "psutil", "lm_eval"):
    sys.modules[extra] = None
import landmark
for name in landmark.__all__:
    getattr(landmark, name)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", landmark.__all__)
def test_public_names_exist(name: str):
    assert getattr(landmark, name) is getattr(landmark, name)


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        landmark.nonsense  # noqa: B018 - the access is what is tested


def test_version_names_what_it_computes_with(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    beside = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    said = f"landmark {landmark.__version__} ({beside}, Python {platform.python_version()})\n"
    assert capsys.readouterr().out == said


def test_version_is_light_and_tells_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert heavy_modules_after("from landmark.cli.main import main; main(['--version'])") == ""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert cli.main(["--version"]) == 0
    assert "(no torch, no transformers, Python" in capsys.readouterr().out


@pytest.mark.parametrize("where", PROGRAMS)
def test_help_and_version_of_each_module(where: str):
    module = where.split(":")[0].removesuffix(".__main__")
    for option, line in (("--help", f"usage: {PROGRAMS[where].name} COMMAND"), ("--version", "landmark ")):
        command = [sys.executable, "-m", module, option]
        assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.startswith(line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "'trian'; did you mean `landmark train`?"),
        (["eval", "paskey"], "'eval paskey'; did you mean `landmark eval passkey`?"),
        (["zzz"], "known are: demo"),
        (["--nonsense"], "'--nonsense'"),
    ],
)
def test_unknown_command(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == USAGE_ERROR
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert said in output.err


@pytest.mark.parametrize("arguments", [[], ["eval"]])
def test_missing_command_shows_the_choice(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == USAGE_ERROR
    assert "eval passkey" in capsys.readouterr().err


@dataclass(frozen=True)
class Options:
    """Options of a command."""

    count: int = 1
    """how many times"""
    quiet: bool = False
    """say nothing"""


def install_command(monkeypatch: pytest.MonkeyPatch, run) -> None:
    module = ModuleType("a_command")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setattr(cli, "LANDMARK", replace(cli.LANDMARK, commands=(Command("do it", "a_command:run", "do it"),)))


def test_options_reach_the_command(monkeypatch: pytest.MonkeyPatch):
    seen: list[Options] = []

    def run(options: Options) -> int:
        seen.append(options)
        return 7

    install_command(monkeypatch, run)
    assert cli.main(["do", "it", "--count", "3", "--quiet"]) == 7
    assert seen == [Options(count=3, quiet=True)]


def test_bad_option_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(options: Options) -> int:
        raise AssertionError("the command must not run")

    install_command(monkeypatch, run)
    with pytest.raises(SystemExit) as end:
        cli.main(["do", "it", "--count", "three"])
    assert end.value.code == USAGE_ERROR
    assert "three" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("retrieve is -1:\n  give 0 or more"), 2, "landmark: error: retrieve is -1: give 0 or more\n"),
        (
            FileNotFoundError(2, "No such file", "a"),
            2,
            "landmark: error: [Errno 2] No such file: 'a'\n",
        ),
        (ValueError(), 2, "landmark: error: ValueError\n"),
        (MemoryError("8 TB"), 2, "landmark: error: there is not enough memory for that: give smaller numbers (8 TB)\n"),
        (RuntimeError("alloc_cpu: can't allocate memory: you tried 8 TB"), 2, None),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException,
    code: int,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def run(options: Options) -> int:
        raise error

    install_command(monkeypatch, run)
    assert cli.main(["do", "it"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said == line if line else "resumes" in said or "not enough memory" in said


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def run(options: Options) -> int:
        raise RuntimeError("a defect")

    install_command(monkeypatch, run)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["do", "it"])


def test_exit_code_reaches_the_shell():
    result = run_python("import sys; from landmark.cli.main import main; sys.exit(main(['trian']))")
    assert result.returncode == USAGE_ERROR
    assert result.stderr.startswith("landmark: error: ")


def test_reader_that_left_is_no_error():
    # The read end is closed before the first byte is written, as when `head` has seen enough.
    code = (
        "import os, sys; from landmark.cli.main import main; r, w = os.pipe(); os.close(r);"
        "os.dup2(w, 1); sys.exit(main(['--help']))"
    )
    result = run_python(code)
    assert (result.returncode, result.stderr) == (READER_GONE, "")
