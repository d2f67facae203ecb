"""A graph that was read from a file, checked whole before anything of it runs.

A file's digest tells damage, but not a file that someone made on purpose: what its JSON says may be of any type, name
what is not there, or contradict itself. All of that ends here, in one sentence, and never later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prunekit.engine.activations import ACTIVATIONS, Activation
from prunekit.engine.filters import MAX_QUAD_TAPS
from prunekit.engine.graph import CONVOLUTIONS, NODE_KINDS, Graph, Node, Quantization
from prunekit.engine.program import operator_of
from prunekit.engine.quantization import MAX_LEVEL, MAX_PRODUCTS, MAX_WEIGHT, quantizations_of

_MAX_SIZE = 2**31  # of a dimension, a stride, a number of groups
#: Kinds of values that an argument of torch's may be, beside plain JSON: {"value": name} and so on.
_REFERENCES = ("value", "constant", "device", "dtype", "memory_format", "layout")


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < _MAX_SIZE


def _are_counts(length: int | None, least: int = 0) -> Callable[[object], bool]:
    """Check a list of so many counts; of any number but none where `length` is None."""

    def check(value: object) -> bool:
        is_long_enough = isinstance(value, list) and (len(value) == length if length is not None else len(value) > 0)
        return is_long_enough and all(_is_count(v, least) for v in value)  # type: ignore[attr-defined]

    return check


def _is_activation(value: object) -> bool:
    return isinstance(value, Activation) and value.kind in ACTIVATIONS and _is_number(value.negative_slope)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_quantization(value: object) -> bool:
    if not isinstance(value, Quantization) or not _is_number(value.scale) or type(value.zero_point) is not int:
        return False
    return math.isfinite(value.scale) and value.scale > 0 and 0 <= value.zero_point <= MAX_LEVEL


def _are_sides(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(v) is int and abs(v) < _MAX_SIZE for v in value)


#: What the words of `NODE_KINDS` ask of an attribute; whether a name is that of a constant is checked afterwards.
_CHECKS: dict[str, Callable[[object], bool]] = {
    "constant": lambda value: isinstance(value, str),
    "constant or none": lambda value: value is None or isinstance(value, str),
    "weight": lambda value: isinstance(value, str),
    "pair": _are_counts(2, 1),
    "padding": _are_counts(2),
    "sides": _are_sides,
    "groups": lambda value: _is_count(value, 1),
    "channels": _are_counts(None),
    "activation": _is_activation,
    "number": _is_number,
    "quantization": _is_quantization,
    "quantization or none": lambda value: value is None or _is_quantization(value),
    "flag": lambda value: isinstance(value, bool),
}


def check_graph(graph: Graph) -> None:
    """Check every node, name and number of a compressed graph.

    Raises:
        ValueError: Something is wrong with it; the message says what, without a full stop.
        InputError: It calls an operator that a file may not call.
    """
    check_output_spec(graph.output_spec)
    known = _unique([*graph.inputs, *(node.name for node in graph.nodes)])
    defined = set(graph.inputs)
    for node in graph.nodes:
        _check_node(node, graph)
        unknown = [name for name in node.inputs if name not in defined]
        _expect(not unknown, f"{node.name} reads {unknown[:1]}, which no earlier node makes")
        defined.add(node.name)
    quantizations_of(graph)
    unknown = [name for name in graph.outputs if name not in known]
    _expect(not unknown, f"the output {unknown[:1]} is made by no node")
    for name, size in graph.sizes.items():
        _expect(_are_counts(3, 1)(list(size)), f"{name} cannot have the size {list(size)}")
    for name, weight in graph.weights.items():
        _expect(all(_is_count(n, 1) for n in weight.shape) and len(weight.shape) == 4, f"{name} is no 4-D weight")


def check_output_spec(text: str) -> None:
    """Check that torch's `treespec_loads` imports nothing for a file: for default factories and enums it would.

    Raises:
        ValueError: It would, or the text is no JSON.
        KeyError, TypeError, IndexError: The text is something else.
    """
    document = json.loads(text)
    if isinstance(document, list):
        _check_nesting(document[1])


def _check_nesting(spec: Any) -> None:
    """Both are JSON objects in a context; the keys of dicts and the names of classes are not."""
    context = spec["context"]
    is_plain = context is None or (isinstance(context, str) and "{" not in context)
    _expect(is_plain, f"its outputs nest in {str(spec['type'])[:60]}, of something that a file may not name")
    for child in spec["children_spec"]:
        _check_nesting(child)


def _unique(names: Sequence[object]) -> set[object]:
    _expect(all(isinstance(name, str) for name in names), "a value's name is no text")
    _expect(len(set(names)) == len(names), "two values have one name")
    return set(names)


def _check_node(node: Node, graph: Graph) -> None:
    _expect(isinstance(node.layer, str), f"{node.name}'s layer is no text")
    _expect(all(isinstance(name, str) for name in node.inputs), f"{node.name} reads something that is no name")
    if node.op == "torch":
        _check_torch_node(node, graph)
        return
    kind = NODE_KINDS.get(node.op)
    if kind is None:
        raise ValueError(f"{node.name} is of the unknown kind {node.op!r}")
    least, most = kind.inputs
    fits = least <= len(node.inputs) <= (len(node.inputs) if most is None else most)
    _expect(fits, f"{node.name} ({node.op}) reads {len(node.inputs)} values")
    wrong = (kind.attributes.keys() - kind.optional.keys() - node.attributes.keys()) | (
        node.attributes.keys() - kind.attributes.keys()
    )
    _expect(not wrong, f"{node.name} ({node.op}) lacks or should not have {sorted(map(str, wrong))[:1]}")
    for key, value in node.attributes.items():
        is_right = _CHECKS[kind.attributes[key]](value)
        _expect(is_right, f"{node.name} ({node.op}) cannot have {key}={str(value)[:60]}")
    has_one_size = len(node.attributes.keys() & {"factors", "output_size"}) == 1
    _expect(node.op != "upsample" or has_one_size, f"{node.name} needs either factors or an output size")
    _check_constants(node, graph)


def _check_constants(node: Node, graph: Graph) -> None:
    for key, word in NODE_KINDS[node.op].attributes.items():
        name = node.attributes.get(key)
        if word.startswith("constant") and name is not None:
            _expect(name in graph.constants, f"{node.name} names {name!r}, which is not in the file")
            constant = graph.constants[name]
            _expect(constant.dim() == 1 and constant.is_floating_point(), f"{name!r} is no vector of numbers")
    if node.op not in CONVOLUTIONS:
        return
    weight, groups = node.attributes["weight"], node.attributes["groups"]
    _expect(weight in graph.weights, f"{node.name} names {weight!r}, which is not in the file")
    shape, bias = graph.weights[weight].shape, node.attributes["bias"]
    _check_precision(node, graph)
    _expect(len(shape) == 4 and shape[0] % groups == 0, f"{node.name} cannot have {groups} groups")
    if bias is not None:
        found = list(graph.constants[bias].shape)
        _expect(found == [shape[0]], f"expected [{shape[0]}] as the shape of {bias}, got {found}")


def _check_precision(node: Node, graph: Graph) -> None:
    is_int8, is_quantized = (
        graph.weights[node.attributes["weight"]].values.dtype == torch.int8,
        "weight_scale" in node.attributes,
    )
    _expect(
        is_int8 == is_quantized, f"{node.name} ({node.op}) cannot have a weight of {'int8' if is_int8 else 'float32'}"
    )
    if not is_quantized:
        return
    weight, a = graph.weights[node.attributes["weight"]], node.attributes
    scale = graph.constants[a["weight_scale"]]
    _expect(
        list(scale.shape) == [weight.shape[0]],
        f"{node.name} has {list(scale.shape)} scales of {weight.shape[0]} channels",
    )
    _expect(bool((scale.isfinite() & (scale > 0)).all()), f"{node.name} has scales that are not positive")
    _expect(
        int(weight.values.min()) >= -MAX_WEIGHT if weight.values.numel() else True, f"{node.name} has a weight of -128"
    )
    _expect(a["before"].kind == "none" or a["after"].kind == "none", f"{node.name} has two activations")
    _expect(math.prod(weight.shape[1:]) <= MAX_PRODUCTS, f"{node.name} has sums that may not fit into 32 bits")
    _expect(math.prod(weight.shape[2:]) <= MAX_QUAD_TAPS, f"{node.name} has a kernel of more than {MAX_QUAD_TAPS} taps")


def _check_torch_node(node: Node, graph: Graph) -> None:
    a = node.attributes
    _expect(a.keys() == {"target", "args", "kwargs"}, f"{node.name} has the attributes {sorted(map(str, a))[:4]}")
    _expect(isinstance(a["target"], str), f"{node.name}'s operator is no text")
    _expect(isinstance(a["args"], list) and isinstance(a["kwargs"], dict), f"{node.name}'s arguments are no list")
    operator_of(a["target"])
    values: list[str] = []
    _check_argument(node, [a["args"], list(a["kwargs"].values())], graph, values)
    _expect(set(values) == set(node.inputs), f"{node.name} reads other values than its arguments name")


def _check_argument(node: Node, arg: object, graph: Graph, values: list[str]) -> None:
    if isinstance(arg, list):
        for item in arg:
            _check_argument(node, item, graph, values)
    elif isinstance(arg, dict):
        _expect(len(arg) == 1 and next(iter(arg)) in _REFERENCES, f"{node.name} has an argument {str(arg)[:60]}")
        ((kind, name),) = arg.items()
        _expect(isinstance(name, str), f"{node.name} has an argument {str(arg)[:60]}")
        if kind == "value":
            values.append(name)
        _expect(kind != "constant" or name in graph.constants, f"{node.name} names {name!r}, which is not in the file")
    else:
        _expect(arg is None or isinstance(arg, (bool, int, float, str)), f"{node.name} has an argument {arg!r}")


def check_examples(graph: Graph, shapes: object) -> list[list[int]]:
    """Check the shapes that a file says its graph was captured with, and return them.

    Raises:
        ValueError: They are none.
    """
    _expect(isinstance(shapes, list) and len(shapes) == len(graph.inputs), "the example is not one shape an input")
    assert isinstance(shapes, list)
    for shape in shapes:
        is_shape = isinstance(shape, list) and all(_is_count(n) for n in shape) and math.prod(shape) < 2**40
        _expect(is_shape, f"{str(shape)[:60]} is no shape")
    return shapes


def check_sizes(graph: Graph, example: Sequence[Sequence[int]]) -> None:
    """Check what a graph says about the sizes for which it holds, which its example's are among.

    Raises:
        ValueError: It contradicts itself.
    """
    _expect(_is_count(graph.split_batch), f"{graph.split_batch!r} is no number of images")
    if graph.rule is not None:
        _expect(len(graph.rule.shapes) == len(graph.inputs), "its rule of sizes is for another number of inputs")
        refusal = graph.rule.refusal(example, graph.inputs)
        _expect(refusal is None, f"it does not hold for its own example: {refusal}")


def _expect(is_right: bool, wrong: str) -> None:
    if not is_right:
        raise ValueError(wrong)
