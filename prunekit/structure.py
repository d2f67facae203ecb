"""Structures: how the tensors of any Python value nest, so that they can be taken out and put back.

`torch.utils._pytree` walks lists, tuples, dicts and classes that someone registered. What a forward takes and returns
is wider: dataclasses, named tuples, results of torch.max and torch.topk, objects of a model's own class. A walk that
stops at such an object finds no tensor in it, and then whoever compares two outputs compares nothing.

    tensors, structure = flatten(output)
    same = structure.build(tensors)         # an equal value of the same classes
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Classes without tensors inside, however many attributes they have.
_ATOMS = (
    *(bool, int, float, complex, str, bytes, bytearray, type(None), type, range, slice, torch.dtype, torch.device),
    *(torch.SymInt, torch.SymFloat, torch.SymBool),
)


@dataclass(frozen=True)
class Structure:
    """What is left of a value when its tensors are taken out.

    Attributes:
        kind: "tensor", "constant", "list", "tuple", "dict", "namedtuple", "structseq" (a result such as torch.topk's),
            "object" (a dataclass or any other class with attributes) or "both" (a subclass of list or dict whose
            attributes hold tensors that are not among its items: a first child for the items, then the attributes).
        template: The value's class; of an object or a dict subclass the value itself without its children, of a
            constant the constant.
        keys: Keys of a dict, names of an object's attributes; () elsewhere.
        children: The structures inside, in order.
    """

    kind: str
    template: Any = None
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()

    @property
    def num_tensors(self) -> int:
        """How many tensors the value holds."""
        return (self.kind == "tensor") + sum(child.num_tensors for child in self.children)

    def build(self, tensors: Sequence[Tensor]) -> Any:
        """Return a value of this structure that holds `tensors`, in the order in which `flatten` gives them.

        Raises:
            ValueError: there are more or fewer tensors than the structure has places.
        """
        if len(tensors) != self.num_tensors:
            raise ValueError(f"Expected {self.num_tensors} tensors for this structure, got {len(tensors)}.")
        return self._build(iter(tensors))

    def paths(self, prefix: str = "") -> Iterator[str]:
        """Yield the place of each tensor as one would write it in Python, such as `["boxes"][0]` or `.logits`."""
        if self.kind == "tensor":
            yield prefix
        for key, child in zip(self._path_keys(), self.children, strict=True):
            yield from child.paths(prefix + key)

    def _path_keys(self) -> Sequence[str]:
        if self.kind == "dict":
            return [f"[{key!r}]" for key in self.keys]
        if self.kind in ("object", "namedtuple"):
            return [f".{key}" for key in self.keys]
        if self.kind == "both":
            return ["", *(f".{key}" for key in self.keys)]
        return [f"[{i}]" for i in range(len(self.children))]

    def _build(self, tensors: Iterator[Tensor]) -> Any:
        if self.kind == "tensor":
            return next(tensors)
        if self.kind == "constant":
            return self.template
        if self.kind == "object" and not self.num_tensors:
            return self.template
        values = [child._build(tensors) for child in self.children]
        if self.kind == "list":
            return values
        if self.kind == "namedtuple":
            return self.template._make(values)
        if self.kind in ("tuple", "structseq"):
            return self.template(values)
        if self.kind == "dict":
            return _filled_dict(self.template, self.keys, values)
        if self.kind == "both":
            filled = _filled_object(self.template, self.keys, values[1:])
            if isinstance(filled, list):
                filled[:] = values[0]
                return filled
            return _filled_dict(filled, tuple(values[0]), list(values[0].values()))
        return _filled_object(self.template, self.keys, values)

    def without_tensors(self) -> Structure:
        """Return an equal structure whose templates keep no tensor of the value alive."""
        if not self.num_tensors:
            return self
        return flatten(self._build(iter([torch.empty(0)] * self.num_tensors)))[1]

    def differs_from(self, other: Structure, where: str = "") -> str | None:
        """Return where and how another structure differs, as "Expected …, got …" without a full stop, or None."""
        place = f" at {where}" if where else ""
        if self.kind != other.kind:
            return f"Expected {self._words()}, got {other._words()}{place}"
        if self.kind == "constant":
            return None if is_same_constant(self.template, other.template) else (
                f"Expected {self.template!r}, got {other.template!r}{place}"
            )  # fmt: skip
        if self.keys != other.keys or len(self.children) != len(other.children) or self._class() is not other._class():
            return f"Expected {self._words()}, got {other._words()}{place}"
        for key, a, b in zip(self._path_keys(), self.children, other.children, strict=True):
            difference = a.differs_from(b, where + key)
            if difference:
                return difference
        return None

    def _class(self) -> Any:
        return self.template if isinstance(self.template, type) or self.template is None else type(self.template)

    def _words(self) -> str:
        if self.kind == "tensor":
            return "a tensor"
        if self.kind == "constant":
            return repr(self.template)
        name = self.kind if self.kind in ("list", "tuple") else getattr(self._class(), "__name__", self.kind)
        return f"a {name} of {list(self.keys) if self.keys else len(self.children)}"


def flatten(value: object) -> tuple[list[Tensor], Structure]:
    """Take the tensors out of a value of any nesting.

    Lists, tuples, dicts, named tuples, dataclasses and objects of any class are walked, subclasses of them too. Modules
    and functions are constants. A tensor that is there twice is given twice.

    Raises:
        ValueError: the value holds itself.
    """
    tensors: list[Tensor] = []
    return tensors, _walk(value, tensors, ())


def tensors_of(value: object) -> list[Tensor]:
    """Return the tensors in a value of any nesting, in the order of `flatten`."""
    return flatten(value)[0]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return an equal value in which each tensor is what `function` makes of it."""
    tensors, structure = flatten(value)
    return structure.build([function(tensor) for tensor in tensors])


def in_float64(value: Any) -> Any:
    """Return an equal value whose floating-point tensors are float64."""
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, value)


