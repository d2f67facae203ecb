"""Structures as JSON: builtin containers, named tuples by name and fields, torch's own result classes by name.

Nothing that a file names is imported: a named tuple is made anew, a result class is looked up among torch's, and an
object of any other class is refused when it is written.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

import torch

from prunekit.errors import InputError
from prunekit.structure import Structure

# Builtin classes of the structures of kind "tuple" and "structseq", by the name that a file gives them.
_TUPLES = {"tuple": tuple, "set": set, "frozenset": frozenset, "Size": torch.Size}
_DICTS = {"dict": dict, "OrderedDict": collections.OrderedDict}
_RETURN_TYPES = {name: cls for name, cls in vars(torch.return_types).items() if isinstance(cls, type)}
# Deeper than any forward's arguments, and far from Python's limit of recursion.
_MAX_DEPTH = 50


def structure_to_json(structure: Structure, where: str) -> Any:
    """Return a structure as JSON-ready data.

    Args:
        structure: any.
        where: what it is, for the message.

    Raises:
        InputError: it has an object of a class that a file cannot hold; the class is named.
    """
    kind, children = structure.kind, [structure_to_json(child, where) for child in structure.children]
    if kind == "tensor":
        return {"kind": "tensor"}
    if kind == "constant":
        return {"kind": "constant", "value": _constant_to_json(structure.template, where)}
    if kind == "list":
        return {"kind": "list", "children": children}
    name, table = _class_name(structure)
    if kind == "namedtuple":
        return {"kind": "namedtuple", "class": name, "keys": list(structure.keys), "children": children}
    if table is None:
        raise _refused(name, where)
    data = {"kind": kind, "class": name, "children": children}
    return data | ({"keys": [_constant_to_json(k, where) for k in structure.keys]} if kind == "dict" else {})


def structure_of_json(data: Any, depth: int = 0) -> Structure:
    """Read what `structure_to_json` wrote.

    Raises:
        ValueError, KeyError, TypeError: the data is damaged.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"a value is nested more than {_MAX_DEPTH} deep")
    if not isinstance(data, Mapping):
        raise TypeError(f"{data!r} describes no value")
    kind = data["kind"]
    if kind == "tensor":
        return Structure("tensor")
    if kind == "constant":
        return Structure("constant", _constant_of_json(data["value"]))
    children = tuple(structure_of_json(child, depth + 1) for child in data["children"])
    if kind == "list":
        return Structure("list", list, (), children)
    if kind == "namedtuple":
        keys = tuple(str(key) for key in data["keys"])
        template: Any = _named_tuple(str(data["class"]), keys)
    elif kind == "dict":
        keys, template = tuple(_constant_of_json(key) for key in data["keys"]), _DICTS[data["class"]]()
    elif kind in ("tuple", "structseq"):
        keys, template = (), _TUPLES.get(data["class"]) or _RETURN_TYPES[data["class"]]
        if template in _RETURN_TYPES.values() and len(children) != template.n_sequence_fields:
            raise ValueError(f"torch.return_types.{data['class']} does not hold {len(children)} values")
    else:
        raise ValueError(f"{kind!r} is no kind of value")
    if kind in ("namedtuple", "dict") and len(set(keys)) != len(children):
        raise ValueError(f"{len(children)} values have the keys {list(keys)}")
    return Structure(kind, template, keys, children)


def dtype_of_json(text: object) -> torch.dtype:
    """Return the dtype that `str` wrote as "torch.float32".

    Raises:
        ValueError: there is none of that name.
    """
    dtype = getattr(torch, str(text).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{text!r} is no dtype")
    return dtype


def _named_tuple(name: str, keys: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, keys)


def _class_name(structure: Structure) -> tuple[str, Mapping[str, Any] | None]:
    """Return the name of a container's class and the table it is in, None where a file cannot hold it."""
    template = structure.template
    cls = template if isinstance(template, type) else type(template)
    tables: dict[str, tuple[Mapping[str, Any], ...]] = {
        "dict": (_DICTS,),
        "tuple": (_TUPLES,),
        "structseq": (_TUPLES, _RETURN_TYPES),
    }
    for table in tables.get(structure.kind, ()):
        if table.get(cls.__name__) is cls:
            return cls.__name__, table
    return cls.__name__, None


def _constant_to_json(value: object, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if type(value) is slice:
        return {"slice": [_constant_to_json(part, where) for part in (value.start, value.stop, value.step)]}
    if type(value) in (list, tuple, dict, set, frozenset) and not value:
        return {"empty": type(value).__name__}
    if type(value) is tuple:  # a key of a dict
        return {"tuple": [_constant_to_json(part, where) for part in value]}
    raise _refused(type(value).__name__, where)


def _constant_of_json(data: Any) -> Any:
    if data is None or isinstance(data, (bool, str, int, float)):
        return data
    (kind, value), *more = data.items()
    if more:
        raise ValueError(f"{data!r} is no constant")
    if kind == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value]
    if kind == "dtype":
        return dtype_of_json(value)
    if kind == "device":
        return torch.device(str(value))
    if kind in ("slice", "tuple"):
        parts = tuple(_constant_of_json(part) for part in value)
        return slice(*parts) if kind == "slice" else parts
    if kind == "empty":
        return {"list": list, "tuple": tuple, "dict": dict, "set": set, "frozenset": frozenset}[value]()
    raise ValueError(f"{data!r} is no constant")


def _refused(name: str, where: str) -> InputError:
    return InputError(
        f"save: Expected builtin containers, named tuples and plain values, got {where} of class {name}, "
        "which a file without code cannot hold."
    )
