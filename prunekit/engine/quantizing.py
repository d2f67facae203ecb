"""A graph in int8: chosen convolutions and what moves levels between them, with conversions where float32 begins.

Values that are joined or moved have one quantization: that of all their ranges together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from prunekit.engine.filters import MAX_QUAD_TAPS
from prunekit.engine.graph import Graph, Node, Quantization
from prunekit.engine.quantization import (
    MAX_PRODUCTS,
    MOVING,
    QUAD,
    bias_of,
    moves_levels,
    quantization_of,
    quantized_weight,
)

#: The lowest and the highest number of each value.
Ranges = Mapping[str, tuple[float, float]]


def reasons_for_float32(graph: Graph) -> dict[str, str | None]:
    """Return why each float32 convolution of a fused and compressed graph cannot be one in int8, or None."""
    levels = graph.levels()
    return {node.name: _reason(node, graph, levels) for node in graph.nodes if node.op == "conv2d"}


def _reason(node: Node, graph: Graph, levels: Mapping[str, int]) -> str | None:
    a, weight = node.attributes, graph.weights[node.attributes["weight"]]
    if not weight.is_finite or not (a["bias"] is None or bool(graph.constants[a["bias"]].isfinite().all())):
        return "a weight or bias is not finite"
    if a["before"].kind != "none" and a["after"].kind != "none":
        return "it has two activations"
    if math.prod(weight.shape[1:]) > MAX_PRODUCTS:
        return "its sums may not fit into 32 bits"
    if math.prod(weight.shape[2:]) > MAX_QUAD_TAPS:
        return f"its kernel has more than {MAX_QUAD_TAPS} taps"
    if any(_meeting_level(levels, name) != levels[node.name] for name in node.inputs):
        return "an operator of torch's stands between its inputs"
    return None


def values_to_observe(graph: Graph, names: Collection[str]) -> list[str]:
    """Return the values whose ranges `quantized_graph` needs for these convolutions, in the graph's order.

    What is only moved has the ranges of what it was moved from.
    """
    by_name = {node.name: node for node in graph.nodes}
    needed, left = dict[str, None](), [n for name in names for n in (name, *by_name[name].inputs)]
    while left:
        name = left.pop()
        if name in by_name and by_name[name].op in MOVING:
            left += by_name[name].inputs
        else:
            needed[name] = None
    return [name for name in (*graph.inputs, *by_name) if name in needed]


def quantized_graph(
    graph: Graph, names: Collection[str], ranges: Ranges, shifts: Mapping[str, Tensor] | None = None
) -> Graph:
    """Return the graph with these convolutions in int8; it shares everything else.

    Args:
        graph: fused and compressed, in float32.
        names: of convolutions that `reasons_for_float32` has nothing against.
        ranges: of `values_to_observe`.
        shifts: of convolutions by name, what int8 adds to each output channel in the mean, float32 [K]; it is taken
            from the bias.

    Raises:
        ValueError: a range is not finite.
    """
    quantizing = _Quantizing(graph, names, ranges, shifts or {})
    return quantizing.result()


@dataclass
class _Quantizing:
    graph: Graph
    names: Collection[str]
    ranges: Ranges
    shifts: Mapping[str, Tensor]
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.levels = self.graph.levels()
        self.by_name = {node.name: node for node in self.graph.nodes}
        self.readers: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.ranges = self._moved_ranges()
        self.moving = self._moving()
        self.quantizations = self._quantizations()

    def result(self) -> Graph:
        weights, constants, sizes = dict(self.graph.weights), dict(self.graph.constants), dict(self.graph.sizes)
        for node in self.graph.nodes:
            if node.name in self.names:
                name = node.attributes["weight"]
                weights[f"{name}@int8"], constants[f"{name}@scale"] = quantized_weight(self.graph.weights[name])
            if node.name in self.names and node.name in self.shifts:
                constants[f"{node.name}@bias"] = bias_of(node, self.graph) - self.shifts[node.name]
        for node in self.graph.nodes:
            self._add(node, sizes)
        outputs = [self._as_float32(name, sizes) for name in self.graph.outputs]
        used = {node.attributes["weight"] for node in self.nodes if "weight" in node.attributes}
        weights = {name: weight for name, weight in weights.items() if name in used}
        return replace(self.graph, nodes=self.nodes, outputs=outputs, weights=weights, constants=constants, sizes=sizes)

    def _moved_ranges(self) -> Ranges:
        """Return the ranges of what was observed and of what is moved from there."""
        found = dict(self.ranges)
        for node in self.graph.nodes:
            if node.op in MOVING and all(name in found for name in node.inputs):
                lows, highs = zip(*(found[name] for name in node.inputs), strict=True)
                found[node.name] = min(0.0, *lows), max(0.0, *highs)
        return found

    def _moving(self) -> set[str]:
        """Return the nodes that move levels: what is between chosen convolutions only."""
        found = {node.name for node in self.graph.nodes if node.op in MOVING and self._keeps_quads(node)}
        while True:
            quantized = {*found, *self.names}
            kept = {
                name
                for name in found
                if all(n in quantized and self._is_near(n, name) for n in self.by_name[name].inputs)
                and any(r.name in quantized and self._is_near(name, r.name) for r in self.readers.get(name, ()))
            }
            if kept == found:
                return found
            found = kept

    def _keeps_quads(self, node: Node) -> bool:
        if not moves_levels(node):
            return False
        return node.op != "concat" or all(self.graph.sizes[name][0] % QUAD == 0 for name in node.inputs[:-1])

    def _is_near(self, name: str, reader: str) -> bool:
        """Tell whether a value and its reader are of one native part of the graph."""
        return self.levels[name] == self.levels[reader]

    def _are_levels(self, name: str) -> bool:
        """Tell whether a value is levels: made in int8, and read so by someone."""
        if name not in self.moving and name not in self.names:
            return False
        return any(r.name in self.moving or r.name in self.names for r in self._near_readers(name))

    def _near_readers(self, name: str) -> list[Node]:
        return [reader for reader in self.readers.get(name, ()) if self._is_near(name, reader.name)]

    def _quantizations(self) -> dict[str, Quantization]:
        """Return the quantization of each value that int8 reads: one for all values that are moved into one another."""
        root = {name: name for name in self.ranges}

        def find(name: str) -> str:
            while root[name] != name:
                name = root[name]
            return name

        for name in self.moving:
            for other in self.by_name[name].inputs:
                root[find(other)] = find(name)
        together: dict[str, tuple[float, float]] = {}
        for name, (low, high) in self.ranges.items():
            lowest, highest = together.get(find(name), (low, high))
            together[find(name)] = min(low, lowest), max(high, highest)
        return {name: quantization_of(*together[find(name)]) for name in self.ranges}

    def _add(self, node: Node, sizes: dict[str, tuple[int, int, int]]) -> None:
        if node.name in self.names:
            self.nodes.append(self._convolution(node, sizes))
        elif node.name in self.moving:
            self.nodes.append(node)
        else:
            self.nodes.append(self._reading_float32(node, sizes))

    def _convolution(self, node: Node, sizes: dict[str, tuple[int, int, int]]) -> Node:
        a, inputs = node.attributes, [self._as_levels(name, sizes) for name in node.inputs]
        more = {
            "weight": f"{a['weight']}@int8",
            "weight_scale": f"{a['weight']}@scale",
            "bias": f"{node.name}@bias" if node.name in self.shifts else a["bias"],
            "input": self.quantizations[node.inputs[0]],
            "residual": self.quantizations[node.inputs[1]] if len(inputs) > 1 else None,
            "output": self.quantizations[node.name] if self._are_levels(node.name) else None,
        }
        return replace(node, op="quantized_conv2d", inputs=inputs, attributes={**a, **more})

    def _reading_float32(self, node: Node, sizes: dict[str, tuple[int, int, int]]) -> Node:
        renamed = {name: self._as_float32(name, sizes) for name in node.inputs}
        if all(name == new for name, new in renamed.items()):
            return node
        attributes = node.attributes if node.is_native else _renamed(node.attributes, renamed)
        return replace(node, inputs=[renamed[name] for name in node.inputs], attributes=attributes)

    def _as_levels(self, name: str, sizes: dict[str, tuple[int, int, int]]) -> str:
        if self._are_levels(name):
            return name
        return self._converted(
            name, "levels", Node("", "quantize", [name], {"output": self.quantizations[name]}), sizes
        )

    def _as_float32(self, name: str, sizes: dict[str, tuple[int, int, int]]) -> str:
        if not self._are_levels(name):
            return name
        return self._converted(
            name, "float32", Node("", "dequantize", [name], {"input": self.quantizations[name]}), sizes
        )

    def _converted(self, name: str, kind: str, node: Node, sizes: dict[str, tuple[int, int, int]]) -> str:
        """Add a conversion once, and return the name of what it makes."""
        made = f"{name}@{kind}"
        if made not in sizes:
            self.nodes.append(replace(node, name=made))
            sizes[made] = sizes[name]
        return made


def _meeting_level(levels: Mapping[str, int], name: str) -> int:
    """Return the native level at which a value is at hand as levels: its own, or the next where torch makes it."""
    return levels[name] + levels[name] % 2


def _renamed(argument: Any, names: Mapping[str, str]) -> Any:
    """Return the attributes of one of torch's nodes with values renamed."""
    if isinstance(argument, list):
        return [_renamed(item, names) for item in argument]
    if isinstance(argument, dict):
        if set(argument) == {"value"}:
            return {"value": names.get(argument["value"], argument["value"])}
        return {key: _renamed(item, names) for key, item in argument.items()}
    return argument
