"""Sizes computed from the sizes of inputs: expressions as JSON holds them, and their evaluation.

An expression is a number, true or false, or a list that begins with a word:

    ["size", 0, 2]                              # x.shape[2] of the first input
    ["mod", ["neg", ["size", 0, 3]], 32]        # -x.shape[3] % 32
    ["lt", ["size", 0, 2], 300]                 # x.shape[2] < 300

Nothing of a file is ever given to Python's eval: a word that is not in the tables below is an error.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

#: A number, or [word, argument, ...] of expressions.
Expression = Any
#: Shapes of the inputs, in order.
Shapes = Sequence[Sequence[int]]

# Deeper ones come from no forward, and would exhaust Python's stack.
_MAX_DEPTH = 100
# A file may not ask for 9 ** 9 ** 9.
_MAX_EXPONENT = 64

_WORDS: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "not": operator.not_,
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
    "ratio": Fraction,  # an exact one, of two integers
    "mod": operator.mod,
    "ceil": math.ceil,
    "floor": math.floor,
    "trunc": math.trunc,
    "round": round,
    "float": float,
    "abs": abs,
    "sqrt": math.sqrt,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_JOINED: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "mul": operator.mul,
    "min": min,
    "max": max,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
}
_INFIX = {
    "add": " + ", "mul": "·", "floordiv": " // ", "truediv": " / ", "ratio": " / ", "mod": " % ", "eq": " = ",
    "ne": " ≠ ", "lt": " < ", "le": " ≤ ", "gt": " > ", "ge": " ≥ ", "and": " and ", "or": " or ", "pow": "^",
}  # fmt: skip


def evaluate(expression: Expression, shapes: Shapes) -> Any:
    """Return the value of an expression for inputs of `shapes`.

    Raises:
        ValueError: it is no expression, or names an input or a dimension that is not there.
        ArithmeticError: it has no value for these sizes, as a division by zero.
    """
    return _evaluate(expression, shapes, 0)


def _evaluate(expression: Expression, shapes: Shapes, depth: int) -> Any:
    if isinstance(expression, (bool, int, float)):
        return expression
    if depth > _MAX_DEPTH or not isinstance(expression, (list, tuple)) or not expression:
        raise ValueError(f"Expected an expression of sizes, got {reprlib.repr(expression)}")
    word, *rest = expression
    if word == "size":
        return _size(rest, shapes)
    values = [_evaluate(item, shapes, depth + 1) for item in rest]
    try:
        if word == "pow":
            return _power(*values)
        if word in _JOINED:
            return reduce(_JOINED[word], values)
        return _WORDS[word](*values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"Expected an expression of sizes, got {reprlib.repr(expression)}") from error


def _size(where: Sequence[Any], shapes: Shapes) -> int:
    if len(where) != 2 or not all(type(number) is int and number >= 0 for number in where):
        raise ValueError(f"Expected an input and a dimension, got {where}")
    at, dim = where
    if at >= len(shapes) or dim >= len(shapes[at]):
        raise ValueError(f"Expected a dimension of an input, got dimension {dim} of input {at}")
    return int(shapes[at][dim])


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"Expected an exponent up to {_MAX_EXPONENT}, got {exponent}")
    return base**exponent


def is_constant(expression: Expression) -> bool:
    """Return whether an expression is a number."""
    return isinstance(expression, (bool, int, float))


def describe(expression: Expression, names: Sequence[str]) -> str:
    """Write an expression for people, with the inputs' `names`."""
    if is_constant(expression):
        return str(expression)
    word, *rest = expression
    if word == "size":
        return f"{names[rest[0]]}.shape[{rest[1]}]" if rest[0] < len(names) else f"size {rest[1]}"
    parts = [describe(item, names) for item in rest]
    if word in _INFIX:
        return _INFIX[word].join(f"({part})" if " " in part and word not in ("and", "or") else part for part in parts)
    return f"{word}({', '.join(parts)})"


def substitute(value: Any, shapes: Shapes) -> Any:
    """Return a node's attributes with {"size": expression} replaced by its value, wherever it stands."""
    if isinstance(value, Mapping):
        if set(value) == {"size"}:
            found = evaluate(value["size"], shapes)
            return int(found) if isinstance(found, Fraction) and found.denominator == 1 else found
        return {key: substitute(item, shapes) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [substitute(item, shapes) for item in value]
    return value


def holds_sizes(value: Any) -> bool:
    """Return whether a node's attributes hold a {"size": expression}."""
    if isinstance(value, Mapping):
        return set(value) == {"size"} or any(holds_sizes(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(holds_sizes(item) for item in value)
