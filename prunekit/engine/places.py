"""Where a native part's values lie: layouts, buffers and halos, and the tables that its steps point to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.engine.arena import MAX_PLANE_ELEMENTS, Buffer, View
from prunekit.engine.geometry import PIXELWISE, Layouts, Size, is_direct, is_shifted, layouts_of, sizes_of, window_on
from prunekit.engine.graph import CONVOLUTIONS, Graph, Node
from prunekit.engine.lanes import Indices, LaneLayout
from prunekit.engine.quantization import QUAD, quantizations_of
from prunekit.engine.step_words import quad_bits
from prunekit.errors import InputError
from prunekit.ops import native


def is_range(node: Node) -> bool:
    """Tell whether a node's value is neighboring channels of another: planes that are there already."""
    if node.op != "select":
        return False
    channels = node.attributes["channels"]
    return bool(channels == list(range(channels[0], channels[0] + len(channels))))


class Places:
    """The buffers and views of some nodes for one input size, and what must outlive the plan."""

    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        inputs: Mapping[str, Size],
        outputs: Sequence[str],
        layouts: Layouts | None,
    ) -> None:
        """Lay out `nodes`, whose outside `inputs` have sizes [C, H, W] and whose `outputs` are read elsewhere.

        Raises:
            InputError: sizes do not fit, or a plane has 2^31 elements or more.
        """
        self.graph, self.nodes = graph, nodes
        self.input_names = list(inputs)
        self.sizes = sizes_of(graph, nodes, inputs)
        self.quantizations = quantizations_of(graph, list(nodes))
        self.lanes, self.max_vectors = native.lane_layout()
        self.keep_alive: list[Any] = []
        self.buffers: list[Buffer] = []
        self.views: dict[str, View] = {}
        self.layouts = layouts or layouts_of(graph, nodes, self.sizes)
        for layout in self.layouts.values():  # before any table of that size is made
            if layout.vectors * layout.lanes > MAX_PLANE_ELEMENTS:
                raise InputError(f"a plane of {layout.height}×{layout.width} pixels has 2^31 elements or more.")
        self._masks: dict[LaneLayout, int] = {}
        self._tables: dict[Any, int] = {}
        self._assign_views(outputs)
        self._assign_halos()

    def layout_of(self, name: str) -> LaneLayout:
        """Return the layout of a value's planes."""
        return self.layouts[self.sizes[name][1:]]

    def planes_of(self, name: str) -> int:
        """Return the planes of a value: its channels, or quads of them."""
        channels = self.sizes[name][0]
        return -(-channels // QUAD) if name in self.quantizations else channels

    def _view(self, name: str, buffer: Buffer, first: int) -> View:
        """Return planes of a buffer from `first` on as a value's."""
        quantization = self.quantizations.get(name)
        fill = 0 if quantization is None else quad_bits(quantization.zero_point)
        return View(buffer, first, self.planes_of(name), fill)

    def new_buffer(self, layout: LaneLayout, channels: int, **sizes: int) -> Buffer:
        """Add a buffer of `channels` planes; `sizes` are further ones of `Buffer`'s."""
        buffer = Buffer(layout, channels, **sizes)
        self.buffers.append(buffer)
        return buffer

    def _assign_views(self, outputs: Sequence[str]) -> None:
        """Give every value a place; what is concatenated is written into the concat's buffer where it can.

        A result takes the place of the residual, or of another value that it is made of pixel by pixel, where nothing
        reads that afterwards.
        """
        ranges = {node.name: node for node in self.nodes if is_range(node)}
        for node in reversed(self.nodes):
            if node.op != "concat":
                continue
            if node.name not in self.views:
                buffer = self.new_buffer(self.layout_of(node.name), self.planes_of(node.name))
                self.views[node.name] = self._view(node.name, buffer, 0)
            view, first = self.views[node.name], self.views[node.name].first
            for name in node.inputs:
                if name not in self.views and name not in self.input_names and name not in ranges:
                    self.views[name] = self._view(name, view.buffer, first)
                first += self.planes_of(name)
        step_of = {node.name: i for i, node in enumerate(self.nodes)}
        last_use = step_of | {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        last_use.update(dict.fromkeys(outputs, len(self.nodes)))
        for name in self.sizes:  # the inputs, then as the nodes run
            if name in ranges:  # planes of another value
                source = self.views[ranges[name].inputs[0]]
                first = source.first + ranges[name].attributes["channels"][0]
                self.views[name] = self._view(name, source.buffer, first)
            elif name not in self.views and self._needs_lanes(name):
                overwritten = self._overwritten(step_of[name], last_use) if name in step_of else None
                if overwritten is None:
                    buffer = self.new_buffer(self.layout_of(name), self.planes_of(name))
                    self.views[name] = self._view(name, buffer, 0)
                else:
                    self.views[name] = self._view(name, overwritten.buffer, overwritten.first)

    def _overwritten(self, step: int, last_use: Mapping[str, int]) -> View | None:
        """Return the view of an input in whose place a node may write its result."""
        node = self.nodes[step]
        if node.op not in (*CONVOLUTIONS, "activation", "affine", *PIXELWISE):
            return None
        is_convolution, are_levels = node.op in CONVOLUTIONS, node.name in self.quantizations
        read_later = node.inputs[:1] if is_convolution else node.inputs[2:]
        others = [self.views[name].buffer for name in read_later if name in self.views]
        # A product of two images is written before its third input is added.
        for name in node.inputs[1:] if is_convolution else node.inputs[:2]:
            if self.sizes[name] != self.sizes[node.name] or are_levels != (name in self.quantizations):
                continue
            view = self.views[name]
            sharing = [n for n, other in self.views.items() if other.buffer is view.buffer]
            is_whole = view.channels == view.buffer.channels
            # One channel of it, repeated for all of them, would be written before it was read for the last time.
            inputs = [self.views[other] for other in node.inputs if other in self.views]
            is_whole = is_whole and all(other == view for other in inputs if other.buffer is view.buffer)
            if is_whole and view.buffer not in others and all(last_use.get(n, -1) <= step for n in sharing):
                return view
        return None

    def _needs_lanes(self, name: str) -> bool:
        """Tell whether a value is read in lanes; an input that is only remapped is read where it is."""
        if name not in self.input_names:
            return True
        readers = [node for node in self.nodes if name in node.inputs]
        return any(
            node.op in ("activation", "affine", "concat", "select", "global_mean", "quantize", *PIXELWISE)
            or is_direct(node, self.graph, self.sizes, self.lanes)
            or is_shifted(node, self.graph, self.sizes, self.lanes)
            or name in node.inputs[1:]
            for node in readers
        )

    def _assign_halos(self) -> None:
        for node in self.nodes:
            if not is_direct(node, self.graph, self.sizes, self.lanes):
                continue
            buffer = self.views[node.inputs[0]].buffer
            front, back = self.reach(node)
            buffer.front, buffer.back = max(buffer.front, front), max(buffer.back, back)

    def reach(self, node: Node) -> tuple[int, int]:
        """Return the vectors that a direct convolution's taps reach before and after a pixel."""
        window = window_on(node, self.graph, self.sizes[node.inputs[0]])
        pitch = self.layout_of(node.inputs[0]).pitch
        distances = window.distances(pitch)
        front, back = max(0, -int(distances.min())), max(0, int(distances.max()))
        if window.stride == (2, 2):  # a long row of the output runs beyond the input's last
            back += max(0, 2 * (self.layout_of(node.name).pitch - pitch) - 1)
        return front, back

    def check_reach(
        self, node: Node, buffer: Buffer, taps: Indices, vectors: int, row_vectors: int, x_row: int
    ) -> None:
        """Refuse taps, as vectors of a plane with its halo, that leave the plane: they would read another channel's."""
        last = vectors - 1
        if row_vectors:
            last = (-(-vectors // row_vectors) - 1) * (x_row // self.lanes) + 2 * (row_vectors - 1)
        first, end = int(taps.min()), int(taps.max()) + last + 1
        if first < 0 or end > buffer.vectors:
            raise InputError(
                f"{node.layer or node.name}: expected a halo around vectors {first} to {end} of a plane, "
                f"found one of {buffer.vectors} vectors that is too small."
            )

    def pointer_to(self, tensor: Tensor) -> int:
        """Keep a copy, aligned to cache lines as torch allocates, and return its address."""
        aligned = tensor.clone(memory_format=torch.contiguous_format)
        self.keep_alive.append(aligned)
        return aligned.data_ptr()

    def per_channel(self, name: str, channels: int) -> int:
        """Return the address of a constant [channels] in float32."""
        tensor = self.graph.constants[name]
        if tensor.shape != (channels,):
            raise InputError(f"expected [{channels}] as the shape of {name}, got {list(tensor.shape)}.")
        return self.pointer_to(tensor.float())

    def mask_of(self, layout: LaneLayout) -> int:
        """Return the address of a layout's mask, made once."""
        if layout not in self._masks:
            self._masks[layout] = self.pointer_to(torch.from_numpy(layout.mask))
        return self._masks[layout]

    def table_of(self, key: Any, table: Any) -> int:
        """Return the address of a table, made once for each key."""
        if key not in self._tables:
            self._tables[key] = self.pointer_to(torch.from_numpy(np.ascontiguousarray(table)))
        return self._tables[key]
