"""What int8 numbers stand for: levels 0 to 255 of activations, by a scale and a zero point; -127 to 127 of weights.

    value = scale · (level - zero_point)

Activations have one scale a tensor, weights one an output channel and no zero point. Levels are found in float32, as
the kernels do it: round(value · (1 / scale)) + zero_point, ties to even, cut off at 0 and 255.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from prunekit.engine.graph import Graph, Node, Quantization, SparseWeight
from prunekit.ops import native

#: Levels of an activation but one, and the largest of a weight.
MAX_LEVEL, MAX_WEIGHT = 255, 127
#: Products of an output channel whose sum fits into 32 bits, whatever they are.
MAX_PRODUCTS = (2**31 - 1) // (MAX_LEVEL * MAX_WEIGHT)
#: Channels of an element of quads (csrc/cpu/quad_kernels.h).
QUAD = 4
#: Of a tensor that is 0 everywhere, and of an output channel without weights.
SMALLEST_SCALE = 1e-12


def quantization_of(low: float, high: float) -> Quantization:
    """Return the quantization whose levels span `low` to `high`, and 0, which has a level of its own.

    Raises:
        ValueError: one of them is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"a range of {low} to {high} has no levels")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor(max((high - low) / MAX_LEVEL, SMALLEST_SCALE), dtype=torch.float32))
    return Quantization(scale, min(max(round(-low / scale), 0), MAX_LEVEL))


def levels_of(x: Tensor, quantization: Quantization) -> Tensor:
    """Return the levels of float32 `x`, as float32 of the same shape; nan has level 0."""
    low, high = float(-quantization.zero_point), float(MAX_LEVEL - quantization.zero_point)
    inverse = torch.tensor(1.0, dtype=torch.float32) / torch.tensor(quantization.scale, dtype=torch.float32)
    level = x * inverse
    level = torch.where(level > low, level, torch.tensor(low))
    return level.clamp(max=high).round() + quantization.zero_point


def values_of(levels: Tensor, quantization: Quantization) -> Tensor:
    """Return what levels stand for, float32."""
    return (levels - quantization.zero_point).float() * torch.tensor(quantization.scale, dtype=torch.float32)


def quantized_weight(weight: SparseWeight) -> tuple[SparseWeight, Tensor]:
    """Return a weight [K, C / groups, R, S] in int8, and the scale of each output channel, float32 [K].

    Zeros stay zeros, and what rounds to zero becomes one.
    """
    dense = weight.dense()
    largest = dense.abs().amax((1, 2, 3))
    scale = (largest / MAX_WEIGHT).clamp(min=SMALLEST_SCALE)
    levels = (dense / scale[:, None, None, None]).round().clamp(-MAX_WEIGHT, MAX_WEIGHT)
    return SparseWeight.of(levels.to(torch.int8)), scale


