"""Signatures: calls and results taken apart and put together, in memory and through a file's text."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_structure, treespec_dumps

from prunekit.comparison import compare
from prunekit.engine.signature import Signature
from prunekit.engine.validation import check_output_spec
from prunekit.errors import InputError
from prunekit.structure import flatten


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Result:
    first: Any


def forward(x: Tensor, scale: float = 2.0, *rest: Any, flag: bool = False, options: Any = None, **more: Any) -> None:
    """Take whatever a forward may take."""


LEAVES = st.one_of(
    st.builds(lambda n: torch.full((n,), float(n)), st.integers(0, 3)),
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
    st.sampled_from([torch.float16, torch.device("cpu"), slice(1, None, 2), torch.Size([1, 2]), (), [], {}, set()]),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=3), st.integers(0, 9), st.tuples(st.integers(0, 3), st.none()))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict),
        st.builds(Pair, inner, inner),
        st.builds(lambda n: torch.arange(n + 1.0).topk(1), st.integers(0, 3)),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, result=VALUES)
def test_calls_and_results_survive_a_file(value: Any, result: Any) -> None:
    x = torch.ones(2)
    signature, tensors = Signature.of_call(forward, (x, 3.0, value), {"options": value, "extra": value})
    signature = signature.with_results(result)
    read = Signature.of_text(signature.to_text(), [])
    assert read.to_text() == signature.to_text()
    assert json.loads(signature.to_text()) == signature.to_json() or "NaN" in signature.to_text()
    outputs = flatten(result)[0]
    for known in (signature, read):
        args, kwargs = known.call(tensors)
        assert [id(t) for t in known.tensors(args, kwargs)] == [id(t) for t in tensors]
        built = known.results.build(outputs)
        assert [id(t) for t in flatten(built)[0]] == [id(t) for t in outputs]
    built = signature.results.build(outputs)
    assert compare(result, built).relative_rms == 0
    assert type(built) is type(result)
    again, found = Signature.of_call(forward, *signature.call(tensors))
    assert again.arguments.keys() == signature.arguments.keys()
    assert len(found) == len(tensors)


def test_a_call_is_that_of_the_example_in_what_is_no_tensor() -> None:
    signature, _ = Signature.of_call(forward, (torch.ones(2),), {"flag": True})
    x = torch.zeros(3)
    assert signature.tensors((x,), {"flag": True}) == [x]
    assert signature.tensors((), {"x": x, "flag": True, "scale": 2.0}) == [x]
    for args, kwargs, words in (
        ((x,), {}, "Expected True, got False at flag"),
        ((x, 3.0), {"flag": True}, r"Expected 2.0, got 3.0 at scale"),
        ((x, 2.0, x), {"flag": True}, r"Expected a tuple of 0, got a tuple of 1 at rest"),
        ((), {"flag": True}, r"Expected the arguments \(x, scale, \*rest, flag, options, \*\*more\), got 0 positional"),
    ):
        with pytest.raises(InputError, match=words):
            signature.tensors(args, kwargs)


def test_names_say_where_a_tensor_is() -> None:
    signature, _ = Signature.of_call(forward, (torch.ones(2),), {"options": {"a": [torch.ones(1), 2]}})
    assert signature.names == ["x", "options['a'][0]"]


def test_classes_that_a_file_cannot_hold_are_named() -> None:
    signature, tensors = Signature.of_call(forward, (torch.ones(2),), {})
    signature = signature.with_results([Result(torch.ones(1))])
    with pytest.raises(InputError, match=r"^save: Expected builtin containers.* got the output of class Result, which"):
        signature.to_text()
    assert isinstance(signature.results.build(tensors)[0], Result)
    with pytest.raises(InputError, match="got the argument options of class Result"):
        Signature.of_call(forward, (torch.ones(2),), {"options": Result(1)})[0].to_text()


def test_older_files_have_the_outputs_only() -> None:
    spec = treespec_dumps(tree_structure({"a": 0, "b": [0, (0,)]}))
    signature = Signature.of_text(spec, ["x", "y"])
    tensors = [torch.full((1,), float(i)) for i in range(3)]
    assert signature.results.build(tensors) == {"a": tensors[0], "b": [tensors[1], (tensors[2],)]}
    assert signature.tensors((tensors[0],), {"y": tensors[1]}) == tensors[:2]
    check_output_spec(spec)


@pytest.mark.parametrize(("kind", "context"), [
    ("collections.defaultdict", {"default_factory_module": "antigravity", "default_factory_name": "x"}),
    ("builtins.dict", json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])),
])  # fmt: skip
def test_outputs_that_name_a_module_are_refused_before_it_is_imported(kind: str, context: object) -> None:
    leaf: dict[str, object] = {"type": None, "context": None, "children_spec": []}
    inner = {"type": kind, "context": context, "children_spec": [leaf]}
    spec = json.dumps([1, {"type": "builtins.list", "context": "null", "children_spec": [leaf, inner]}])
    with pytest.raises(ValueError, match=f"nest in {kind}"):
        check_output_spec(spec)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_text_ends_in_the_errors_that_a_loader_knows(data: st.DataObject) -> None:
    signature, _ = Signature.of_call(forward, (torch.ones(2),), {"options": Pair(torch.ones(1), {"a": slice(1, 2)})})
    document = json.loads(signature.with_results((torch.ones(1).topk(1), [torch.float16])).to_text())
    _damage(document, data)
    try:
        Signature.of_text(json.dumps(document), ["x"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return


def _damage(value: Any, data: st.DataObject) -> None:
    """Replace one entry somewhere inside by another value."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(value[key], (dict, list)) and value[key] and data.draw(st.booleans()):
            value = value[key]
            continue
        junk: list[Any] = [None, 3, "tensor", "os", [], {}, [1], {"kind": "tensor"}, -1.5, "__init__", {"dtype": "nn"}]
        value[key] = data.draw(st.sampled_from(junk))
        return
