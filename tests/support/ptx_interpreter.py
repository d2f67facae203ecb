"""Runs straight PTX of one thread, as far as csrc/cuda/record/programs.py needs it: what a GPU's compiler is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_INSTRUCTION = re.compile(r"(\S+) (.*);")
_LOAD = re.compile(r"ld\.shared(?:\.v([24]))?\.(?:f32|b32)")
_MOST_STEPS = 100_000
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "add.u32": lambda a, b: a + b,
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, b: a >> b,
    "bfe.u32": lambda a, first, count: a >> first & (1 << count) - 1,
    "mad.lo.u32": lambda a, b, c: a * b + c,
}


class PtxError(Exception):
    """The text is not what the interpreter knows, or it does what a GPU would not do."""


def run_ptx(lines: Sequence[str], operands: Sequence[float | int], shared: np.ndarray[Any, Any]) -> list[float | int]:
    """Run inline PTX and return its operands as it left them.

    Args:
        lines: one label, declaration or instruction each.
        operands: of %0, %1, ….
        shared: int32 [words], shared memory; floats as their bits.

    Raises:
        PtxError: an instruction is unknown, a register is read before it is written, an address is out of bounds or
            not aligned to what is loaded, a jump's index is outside its table, or the text does not end.
    """
    values: dict[str, Any] = {f"%{i}": value for i, value in enumerate(operands)}
    labels, tables = {}, {}
    for at, line in enumerate(lines):
        label, _, rest = line.partition(":")
        if ".branchtargets" in rest:
            tables[label] = rest.replace(".branchtargets", "").strip(" ;").split(", ")
        elif rest == "" and line.endswith(":"):
            labels[label] = at

    def value_of(word: str) -> Any:
        if word.isdigit():
            return int(word)
        if word.startswith("0f"):
            return np.uint32(int(word[2:], 16))
        if word not in values:
            raise PtxError(f"{word} is read before it is written")
        return values[word]

    at = 0
    for _ in range(_MOST_STEPS):
        if at == len(lines):
            return [values[f"%{i}"] for i in range(len(operands))]
        line, at = lines[at], at + 1
        if line.endswith(":") or ".branchtargets" in line or line.startswith(".reg"):
            continue
        found = _INSTRUCTION.fullmatch(line)
        if found is None:
            raise PtxError(f"unknown: {line}")
        name, words = found[1], found[2]
        load = _LOAD.fullmatch(name)
        if load:
            to, _, address = words.rpartition(", ")
            _load(values, [r.strip() for r in to.strip("{}").split(",")], address, shared, value_of)
            continue
        arguments = words.split(", ")
        if name == "bra.uni":
            at = labels[arguments[0]]
        elif name == "brx.idx.uni":
            targets, index = tables[arguments[1]], _as_int(value_of(arguments[0]))
            if not 0 <= index < len(targets):
                raise PtxError(f"{line}: index {index} of {len(targets)}")
            at = labels[targets[index]]
        elif name in ("mov.b32", "mov.f32"):
            values[arguments[0]] = value_of(arguments[1])
        elif name == "fma.rn.f32":
            a, b, c = (_as_float(value_of(word)) for word in arguments[1:])
            values[arguments[0]] = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
        elif name in _ARITHMETIC:
            numbers = (_as_int(value_of(word)) for word in arguments[1:])
            values[arguments[0]] = np.uint32(_ARITHMETIC[name](*numbers) & 0xFFFFFFFF)
        else:
            raise PtxError(f"unknown: {line}")
    raise PtxError("it does not end")


def _load(
    values: dict[str, Any],
    registers: list[str],
    address: str,
    shared: np.ndarray[Any, Any],
    value_of: Callable[[str], Any],
) -> None:
    base, _, offset = address.strip("[]").partition("+")
    at = _as_int(value_of(base)) + int(offset or 0)
    if at % (4 * len(registers)) or not 0 <= at // 4 <= len(shared) - len(registers):
        raise PtxError(f"{address}: a load of {len(registers)} words at {at}")
    for register, word in zip(registers, shared[at // 4 :], strict=False):
        values[register] = np.int32(word)


def _as_int(value: Any) -> int:
    return int(value.view(np.uint32)) if isinstance(value, np.generic) else int(value)


def _as_float(value: Any) -> np.float32:
    """Registers hold bits: what was loaded as a word is read as a float."""
    return value.view(np.float32) if isinstance(value, np.generic) else np.float32(value)
