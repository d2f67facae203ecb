"""A graph made runnable: native segments, planned once a size, and torch's operators, level by level."""

from __future__ import annotations

import math
import operator
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from prunekit.dry_run import without_memory
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph, Node
from prunekit.engine.plan_cache import PlanCache, bytes_of
from prunekit.engine.planning import SegmentPlan, plan_segment
from prunekit.engine.size_expressions import evaluate, holds_sizes
from prunekit.errors import InputError
from prunekit.ops import native
from prunekit.ops.named import operator_named

#: What sizes are computed with; "torch" nodes may call these, too.
SIZE_FUNCTIONS = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
# Sizes whose levels of nodes are kept where the nodes' attributes depend on them.
_MAX_SIZES = 256


class Segment:
    """A native part of a graph: planar tensors in, planar tensors out, one call."""

    def __init__(self, plan: SegmentPlan, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.plan, self.inputs, self.outputs = plan, list(inputs), list(outputs)
        self._native = native.make_plan(plan.words, plan.arena_elements, len(inputs), len(outputs))
        self.num_bytes = 4 * plan.arena_elements + len(plan.words) + bytes_of(plan.keep_alive)

    def run(self, values: dict[str, Tensor], step_ends: Tensor | None = None) -> None:
        """Read inputs from `values` and add the outputs; `step_ends` is int64 [steps] for nanoseconds, or None.

        Raises:
            InputError: the inputs' batches differ.
            MemoryError: there is no memory for the arena; the message says how much it takes.
        """
        inputs = [values[name].resolve_neg().contiguous() for name in self.inputs]
        batch = len(inputs[0])
        if any(len(x) != batch for x in inputs):
            raise InputError(f"Expected inputs of one batch, got batches of {[len(x) for x in inputs]}.")
        outputs = [torch.empty(batch, *size, dtype=torch.float32, device="cpu") for size in self.plan.output_sizes]
        tensors = [word for t in (*inputs, *outputs) for word in (t.data_ptr(), math.prod(t.shape[1:]))]
        ends = 0 if step_ends is None else step_ends.data_ptr()
        try:
            native.run_plan(self._native, np.array(tensors, np.int64).tobytes(), batch, ends)
        except MemoryError as error:
            raise MemoryError(
                f"Expected {self.plan.arena_elements * 4 / 1e9:.3g} GB of memory for the network's values on images of "
                f"these sizes, but there is less; give it smaller images."
            ) from error
        values.update(zip(self.outputs, outputs, strict=True))


@dataclass(frozen=True)
class StepTime:
    """Where the time of a run went.

    Attributes:
        node: The node that the step works for, or None for what lies between nodes.
        kind: "conv", "halo", "remap", "elementwise", "pool", "mean" or "torch".
        ms: Milliseconds.
    """

    node: str | None
    kind: str
    ms: float


class Program:
    """A graph ready to run; several threads may run it at the same time."""

    def __init__(self, graph: Graph, choices: Mapping[str, ConvChoice], budget: int | None = None) -> None:
        """Native parts are planned when values of a new size reach them; plans of `budget` bytes are kept."""
        self._graph, self._choices = graph, choices
        self._levels: OrderedDict[tuple[tuple[int, ...], ...], _Sized] = OrderedDict()
        self._segments: PlanCache[Segment] = PlanCache(budget)
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Tensor], times: list[StepTime] | None = None) -> list[Any]:
        """Return the graph's outputs; `times`, where given, takes the steps' times.

        Raises:
            InputError: the graph does not hold for inputs of these sizes.
        """
        part = self._graph.split_batch
        if not part or not inputs or len(inputs[0]) == part:
            return self._run(inputs, times)
        parts = [self._run(x, times) for x in zip(*(torch.split(x, part) for x in inputs), strict=True)]
        return [torch.cat(list(leaves)) for leaves in zip(*parts, strict=True)]

    def segments(self) -> list[Segment]:
        """Return the native parts that were planned so far."""
        with self._lock:
            return self._segments.values()

    def _run(self, inputs: Sequence[Tensor], times: list[StepTime] | None) -> list[Any]:
        sized = self._sized(tuple(tuple(x.shape) for x in inputs))
        values: dict[str, Any] = dict(zip(self._graph.inputs, inputs, strict=True))
        for level, nodes in enumerate(sized.levels):
            if level % 2:
                for node in nodes:
                    begin = time.perf_counter()
                    values[node.name] = run_in_torch(node, values, self._graph.constants)
                    sized.check(node, values[node.name])
                    if times is not None:
                        times.append(StepTime(node.name, "torch", (time.perf_counter() - begin) * 1e3))
            elif nodes:
                for part in _by_batch(nodes, values):
                    self._run_natively(sized, part, values, times)
        return [values[name] for name in self._graph.outputs]

    def run_dry(self, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype] = ()) -> None:
        """Plan the native parts for inputs of these shapes, and run torch's operators on tensors without memory.

        What a file says is found wrong here, not when the model is first called. Nothing is checked behind an operator
        whose output's size depends on its input's values, nor where `dtypes` are not known and an input is no image.

        Raises:
            InputError, RuntimeError, TypeError, ValueError, IndexError: an operator does not take what it would get.
        """
        if not dtypes and any(len(shape) != 4 for shape in shapes):
            return
        known = [torch.float32 if d.is_floating_point and d.itemsize == 2 else d for d in dtypes] or [
            torch.float32
        ] * len(shapes)
        with without_memory() as mode:
            inputs = [torch.empty(*shape, dtype=dtype) for shape, dtype in zip(shapes, known, strict=True)]
            values = dict(zip(self._graph.inputs, inputs, strict=True))
            constants = {name: mode.from_tensor(tensor) for name, tensor in self._graph.constants.items()}
            self._run_dry(self._sized(tuple(tuple(shape) for shape in shapes)), values, constants)

    def _run_dry(self, sized: _Sized, values: dict[str, Any], constants: Mapping[str, Tensor]) -> None:
        for level, nodes in enumerate(sized.levels):
            if level % 2:
                for node in nodes:
                    values[node.name] = run_in_torch(node, values, constants)
                    sized.check(node, values[node.name])
            elif nodes:
                for part in _by_batch(nodes, values):
                    with unset_fake_temporarily():
                        segment = self._segment(sized, part, values)
                    batch = len(values[segment.inputs[0]])
                    for name, size in zip(segment.outputs, segment.plan.output_sizes, strict=True):
                        values[name] = torch.empty(batch, *size)

    def _sized(self, shapes: tuple[tuple[int, ...], ...]) -> _Sized:
        """Return the graph for inputs of `shapes`."""
        with self._lock:
            if shapes not in self._levels:
                self._levels[shapes] = _Sized.of(self._graph, shapes)
                if len(self._levels) > _MAX_SIZES:
                    self._levels.popitem(last=False)
            self._levels.move_to_end(shapes)
            return self._levels[shapes]

    def _run_natively(
        self, sized: _Sized, nodes: Sequence[Node], values: dict[str, Any], times: list[StepTime] | None
    ) -> None:
        segment = self._segment(sized, nodes, values)
        ends = None if times is None else torch.zeros(len(segment.plan.kinds), dtype=torch.int64)
        segment.run(values, ends)
        if times is not None and ends is not None:
            spans = np.diff(ends.numpy(), prepend=0) / 1e6
            rows = zip(segment.plan.labels, segment.plan.kinds, spans, strict=True)
            times.extend(StepTime(label, kind, float(ms)) for label, kind, ms in rows)

    def _segment(self, sized: _Sized, nodes: Sequence[Node], values: Mapping[str, Any]) -> Segment:
        """Return native nodes of a level, planned for their inputs' sizes.

        Raises:
            InputError: an input is no float32 image, or the sizes do not fit.
        """
        inputs, outputs = _borders(sized.graph, nodes)
        for name in inputs:
            if values[name].dim() != 4 or values[name].dtype != torch.float32:
                raise InputError(
                    f"Expected a float32 tensor [N, C, H, W] as {name}, "
                    f"got {str(values[name].dtype).removeprefix('torch.')} {list(values[name].shape)}."
                )
        sizes: Any = {name: tuple(values[name].shape[1:]) for name in inputs}
        key = (nodes[0].name, len(nodes), tuple(sizes.values()), sized.key)
        with self._lock:
            return self._segments.get(
                key,
                lambda: Segment(plan_segment(sized.graph, nodes, sizes, outputs, self._choices), inputs, outputs),
            )


