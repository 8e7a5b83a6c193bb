"""What is declared is what is tested: bounds of pyproject.toml beside the environments that the tests run in."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = "landmark-attention"


def requirements(*extras: str) -> dict[str, Requirement]:
    """What the package and its extras require by name, other than extras of itself."""
    lines = [*PROJECT["dependencies"], *(line for name in extras for line in PROJECT["optional-dependencies"][name])]
    return {one.name: one for one in map(Requirement, lines) if one.name != OURS}


def pins(file: str) -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines if line)}


def bound(requirement: Requirement, operator: str) -> Version:
    [found] = [s.version for s in requirement.specifier if s.operator == operator]
    return Version(found)


EXTRAS = [name for name in PROJECT["optional-dependencies"] if name not in ("all", "dev", "test")]
NEEDED = requirements(*EXTRAS)


def test_the_oldest_environment_holds_every_lower_bound():
    lowest = {name: bound(one, ">=") for name, one in (NEEDED | requirements("test")).items()}
    assert pins("constraints-oldest.txt") == lowest


@pytest.mark.parametrize("name", NEEDED)
def test_upper_bounds_lie_above_what_was_tested(name: str):
    tested = pins("constraints.txt")[name]
    assert NEEDED[name].specifier.contains(tested)
    assert tested < bound(NEEDED[name], "<")


def test_all_extras_are_in_all():
    [everything] = [Requirement(line) for line in PROJECT["optional-dependencies"]["all"]]
    assert everything.extras == set(EXTRAS)
