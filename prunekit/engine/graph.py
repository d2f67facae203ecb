"""The network as the engine sees it: a list of nodes over named values, free of the model's classes and of sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.engine.activations import Activation
from prunekit.engine.size_expressions import Shapes, holds_sizes, substitute
from prunekit.engine.size_rule import SizeRule


@dataclass(frozen=True)
class Quantization:
    """What levels 0 to 255 stand for: scale · (level - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class NodeKind:
    """What a node of an op is made of.

    Attributes:
        inputs: The least and the largest number of values that it reads; None: any number.
        attributes: By name what each is: "constant" (the name of one [channels]), "constant or none", "weight" (a
            convolution's), "pair" (two positive ints), "padding" (two ints from 0 on), "sides" (four ints), "groups" (a
            positive int), "channels" (ints from 0 on, at least one), "activation", "number" (float), "flag" (bool),
            "quantization", "quantization or none".
        optional: Of the attributes those that files of earlier versions lack, with what stands for them.
    """

    inputs: tuple[int, int | None]
    attributes: Mapping[str, str]
    optional: Mapping[str, Any] = field(default_factory=dict)


_CONVOLUTION = {
    "weight": "weight", "bias": "constant or none", "stride": "pair", "padding": "padding", "dilation": "pair",
    "groups": "groups", "before": "activation", "after": "activation",
}  # fmt: skip
_POOL = {"kernel": "pair", "stride": "pair", "padding": "padding", "dilation": "pair", "is_ceil": "flag"}
#: The ops that the engine runs itself.
NODE_KINDS: dict[str, NodeKind] = {
    "conv2d": NodeKind((1, 2), _CONVOLUTION),
    "affine": NodeKind((1, 1), {"scale": "constant", "shift": "constant", "after": "activation"}),
    "activation": NodeKind((1, 1), {"after": "activation"}),
    "add": NodeKind((2, 2), {"after": "activation"}, {"after": Activation()}),
    "sub": NodeKind((2, 2), {"after": "activation"}),
    "mul": NodeKind((2, 3), {"after": "activation"}),
    "concat": NodeKind((1, None), {}),
    "select": NodeKind((1, 1), {"channels": "channels"}),
    "upsample": NodeKind((1, 1), {"factors": "pair", "output_size": "pair"}, {"factors": None, "output_size": None}),
    "max_pool2d": NodeKind((1, 1), _POOL, {"is_ceil": False}),
    "avg_pool2d": NodeKind(
        (1, 1), {**_POOL, "counts_padding": "flag", "divisor": "number"},
        {"is_ceil": False, "counts_padding": True, "divisor": 0.0},
    ),
    "global_mean": NodeKind((1, 1), {"is_sum": "flag"}, {"is_sum": False}),
    "pad": NodeKind((1, 1), {"sides": "sides", "fill": "number"}),
    # In int8 (quantization.py): an output that is None is float32.
    "quantized_conv2d": NodeKind((1, 2), {
        **_CONVOLUTION, "weight_scale": "constant", "input": "quantization", "residual": "quantization or none",
        "output": "quantization or none",
    }),
    "quantize": NodeKind((1, 1), {"output": "quantization"}),
    "dequantize": NodeKind((1, 1), {"input": "quantization"}),
}  # fmt: skip
#: Ops with a weight.
CONVOLUTIONS = ("conv2d", "quantized_conv2d")


@dataclass
class Node:
    """One operation.

    Attributes:
        name: Of the value it makes, unique in the graph.
        op: One of NODE_KINDS, or "torch" for one that torch runs. Of "mul", a third input is added to the product.
        inputs: Names of the values it reads.
        attributes: The rest: sizes, names of constants, activations; see NODE_KINDS.
        layer: The module it came from, for people.
    """

    name: str
    op: str
    inputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    layer: str = ""

    @property
    def is_native(self) -> bool:
        """Whether the engine's kernels run it."""
        return self.op != "torch"


@dataclass(frozen=True)
class SparseWeight:
    """A convolution's weight without its zeros.

    Attributes:
        shape: [K, C / groups, R, S].
        bits: Which weights are kept, eight a byte as numpy.packbits does it, uint8.
        values: The kept ones in order, float32, or bfloat16 or float16, or int8 of a quantized convolution.
    """

    shape: tuple[int, ...]
    bits: Tensor
    values: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> SparseWeight:
        """Drop the exact zeros of `weight`."""
        kept = weight != 0
        return cls(tuple(weight.shape), torch.from_numpy(np.packbits(kept.numpy())), weight[kept].contiguous())

    @property
    def size(self) -> int:
        """Weights, zeros included."""
        return int(np.prod(self.shape))

    @cached_property
    def is_finite(self) -> bool:
        """Whether no kept weight is inf or nan."""
        return bool(self.values.isfinite().all())

    @property
    def density(self) -> float:
        """Fraction of kept weights."""
        return self.values.numel() / max(1, self.size)

    def to(self, dtype: torch.dtype) -> SparseWeight:
        """Return the weight with its values rounded to `dtype`."""
        return replace(self, values=self.values.to(dtype))

    def dense(self) -> Tensor:
        """Return the weight with its zeros, float32."""
        kept = torch.from_numpy(np.unpackbits(self.bits.numpy(), count=self.size).view(np.bool_))
        weight = torch.zeros(self.size, dtype=torch.float32, device="cpu")
        return weight.masked_scatter_(kept, self.values.float()).reshape(self.shape)

    def unpacked(self) -> UnpackedWeight:
        """Return the weight together with its dense form, for whoever asks for that again and again."""
        return UnpackedWeight(self.shape, self.bits, self.values, self.dense())


@dataclass(frozen=True)
class UnpackedWeight(SparseWeight):
    """A weight that keeps its dense form, `with_zeros`, which is not to be changed."""

    with_zeros: Tensor

    def dense(self) -> Tensor:
        """Return the weight with its zeros, float32."""
        return self.with_zeros


@dataclass
class Graph:
    """A network.

    Attributes:
        inputs: Names of the forward's tensors.
        nodes: In an order in which they can run.
        outputs: Names of the values that leave, in the order of the output's leaves.
        sizes: [C, H, W] of the images among the values, as they were when the graph was captured.
        weights: Of convolutions.
        constants: Biases and whatever else the nodes name.
        output_spec: How the outputs' leaves nest, as `torch.utils._pytree.treespec_dumps` writes it.
        is_size_free: Whether it holds for images of other heights and widths, not for the captured ones only.
        rule: For which sizes it holds, exactly; None where it was captured with numbers. Attributes of its nodes may
            then be {"size": expression}; `at` gives them numbers.
        split_batch: Images that it takes at a time, where a larger batch is run in parts; 0 where it never is.
    """

    inputs: list[str]
    nodes: list[Node]
    outputs: list[str]
    constants: dict[str, Tensor]
    output_spec: str
    sizes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    weights: dict[str, SparseWeight] = field(default_factory=dict)
    is_size_free: bool = False
    rule: SizeRule | None = None
    split_batch: int = 0

    def at(self, shapes: Shapes) -> Graph:
        """Return the graph for inputs of `shapes`, all numbers; it shares everything else.

        Raises:
            ValueError, ArithmeticError: a size has no value there.
        """
        if not any(holds_sizes(node.attributes) for node in self.nodes):
            return self
        shapes = shapes if self.rule is None else self.rule.with_steps(shapes)
        nodes = [
            replace(node, attributes=substitute(node.attributes, shapes)) if holds_sizes(node.attributes) else node
            for node in self.nodes
        ]
        return replace(self, nodes=nodes)

    def compress(self) -> None:
        """Move the convolutions' weights to `weights`, and forget the constants that no node names."""
        for node in self.convolutions():
            name = node.attributes["weight"]
            if name not in self.weights:
                self.weights[name] = SparseWeight.of(self.constants[name])
        named = {name for node in self.nodes for name in constants_of(node)}
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in named}

    def with_weights(self, dtype: torch.dtype) -> Graph:
        """Return a compressed graph, the same but for the convolutions' weights, which are rounded to `dtype`."""
        return replace(self, weights={name: weight.to(dtype) for name, weight in self.weights.items()})

    def users(self) -> dict[str, int]:
        """Count for each value the nodes that read it, and whether it leaves the graph."""
        count = dict.fromkeys([*self.inputs, *(node.name for node in self.nodes)], 0)
        for node in self.nodes:
            for name in node.inputs:
                count[name] += 1
        for name in self.outputs:
            count[name] += 1
        return count

    def convolutions(self) -> Iterator[Node]:
        """Yield the convolutions in order, in float32 and in int8."""
        return (node for node in self.nodes if node.op in CONVOLUTIONS)

    def native_parts(self) -> list[list[Node]]:
        """Return the nodes of each native level."""
        level = self.levels()
        parts: dict[int, list[Node]] = {}
        for node in self.nodes:
            if node.is_native:
                parts.setdefault(level[node.name], []).append(node)
        return [parts[key] for key in sorted(parts)]

    def levels(self) -> dict[str, int]:
        """Cut the graph into parts that run whole: even levels are native, odd ones torch's.

        A level reads only values of lower levels and its own.
        """
        level = dict.fromkeys(self.inputs, 0)
        for node in self.nodes:
            lowest = max((level[name] for name in node.inputs), default=0)
            level[node.name] = lowest + (lowest % 2 == (1 if node.is_native else 0))
        return level


def constants_of(node: Node) -> Iterator[str]:
    """Yield the names of the constants that a node reads, but for a convolution's weight."""
    if node.op == "torch":
        yield from _encoded_constants([node.attributes["args"], node.attributes["kwargs"]])
        return
    for key in ("bias", "scale", "shift", "weight_scale"):
        if isinstance(node.attributes.get(key), str):
            yield node.attributes[key]


def _encoded_constants(encoded: object) -> Iterator[str]:
    if isinstance(encoded, dict):
        if set(encoded) == {"constant"}:
            yield encoded["constant"]
        else:
            for item in encoded.values():
                yield from _encoded_constants(item)
    elif isinstance(encoded, list):
        for item in encoded:
            yield from _encoded_constants(item)