@dataclass(frozen=True)
class _Sized:
    """A graph for inputs of certain shapes.

    Attributes:
        graph: With numbers for sizes.
        levels: Its nodes, native and torch's by turns.
        key: The sizes in native nodes, which plans depend on; () where there are none.
        shapes: That values which torch computes must have.
    """

    graph: Graph
    levels: list[list[Node]]
    key: tuple[tuple[int, ...], ...]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, graph: Graph, shapes: tuple[tuple[int, ...], ...]) -> _Sized:
        """Evaluate what depends on the inputs' shapes.

        Raises:
            InputError: it has no value there.
        """
        values = {} if graph.rule is None else graph.rule.values
        try:
            here = graph.at(shapes)
            sizes = shapes if graph.rule is None else graph.rule.with_steps(shapes)
            expected = {name: tuple(int(evaluate(size, sizes)) for size in v) for name, v in values.items()}
        except (ValueError, ArithmeticError) as error:
            raise InputError(f"the graph has no meaning for inputs of shapes {[list(s) for s in shapes]}.") from error
        depends = any(node.is_native and holds_sizes(node.attributes) for node in graph.nodes)
        return cls(here, _by_level(here), tuple(s[1:] for s in shapes) if depends else (), expected)

    def check(self, node: Node, value: object) -> None:
        """Refuse a value of another shape than the forward had when it was captured, for which it may do otherwise.

        Raises:
            InputError: it has.
        """
        expected = self.shapes.get(node.name)
        if expected is not None and isinstance(value, Tensor) and tuple(value.shape) != expected:
            raise InputError(
                f"the captured graph does not hold for these sizes: expected shape {list(expected)} of {node.name}, "
                f"got {list(value.shape)}; accelerate the model at this size."
            )


