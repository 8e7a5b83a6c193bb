"""The public API is what `landmark/__init__.py` exports: complete, typed and documented."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import landmark

NAMES = [name for name in landmark.__all__ if name != "__version__"]
# Their keywords go to `AutoModelForCausalLM.from_pretrained`.
PASSED_ON = {"from_pretrained", "load_adapter"}
# What is no model, tokenizer or setting: figures for a progress bar, JSON.
PLAIN = ("Callable[[int], Any]", "Callable[[str], Any]", "dict[str, Any]", "Mapping[str, Any]")


def imported_for_types() -> dict[str, str]:
    """The names under TYPE_CHECKING, and the modules that they come from."""
    tree = ast.parse(Path(landmark.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert all(isinstance(node, ast.ImportFrom) for node in block.body)
    return {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[union-attr, misc]


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions, and public methods and properties of public classes, by name."""
    for name in NAMES:
        value = getattr(landmark, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        for attribute, member in vars(value).items():
            if attribute == "__init__" and "__dataclass_fields__" not in vars(value):
                yield f"{name}.{attribute}", member
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not attribute.startswith("_") and inspect.isfunction(member):
                yield f"{name}.{attribute}", member


FUNCTIONS = dict(functions())
# Methods of transformers' own interfaces are documented there.
INHERITED = {
    f"LandmarkCache.{name}"
    for name in (
        "batch_repeat_interleave",
        "batch_select_indices",
        "get_mask_sizes",
        "get_max_length",
        "get_query_offset",
        "get_seq_length",
        "reorder_cache",
        "reset",
    )
}


def test_the_list_the_lazy_table_and_the_types_agree():
    assert imported_for_types() == landmark._MODULES
    assert sorted(NAMES) == sorted(landmark._MODULES)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented_in_their_own_words(name: str):
    text = inspect.getdoc(getattr(landmark, name)) or ""
    assert text, f"{name} has no docstring"
    assert not text.startswith(f"{name}("), f"the docstring of {name} is one that dataclasses make"


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - INHERITED))
def test_public_functions_are_documented_and_typed(name: str):
    function = FUNCTIONS[name]
    if not name.endswith("__init__"):
        assert inspect.getdoc(function), f"{name} has no docstring"
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        annotation = str(parameter.annotation)
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name}) has no type"
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            assert name in PASSED_ON or parameter.annotation is not Any, f"{name} takes **{parameter.name}"
            continue
        for plain in PLAIN:
            annotation = annotation.replace(plain, "").replace(plain.replace("Any", "typing.Any"), "")
        assert not re.search(r"\bAny\b", annotation), f"{name}({parameter.name}) may be anything"


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(getattr(landmark, name), "__dataclass_fields__")])
def test_fields_of_public_classes_are_typed(name: str):
    for field in getattr(landmark, name).__dataclass_fields__.values():
        kind = str(field.type)
        for plain in PLAIN:
            kind = kind.replace(plain, "").replace(plain.replace("Any", "typing.Any"), "")
        assert not re.search(r"\bAny\b", kind), f"{name}.{field.name} may be anything"


def test_documents_import_public_names_only():
    root = Path(__file__).parents[1]
    named = set()
    for page in (root / "README.md", *root.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"^from (landmark[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
            assert module == "landmark", f"{page.name} imports from {module}"
            named |= {name.strip() for name in names.split(",")}
        named |= set(re.findall(r"\blandmark\.(\w+)\(", text))
    assert named <= {*landmark.__all__}, named
