"""One node for every ATen operator that the engine knows; what a reader cannot express it leaves to torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from prunekit.engine.activations import OPERATORS, Activation, activation_of
from prunekit.engine.graph import Node
from prunekit.engine.symbolic_sizes import are_always_equal, are_equal, holds_symbols, value_of
from prunekit.graph.nodes import arguments

if TYPE_CHECKING:
    from prunekit.engine.capture import GraphReader

# Linear layers of more kept weights are left to torch: they have one pixel in vectors of sixteen. Of 25088 features to
# 4096 a fifth takes as long here as all of it does in torch, a tenth half, a hundredth a tenth.
_MAX_LINEAR_DENSITY = 0.15


def layer_of(node: fx.Node) -> str:
    """Return the name of the module that a node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return str(path)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the operator's arguments by name, defaults included; sizes among them may be symbolic."""
    return {name: value_of(argument) for name, argument in arguments(node).items()}


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, (int, torch.SymInt)) else list(value)
    return values * 2 if len(values) == 1 else values


def _convolution(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x, weight = reader.image(a["input"]), reader.constant(a["weight"])
    bias = reader.constant(a["bias"])
    if x is None or weight is None or (a["bias"] is not None and bias is None):
        return None
    if reader.constants[weight].dim() != 4 or reader.constants[weight].dtype != reader.dtype:
        return None
    if holds_symbols([a["stride"], a["dilation"], a["padding"], a["groups"]]):
        return None
    stride, dilation, padding = _pair(a["stride"]), _pair(a["dilation"]), a["padding"]
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, reader.constants[weight].shape[2:], strict=True)]
        if any(r % 2 for r in reach):
            return None
        padding = [r // 2 for r in reach]
    return _conv2d(node.name, x, weight, bias, stride, _pair(padding), dilation, a["groups"])


def _conv2d(
    name: str, x: str, weight: str, bias: str | None, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Node:  # fmt: skip
    attributes = {
        "weight": weight, "bias": bias, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "before": Activation(), "after": Activation(),
    }  # fmt: skip
    return Node(name, "conv2d", [x], attributes)


def _batch_norm(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x = reader.image(a["input"])
    names = [reader.constant(a[key]) for key in ("weight", "bias", "running_mean", "running_var")]
    if x is None or a.get("training") or names[2] is None or names[3] is None:
        return None
    mean, var = reader.constants[names[2]].double(), reader.constants[names[3]].double()
    scale = 1 / (var + a["eps"]).sqrt()
    if names[0] is not None:
        scale = scale * reader.constants[names[0]].double()
    shift = -mean * scale
    if names[1] is not None:
        shift = shift + reader.constants[names[1]].double()
    attributes = {"scale": f"{node.name}.scale", "shift": f"{node.name}.shift", "after": Activation()}
    reader.constants[attributes["scale"]], reader.constants[attributes["shift"]] = scale, shift  # type: ignore[index]
    return Node(node.name, "affine", [x], attributes)


def _first_result(reader: GraphReader, node: fx.Node) -> fx.Node | None:
    source, index = node.args
    is_first = isinstance(source, fx.Node) and str(source.target).startswith("aten._native_batch_norm") and index == 0
    is_native = any(made.is_native for made in reader.nodes if made.name == reader.names.get(source))  # type: ignore[arg-type]
    return source if is_first and is_native else None  # type: ignore[return-value]


def _activation(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x, activation = reader.pixels(next(iter(a.values()))), activation_of(str(node.target), a)
    return None if x is None or activation is None else Node(node.name, "activation", [x], {"after": activation})


def _hardtanh(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x = reader.pixels(a["self"])
    if x is None or (a["min_val"], a["max_val"]) != (0, 6):
        return None
    return Node(node.name, "activation", [x], {"after": Activation("relu6")})


def _linear(reader: GraphReader, node: fx.Node) -> Node | None:
    """Read a layer of an image's pixels as a convolution as large as the image."""
    a = arguments_of(node)
    x, weight, bias = reader.pixels(a["input"]), reader.constant(a["weight"]), reader.constant(a["bias"])
    if x is None or a["input"].meta["val"].dim() != 2 or weight is None or (a["bias"] is not None and bias is None):
        return None
    matrix = reader.constants[weight]
    is_sparse = float(matrix.count_nonzero()) <= _MAX_LINEAR_DENSITY * matrix.numel()
    if matrix.dtype != reader.dtype or not (is_sparse or _leads_to_image(node)):
        return None
    name = f"{node.name}.weight"
    reader.constants[name] = matrix.reshape(-1, *reader.sizes[x])
    return _conv2d(node.name, x, name, bias, [1, 1], [0, 0], [1, 1], 1)


def _leads_to_image(node: fx.Node) -> bool:
    """Tell whether a value computed from `node` is an image: a layer inside of a network, not one at its end."""
    seen, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop().users:
            value = user.meta.get("val")
            if isinstance(value, Tensor) and value.dim() == 4:
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def _flatten(reader: GraphReader, node: fx.Node) -> fx.Node | None:
    """Read what makes [N, C · H · W] of an image."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or reader.pixels(source) is None or node.meta["val"].dim() != 2:
        return None
    shape = source.meta["val"].shape
    return source if are_equal(node.meta["val"].shape, (shape[0], math.prod(shape[1:]))) else None


def _mean(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x = reader.image(a["self"])
    if x is None or a.get("dtype") is not None or sorted(d % 4 for d in a["dim"] or ()) != [2, 3]:
        return None
    return Node(node.name, "global_mean", [x], {"is_sum": str(node.target).startswith("aten.sum")})


def _adaptive_pool(reader: GraphReader, node: fx.Node) -> Node | fx.Node | None:
    a = arguments_of(node)
    x = reader.image(a["self"])
    if x is None:
        return None
    size, output = a["self"].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if are_always_equal(output, (1, 1)) and not are_always_equal(size, (1, 1)):
        return Node(node.name, "global_mean", [x], {"is_sum": False})
    source: fx.Node = a["self"]
    return source if are_always_equal(size, output) else None


def _concat(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    names = [reader.image(tensor) for tensor in a["tensors"]]
    if None in names or a["dim"] not in (1, -3):
        return None
    batches = [tensor.meta["val"].shape[:1] for tensor in a["tensors"]]
    if not all(are_equal(batches[0], other) for other in batches[1:]):
        return None
    return Node(node.name, "concat", [name for name in names if name is not None])


def _upsample(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x, factors = reader.image(a["input"]), a.get("scale_factors")
    if x is None or holds_symbols(factors):
        return None
    if factors is None and a.get("output_size") is not None:
        return Node(node.name, "upsample", [x], {"output_size": list(a["output_size"])})
    if not factors or any(f != int(f) or f < 1 for f in factors):
        return None
    return Node(node.name, "upsample", [x], {"factors": [int(f) for f in factors]})


def _pool(op: str) -> Any:
    def read(reader: GraphReader, node: fx.Node) -> Node | None:
        a = arguments_of(node)
        x, kernel = reader.image(a["self"]), _pair(a["kernel_size"])
        if x is None:
            return None
        attributes = {
            "kernel": kernel, "stride": _pair(a["stride"]) if a["stride"] else kernel, "padding": _pair(a["padding"]),
            "dilation": _pair(a.get("dilation", 1)), "is_ceil": a["ceil_mode"],
        }  # fmt: skip
        if op == "avg_pool2d":
            attributes |= {"counts_padding": a["count_include_pad"], "divisor": float(a["divisor_override"] or 0)}
        return Node(node.name, op, [x], attributes)

    return read


def _pad(reader: GraphReader, node: fx.Node) -> Node | None:
    a = arguments_of(node)
    x, widths = reader.image(a["self"]), list(a["pad"])
    if x is None or a.get("mode", "constant") != "constant" or not are_always_equal(widths[4:], [0] * len(widths[4:])):
        return None
    left, right, top, bottom = [*widths, 0, 0][:4]
    return Node(node.name, "pad", [x], {"sides": [left, right, top, bottom], "fill": float(a["value"] or 0.0)})


def _same(reader: GraphReader, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    return source if isinstance(source, fx.Node) and reader.pixels(source) is not None else None


def _copy(reader: GraphReader, node: fx.Node) -> fx.Node | None:
    """Drop a copy of a value that the engine makes; one of torch's may have other strides or be the caller's."""
    return _same(reader, node) if reader.is_native(node.args[0]) else None


def _dropout(reader: GraphReader, node: fx.Node) -> fx.Node | None:
    return None if arguments_of(node)["train"] else _same(reader, node)


READERS: dict[str, Callable[[GraphReader, fx.Node], Node | fx.Node | None]] = {
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "<built-in function getitem>": _first_result,
    **dict.fromkeys(OPERATORS, _activation),
    "aten.hardtanh.default": _hardtanh,
    "aten.cat.default": _concat,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.linear.default": _linear,
    "aten.flatten.using_ints": _flatten,
    "aten.view.default": _flatten,
    "aten.reshape.default": _flatten,
    "aten._unsafe_view.default": _flatten,
    "aten.mean.dim": _mean,
    "aten.sum.dim_IntList": _mean,
    "aten.adaptive_avg_pool2d.default": _adaptive_pool,
    "aten.max_pool2d.default": _pool("max_pool2d"),
    "aten.avg_pool2d.default": _pool("avg_pool2d"),
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    "aten.dropout.default": _dropout,
    "aten.clone.default": _copy,
    "aten.contiguous.default": _copy,
    "aten.alias.default": _same,
    "aten.detach.default": _same,
}
