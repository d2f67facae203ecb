"""Values of any nesting: their tensors taken out and put back."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunekit.structure import flatten, map_tensors, tensors_of


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Mutable:
    first: Any
    second: Any = None


@dataclass(frozen=True)
class Frozen:
    first: Any
    second: Any = None


class Plain:
    def __init__(self, first: Any, second: Any = None) -> None:
        self.first, self.second = first, second


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self, first: Any, second: Any = None) -> None:
        self.first, self.second = first, second


class Keyed(dict[str, Any]):
    """A dict that has attributes as well, as outputs of transformers do."""


def _made(parts: tuple[Any, Any, Any]) -> Any:
    cls, first, second = parts
    return cls(first, second)


def _structseq(value: Tensor) -> Any:
    return value.topk(1)


tensors = st.integers(0, 3).map(lambda n: torch.randn(n + 1, 2))
values = st.recursive(
    st.one_of(tensors, st.integers(), st.text(max_size=2), st.none(), st.booleans(), tensors.map(_structseq)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(Keyed),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(collections.OrderedDict),
        st.tuples(st.sampled_from([Pair, Mutable, Frozen, Plain, Slotted]), inner, inner).map(_made),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(values)
def test_what_is_taken_out_can_be_put_back(value: object) -> None:
    found, structure = flatten(value)
    assert structure.num_tensors == len(found) == len(list(structure.paths()))
    doubled = structure.build([2 * tensor for tensor in found])
    again, other = flatten(doubled)
    assert structure.differs_from(other) is None
    assert type(doubled) is type(value)
    assert all(torch.equal(2 * a, b) for a, b in zip(found, again, strict=True))
    assert all(a is b for a, b in zip(found, tensors_of(value), strict=True))  # and the value is as it was


@pytest.mark.parametrize("make", [list, tuple, lambda x: Pair(*x), lambda x: Mutable(*x), lambda x: Plain(*x)])
def test_a_tensor_is_found_in_every_container(make: Any) -> None:
    assert len(tensors_of(make([torch.ones(1), {"a": torch.ones(1)}]))) == 2


class Listed(list[Any]):
    """A list that has attributes as well."""


@pytest.mark.parametrize("cls", [Listed, Keyed])
def test_attributes_of_lists_and_dicts_are_walked_too(cls: Any) -> None:
    items = {"a": torch.zeros(1)} if cls is Keyed else [torch.zeros(1)]
    value = cls(items)
    assert len(tensors_of(value)) == 1
    value.same = value["a" if cls is Keyed else 0]
    assert len(tensors_of(value)) == 1  # an item by another name
    value.logits, value.name = torch.ones(2), "x"
    _, structure = flatten(value)
    assert structure.num_tensors == 3
    built = structure.build([torch.full((1,), 5.0), torch.full((1,), 6.0), torch.full((1,), 7.0)])
    assert type(built) is cls
    assert (len(built), float(built["a" if cls is Keyed else 0]), float(built.logits), built.name) == (1, 5, 7, "x")
    assert float(value.logits[0]) == 1
    assert structure.differs_from(flatten(built)[1]) is None
    assert structure.differs_from(flatten(cls(items))[1]) is not None


def test_arrays_are_compared_as_a_whole() -> None:
    def differs(a: object, b: object) -> str | None:
        return flatten(a)[1].differs_from(flatten(b)[1])

    assert differs(np.array([1.0, np.nan]), np.array([1.0, np.nan])) is None
    assert differs(np.array([1, 2]), np.array([1, 3])) is not None
    assert differs(np.array([1, 2]), 1) is not None


def test_places_read_like_python() -> None:
    value = {"boxes": [torch.ones(1), torch.ones(1)], "out": Pair(torch.ones(1), 3), "own": Plain((torch.ones(1),))}
    paths = list(flatten(value)[1].paths())
    assert paths == ["['boxes'][0]", "['boxes'][1]", "['out'].first", "['own'].first[0]"]
    assert all(isinstance(eval(f"value{path}", {"value": value}), Tensor) for path in paths)


def test_differences_are_named() -> None:
    def differs(a: object, b: object) -> str | None:
        return flatten(a)[1].differs_from(flatten(b)[1])

    x = torch.ones(1)
    assert differs([x, 3], [x, 3]) is None
    assert differs({"a": [x, 3]}, {"a": [x, 4]}) == "Expected 3, got 4 at ['a'][1]"
    assert differs([x], (x,)) == "Expected a list of 1, got a tuple of 1"
    assert differs([x], [x, x]) == "Expected a list of 1, got a list of 2"
    assert differs(Pair(x, 1), Pair(x, None)) == "Expected 1, got None at .second"
    assert differs(Plain(x), Mutable(x)) is not None
    assert differs([x], [float("nan")]) is not None
    assert differs([float("nan")], [float("nan")]) is None


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[object] = [torch.ones(1)]
    value.append(value)
    with pytest.raises(ValueError, match="does not hold itself"):
        flatten(value)


def test_objects_are_copied_not_changed() -> None:
    own = SimpleNamespace(a=torch.zeros(2), name="x", inner=Plain(torch.zeros(1)))
    mapped = map_tensors(lambda tensor: tensor + 1, own)
    assert (mapped.name, float(mapped.inner.first), float(own.inner.first)) == ("x", 1, 0)
    assert mapped.inner is not own.inner
