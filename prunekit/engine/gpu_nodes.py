"""The engine's nodes on a GPU: convolutions by the kernel that was chosen, all else by torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.engine.activations import Activation, activate
from prunekit.engine.graph import Node
from prunekit.ops.cuda.choice import KernelChoice
from prunekit.ops.cuda.packed_filter import PackedFilter
from prunekit.ops.cuda.plan import ConvPlan, Ops
from prunekit.ops.cuda.problem import ConvProblem

Values = Mapping[str, Any]
#: Activations that the sparse kernels' epilogues compute.
_FUSED = ("none", "relu", "leaky_relu")


@dataclass(frozen=True)
class LayerKernel:
    """What runs one convolution.

    Attributes:
        choice: with the times it was made by.
        problem: sizes and density, or None where no sparse kernel takes them.
        plan: of the sparse kernel, or None for dense.
        filter: the plan's, with the weights.
    """

    choice: KernelChoice
    problem: ConvProblem | None
    plan: ConvPlan | None = None
    filter: PackedFilter | None = None


def convolve(node: Node, values: Values, constants: Mapping[str, Tensor], kernel: LayerKernel, ops: Ops) -> Tensor:
    """Run a "conv2d" node: after(before(convolution + bias) + residual).

    Args:
        node: the node; its second input is the residual.
        values: of the nodes before.
        constants: the graph's.
        kernel: what was chosen.
        ops: gives a sparse kernel's op.
    """
    a, x = node.attributes, values[node.inputs[0]]
    bias = constants[a["bias"]] if a["bias"] else None
    before, after, residual = a["before"], a["after"], None if len(node.inputs) == 1 else values[node.inputs[1]]
    if kernel.plan is None or kernel.filter is None:
        y = _dense(x, constants[a["weight"]], bias, a)
        y = activate_(y, before)
        return activate_(y if residual is None else y.add_(residual), after)
    if before.kind not in _FUSED:
        y = activate_(kernel.plan.run(x, kernel.filter, bias, ops=ops), before)
        return activate_(y if residual is None else y.add_(residual), after)
    # A slope of 0 is ReLU; the epilogue has one activation.
    name, slope = "none" if before.kind == "none" else "leaky_relu", before.negative_slope
    if before.kind == "none" and after.kind in _FUSED[1:]:
        name, slope, after = "leaky_relu_last", after.negative_slope, Activation()
    return activate_(kernel.plan.run(x, kernel.filter, bias, residual, name, slope, ops), after)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, a: Mapping[str, Any]) -> Tensor:
    covers_image = x.shape[2:] == weight.shape[2:] and not any(a["padding"]) and a["groups"] == 1
    if covers_image and x.shape[0] * weight.shape[0] > 0:  # a linear layer, and faster as one
        return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    return F.conv2d(x, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])


def activate_(y: Tensor, activation: Activation) -> Tensor:
    """Apply an activation in place."""
    return activate(y, activation, in_place=True)


def _affine(node: Node, values: Values, constants: Mapping[str, Tensor]) -> Tensor:
    scale, shift = (constants[node.attributes[key]][:, None, None] for key in ("scale", "shift"))
    x = values[node.inputs[0]]
    return activate_(torch.addcmul(shift, x.float(), scale).to(x.dtype), node.attributes["after"])


def _max_pool(node: Node, values: Values) -> Tensor:
    a = node.attributes
    return F.max_pool2d(
        values[node.inputs[0]], a["kernel"], a["stride"], a["padding"], a["dilation"], a.get("is_ceil", False)
    )


def _avg_pool(node: Node, values: Values) -> Tensor:
    a = node.attributes
    window = a["kernel"], a["stride"], a["padding"]
    divisor = int(a.get("divisor", 0)) or None
    return F.avg_pool2d(
        values[node.inputs[0]], *window, a.get("is_ceil", False), a.get("counts_padding", True), divisor
    )


@lru_cache(4096)
def _index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """Keep indices on the device: while a CUDA graph is captured, none can be brought there."""
    return torch.tensor(channels, device=device)


def _select(node: Node, values: Values) -> Tensor:
    x: Tensor = values[node.inputs[0]]
    channels: list[int] = node.attributes["channels"]
    if channels == list(range(channels[0], channels[0] + len(channels))):
        return x[:, channels[0] : channels[0] + len(channels)]
    return x.index_select(1, _index(tuple(channels), x.device))


def _mul(node: Node, values: Values) -> Tensor:
    y = values[node.inputs[0]] * values[node.inputs[1]]
    y = y if len(node.inputs) == 2 else y + values[node.inputs[2]]
    return activate_(y, node.attributes["after"])


def _mean(node: Node, values: Values) -> Tensor:
    x: Tensor = values[node.inputs[0]]
    return x.sum((2, 3), keepdim=True) if node.attributes.get("is_sum") else x.mean((2, 3), keepdim=True)


def _upsample(node: Node, values: Values) -> Tensor:
    if "output_size" in node.attributes:
        return F.interpolate(values[node.inputs[0]], size=list(node.attributes["output_size"]), mode="nearest")
    factors = [float(factor) for factor in node.attributes["factors"]]
    return F.interpolate(values[node.inputs[0]], scale_factor=factors, mode="nearest")


_RUNNERS: dict[str, Callable[[Node, Values], Tensor]] = {
    "activation": lambda node, values: activate_(values[node.inputs[0]].clone(), node.attributes["after"]),
    "add": lambda node, values: activate_(
        values[node.inputs[0]] + values[node.inputs[1]], node.attributes.get("after", Activation())
    ),
    "sub": lambda node, values: activate_(values[node.inputs[0]] - values[node.inputs[1]], node.attributes["after"]),
    "mul": _mul,
    "select": _select,
    "concat": lambda node, values: torch.cat([values[name] for name in node.inputs], 1),
    "upsample": _upsample,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "global_mean": _mean,
    "pad": lambda node, values: F.pad(values[node.inputs[0]], node.attributes["sides"], value=node.attributes["fill"]),
}


def run_native(node: Node, values: Values, constants: Mapping[str, Tensor]) -> Tensor:
    """Run a node that is neither a convolution nor torch's own."""
    if node.op == "affine":
        return _affine(node, values, constants)
    return _RUNNERS[node.op](node, values)
