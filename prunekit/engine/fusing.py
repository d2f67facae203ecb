"""Fewer nodes, same values: BatchNorm into convolutions; activations and residual additions behind them."""

from __future__ import annotations

from prunekit.engine.activations import Activation
from prunekit.engine.geometry import PIXELWISE
from prunekit.engine.graph import Graph, Node


def fuse(graph: Graph) -> int:
    """Fuse what only one node reads, in place; return how many BatchNorms went into convolutions."""
    folded = 0
    fused: list[Node] = []
    made_by: dict[str, Node] = {}
    users = graph.users()
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        target = _fuse_into(node, made_by, users, graph)
        if target is None:
            fused.append(node)
            made_by[node.name] = node
            continue
        folded += node.op == "affine" and node.attributes["scale"].endswith(".scale")  # not a number's ".factor"
        renamed[node.name] = target.name
        users[target.name] = users[node.name]
        if node.op == "add":  # its other input must exist by now: the convolution moves to the addition's place
            fused.remove(target)
            fused.append(target)
    graph.nodes = fused
    graph.outputs = [renamed.get(name, name) for name in graph.outputs]
    for node in fused:
        if node.op == "torch":
            node.attributes["args"] = _rename(node.attributes["args"], renamed)
            node.attributes["kwargs"] = _rename(node.attributes["kwargs"], renamed)
    return folded


def _rename(encoded: object, renamed: dict[str, str]) -> object:
    if isinstance(encoded, list):
        return [_rename(item, renamed) for item in encoded]
    if isinstance(encoded, dict):
        if set(encoded) == {"value"}:
            return {"value": renamed.get(encoded["value"], encoded["value"])}
        return {key: _rename(item, renamed) for key, item in encoded.items()}
    return encoded


def _fuse_into(node: Node, made_by: dict[str, Node], users: dict[str, int], graph: Graph) -> Node | None:
    """Return the node that took `node` over, or None."""

    def sole(name: str) -> Node | None:
        return made_by[name] if name in made_by and users[name] == 1 else None

    if node.op == "add":
        if node.inputs[0] == node.inputs[1]:
            return None
        for name, other in (node.inputs, node.inputs[::-1]):
            before = sole(name)
            if before is not None and _takes_summand(before, other, graph):
                before.inputs.append(other)
                return before
        return None
    before = sole(node.inputs[0]) if node.inputs else None
    if before is None:
        return None
    if node.op == "affine" and before.op == "conv2d" and len(before.inputs) == 1:
        if before.attributes["before"] != Activation():
            return None
        _fold(before, node, graph)
        return before
    if node.op == "activation" and before.op in ("conv2d", "affine", *PIXELWISE):
        key = "before" if before.op == "conv2d" and len(before.inputs) == 1 else "after"
        if before.attributes[key] != Activation():
            return None
        before.attributes[key] = node.attributes["after"]
        return before
    return None


def _takes_summand(node: Node, other: str, graph: Graph) -> bool:
    """Tell whether a node can add another value of its size to what it makes."""
    if graph.sizes.get(node.name) != graph.sizes.get(other) or node.name not in graph.sizes:
        return False
    if node.op == "mul":  # of images of one pixel the product might be one of pixels, at another size
        return len(node.inputs) == 2 and node.attributes["after"] == Activation() and graph.sizes[other][1:] != (1, 1)
    return node.op == "conv2d" and len(node.inputs) == 1


def _fold(conv: Node, norm: Node, graph: Graph) -> None:
    """Scale whole filters, in float64; exact zeros of a weight stay exact zeros."""
    scale, shift = (graph.constants[norm.attributes[key]] for key in ("scale", "shift"))
    weight = graph.constants[conv.attributes["weight"]]
    dtype, weight = weight.dtype, weight.double() * scale[:, None, None, None]
    bias = conv.attributes["bias"]
    if bias is not None:
        shift = shift + graph.constants[bias].double() * scale
    weight_name, bias_name = f"{conv.name}.weight", f"{conv.name}.bias"
    graph.constants[weight_name] = weight.to(dtype)
    graph.constants[bias_name] = shift.to(dtype)
    conv.attributes |= {"weight": weight_name, "bias": bias_name}
