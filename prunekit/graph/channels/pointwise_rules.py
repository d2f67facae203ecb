"""Operations that work channel by channel: functions of numbers, pooling, resizing, padding, means over the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from prunekit.graph.channels.channel_flow import ChannelFlow, NotUnderstoodError, require, rule
from prunekit.graph.channels.values import Value, channels, finite_or_nan, unknown
from prunekit.graph.nodes import CASTS, arguments, operator_name, shape_of

# fmt: off
_POINTWISE = (
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "log_sigmoid", "clamp", "clamp_min", "clamp_max", "clip", "abs", "neg",
    "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "erf", "reciprocal", "sign",
    "rrelu", "hardshrink", "softshrink", "threshold", "rsub", "add", "sub", "mul", "div", "maximum", "minimum",
    "softsign",
)
_SAME = (
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "clone", "contiguous", "detach", "alias",
    "lift_fresh_copy",
)
_POOLING = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "fractional_max_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "upsample_nearest_exact2d",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
)
# fmt: on


@rule(*_POINTWISE)
def pointwise(flow: ChannelFlow, node: fx.Node) -> Value:
    """Apply a function of numbers to constants, and tie the channels of two tensors."""
    require(not arguments(node).get("training"), "draws slopes at random")
    operands = {arg: flow.value(arg) for arg in node.all_input_nodes}
    shape = shape_of(node)
    labeled = {arg: value for arg, value in operands.items() if value.has_channels}
    constants = _constants(node, operands)
    if not labeled:
        return Value(shape, constants=constants)
    dim, labels = _tied(flow, node, operands, shape)
    result = Value(shape, dim, labels, constants)
    _explain(flow, node, operands, result)
    return result


@rule("prelu")
def prelu(flow: ChannelFlow, node: fx.Node) -> Value:
    """Apply PReLU, whose slopes lie along the channels."""
    value = flow.value(node.args[0])
    slopes = node.args[1]
    require(value.dim == 1, "reads channels from another dimension than the second")
    assert isinstance(slopes, fx.Node)
    one = slopes.meta["val"].numel() == 1
    slope = flow.value(slopes).constants if one else flow.channel_tensor(slopes, 0, value.labels)
    v = value.channel_constants()
    assert slope is not None
    return channels(value.shape, 1, value.labels, finite_or_nan(torch.where(v >= 0, v, slope.flatten() * v)))


@rule(*_SAME)
def same(flow: ChannelFlow, node: fx.Node) -> Value:
    """Hand a tensor on."""
    if "train" in arguments(node):
        require(not arguments(node)["train"], "drops at random")
    return flow.value(node.args[0])


@rule(*CASTS)
def cast(flow: ChannelFlow, node: fx.Node) -> Value:
    """Hand a tensor on in another type or place."""
    require(node.meta["val"].is_floating_point(), "rounds to whole numbers")
    return flow.value(node.args[0])


@rule(*_POOLING)
def pool(flow: ChannelFlow, node: fx.Node) -> Any:
    """Pool, resize or mirror each channel: a constant stays one, since nothing but its own pixels comes in."""
    value = flow.value(node.args[0])
    meta = node.meta["val"]
    shapes = [tuple(int(s) for s in m.shape) for m in ([meta] if isinstance(meta, Tensor) else meta)]
    if value.dim is None:
        found = [unknown(shape) for shape in shapes]
    else:
        require(value.dim == 1 and len(shapes[0]) == len(value.shape), "reads images without a batch dimension")
        found = [channels(shape, 1, value.labels, value.channel_constants()) for shape in shapes]
    return found[0] if isinstance(meta, Tensor) else found


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average(flow: ChannelFlow, node: fx.Node) -> Value:
    """Average windows: a constant stays one where padding is not counted in."""
    a = arguments(node)
    padding = a["padding"] if isinstance(a["padding"], list) else [a["padding"]]
    counts_zeros = any(padding) and a.get("count_include_pad", True)
    result: Value = pool(flow, node)
    return _kept_if_zero(flow, node, result) if counts_zeros or a.get("divisor_override") else result


@rule("pad", "constant_pad_nd")
def pad(flow: ChannelFlow, node: fx.Node) -> Value:
    """Pad the image: with a number, only that constant stays one; with pixels of the image every constant does."""
    a = arguments(node)
    value = flow.value(node.args[0])
    widths = list(a["pad"])
    if value.dim is None:
        return unknown(shape_of(node))
    padded = {len(value.shape) - 1 - i // 2 for i, width in enumerate(widths) if width}
    require(value.dim not in padded, "adds channels")
    v = value.channel_constants()
    result = channels(shape_of(node), value.dim, value.labels, v)
    if a.get("mode", "constant") != "constant" or all(width <= 0 for width in widths):
        return result
    fill = float(a.get("value") or 0.0)
    if fill == 0 and all(_reads_as_padding(user) for user in node.users):
        return replace(result, framed=True)
    is_hidden = v >= fill if all(_hides(user, max(widths)) for user in node.users) else v == fill
    lost = ~v.isnan() & ~is_hidden
    flow.units.note_variation(value.labels[lost.numpy()], f"{flow.describe(node)} puts {fill:g} beside its constant")
    return result.with_constants(torch.where(lost, torch.nan, v))


def _reads_as_padding(node: fx.Node) -> bool:
    """Tell whether a node takes zeros beside the image as its own padding: a convolution does."""
    return operator_name(node) in ("conv1d", "conv2d", "conv3d")


def _hides(node: fx.Node, width: int) -> bool:
    """Tell whether a node pools the largest of windows that are wider than the padding: the smaller number is lost."""
    if operator_name(node) not in ("max_pool2d", "max_pool2d_with_indices"):
        return False
    a = arguments(node)
    pixels = [n for key in ("padding", "dilation") for n in _pair(a[key])]
    return min(_pair(a["kernel_size"])) > width and pixels == [0, 0, 1, 1] and not a["ceil_mode"]


def _pair(value: int | list[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


@rule("mean", "amax", "amin", "sum")
def reduce(flow: ChannelFlow, node: fx.Node) -> Value:
    """Reduce over other dimensions than the channels'."""
    a = arguments(node)
    value = flow.value(node.args[0])
    if value.dim is None:
        return unknown(shape_of(node))
    require(bool(a.get("dim")), "reduces over channels")
    dims = {dim % len(value.shape) for dim in (a["dim"] if isinstance(a["dim"], (list, tuple)) else [a["dim"]])}
    require(value.dim not in dims, "reduces over channels")
    dim = value.dim if a["keepdim"] else value.dim - sum(d < value.dim for d in dims)
    result = channels(shape_of(node), dim, value.labels, value.channel_constants())
    return _kept_if_zero(flow, node, result) if operator_name(node) == "sum" else result


