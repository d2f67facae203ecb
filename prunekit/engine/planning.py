"""From nodes to steps: the buffers, tables and words of one native part of a graph, for one input size."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunekit.engine.arena import Buffer, View, place
from prunekit.engine.filters import ConvChoice, default_choice, pack_for_lanes
from prunekit.engine.geometry import Layouts, Size, is_direct, window_of
from prunekit.engine.graph import ACTIVATIONS, Activation, Graph, Node
from prunekit.engine.lanes import (
    Indices,
    LaneLayout,
    Phases,
    Picks,
    PlanarLayout,
)
from prunekit.engine.places import Places
from prunekit.errors import InputError

_STEP_WORDS = 32
_CONV, _HALO, _REMAP, _ELEMENTWISE, _POOL, _MEAN = range(6)
_IN_ARENA = -1
_STEP1, _STEP1_WIDE, _STEP2 = range(3)


@dataclass
class StepRecord:
    """A step before its places are known: `words` gives them afterwards."""

    kind: int
    node: Node | None
    words: Callable[[], list[int]]
    reads: list[Buffer]
    writes: list[Buffer]


@dataclass
class SegmentPlan:
    """What the native side needs to run one part of a graph.

    Attributes:
        words: int64 [steps, 32].
        labels: Per step the node it belongs to, or None.
        kinds: Per step "conv", "halo", "remap", "elementwise", "pool" or "mean".
        arena_elements: Size of the arena.
        keep_alive: Whatever the words point to.
        output_sizes: [C, H, W] of each output.
        choices: How each convolution was cut, by its name.
        sizes: [C, H, W] of what is read and of every value.
    """

    words: bytes
    labels: list[str | None]
    kinds: list[str]
    arena_elements: int
    keep_alive: list[Any]
    output_sizes: list[Size]
    choices: dict[str, ConvChoice]
    sizes: dict[str, Size]


def plan_segment(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Mapping[str, Size],
    outputs: Sequence[str],
    choices: Mapping[str, ConvChoice],
    layouts: Layouts | None = None,
) -> SegmentPlan:
    """Plan `nodes`, which are native, from planar `inputs` to planar `outputs`.

    Args:
        graph: that the nodes are of.
        nodes: in the order in which they run.
        inputs: [C, H, W] of what they read from elsewhere.
        outputs: what is read elsewhere.
        choices: of convolutions; the others are cut by rule of thumb.
        layouts: of the planes by [H, W]; by default what these nodes need.

    Raises:
        InputError: sizes do not fit, or a plane has 2^31 elements or more.
    """
    return _Planner(Places(graph, nodes, inputs, outputs, layouts), outputs, choices).plan()


class _Planner:
    def __init__(self, places: Places, outputs: Sequence[str], choices: Mapping[str, ConvChoice]) -> None:
        self.places, self.outputs = places, list(outputs)
        self.threads = torch.get_num_threads()
        self.given_choices, self.choices = choices, dict[str, ConvChoice]()
        self.steps: list[StepRecord] = []

    def plan(self) -> SegmentPlan:
        for i, name in enumerate(self.places.input_names):
            if name in self.places.views:
                self._remap(None, name, self.places.views[name], _all_pixels(self.places.layout_of(name)), source=i)
                self._halo(self.places.views[name])
        for name in self.places.input_names:
            self._unpack(name)
        for node in self.places.nodes:
            getattr(self, f"_plan_{node.op}")(node)
            self._unpack(node.name)
        place(self.places.buffers, [(*step.reads, *step.writes) for step in self.steps])
        rows = []
        for step in self.steps:
            words = [step.kind, *step.words()]
            rows.append(words + [0] * (_STEP_WORDS - len(words)))
        arena = max((b.offset + b.elements for b in self.places.buffers), default=0)
        kinds = ("conv", "halo", "remap", "elementwise", "pool", "mean")
        return SegmentPlan(
            np.array(rows, np.int64).tobytes(),
            [step.node.name if step.node else None for step in self.steps],
            [kinds[step.kind] for step in self.steps],
            arena,
            self.places.keep_alive,
            [self.places.sizes[name] for name in self.outputs],
            self.choices,
            self.places.sizes,
        )

    def _add(
        self, kind: int, node: Node | None, reads: Sequence[Buffer], writes: Sequence[Buffer],
        words: Callable[[], list[int]],
    ) -> None:  # fmt: skip
        self.steps.append(StepRecord(kind, node, words, list(reads), list(writes)))

    def _halo(self, view: View) -> None:
        buffer = view.buffer
        if buffer.front or buffer.back:
            self._add(
                _HALO, None, [buffer], [buffer],
                lambda: [view.at(), buffer.channel, view.channels, buffer.layout.vectors, buffer.front, buffer.back],
            )  # fmt: skip

    def _remap(
        self, node: Node | None, name: str, target: View | int, picks: Picks, *, source: int | None = None,
        fill: float = 0.0, back: int = 0,
    ) -> None:  # fmt: skip
        """Make a view, or an output by its number, of value `name`'s pixels, or of input `source`'s.

        Each of a channel's planes has `back` vectors more than the layout, with the next chunk's pixels.
        """
        if source is None and name not in self.places.views:
            source = self.places.input_names.index(name)
        channels, height, width = self.places.sizes[name]
        read = None if source is not None else self.places.views[name]
        x = PlanarLayout(height, width) if read is None else read.buffer.layout
        tables = [
            self.places.table_of((key, table.tobytes()), table)
            for key, table in (("r", picks.rows), ("c", picks.columns))
        ]
        planes, num_rows = picks.rows.shape

        def words() -> list[int]:
            place = [source, 0, height * width] if read is None else [_IN_ARENA, read.at(), read.buffer.channel]
            if isinstance(target, View):
                y = target.buffer.layout
                written = [_IN_ARENA, target.at(), target.buffer.channel, y.vectors, y.pitch, back]
                length, plane = y.vectors * self.places.lanes + back, (y.vectors + back) * self.places.lanes
            else:
                length = num_rows * picks.columns.shape[1]
                written, plane = [target, 0, length, 0, picks.columns.shape[1], 0], length
            return [
                *place, x.vectors, x.pitch, *written, channels, planes, plane, num_rows, length, *tables, _bits(fill),
            ]  # fmt: skip

        reads, writes = [read.buffer] if read else [], [target.buffer] if isinstance(target, View) else []
        self._add(_REMAP, node, reads, writes, words)

    def _unpack(self, name: str) -> None:
        """Write a value to the outputs that it is, at once: it is still in the caches, and its place is soon free."""
        for output in (i for i, other in enumerate(self.outputs) if other == name):
            _, height, width = self.places.sizes[name]
            if name in self.places.input_names and name not in self.places.views:
                raise InputError(f"value {name} passes through unchanged.")
            self._remap(None, name, output, Picks.within(np.arange(height), np.arange(width), height, width))

    def _phases(self, node: Node, fill: float) -> tuple[Buffer, Phases]:
        """Lay the input out so that the node's window has stride 1; return where and how."""
        name = node.inputs[0]
        channels, height, width = self.places.sizes[name]
        phases = Phases(window_of(node, self.places.graph), self.places.layout_of(node.name))
        buffer = self.places.new_buffer(phases.output, channels, extra=len(phases.used) * phases.plane)
        picks = phases.picks(height, width)
        self._remap(node, name, View(buffer, 0, channels), picks, fill=fill, back=phases.back)
        return buffer, phases

    def _plan_conv2d(self, node: Node) -> None:
        a, graph = node.attributes, self.places.graph
        weight, y = graph.weights[a["weight"]], self.places.views[node.name]
        layout = y.buffer.layout
        reading: int | None = None
        row_vectors, x_row = 0, 0
        start: Callable[[], int]
        if is_direct(node, self.places.graph, self.places.sizes, self.places.lanes):
            window = window_of(node, graph)
            x = self.places.views[node.inputs[0]]
            front, _ = self.places.reach(node)
            rows, columns = window.taps()
            offsets = rows * x.buffer.layout.pitch + columns
            read, start = x.buffer, lambda: x.at(-front)
            if window.stride != (1, 1):
                reading, row_vectors, x_row = _STEP2, layout.pitch, 2 * x.buffer.layout.pitch * self.places.lanes
        else:
            read, phases = self._phases(node, 0.0)
            offsets = phases.tap_offsets()
            temporary = View(read, 0, read.channels)
            start = temporary.at
        choice = self.given_choices.get(node.name) or default_choice(
            weight, a["groups"], row_vectors or layout.vectors, self.places.max_vectors, self.places.lanes, self.threads
        )
        self.choices[node.name] = choice
        first = 0 if read.extra else read.front - self.places.reach(node)[0]
        self.places.check_reach(node, read, first + offsets, layout.vectors, row_vectors, x_row)
        packed = pack_for_lanes(
            weight, a["groups"], choice, offsets, read.channel // self.places.lanes, is_wide=reading == _STEP2
        )
        self.places.keep_alive.append(packed)
        if reading is None:
            reading = _STEP1_WIDE if packed.is_wide else _STEP1
        bias = 0 if a["bias"] is None else self.places.per_channel(a["bias"], weight.shape[0])
        residual = self.places.views[node.inputs[1]] if len(node.inputs) > 1 else None
        mask = self.places.mask_of(layout)

        def words() -> list[int]:
            rest = [residual.at(), residual.buffer.channel] if residual else [-1, 0]
            return [
                start(), read.channel, y.at(), y.buffer.channel, layout.vectors, choice.tile_vectors,
                packed.index.data_ptr(), packed.index.numel(), packed.offsets.data_ptr(), reading,
                packed.values.data_ptr(), packed.values.numel(), int(packed.is_narrow), bias, *rest,
                *_epilogue(a["before"]), *_epilogue(a["after"]), mask, choice.row_parts,
                row_vectors, x_row, choice.repeats,
            ]  # fmt: skip

        self._add(_CONV, node, [read, *([residual.buffer] if residual else [])], [y.buffer], words)
        self._halo(y)

    def _plan_elementwise(self, node: Node, scale: int = 0, shift: int = 0) -> None:
        x, y = self.places.views[node.inputs[0]], self.places.views[node.name]
        other = self.places.views[node.inputs[1]] if node.op == "add" else None
        layout = y.buffer.layout
        mask = self.places.mask_of(layout)

        def words() -> list[int]:
            rest = [other.at(), other.buffer.channel] if other else [-1, 0]
            return [
                x.at(), x.buffer.channel, *rest, y.at(), y.buffer.channel, y.channels, layout.vectors, scale, shift,
                *_epilogue(node.attributes.get("after", Activation())), mask,
            ]  # fmt: skip

        self._add(_ELEMENTWISE, node, [x.buffer, *([other.buffer] if other else [])], [y.buffer], words)
        self._halo(y)

    def _plan_affine(self, node: Node) -> None:
        channels = self.places.sizes[node.name][0]
        self._plan_elementwise(
            node, *(self.places.per_channel(node.attributes[key], channels) for key in ("scale", "shift"))
        )

    def _plan_activation(self, node: Node) -> None:
        self._plan_elementwise(node)

    def _plan_add(self, node: Node) -> None:
        self._plan_elementwise(node)

    def _plan_concat(self, node: Node) -> None:
        target, first = self.places.views[node.name], self.places.views[node.name].first
        for name in node.inputs:
            part = View(target.buffer, first, self.places.sizes[name][0])
            view = self.places.views[name]
            first += part.channels
            if view.buffer is not part.buffer or view.first != part.first:
                self._copy(node, view, part)

    def _copy(self, node: Node, x: View, y: View) -> None:
        vectors = y.buffer.layout.vectors
        self._add(
            _ELEMENTWISE, node, [x.buffer], [y.buffer],
            lambda: [x.at(), x.buffer.channel, -1, 0, y.at(), y.buffer.channel, y.channels, vectors, 0, 0, 0, 0, 0],
        )  # fmt: skip
        self._halo(y)

    def _plan_upsample(self, node: Node) -> None:
        sizes = zip(self.places.sizes[node.inputs[0]][1:], self.places.sizes[node.name][1:], strict=True)
        rows, columns = (_nearest(size, output) for size, output in sizes)
        self._pick(node, lambda row, column: (rows(row), columns(column)), 0.0)

    def _plan_pad(self, node: Node) -> None:
        left, _, top, _ = node.attributes["sides"]
        self._pick(node, lambda row, column: (row - top, column - left), float(node.attributes["fill"]))

    def _pick(self, node: Node, source_of: Callable[[Indices, Indices], tuple[Indices, Indices]], fill: float) -> None:
        """Make a value of rows and columns of another."""
        name, y = node.inputs[0], self.places.views[node.name]
        layout = y.buffer.layout
        row, column = layout.rows(), np.arange(layout.pitch)
        rows, columns = source_of(row, column)
        # What was cropped must not come back where the image ends.
        rows, columns = np.where(row < layout.height, rows, -1), np.where(column < layout.width, columns, -1)
        self._remap(node, name, y, Picks.within(rows, columns, *self.places.sizes[name][1:]), fill=fill)
        if fill != 0.0:  # what is no pixel must be zero
            self._copy_masked(node, y)
        self._halo(y)

    def _copy_masked(self, node: Node, y: View) -> None:
        layout, mask = y.buffer.layout, self.places.mask_of(y.buffer.layout)
        self._add(
            _ELEMENTWISE, node, [y.buffer], [y.buffer],
            lambda: [
                y.at(), y.buffer.channel, -1, 0, y.at(), y.buffer.channel, y.channels, layout.vectors, 0, 0, 0, 0, mask,
            ],
        )  # fmt: skip

    def _plan_max_pool2d(self, node: Node) -> None:
        self._plan_pool(node, is_max=True)

    def _plan_avg_pool2d(self, node: Node) -> None:
        self._plan_pool(node, is_max=False)

    def _plan_pool(self, node: Node, is_max: bool) -> None:
        row_vectors, x_row = 0, 0
        if is_direct(node, self.places.graph, self.places.sizes, self.places.lanes):
            x, row_vectors = self.places.views[node.inputs[0]], self.places.layout_of(node.name).pitch
            rows, columns = window_of(node, self.places.graph).taps()
            offsets, x_row = rows * x.buffer.layout.pitch + columns, 2 * x.buffer.layout.pitch * self.places.lanes
        else:
            buffer, phases = self._phases(node, float("-inf") if is_max else 0.0)
            x, offsets = View(buffer, 0, buffer.channels), phases.tap_offsets()
        taps = torch.from_numpy(offsets.astype(np.int32))
        pointer, y = self.places.pointer_to(taps), self.places.views[node.name]
        layout, mask = y.buffer.layout, self.places.mask_of(y.buffer.layout)
        self.places.check_reach(node, x.buffer, x.buffer.front + offsets, layout.vectors, row_vectors, x_row)
        self._add(
            _POOL, node, [x.buffer], [y.buffer],
            lambda: [
                x.at(), x.buffer.channel, y.at(), y.buffer.channel, y.channels, layout.vectors, pointer,
                taps.numel(), int(is_max), _bits(1 / taps.numel()), mask, row_vectors, x_row,
            ],
        )  # fmt: skip
        self._halo(y)

    def _plan_global_mean(self, node: Node) -> None:
        x, y = self.places.views[node.inputs[0]], self.places.views[node.name]
        _, height, width = self.places.sizes[node.inputs[0]]
        self._add(
            _MEAN, node, [x.buffer], [y.buffer],
            lambda: [
                x.at(), x.buffer.channel, y.at(), y.buffer.channel, y.channels, x.buffer.layout.vectors,
                _bits(1 / (height * width)),
            ],
        )  # fmt: skip
        self._halo(y)


def _nearest(size: int, output: int) -> Callable[[Indices], Indices]:
    """Return which of `size` pixels torch's nearest upsampling to `output` picks for each; it rounds in float32."""
    if output % size == 0:
        return lambda index: index // (output // size)
    scale = np.float32(size) / np.float32(output)
    return lambda index: np.minimum(np.floor(index.astype(np.float32) * scale).astype(np.int64), size - 1)


def _all_pixels(layout: LaneLayout) -> Picks:
    return Picks.within(layout.rows(), np.arange(layout.pitch), layout.height, layout.width)


def _bits(value: float) -> int:
    """Return a float64's bits as an int64."""
    return int(struct.unpack("q", struct.pack("d", value))[0])


def _epilogue(activation: Activation) -> list[int]:
    return [ACTIVATIONS[activation.kind], _bits(activation.negative_slope)]
