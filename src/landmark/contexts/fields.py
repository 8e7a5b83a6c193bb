"""JSON that anyone may have written: parsed within limits, and its fields taken with their types and ranges.

Everything raises `Malformed`, whose text says which value is wrong. Nothing is allocated by a number that was read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from landmark.limits import is_whole

LARGEST = 2**53  # whole numbers up to here are exact in every program that reads JSON
MOST_DEPTH = 32  # of objects and lists in each other
MOST_VALUES = 100_000  # of any JSON object, names included
_SHOWN = 40  # characters of a wrong value

Choice = TypeVar("Choice")
Kind = TypeVar("Kind")


class Malformed(ValueError):
    """Raised for JSON that is not what it should be."""


def parse(data: bytes | bytearray, what: str) -> dict[str, Any]:
    """The JSON object in `data`, UTF-8. What is in it is of any kind: take it with the other functions."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse)
    except RecursionError:
        raise Malformed(f"{what} is nested too deeply: at most {MOST_DEPTH} levels are allowed") from None
    except Malformed:
        raise
    except ValueError as error:  # no JSON, no UTF-8, whole numbers of thousands of digits
        raise Malformed(f"{what} is no JSON: {str(error)[:160]}") from None
    return mapping(value, what)


def check_object(value: Any, what: str) -> None:
    """Raises Malformed unless a value is an object of finite numbers and of text that can be encoded, not too deep."""
    level: list[Any]
    level, count = [mapping(value, what)], 0
    for _ in range(MOST_DEPTH):  # level by level, since a recursion could not end
        count += len(level)
        if count > MOST_VALUES:
            raise Malformed(f"{what} has more than {MOST_VALUES} values")
        for leaf in level:
            _check_leaf(leaf, what)
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise Malformed(f"{what} is nested too deeply: at most {MOST_DEPTH} levels are allowed")


def fields(value: Any, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """An object that has all `required` fields and no others but `optional` ones."""
    found = mapping(value, what)
    for name in required:
        if name not in found:
            raise Malformed(f"{what} has no {name}")
    for name in found:
        if name not in required and name not in optional:
            raise Malformed(f"{what} has an unknown field {shown(name)}")
    return found


def mapping(value: Any, what: str) -> dict[str, Any]:
    """A JSON object."""
    return _typed(value, dict, what, "an object")


def items(value: Any, what: str, most: int, least: int = 0) -> list[Any]:
    """A list of `least` to `most` values."""
    found = _typed(value, list, what, "a list")
    if not least <= len(found) <= most:
        raise Malformed(f"{what} has {len(found)} entries: {least} to {most} are allowed")
    return found


def whole(value: Any, what: str, most: int = LARGEST, least: int = 0) -> int:
    """A whole number from `least` to `most`."""
    if not is_whole(value, least, most):
        raise Malformed(f"{what} is {shown(value)}: it must be a whole number from {least} to {most}")
    return value


def text(value: Any, what: str) -> str:
    """A string."""
    return _typed(value, str, what, "text")


def boolean(value: Any, what: str) -> bool:
    """True or false."""
    return _typed(value, bool, what, "true or false")


def one_of(value: Any, what: str, choices: Mapping[str, Choice]) -> Choice:
    """What a name stands for."""
    if not isinstance(value, str) or value not in choices:
        raise Malformed(f"{what} is {shown(value)}: it must be one of {', '.join(choices)}")
    return choices[value]


def shown(value: Any) -> str:
    """A value in an error: short, and on one line."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a number with more than 40 digits"
    short = ascii(value if not isinstance(value, str) else value[:_SHOWN])
    return short if not isinstance(value, str) or len(value) <= _SHOWN else f"{short}..."


def _typed(value: Any, kind: type[Kind], what: str, name: str) -> Kind:
    if not isinstance(value, kind):
        raise Malformed(f"{what} is {shown(value)}: it must be {name}")
    return value


def _refuse(constant: str) -> Any:
    raise Malformed(f"a number is {constant}: numbers must be finite")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _check_leaf(value: Any, what: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed(f"{what} has a number that is not finite")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Malformed(f"{what} has text that UTF-8 cannot encode") from None