def is_same_constant(a: object, b: object) -> bool:
    """Return whether two values without tensors are equal; nan equals nan, what cannot be compared is not equal."""
    try:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
        return a is b or bool(a == b) or (a != a and b != b)
    except Exception:  # a foreign __eq__
        return False


def _walk(value: object, tensors: list[Tensor], above: tuple[int, ...]) -> Structure:
    if isinstance(value, Tensor):
        tensors.append(value)
        return Structure("tensor")
    if isinstance(value, (*_ATOMS, nn.Module)) or callable(value):
        return Structure("constant", value)
    if id(value) in above:
        raise ValueError(f"Expected a value that does not hold itself, got a {type(value).__name__} that does.")
    parts = _parts(value)
    if parts is None:
        return Structure("constant", value)
    kind, template, keys, items = parts
    return Structure(kind, template, keys, tuple(_walk(item, tensors, (*above, id(value))) for item in items))


def _parts(value: Any) -> tuple[str, Any, tuple[Any, ...], Sequence[Any]] | None:
    """Return kind, template, keys and items of a container; None for whatever has no attributes."""
    if isinstance(value, (dict, list)) and _has_tensors_beside_its_items(value):
        items = dict(value) if isinstance(value, dict) else list(value)
        return "both", value, tuple(_attributes(value)), [items, *_attributes(value).values()]
    if isinstance(value, Mapping):
        return "dict", value, tuple(value), list(value.values())
    if isinstance(value, tuple):
        if hasattr(value, "_make") and hasattr(value, "_fields"):
            return "namedtuple", type(value), tuple(value._fields), list(value)
        return ("tuple" if type(value) is tuple else "structseq"), type(value), (), list(value)
    if type(value) is list:
        return "list", list, (), value
    attributes = _attributes(value)
    if isinstance(value, (list, set, frozenset)) and not attributes:
        return "tuple", type(value), (), list(value)
    return ("object", value, tuple(attributes), list(attributes.values())) if attributes else None


def _has_tensors_beside_its_items(value: Any) -> bool:
    """Return whether attributes of a list or dict hold tensors that its items do not, as those of transformers do."""
    attributes = _attributes(value)
    if not attributes or any(held is value for held in attributes.values()):
        return False
    items = value.values() if isinstance(value, dict) else value
    inside = {id(tensor) for tensor in tensors_of(list(items))}
    return any(id(tensor) not in inside for tensor in tensors_of(attributes))


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds: its fields where it is a dataclass, and whatever else was set on it."""
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    slots = [name for cls in type(value).__mro__ for name in _slots(cls)]
    own = {name: getattr(value, name) for name in [*names, *slots] if hasattr(value, name)}
    return {**own, **getattr(value, "__dict__", {})}


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _filled_dict(template: Any, keys: Sequence[Any], values: Sequence[Any]) -> Any:
    if type(template) is dict:
        return dict(zip(keys, values, strict=True))
    filled = copy.copy(template)
    for key, value in zip(keys, values, strict=True):
        filled[key] = value
    return filled


def _filled_object(template: Any, keys: Sequence[str], values: Sequence[Any]) -> Any:
    filled = copy.copy(template)
    for key, value in zip(keys, values, strict=True):
        object.__setattr__(filled, key, value)  # also of frozen dataclasses
    return filled
