"""The words of a plan's steps: their order and numbers are read from the compiled extension, which declares them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from prunekit.ops import native

STEP_WORDS = 32


@dataclass(frozen=True)
class StepKind:
    """A kind of step, as csrc/cpu/plan.h declares it.

    Attributes:
        number: its first word.
        names: of its further words, in order; those of a struct are written `before.parameter`.
    """

    number: int
    names: tuple[str, ...]


@cache
def step_kinds() -> dict[str, StepKind]:
    """Return the kinds of steps by name."""
    declared = native.step_declarations()
    structs = {name: _names(text, {}) for _, name, text, _ in declared if text.endswith(";")}
    kinds = {name: StepKind(number, _names(text, structs)) for number, name, text, _ in declared if number >= 0}
    assert all(len(kinds[name].names) == words for number, name, _, words in declared if number >= 0)
    return kinds


def _names(fields: str, structs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names in the text of a struct, such as "int64_t x, x_channel; const float* bias;"."""
    names: list[str] = []
    for type_, declared in re.findall(r"((?:const )?\w+\*?) (\w+(?:, \w+)*);", fields):
        for name in declared.split(", "):
            names += [f"{name}.{part}" for part in structs[type_]] if type_ in structs else [name]
    return tuple(names)


@cache
def number_of(enumeration: str, name: str) -> int:
    """Return the number that the extension knows a name by, such as "relu" of "LaneActivation"."""
    text = next(text for _, declared, text, _ in native.step_declarations() if declared == enumeration)
    return re.findall(r"\w+", text).index(name.upper())


def pack_step(kind: str, words: Mapping[str, int]) -> list[int]:
    """Return the row of a step: its kind, its words in the extension's order, and zeros.

    Args:
        kind: of `step_kinds`.
        words: by name, each that the kind has.

    Raises:
        RuntimeError: the extension knows other words.
    """
    known = step_kinds()[kind]
    if set(known.names) != set(words):
        raise RuntimeError(
            f"Expected a {kind} step of the words {', '.join(sorted(words))}, got {', '.join(sorted(known.names))} "
            "from the compiled extension; it is of another version: reinstall prunekit from source."
        )
    row = [known.number, *(words[name] for name in known.names)]
    return row + [0] * (STEP_WORDS - len(row))


def bits(value: float) -> int:
    """Return a float64's bits as an int64."""
    return int(struct.unpack("q", struct.pack("d", value))[0])


def element_bits(value: float) -> int:
    """Return the bits of an element of the arena: a float32's."""
    return int(struct.unpack("I", struct.pack("f", value))[0])


def quad_bits(byte: int) -> int:
    """Return the bits of an element of four equal bytes."""
    return 0x01010101 * byte