def quad_words(weight: SparseWeight, groups: int) -> Tensor:
    """Return an int8 weight as the kernels take it: int32 [K, ⌈C / 4⌉, R, S], four channels of all groups a word.

    A group's output channels have zeros for the other groups' inputs, so that any number of groups is one convolution
    with more zeros.
    """
    out_channels, group_channels, *kernel = weight.shape
    whole = torch.zeros(out_channels, -(-groups * group_channels // QUAD) * QUAD, *kernel, dtype=torch.int8)
    rows = out_channels // groups
    dense = weight.dense().to(torch.int8)
    for group in range(groups):
        of_group = slice(group * rows, (group + 1) * rows), slice(group * group_channels, (group + 1) * group_channels)
        whole[of_group] = dense[of_group[0]]
    quads = whole.reshape(out_channels, -1, QUAD, *kernel).permute(0, 1, 3, 4, 2)
    return quads.reshape(-1).view(torch.int32).reshape(quads.shape[:-1])


def within_pairs(words: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return two words for each of `quad_words` that add up to it, and whose halves do not exceed what a kernel takes.

    Kernels that add the products of two neighboring weights in 16 bits are exact where the weights of one sign add up
    to at most `most`, which is at least MAX_WEIGHT. Elsewhere the second weight of the pair goes to the second word,
    which is zero for all others.
    """
    pairs = words.contiguous().view(torch.int16)  # the second weight in the high byte
    is_too_much = ((pairs << 8 >> 8) + (pairs >> 8)).abs() > most  # never where the signs differ
    second = torch.where(is_too_much, pairs & -256, 0).view(torch.int32)
    return words ^ second, second


def first_sums(weight: SparseWeight, x: Quantization) -> Tensor:
    """Return what the int32 sums of each output channel begin with, [K].

    Padding holds the zero point, so that each weight adds weight · zero_point wherever it looks; that is taken away
    here. So is the shift by which some kernels turn levels into signed bytes.
    """
    return weight.dense().to(torch.int32).sum((1, 2, 3), dtype=torch.int32) * (
        native.quad_layout().x_shift - x.zero_point
    )


def sum_scales(node: Node, graph: Graph) -> Tensor:
    """Return what the sums of a quantized convolution are multiplied by, float32 [K]: the scales of both factors."""
    x: Quantization = node.attributes["input"]
    return graph.constants[node.attributes["weight_scale"]].float() * torch.tensor(x.scale, dtype=torch.float32)


def bias_of(node: Node, graph: Graph) -> Tensor:
    """Return a convolution's bias, float32 [K]."""
    name = node.attributes["bias"]
    if name is None:
        return torch.zeros(graph.weights[node.attributes["weight"]].shape[0])
    return graph.constants[name].float()


def quantizations_of(graph: Graph, nodes: list[Node] | None = None) -> dict[str, Quantization]:
    """Return the quantization of each value that is levels and not float32.

    Args:
        graph: whose convolutions may be quantized.
        nodes: of it; None: all.

    Raises:
        ValueError: a node reads levels where it takes float32, or the other way round, or joins two quantizations, or
            levels leave the graph or meet one of torch's operators.
    """
    found: dict[str, Quantization] = {}
    for node in graph.nodes if nodes is None else nodes:
        read = [found.get(name) for name in node.inputs]
        made = _made_of(node, read)
        if made is not None:
            found[node.name] = made
    leaving = [name for name in graph.outputs if name in found]
    if leaving:
        raise ValueError(f"the output {leaving[0]} is levels")
    return found


def _made_of(node: Node, read: list[Quantization | None]) -> Quantization | None:
    a = node.attributes
    if node.op == "quantized_conv2d":
        wanted = [a["input"], a["residual"]][: len(node.inputs)]
        if read != wanted:
            raise ValueError(f"{node.name} reads levels of {read}, not of {wanted}")
        return a["output"]  # type: ignore[no-any-return]
    if node.op == "dequantize":
        if read != [a["input"]]:
            raise ValueError(f"{node.name} reads levels of {read}, not of {a['input']}")
        return None
    if node.op == "quantize":
        if read != [None]:
            raise ValueError(f"{node.name} reads levels where it takes float32")
        return a["output"]  # type: ignore[no-any-return]
    if any(read) and (not moves_levels(node) or len(set(read)) > 1):
        raise ValueError(f"{node.name} ({node.op}) reads levels where it takes float32")
    return read[0] if read else None


#: Ops that move levels as they move float32.
MOVING = ("concat", "upsample", "max_pool2d", "pad")


def padding_level(node: Node, quantization: Quantization) -> int:
    """Return the level that a "pad" pads with: that of 0, or the lowest for minus infinity, as pools have it."""
    return quantization.zero_point if node.attributes["fill"] == 0.0 else 0


def moves_levels(node: Node) -> bool:
    """Tell whether a node gives levels on as it gives float32 on."""
    return node.op in MOVING and (node.op != "pad" or node.attributes["fill"] in (0.0, -math.inf))


def with_output(node: Node, output: Quantization | None) -> Node:
    """Return a quantized convolution that makes levels of another quantization, or float32."""
    return replace(node, attributes={**node.attributes, "output": output})
