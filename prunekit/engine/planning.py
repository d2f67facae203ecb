"""From nodes to steps: the buffers, tables and words of one native part of a graph, for one input size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.engine.arena import Buffer, View, place
from prunekit.engine.channel_steps import ChannelSteps
from prunekit.engine.filters import ConvChoice, default_choice, pack_for_lanes
from prunekit.engine.geometry import Layouts, Size, is_direct, is_shifted, window_on
from prunekit.engine.graph import Graph, Node, SparseWeight
from prunekit.engine.lanes import Indices, Window
from prunekit.engine.places import Places
from prunekit.engine.step_words import number_of, pack_step
from prunekit.engine.steps import Words, all_pixels, at, epilogue

#: csrc/cpu/lane_kernels.h's LaneReading.
_STEP1, _STEP1_WIDE, _STEP2 = "STEP1_OFFSETS16", "STEP1_OFFSETS32", "STEP2_OFFSETS32"


@dataclass
class SegmentPlan:
    """What the native side needs to run one part of a graph.

    Attributes:
        words: int64 [steps, 32].
        labels: Per step the node it belongs to, or None.
        kinds: Per step one of `step_kinds`.
        arena_elements: Size of the arena.
        keep_alive: Whatever the words point to.
        output_sizes: [C, H, W] of each output.
        choices: How each convolution was cut, by its name.
        sizes: [C, H, W] of every value that the steps read or make.
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


class _Planner(ChannelSteps):
    def plan(self) -> SegmentPlan:
        for i, name in enumerate(self.places.input_names):
            if name in self.places.views:
                self._remap(None, name, self.places.views[name], all_pixels(self.places.layout_of(name)), source=i)
                self._halo(self.places.views[name])
        for name in self.places.input_names:
            self._unpack(name)
        for node in self.places.nodes:
            getattr(self, f"_plan_{node.op}")(node)
            self._unpack(node.name)
        place(self.places.buffers, [(*step.reads, *step.writes) for step in self.steps])
        rows = [pack_step(step.kind, step.words()) for step in self.steps]
        arena = max((b.offset + b.elements for b in self.places.buffers), default=0)
        return SegmentPlan(
            np.array(rows, np.int64).tobytes(),
            [step.node.name if step.node else None for step in self.steps],
            [step.kind for step in self.steps],
            arena,
            self.places.keep_alive,
            [self.places.sizes[name] for name in self.outputs],
            self.choices,
            dict(self.places.sizes),
        )

    def _plan_conv2d(self, node: Node) -> None:
        a, graph = node.attributes, self.places.graph
        weight, y = graph.weights[a["weight"]], self.places.views[node.name]
        layout = y.buffer.layout
        reading: str | None = None
        row_vectors, x_row = 0, 0
        start: Callable[[], int]
        window = window_on(node, graph, self.places.sizes[node.inputs[0]])
        if window.is_trimmed:
            weight = _trimmed(weight, window)
        where = graph, self.places.sizes, self.places.lanes
        if is_shifted(node, *where):
            read, offsets = self._shifts(node, window)
            copies = View(read, 0, read.channels)
            start = copies.at
        elif is_direct(node, *where):
            x = self.places.views[node.inputs[0]]
            front, _ = self.places.reach(node)
            offsets = window.distances(x.buffer.layout.pitch) + front
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

        weights = number_of("LaneWeights", "BFLOAT16_WEIGHTS" if packed.is_narrow else "FLOAT32_WEIGHTS")
        read_as = number_of("LaneReading", reading)

        def words() -> Words:
            return {
                "x": start(), "x_channel": read.channel, **at("y", y), "vectors": layout.vectors,
                "tile_vectors": choice.tile_vectors, "index": packed.index.data_ptr(),
                "index_words": packed.index.numel(), "offsets": packed.offsets.data_ptr(), "reading": read_as,
                "values": packed.values.data_ptr(), "num_values": packed.values.numel(), "weights": weights,
                "bias": bias, **(at("residual", residual) if residual else {"residual": -1, "residual_channel": 0}),
                **epilogue("before", a["before"]), **epilogue("after", a["after"]), "mask": mask,
                "row_parts": choice.row_parts, "row_vectors": row_vectors, "x_row": x_row, "repeats": choice.repeats,
            }  # fmt: skip

        self._add("conv", node, [read, *([residual.buffer] if residual else [])], [y.buffer], words)
        self._halo(y)

    def _shifts(self, node: Node, window: Window) -> tuple[Buffer, Indices]:
        """Copy the input once for each tap, as the tap sees it; return where, and the first vector of each copy."""
        x = self.places.views[node.inputs[0]]
        layout = x.buffer.layout
        _, columns = window.taps()
        distances = window.distances(layout.pitch).astype(np.int32)
        masks = np.stack([layout.mask_of_columns(int(column) - window.padding[1]) for column in columns])
        shifts = self.places.table_of(("shifts", distances.tobytes()), distances)
        mask = self.places.table_of(("shift masks", masks.tobytes()), masks)
        copies, vectors = (
            self.places.new_buffer(layout, x.channels, extra=len(columns) * layout.vectors),
            layout.vectors,
        )
        target = View(copies, 0, x.channels)

        def words() -> Words:
            sizes = {"channels": x.channels, "vectors": vectors, "num_copies": len(columns)}
            return {**at("x", x), **at("y", target), **sizes, "shifts": shifts, "masks": mask}

        self._add("shift", node, [x.buffer], [copies], words)
        return copies, np.arange(len(columns)) * vectors


def _trimmed(weight: SparseWeight, window: Window) -> SparseWeight:
    """Return the weight without the kernel's rows and columns that do not count."""
    kept = weight.dense()[:, :, list(window.live_rows)][..., list(window.live_columns)]
    return SparseWeight.of(kept).to(weight.values.dtype)
