"""Steps that treat each channel by itself: pixel by pixel, selections and concatenations, resizing, pools, means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prunekit.engine.activations import Activation
from prunekit.engine.arena import View
from prunekit.engine.geometry import Size, is_direct, window_of
from prunekit.engine.graph import Node
from prunekit.engine.lanes import Indices, LaneLayout, Picks, Window
from prunekit.engine.places import is_range
from prunekit.engine.quantization import padding_level
from prunekit.engine.step_words import bits, element_bits, quad_bits
from prunekit.engine.steps import StepList, Words, all_pixels, at, epilogue
from prunekit.errors import InputError

_NOTHING = -1  # instead of a place in the arena


@dataclass(frozen=True)
class _Factor:
    """What each channel is multiplied by, or what is added: `factor` times a constant, or a pixel in the arena, or 1.

    Attributes:
        constant: The address of a constant [channels], or 0.
        pixel: Planes of one pixel, or None.
        factor: 0 where nothing is added.
    """

    constant: int = 0
    pixel: _Operand | None = None
    factor: float = 1.0

    def words(self, name: str) -> Words:
        return {name: self.constant, f"{name}_factor": bits(self.factor), **_place(f"{name}_at", name, self.pixel)}


@dataclass(frozen=True)
class _Operand:
    """An input of an operation pixel by pixel.

    Attributes:
        view: Its planes.
        is_pixel: Whether its one pixel is for all of an image's.
        is_single: Whether its one channel is for all of an image's.
    """

    view: View
    is_pixel: bool = False
    is_single: bool = False


def _place(name: str, prefix: str, operand: _Operand | None) -> Words:
    """Return where an operand is: its place, and the elements from channel to channel."""
    if operand is None:
        return {name: _NOTHING, f"{prefix}_channel": 0}
    return {name: operand.view.at(), f"{prefix}_channel": 0 if operand.is_single else operand.view.buffer.channel}


class ChannelSteps(StepList):
    """Plans every node of float32 but convolutions, and those that move levels as they move float32."""

    def _pixelwise(
        self, node: Node, x: _Operand, y: View, *, other: _Operand | None = None, is_product: bool = False,
        scale: _Factor = _Factor(), shift: _Factor = _Factor(factor=0.0), activation: Activation | None = None,
        is_masked: bool = True, picks: int = 0,
    ) -> None:  # fmt: skip
        """Plan y = activation(x · scale + shift), or of x · scale + other, or of x · other."""
        layout = y.buffer.layout
        mask = self.places.mask_of(layout) if is_masked else 0

        def words() -> Words:
            return {
                **_place("x", "x", x), **_place("other", "other", other), **at("y", y),
                "channels": y.channels, "vectors": layout.vectors, "is_product": int(is_product),
                **scale.words("scale"), **shift.words("shift"), **epilogue("epilogue", activation or Activation()),
                "mask": mask, "picks": picks,
            }  # fmt: skip

        read = [o.view.buffer for o in (x, other, scale.pixel, shift.pixel) if o is not None]
        self._add("elementwise", node, read, [y.buffer], words)
        self._halo(y)

    def _operands(self, node: Node) -> list[_Operand]:
        channels, *pixels = self.places.sizes[node.name]
        sizes = [self.places.sizes[name] for name in node.inputs]
        return [
            _Operand(self.places.views[name], is_pixel=size[1:] != tuple(pixels), is_single=size[0] != channels)
            for name, size in zip(node.inputs, sizes, strict=True)
        ]

    def _plan_affine(self, node: Node) -> None:
        channels = self.places.sizes[node.name][0]
        scale, shift = (_Factor(self.places.per_channel(node.attributes[key], channels)) for key in ("scale", "shift"))
        x, y = self._operands(node)[0], self.places.views[node.name]
        self._pixelwise(node, x, y, scale=scale, shift=shift, activation=node.attributes["after"])

    def _plan_activation(self, node: Node) -> None:
        self._pixelwise(
            node, self._operands(node)[0], self.places.views[node.name], activation=node.attributes["after"]
        )

    def _plan_add(self, node: Node) -> None:
        self._sum(node, self._operands(node), 1.0, node.attributes.get("after", Activation()))

    def _plan_sub(self, node: Node) -> None:
        self._sum(node, self._operands(node), -1.0, node.attributes["after"])

    def _sum(self, node: Node, operands: Sequence[_Operand], sign: float, activation: Activation) -> None:
        """Plan a + sign · b."""
        (a, b), y = operands, self.places.views[node.name]
        if b.is_pixel:
            self._pixelwise(node, a, y, shift=_Factor(pixel=b, factor=sign), activation=activation)
        elif a.is_pixel:
            self._pixelwise(node, b, y, scale=_Factor(factor=sign), shift=_Factor(pixel=a), activation=activation)
        else:
            self._pixelwise(node, b, y, scale=_Factor(factor=sign), other=a, activation=activation)

    def _plan_mul(self, node: Node) -> None:
        """Plan a · b, or a · b + c."""
        (a, b, *rest), y, activation = self._operands(node), self.places.views[node.name], node.attributes["after"]
        c = rest[0] if rest else None
        if (a.is_pixel and b.is_pixel) or (a.is_single and b.is_single):
            raise InputError(f"{node.layer or node.name}: what is added is larger than the product.")
        if a.is_pixel:
            a, b = b, a
        if b.is_pixel and c is not None and not c.is_pixel:
            self._pixelwise(node, a, y, other=c, scale=_Factor(pixel=b), activation=activation)
        elif b.is_pixel:
            shift = _Factor(factor=0.0) if c is None else _Factor(pixel=c)
            self._pixelwise(node, a, y, scale=_Factor(pixel=b), shift=shift, activation=activation)
        else:
            self._pixelwise(node, a, y, other=b, is_product=True, activation=None if c else activation)
            if c is not None:
                self._sum(node, [_Operand(y), c], 1.0, activation)

    def _plan_concat(self, node: Node) -> None:
        target, first = self.places.views[node.name], self.places.views[node.name].first
        for name in node.inputs:
            view = self.places.views[name]
            part = View(target.buffer, first, view.channels, view.fill)
            first += part.channels
            if view.buffer is part.buffer and view.first == part.first:
                continue
            if name in self.places.quantizations:
                self._remap(node, name, part, all_pixels(part.buffer.layout), fill=part.fill)
                self._halo(part)
            else:
                self._pixelwise(node, _Operand(view), part, is_masked=False)

    def _plan_select(self, node: Node) -> None:
        """Copy planes, unless they are there already."""
        if is_range(node):
            return
        picks = np.array(node.attributes["channels"], np.int32)
        table = self.places.table_of(("picks", picks.tobytes()), picks)
        x, y = self.places.views[node.inputs[0]], self.places.views[node.name]
        self._pixelwise(node, _Operand(x), y, is_masked=False, picks=table)

    def _plan_upsample(self, node: Node) -> None:
        sizes = zip(self.places.sizes[node.inputs[0]][1:], self.places.sizes[node.name][1:], strict=True)
        rows, columns = (_nearest(size, output) for size, output in sizes)
        self._pick(node, lambda row, column: (rows(row), columns(column)), self.places.views[node.name].fill)

    def _plan_pad(self, node: Node) -> None:
        left, _, top, _ = node.attributes["sides"]
        quantization = self.places.quantizations.get(node.name)
        fill = element_bits(node.attributes["fill"])
        if quantization is not None:
            fill = quad_bits(padding_level(node, quantization))
        self._pick(node, lambda row, column: (row - top, column - left), fill)

    def _pick(self, node: Node, source_of: Callable[[Indices, Indices], tuple[Indices, Indices]], fill: int) -> None:
        """Make a value of rows and columns of another; `fill` are the bits of what comes from nowhere."""
        name, y = node.inputs[0], self.places.views[node.name]
        layout = y.buffer.layout
        row, column = layout.rows(), np.arange(layout.pitch)
        rows, columns = source_of(row, column)
        # What was cropped must not come back where the image ends.
        rows, columns = np.where(row < layout.height, rows, -1), np.where(column < layout.width, columns, -1)
        self._remap(node, name, y, Picks.within(rows, columns, *self.places.sizes[name][1:]), fill=fill)
        if fill != y.fill and node.name in self.places.quantizations:  # what is no pixel must be what it always is
            self._pool_levels(node, y, np.zeros(1, np.int64), y)
        elif fill != y.fill:
            self._pixelwise(node, _Operand(y), y)
        self._halo(y)

    def _plan_max_pool2d(self, node: Node) -> None:
        self._plan_pool(node, is_max=True)

    def _plan_avg_pool2d(self, node: Node) -> None:
        self._plan_pool(node, is_max=False)

    def _plan_pool(self, node: Node, is_max: bool) -> None:
        row_vectors, x_row = 0, 0
        window, source = window_of(node, self.places.graph), self.places.sizes[node.inputs[0]]
        if is_direct(node, self.places.graph, self.places.sizes, self.places.lanes):
            x, row_vectors = self.places.views[node.inputs[0]], self.places.layout_of(node.name).pitch
            rows, columns = window.taps()
            offsets, x_row = rows * x.buffer.layout.pitch + columns, 2 * x.buffer.layout.pitch * self.places.lanes
        else:
            is_float = node.name not in self.places.quantizations
            buffer, phases = self._phases(node, element_bits(float("-inf")) if is_max and is_float else 0)
            x, offsets = View(buffer, 0, buffer.channels), phases.tap_offsets()
        y = self.places.views[node.name]
        layout = y.buffer.layout
        self.places.check_reach(node, x.buffer, x.buffer.front + offsets, layout.vectors, row_vectors, x_row)
        if node.name in self.places.quantizations:
            self._pool_levels(node, x, offsets, y, row_vectors, x_row)
        else:
            scale, scales = (1.0, 0) if is_max else self._divisors(node, window, source, layout)
            more = {"is_max": int(is_max), "scale": bits(scale), "scales": scales}
            self._add_pool("pool", node, x, offsets, y, row_vectors, x_row, more)
        self._halo(y)

    def _pool_levels(
        self, node: Node, x: View, offsets: Indices, y: View, row_vectors: int = 0, x_row: int = 0
    ) -> None:
        """Plan the largest of some levels of each channel; of one tap it is a copy whose margins are put right."""
        zero = self.places.quantizations[node.name].zero_point
        self._add_pool("quad_pool", node, x, offsets, y, row_vectors, x_row, {"zero": zero})

    def _add_pool(
        self, kind: str, node: Node, x: View, offsets: Indices, y: View, row_vectors: int, x_row: int,
        more: Mapping[str, int],
    ) -> None:  # fmt: skip
        taps = torch.from_numpy(offsets.astype(np.int32))
        pointer, layout = self.places.pointer_to(taps), y.buffer.layout
        mask = self.places.mask_of(layout)
        self._add(
            kind, node, [x.buffer], [y.buffer],
            lambda: {
                **at("x", x), **at("y", y), "channels": y.channels, "vectors": layout.vectors, "taps": pointer,
                "num_taps": taps.numel(), "mask": mask, "row_vectors": row_vectors, "x_row": x_row, **more,
            },
        )  # fmt: skip

    def _divisors(self, node: Node, window: Window, source: Size, layout: LaneLayout) -> tuple[float, int]:
        """Return what an average pool's sums are multiplied by: a number, or the address of one for each pixel."""
        divisor, counts_padding = node.attributes.get("divisor", 0.0), node.attributes.get("counts_padding", True)
        if divisor:
            return 1 / divisor, 0
        if window.fits(*source[1:]) and (counts_padding or window.padding == (0, 0)):
            return 1 / (window.kernel[0] * window.kernel[1]), 0
        counts = []
        for axis, size in enumerate(source[1:]):
            padding = window.padding[axis]
            begin = np.arange(layout.height if axis == 0 else layout.width) * window.stride[axis] - padding
            end = np.minimum(begin + window.kernel[axis], size + padding)
            counts.append(end - begin if counts_padding else np.minimum(end, size) - np.maximum(begin, 0))
        plane = np.zeros((-(-layout.vectors * layout.lanes // layout.pitch), layout.pitch), np.float32)
        plane[: layout.height, : layout.width] = 1 / np.outer(*counts)
        return 1.0, self.places.pointer_to(torch.from_numpy(layout.to_lanes(plane)))

    def _plan_global_mean(self, node: Node) -> None:
        x, y = self.places.views[node.inputs[0]], self.places.views[node.name]
        _, height, width = self.places.sizes[node.inputs[0]]
        scale = 1.0 if node.attributes.get("is_sum") else 1 / (height * width)
        self._add(
            "mean", node, [x.buffer], [y.buffer],
            lambda: {
                **at("x", x), **at("y", y), "channels": y.channels, "vectors": x.buffer.layout.vectors,
                "scale": bits(scale),
            },
        )  # fmt: skip
        self._halo(y)


def _nearest(size: int, output: int) -> Callable[[Indices], Indices]:
    """Return which of `size` pixels torch's nearest upsampling to `output` picks for each; it rounds in float32."""
    if output % size == 0:
        return lambda index: index // (output // size)
    scale = np.float32(size) / np.float32(output)
    return lambda index: np.minimum(np.floor(index.astype(np.float32) * scale).astype(np.int64), size - 1)
