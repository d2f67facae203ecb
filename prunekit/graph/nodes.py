"""What a node of an exported graph is: its operator, arguments, shape, layer and readers."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

#: Operators that hand a tensor on in another dtype or on another device.
CASTS = ("to", "to_copy", "type_as")


def operator_name(node: fx.Node) -> str:
    """Return what a node calls, without overload and in-place underscore: conv2d, add, getitem."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._overloadpacket.__name__.strip("_") if target.namespace == "aten" else str(target)
    return getattr(target, "__name__", str(target))


def source(arg: object) -> object:
    """Return the node of which a node is a cast, or casts of casts; itself where it is none."""
    while isinstance(arg, fx.Node) and arg.op == "call_function" and operator_name(arg) in CASTS:
        arg = arg.args[0]
    return arg


def readers(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that use a node, or a cast of it."""
    found = []
    for user in node.users:
        name = operator_name(user) if user.op == "call_function" else ""
        if "assert" not in name:  # of a dtype, which the exporter puts in front of casts
            found += readers(user) if name in CASTS else [user]
    return found


def layer_name(node: fx.Node) -> str:
    """Return the module in whose forward a node was traced."""
    stack = node.meta.get("nn_module_stack") or {}
    return re.sub(r"@\d+", "", str(list(stack.values())[-1][0])) if stack else ""  # "tower@1" is its second call


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operator's arguments by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found = {}
    for position, parameter in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            found[parameter.name] = node.args[position]
        else:
            found[parameter.name] = node.kwargs.get(parameter.name, parameter.default_value)
    return found


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's only result."""
    return tuple(int(size) for size in node.meta["val"].shape)


def mutates(node: fx.Node) -> bool:
    """Return whether a node writes into something it reads."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return bool(schema is not None and schema.is_mutable)