def _by_batch(nodes: list[Node], values: Mapping[str, Any]) -> list[list[Node]]:
    """Split the nodes of a native level so that each part reads values of one batch only."""
    inputs = {name for node in nodes for name in node.inputs if name in values}
    if len({len(values[name]) for name in inputs if values[name].dim()}) < 2:
        return [nodes]
    batch = {name: len(values[name]) for name in inputs}
    parts: dict[int, list[Node]] = {}
    for node in nodes:
        batches = {batch[name] for name in node.inputs}
        if len(batches) > 1:
            raise InputError(f"{node.layer or node.name}: expected inputs of one batch, got {sorted(batches)}.")
        batch[node.name] = batches.pop()
        parts.setdefault(batch[node.name], []).append(node)
    return list(parts.values())


def run_in_torch(node: Node, values: Mapping[str, Any], constants: Mapping[str, Tensor]) -> Any:
    """Run a "torch" node."""

    def decode(arg: Any) -> Any:
        if isinstance(arg, list):
            return [decode(item) for item in arg]
        if isinstance(arg, dict):
            (kind, name), *_ = arg.items()
            if kind == "value":
                return values[name]
            if kind == "device":
                return torch.device(name)
            return constants[name] if kind == "constant" else getattr(torch, name.split(".")[-1])
        return arg

    a = node.attributes
    return operator_of(a["target"])(*decode(a["args"]), **{key: decode(arg) for key, arg in a["kwargs"].items()})


def operator_of(target: str) -> Callable[..., Any]:
    """Return what a "torch" node calls: an operator such as "aten.flatten.using_ints", "getitem", or "constant".

    Raises:
        InputError: it is none that a model's file may call.
    """
    if target == "getitem":
        return operator.getitem
    if target == "constant":  # an output that is a number
        return lambda value: value
    if target.startswith("operator.") and target.removeprefix("operator.") in SIZE_FUNCTIONS:
        function: Callable[..., Any] = SIZE_FUNCTIONS[target.removeprefix("operator.")]
        return function
    return operator_named(target)


def _by_level(graph: Graph) -> list[list[Node]]:
    level = graph.levels()
    levels: list[list[Node]] = [[] for _ in range(max(level.values(), default=0) + 1)]
    for node in graph.nodes:
        levels[level[node.name]].append(node)
    return levels


def _borders(graph: Graph, nodes: Sequence[Node]) -> tuple[list[str], list[str]]:
    """Return the values that `nodes` read from elsewhere, and those that are read elsewhere."""
    inside = {node.name for node in nodes}
    inputs = dict.fromkeys(name for node in nodes for name in node.inputs if name not in inside)
    read = {name for node in graph.nodes if node.name not in inside for name in node.inputs}
    read.update(graph.outputs)
    return list(inputs), [node.name for node in nodes if node.name in read]
