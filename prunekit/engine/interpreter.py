"""The engine's slow reference: a graph node by node in torch, int8 with exact sums.

What the kernels compute in int8 is defined here: sums in float64, which holds them exactly, and everything after them
in float32, one rounding an operation. Kernels give the same bytes, but for activations that are no piecewise linear
functions, which they approximate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunekit.engine.activations import activate
from prunekit.engine.gpu_nodes import run_native
from prunekit.engine.graph import Graph, Node, Quantization
from prunekit.engine.program import run_in_torch
from prunekit.engine.quantization import bias_of, levels_of, padding_level, quantizations_of, sum_scales, values_of


def interpret(graph: Graph, inputs: Sequence[Tensor], wanted: Sequence[str] | None = None) -> list[Any]:
    """Run a compressed graph on tensors, slowly.

    Args:
        graph: for the inputs' sizes (`Graph.at`).
        inputs: its inputs, float32 images among them.
        wanted: names of values; None: the graph's outputs.

    Returns:
        The values; of those that are levels the levels, as float32.
    """
    values: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
    levels = quantizations_of(graph)
    for node in graph.nodes:
        values[node.name] = _run(node, values, graph, levels)
    return [values[name] for name in (graph.outputs if wanted is None else wanted)]


def _run(node: Node, values: Mapping[str, Any], graph: Graph, levels: Mapping[str, Quantization]) -> Any:
    a = node.attributes
    if node.op == "torch":
        return run_in_torch(node, values, graph.constants)
    if node.op == "quantize":
        return levels_of(values[node.inputs[0]], a["output"])
    if node.op == "dequantize":
        return values_of(values[node.inputs[0]], a["input"])
    if node.op == "quantized_conv2d":
        y = quantized_conv2d(node, values, graph)
        return y if a["output"] is None else levels_of(y, a["output"])
    if node.op == "conv2d":
        y = _convolved(values[node.inputs[0]], node, graph) + bias_of(node, graph)[:, None, None]
        return _finished(y, node, values)
    if node.op == "pad" and node.name in levels:
        return F.pad(values[node.inputs[0]], a["sides"], value=padding_level(node, levels[node.name]))
    return run_native(node, values, graph.constants)


def quantized_conv2d(node: Node, values: Mapping[str, Any], graph: Graph) -> Tensor:
    """Return what a quantized convolution makes, float32 [N, K, P, Q], before it is quantized again."""
    x = values[node.inputs[0]].double() - node.attributes["input"].zero_point
    sums = _convolved(x, node, graph).float()
    y = sums * sum_scales(node, graph)[:, None, None] + bias_of(node, graph)[:, None, None]
    return _finished(y, node, values)


def _convolved(x: Tensor, node: Node, graph: Graph) -> Tensor:
    a = node.attributes
    weight = graph.weights[a["weight"]].dense().to(x.dtype)
    return F.conv2d(x, weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])


def _finished(y: Tensor, node: Node, values: Mapping[str, Any]) -> Tensor:
    a = node.attributes
    y = activate(y, a["before"])
    if len(node.inputs) > 1:
        residual = values[node.inputs[1]]
        quantization = a.get("residual")
        y = y + (residual if quantization is None else values_of(residual, quantization))
    return activate(y, a["after"])
