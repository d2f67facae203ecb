"""Values of a COCO JSON as people's exporters write them: numbers as text, ids as floats, flags as words."""

from __future__ import annotations

import math
import re
from typing import Any

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_FLAGS = {"true": True, "yes": True, "false": False, "no": False, "": False}
_LARGEST_SIDE = 2**31  # pixels; no image file holds more


class UnusableError(Exception):
    """An entry that cannot be used.

    Attributes:
        reason: What is wrong with this one: "names the unknown category 5".
        kind: What is wrong with all of its kind, to be counted: "annotations that name an unknown category".
    """

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind


def id_of(value: Any) -> int | str | None:
    """Return an id so that equal ones compare equal: 12, 12.0, "12" and "12.0" are all 12; None if it is none."""
    if isinstance(value, str):
        text = value.strip()
        return int(text.partition(".")[0]) if _WHOLE_NUMBER.fullmatch(text) else text or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) else int(value) if value.is_integer() else None


def number_of(value: Any) -> float | None:
    """Return a finite number, or what text says is one; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def side_of(value: Any) -> int | None:
    """Return a width or height in pixels; None where nothing usable is said: nothing, -1, 0, "auto"."""
    number = number_of(value)
    return int(number) if number is not None and number.is_integer() and 0 < number < _LARGEST_SIDE else None


def flag_of(value: Any) -> bool | None:
    """Return a flag given as bool, number or text; False where nothing is given, None where it is no flag."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    number = number_of(value)
    return None if number is None else number != 0


def numbers_of(value: Any) -> list[float] | None:
    """Return a list of finite numbers; None if it is no list or one of them is none."""
    if not isinstance(value, list):
        return None
    numbers = [number for number in map(number_of, value) if number is not None]
    return numbers if len(numbers) == len(value) else None
