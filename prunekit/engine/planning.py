"""From nodes to steps: the buffers, tables and words of one native part of a graph, for one input size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.engine.arena import Buffer, View, place
from prunekit.engine.channel_steps import ChannelSteps
from prunekit.engine.filters import (
    ConvChoice,
    LaneFilter,
    default_choice,
    default_quad_choice,
    pack_for_lanes,
    pack_quads,
)
from prunekit.engine.geometry import Layouts, Size, is_direct, is_shifted, window_on
from prunekit.engine.graph import Graph, Node, Quantization, SparseWeight
from prunekit.engine.lanes import Indices, Window
from prunekit.engine.places import Places
from prunekit.engine.quantization import QUAD, bias_of, first_sums, sum_scales
from prunekit.engine.step_words import bits, number_of, pack_step, quad_bits
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


@dataclass(frozen=True)
class _Reading:
    """How a convolution reads its input.

    Attributes:
        buffer: What it reads: the input's own, or one made for it.
        start: Returns the place of the first tap of the first output vector.
        offsets: Of each tap from there, in vectors.
        is_strided: Whether neighboring output vectors are two input vectors apart.
        row_vectors, x_row: With that, output vectors of a row, and elements from input row to input row.
        choice: How the convolution is cut.
        lanes: Elements of a vector.
    """

    buffer: Buffer
    start: Callable[[], int]
    offsets: Indices
    is_strided: bool
    row_vectors: int
    x_row: int
    choice: ConvChoice
    lanes: int

    @property
    def plane_vectors(self) -> int:
        """Vectors from plane to plane."""
        return self.buffer.channel // self.lanes


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
        a = node.attributes
        weight, reading = self._reading(node)
        packed = pack_for_lanes(
            weight, a["groups"], reading.choice, reading.offsets, reading.plane_vectors, is_wide=reading.is_strided
        )
        self.places.keep_alive.append(packed)
        bias = 0 if a["bias"] is None else self.places.per_channel(a["bias"], weight.shape[0])
        weights = number_of("LaneWeights", "BFLOAT16_WEIGHTS" if packed.is_narrow else "FLOAT32_WEIGHTS")
        self._add_convolution("conv", node, reading, packed, {"weights": weights, "bias": bias})

    def _plan_quantized_conv2d(self, node: Node) -> None:
        a = node.attributes
        weight, reading = self._reading(node)
        packed = pack_quads(
            weight, a["groups"], reading.choice, reading.offsets, reading.plane_vectors, is_wide=reading.is_strided
        )
        self.places.keep_alive.append(packed)
        output, residual = a["output"], a["residual"] or Quantization(1.0, 0)
        words = {
            "sums": self._per_row(first_sums(weight, a["input"]), torch.int32),
            "scales": self._per_row(sum_scales(node, self.places.graph), torch.float32),
            "bias": self._per_row(bias_of(node, self.places.graph), torch.float32),
            "residual_scale": bits(residual.scale), "residual_zero": residual.zero_point,
            "is_float": int(output is None), "y_scale": bits(1.0 if output is None else output.scale),
            "y_zero": 0 if output is None else output.zero_point,
        }  # fmt: skip
        self._add_convolution("quad_conv", node, reading, packed, words)

    def _per_row(self, values: Tensor, dtype: torch.dtype) -> int:
        """Keep numbers of output channels, with zeros up to whole quads, and return their address."""
        padded = torch.zeros(-(-len(values) // QUAD) * QUAD, dtype=dtype)
        padded[: len(values)] = values
        return self.places.pointer_to(padded)

    def _reading(self, node: Node) -> tuple[SparseWeight, _Reading]:
        """Decide how a convolution reads its input, and return the taps of its weight that count, and that."""
        a, graph = node.attributes, self.places.graph
        weight, layout = graph.weights[a["weight"]], self.places.layout_of(node.name)
        is_strided, row_vectors, x_row = False, 0, 0
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
                is_strided, row_vectors, x_row = True, layout.pitch, 2 * x.buffer.layout.pitch * self.places.lanes
        else:
            quantization = self.places.quantizations.get(node.inputs[0])
            read, phases = self._phases(node, 0 if quantization is None else quad_bits(quantization.zero_point))
            offsets = phases.tap_offsets()
            temporary = View(read, 0, read.channels)
            start = temporary.at
        choose = default_quad_choice if node.op == "quantized_conv2d" else default_choice
        choice = self.given_choices.get(node.name) or choose(
            weight, a["groups"], row_vectors or layout.vectors, self.places.max_vectors, self.places.lanes, self.threads
        )
        self.choices[node.name] = choice
        first = 0 if read.extra else read.front - self.places.reach(node)[0]
        self.places.check_reach(node, read, first + offsets, layout.vectors, row_vectors, x_row)
        return weight, _Reading(read, start, offsets, is_strided, row_vectors, x_row, choice, self.places.lanes)

    def _add_convolution(
        self, kind: str, node: Node, reading: _Reading, packed: LaneFilter, more: Mapping[str, int]
    ) -> None:
        a, y = node.attributes, self.places.views[node.name]
        layout, choice = y.buffer.layout, reading.choice
        residual = self.places.views[node.inputs[1]] if len(node.inputs) > 1 else None
        mask = self.places.mask_of(layout)
        name = _STEP2 if reading.is_strided else _STEP1_WIDE if packed.is_wide else _STEP1
        read_as = number_of("LaneReading", name)

        def words() -> Words:
            return {
                "x": reading.start(), "x_channel": reading.buffer.channel, **at("y", y), "vectors": layout.vectors,
                "tile_vectors": choice.tile_vectors, "index": packed.index.data_ptr(),
                "index_words": packed.index.numel(), "offsets": packed.offsets.data_ptr(), "reading": read_as,
                "values": packed.values.data_ptr(), "num_values": packed.values.numel(),
                **(at("residual", residual) if residual else {"residual": -1, "residual_channel": 0}),
                **epilogue("before", a["before"]), **epilogue("after", a["after"]), "mask": mask,
                "row_parts": choice.row_parts, "row_vectors": reading.row_vectors, "x_row": reading.x_row,
                "repeats": choice.repeats, **more,
            }  # fmt: skip

        read = [reading.buffer, *([residual.buffer] if residual else [])]
        self._add(kind, node, read, [y.buffer], words)
        self._halo(y)

    def _plan_quantize(self, node: Node) -> None:
        self._convert("quantize", node, node.attributes["output"], node.inputs[0])

    def _plan_dequantize(self, node: Node) -> None:
        self._convert("dequantize", node, node.attributes["input"], node.name)

    def _convert(self, kind: str, node: Node, quantization: Quantization, numbers: str) -> None:
        """Plan levels from float32 or back; `numbers` is the value that is float32."""
        x, y = self.places.views[node.inputs[0]], self.places.views[node.name]
        mask = self.places.mask_of(y.buffer.layout)

        def words() -> Words:
            return {
                **at("x", x), **at("y", y), "channels": self.places.sizes[numbers][0],
                "vectors": y.buffer.layout.vectors, "scale": bits(quantization.scale),
                "zero": quantization.zero_point, "mask": mask,
            }  # fmt: skip

        self._add(kind, node, [x.buffer], [y.buffer], words)
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