def _kept_if_zero(flow: ChannelFlow, node: fx.Node, result: Value) -> Value:
    """Only zero is still a constant after an operation that depends on the place or the size of the image."""
    if result.dim is None:
        return result
    v = result.channel_constants()
    lost = ~v.isnan() & (v != 0)
    flow.units.note_variation(result.labels[lost.numpy()], f"{flow.describe(node)} makes its constant vary")
    return result.with_constants(torch.where(lost, torch.nan, v))


def _constants(node: fx.Node, operands: dict[fx.Node, Value]) -> Tensor:
    """Run the operator itself on the constants."""
    rank = len(shape_of(node))

    def constant(arg: Any) -> Any:
        return operands[arg].constants if isinstance(arg, fx.Node) else arg

    args, kwargs = fx.node.map_arg(node.args, constant), fx.node.map_arg(node.kwargs, constant)
    assert callable(node.target)
    y: Tensor = node.target(*args, **kwargs)
    varies = torch.zeros_like(y, dtype=torch.bool)
    for value in operands.values():
        varies = varies | value.constants.isnan()
    y = torch.where(varies, torch.nan, y)
    if operator_name(node) == "mul":
        for value in operands.values():
            y = torch.where(value.constants == 0, 0.0, y)
    return finite_or_nan(y).reshape([1] * (rank - y.dim()) + list(y.shape))


def _tied(flow: ChannelFlow, node: fx.Node, operands: dict[fx.Node, Value], shape: tuple[int, ...]) -> Any:
    """Tie what meets at the same place; return the dimension of the result's channels and their labels."""
    rank = len(shape)
    dims = {arg: v.dim + rank - len(v.shape) for arg, v in operands.items() if v.dim is not None}
    wide = [arg for arg, dim in dims.items() if len(operands[arg].labels) == shape[dim]]
    require(bool(wide), "spreads one channel over many")
    dim, labels = dims[wide[0]], operands[wide[0]].labels
    for arg, value in operands.items():
        aligned = dim - (rank - len(value.shape))
        is_narrow = aligned < 0 or value.shape[aligned] == 1
        if dims.get(arg, dim) != dim:
            raise NotUnderstoodError("lays channels across each other")
        if value.has_channels and (not is_narrow or shape[dim] == 1):
            flow.units.tie(labels, value.labels)
        elif value.has_channels:
            flow.units.pin(value.labels, f"{flow.describe(node)} spreads it over many channels")
        elif not is_narrow:
            flow.keep_whole(node, "meets a tensor that cannot be cut")
    return dim, labels


def _explain(flow: ChannelFlow, node: fx.Node, operands: dict[fx.Node, Value], result: Value) -> None:
    """Where a constant met something that varies, say so."""
    varies = result.channel_constants().isnan()
    for value in operands.values():
        if value.has_channels and len(value.labels) == len(varies):
            lost = (varies & ~value.channel_constants().isnan()).numpy()
            flow.units.note_variation(value.labels[lost], f"{flow.describe(node)} joins its constant to a live channel")
