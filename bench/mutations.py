"""Seeded damage to files: flipped bits, cut and inserted bytes, edited fields of JSON files and JSON headers.

Three layouts are told apart by their content: JSON as a whole, safetensors (eight bytes of length, a JSON header, and
data), and anything else, which is taken as plain bytes. Strings inside a JSON header that hold JSON themselves, as
prunekit's descriptions do, are edited too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

_LENGTH_BYTES = 8  # safetensors: the header's length, little-endian
_EDITED_FIELDS = 0.5  # share of mutations that edit a field where there are fields
_FOREIGN_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**40, 0.0, -0.5, 1.5, 1e308, float("nan"),
    float("inf"), "", "0", "1", "-1", "nan", "1e999", "\x00", "x" * 300, "../../x", [], [0], [[]], [None],
    [1, -1], {}, {"id": 1},
)  # fmt: skip

Place = tuple[Any, Any]  # a container and a key of it: a field that can be edited


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of a file's content; it differs from the content in at least one byte."""
    while True:
        edit = _edit_field if rng.random() < _EDITED_FIELDS else _damage_bytes
        damaged = edit(content, rng)
        if damaged != content:
            return damaged


def places_of(value: Any) -> Iterator[Place]:
    """Yield every field of a JSON value, in depth, as its container and key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_of(value[key])


def _damage_bytes(content: bytes, rng: random.Random) -> bytes:
    damages: tuple[Callable[[bytes, random.Random], bytes], ...] = (
        _flip_bits, _flip_early_bits, _cut_off, _insert, _remove, _overwrite,
    )  # fmt: skip
    return rng.choice(damages)(content, rng)


def _flip_bits(content: bytes, rng: random.Random, within: int | None = None) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 8))):
        damaged[rng.randrange(min(within or len(damaged), len(damaged)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _flip_early_bits(content: bytes, rng: random.Random) -> bytes:
    return _flip_bits(content, rng, within=64)  # where lengths and versions are


def _cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, 8, rng.randrange(len(content)), len(content) - rng.randrange(1, 9)))]


def _insert(content: bytes, rng: random.Random) -> bytes:
    position = rng.choice((0, len(content), rng.randrange(len(content))))
    return content[:position] + rng.randbytes(rng.choice((1, 2, 4, 8, 100))) + content[position:]


def _remove(content: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(content))
    return content[:position] + content[position + rng.choice((1, 2, 4, 8, 100)) :]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    position, length = rng.randrange(len(content)), rng.choice((1, 4, 64))
    filler = rng.choice((b"\x00", b"\xff", b"\x7f", b" "))
    return content[:position] + filler * length + content[position + length :]


def _edit_field(content: bytes, rng: random.Random) -> bytes:
    """Edit one field of a JSON file or header; damage bytes where there is none."""
    parts = _split(content)
    if parts is None:
        return _damage_bytes(content, rng)
    header, data = parts
    edit_json(header, rng)
    text = json.dumps(header).encode()
    if data is None:
        return text
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data


def _split(content: bytes) -> tuple[Any, bytes | None] | None:
    """Return a file's JSON and the data behind it, None if the file is all JSON; None where there is no JSON."""
    try:
        return json.loads(content), None
    except ValueError:
        pass
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    try:
        return json.loads(content[_LENGTH_BYTES:end]), content[end:]
    except ValueError:
        return None


def edit_json(value: Any, rng: random.Random) -> None:
    """Retype, replace, delete, duplicate or swap a field, somewhere in depth."""
    places = list(places_of(value))
    if not places:
        return
    container, key = rng.choice(places)
    inner = _inner_json(container[key])
    if inner is not None:
        edit_json(inner, rng)
        container[key] = json.dumps(inner)
        return
    edit = rng.choice(("replace", "replace", "retype", "delete", "swap", "nudge"))
    if edit == "delete":
        del container[key]
    elif edit == "swap":
        other, other_key = rng.choice(places)
        container[key], other[other_key] = other[other_key], container[key]
        _break_cycles(value)
    elif edit == "replace":
        container[key] = rng.choice(_FOREIGN_VALUES)
    elif edit == "retype":
        container[key] = _retyped(container[key], rng)
    elif isinstance(container[key], int | float):
        container[key] += rng.choice((-1, 1, -100, 100))
    elif isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)


def _inner_json(value: Any) -> Any:
    """Return the object that a string holds as JSON; None where it holds none."""
    try:
        inner = json.loads(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return inner if isinstance(inner, dict | list) else None


def _retyped(value: Any, rng: random.Random) -> Any:
    candidates: list[Any] = [[value], {"0": value}, str(value)]
    if isinstance(value, int | float):
        candidates += [float(value), bool(value), -value]
    if isinstance(value, str):
        candidates += [value[:-1], value + value[:1]]
    if isinstance(value, list):
        candidates += [value[:-1], [*value, *value[:1]]]
    return rng.choice(candidates)


def _break_cycles(value: Any, above: tuple[int, ...] = ()) -> None:
    """Replace a container inside itself, which a swap can leave and JSON cannot say, by null."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        if id(value[key]) in (*above, id(value)):
            value[key] = None
        else:
            _break_cycles(value[key], (*above, id(value)))
