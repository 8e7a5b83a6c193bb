"""The documents: what they link to, run, import and name exists, and prose fits a screen."""

import ast
import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest

from benchmarks.__main__ import BENCHMARKS
from landmark.cli.main import LANDMARK
from landmark.cli.program import Command, Program
from reproduce.__main__ import REPRODUCE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "landmark"
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *PACKAGE.glob("assets/**/*.md"))
)
WIDTH = 120
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
README_WORDS = 400
PROGRAMS = {"landmark": LANDMARK, "python -m benchmarks": BENCHMARKS, "python -m reproduce": REPRODUCE}
EVERYWHERE = {"--help", "--version"}

each_document = pytest.mark.parametrize("document", DOCUMENTS)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The contents of code blocks in that language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text_of(document), re.DOTALL | re.MULTILINE)


def prose(document: str) -> list[str]:
    """Lines outside code blocks and tables."""
    text = FENCED.sub("", text_of(document))
    return [line for line in text.splitlines() if not line.startswith("|")]


def code(document: str) -> list[str]:
    """Everything in backticks, and the lines of shell blocks with continued ones joined."""
    text = text_of(document)
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", FENCED.sub("", text))
    lines = [line for block in blocks(document, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(one.split()) for one in [*inline, *lines]]


@each_document
def test_lines_of_prose_fit(document: str):
    assert [line for line in prose(document) if len(line) > WIDTH] == []


def anchors(path: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@each_document
def test_links_lead_somewhere(document: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        assert path.exists(), f"{document}: {target}"
        assert not anchor or anchor in anchors(path), f"{document}: {target}"


def test_every_document_is_reached_from_the_readme():
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        targets = (
            (ROOT / one).parent / target for one in new for target in re.findall(r"\]\(([^)#\s]+)", text_of(one))
        )
        found = {str(path.resolve().relative_to(ROOT)) for path in targets if path.suffix == ".md" and path.exists()}
        new = found - reached
    assert {one for one in DOCUMENTS if one.startswith("docs/")} <= reached


def commands(document: str) -> Iterator[tuple[Program, list[str]]]:
    """Commands of our programs that stand in backticks or shell blocks, as words."""
    for one in code(document):
        for start, program in PROGRAMS.items():
            found = re.search(rf"(?:^|[\s/|&;]){re.escape(start)}(?=\s|$)(.*)", one)
            if found and not re.search(rf"[/=]{re.escape(start)}\s", one):
                words = re.split(r"[|;&>]|\s#", found[1])[0]
                yield program, shlex.split(words.replace("...", ""))


def is_group(kind: Any) -> bool:
    """Whether a type of an option is a group of options."""
    return is_typeddict(kind) or (isinstance(kind, type) and dataclasses.is_dataclass(kind))


def options_of(command: Command) -> set[str]:
    """The options that a command takes, from the dataclass that describes them."""
    names: set[str] = set()

    def add(kind: Any) -> None:
        for name, declared in get_type_hints(kind).items():
            groups = [one for one in (declared, *get_args(declared)) if is_group(one)]
            if groups:
                add(groups[0])
            else:
                names.update(f"--{sign}{name.replace('_', '-')}" for sign in ("", "no-"))

    add(command.load()[1])
    return names


@each_document
def test_commands_and_their_options_exist(document: str):
    for program, words in commands(document):
        named = [one for one in program.commands if words[: len(one.words)] == one.words]
        name = words[: next((at for at, word in enumerate(words) if word.startswith("-")), len(words))]
        group = any(one.words[: len(name)] == name for one in program.commands)
        if not group and not name[0].isupper():
            assert named or program.default, f"{document}: {program.name} has no command {' '.join(words)}"
        command = named[0] if named else program.default
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - EVERYWHERE
        if command is not None:
            assert options <= options_of(command), f"{document}: {program.name} {' '.join(words)}"


def resolves(dotted: str) -> bool:
    """Whether a name like `landmark.hf.convert.convert` can be reached by imports and attributes."""
    parts = dotted.split(".")
    found = import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(".".join(parts[:number]))
            except ModuleNotFoundError:
                return False
    return True


@each_document
def test_names_exist(document: str):
    for one in [*code(document), *blocks(document, "python")]:
        for dotted in re.findall(r"(?<![\w/.-])landmark(?:\.[A-Za-z_]\w*)+", one):
            assert resolves(dotted), f"{document}: {dotted}"


@each_document
def test_files_exist(document: str):
    roots = (ROOT, PACKAGE, ROOT / "src", (ROOT / document).parent)
    folders = {path.name for root in (ROOT, PACKAGE) for path in root.iterdir() if path.is_dir()}
    for one in code(document):
        for path in re.findall(r"(?<![\w./*{-])[\w./-]+", one):
            ours = path.split("/")[0] in folders and "/" in path and not path.startswith("runs/")
            if (ours or path.endswith(".py")) and "NAME" not in path:
                assert any((root / path).exists() for root in roots), f"{document}: {path}"


@pytest.mark.parametrize("document", ["docs/contributing.md", "docs/design.md"])
def test_identifiers_exist(document: str):
    sources = [path for folder in ("src", "benchmarks", "reproduce", "tests") for path in (ROOT / folder).rglob("*.py")]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    for one in code(document):
        found = re.fullmatch(r"(?:\w+\.)*(\w+)(?:\(.*\))?", one)
        if found and len(found[1]) > 4 and "NAME" not in one:
            assert found[1] in words, f"{document}: {one}"


@each_document
def test_python_parses_and_its_imports_work(document: str):
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in ("landmark", "reproduce")
            ):
                assert not node.module.startswith("landmark."), f"{document}: only what landmark exports is for users"
                for name in node.names:
                    assert resolves(f"{node.module}.{name.name}"), f"{document}: from {node.module} import {name.name}"


def test_the_quickstart_lists_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = set(
        re.findall(r"^\| `(\w+)` \|", text_of("docs/quickstart.md").partition("## Ask a book")[0], re.MULTILINE)
    )
    assert listed == set(project["optional-dependencies"]) - {"test", "dev"}


def test_the_readme_is_read_in_a_minute():
    words = " ".join(prose("README.md")).split()
    assert len(words) < README_WORDS
