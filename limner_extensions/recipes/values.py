"""Values in the settings of other programs: tables of them, and readers."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from trainer.errors import UserError

T = TypeVar("T")
MAX_DEPTH, MAX_VALUES = 12, 5000
EMPTY = (None, "", "None", "none")


def is_idle(value: object) -> bool:
    """Return True if a value means that something is off."""
    texts = ("false", "none", "0", "0.0", "off", "never", "[]", "{}", "disable", "disabled", "default", "")
    return value in (None, False, 0, [], {}) or (isinstance(value, str) and value.strip().lower() in texts)


def flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables and lists of tables by dotted keys.

    Raises:
        UserError: they are too deep or too many for a recipe.
    """
    result: dict[str, Any] = {}
    _flatten("", data, 0, result)
    return result


def _flatten(key: str, value: object, depth: int, result: dict[str, Any]) -> None:
    if depth > MAX_DEPTH or len(result) > MAX_VALUES:
        raise UserError("The file is too large or too deeply nested for a recipe.", "Give a settings file.")
    below: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        below = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        below = enumerate(value)
    if not below:
        result[key] = value
    for name, item in below:
        _flatten(f"{key}.{name}" if key else str(name), item, depth + 1, result)


def words(table: str) -> tuple[str, ...]:
    """Return the words of a table, with white space between them."""
    return tuple(table.split())


def pairs(table: str) -> dict[str, str]:
    """Return the pairs of a table of `name=value`, with white space between them."""
    return dict(pair.split("=", 1) for pair in table.split())


# Readers of values. Each raises ValueError, or returns None for a value that means nothing.


def number(value: object) -> float:
    """Read a finite number; YAML takes `1e-4` as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError("not finite")
    return result


def whole(value: object) -> int:
    """Read a whole number, also one written as 4.0."""
    result = number(value)
    if not result.is_integer():
        raise ValueError("not a whole number")
    return int(result)


def positive(value: object) -> int | None:
    """Read a whole number above 0; 0 and less mean that something is off."""
    result = whole(value)
    return result if result > 0 else None


def flag(value: object) -> bool:
    """Read a boolean, also one written as text."""
    words = {"true": True, "false": False, "1": True, "0": False}
    return words[str(value).strip().lower()]


def text(value: object) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value.strip()


def choice(options: Mapping[str, T]) -> Callable[[object], T]:
    """Return a reader of a word, in any case."""
    return lambda value: options[str(value).strip().lower()]


def side(value: object) -> tuple[int, bool]:
    """Read a resolution (512, "512,768", [512, 768]): the side of a square of that area, and whether that is exact.

    Our resolutions are multiples of 64.
    """
    numbers = [int(word) for word in re.findall(r"\d{1,5}", str(value))][:2]
    if not numbers or not all(numbers):
        raise ValueError("not a size")
    area = numbers[0] * numbers[-1]
    exact = math.sqrt(area)
    rounded = max(64, round(exact / 64) * 64)
    return rounded, len(set(numbers)) == 1 and rounded == numbers[0]
