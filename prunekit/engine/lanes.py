"""Where pixels lie: the lane layout of csrc/cpu/lane_kernels.h, and the tables that lead into and out of it.

A plane of `height` rows, `pitch` apart, is flattened and cut into `lanes` chunks of `vectors` pixels; element
`j · lanes + l` is pixel j of chunk l. A tap at any offset is then a whole vector, and never an unaligned one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

#: Of the pixels that a plane's rows are apart beyond their width, all zero: the padding of convolutions.
CACHE_LINE_ELEMENTS = 16


@dataclass(frozen=True)
class LaneLayout:
    """The layout that all planes of one size share.

    Attributes:
        height, width: Of the image, in pixels.
        pitch: Pixels from row to row, at least `width`; what is beyond the width is zero.
        lanes: Chunks, and elements of a vector.
    """

    height: int
    width: int
    pitch: int
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors of a plane without its halo: whole rows a chunk where lanes divide the height."""
        if self.height % self.lanes == 0:
            return self.height // self.lanes * self.pitch
        return -(-((self.height - 1) * self.pitch + self.width) // self.lanes)

    def positions(self, back: int = 0) -> Indices:
        """Return the flattened position of every element of a plane, [(vectors + back) · lanes]."""
        vector = np.arange(self.vectors + back)[:, None]
        return (np.arange(self.lanes)[None, :] * self.vectors + vector).reshape(-1)

    @cached_property
    def mask(self) -> npt.NDArray[np.int32]:
        """All ones (-1) where an element is a pixel, 0 elsewhere; [vectors · lanes]."""
        position = self.positions()
        is_pixel = (position % self.pitch < self.width) & (position // self.pitch < self.height)
        return -is_pixel.astype(np.int32)

    def elements(self, row: Indices, column: Indices) -> Indices:
        """Return where pixels lie in a plane, relative to its first element."""
        position = row * self.pitch + column
        return position % self.vectors * self.lanes + position // self.vectors


@dataclass(frozen=True)
class PlanarLayout:
    """Rows one after the other, as torch stores a contiguous image."""

    height: int
    width: int

    def elements(self, row: Indices, column: Indices) -> Indices:
        """Return where pixels lie in a plane."""
        return row * self.width + column


@dataclass(frozen=True)
class Window:
    """How a convolution or a pool looks at its input: [rows, columns] each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels from the first tap to the last."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output's size; not positive where the kernel does not fit."""
        sizes = [
            (size + 2 * padding - reach - 1) // stride + 1
            for size, padding, reach, stride in zip((height, width), self.padding, self.reach, self.stride, strict=True)
        ]
        return sizes[0], sizes[1]

    def keeps_size(self, height: int, width: int) -> bool:
        """Tell whether output pixel (i, j) looks around input pixel (i, j)."""
        return self.stride == (1, 1) and self.output_size(height, width) == (height, width)

    @property
    def columns_beyond(self) -> int:
        """Zero columns that rows must have between them where the window keeps the size."""
        return max(self.padding[1], self.reach[1] - self.padding[1], 0)

    def taps(self) -> tuple[Indices, Indices]:
        """Return row and column of each tap, relative to the first, in the order of a filter's [R, S]."""
        rows, columns = np.meshgrid(*(np.arange(k) * d for k, d in zip(self.kernel, self.dilation, strict=True)))
        return rows.T.reshape(-1), columns.T.reshape(-1)


@dataclass(frozen=True)
class Phases:
    """The padded input of a window as planes on which the window has stride 1, in the output's layout.

    Phase (a, b) holds the padded pixels (i · stride + a, j · stride + b) at position (i, j).
    """

    window: Window
    output: LaneLayout

    @property
    def back(self) -> int:
        """Vectors after each plane."""
        rows, columns = self.window.taps()
        (sh, sw) = self.window.stride
        return int((rows // sh * self.output.pitch + columns // sw).max())

    @property
    def plane(self) -> int:
        """Vectors of a phase."""
        return self.output.vectors + self.back

    @cached_property
    def used(self) -> list[tuple[int, int]]:
        """The phases that a tap reads."""
        rows, columns = self.window.taps()
        (sh, sw) = self.window.stride
        return sorted({(int(r % sh), int(c % sw)) for r, c in zip(rows, columns, strict=True)})

    def tap_offsets(self) -> Indices:
        """Return each tap's offset in vectors, [R · S]."""
        rows, columns = self.window.taps()
        (sh, sw) = self.window.stride
        phase = np.array(
            [self.used.index((int(r % sh), int(c % sw))) for r, c in zip(rows, columns, strict=True)], np.int64
        )
        return phase * self.plane + rows // sh * self.output.pitch + columns // sw

    def table(self, source: LaneLayout | PlanarLayout) -> npt.NDArray[np.int32]:
        """Return for each element of all phases the source's element, or -1 where there is padding."""
        position = self.output.positions(self.back)
        i, j = position // self.output.pitch, position % self.output.pitch
        parts = []
        for a, b in self.used:
            row = i * self.window.stride[0] + a - self.window.padding[0]
            column = j * self.window.stride[1] + b - self.window.padding[1]
            parts.append(source_table(source, row, column))
        return np.concatenate(parts)


def source_table(source: LaneLayout | PlanarLayout, row: Indices, column: Indices) -> npt.NDArray[np.int32]:
    """Return the source's element of each pixel, or -1 where the pixel is outside the image."""
    is_inside = (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
    return np.where(is_inside, source.elements(row, column), -1).astype(np.int32)


def pixels_of(layout: LaneLayout) -> tuple[Indices, Indices]:
    """Return row and column of each element of a plane; rows beyond the image where there is no pixel."""
    position = layout.positions()
    row, column = position // layout.pitch, position % layout.pitch
    return np.where(column < layout.width, row, layout.height), column


def unpack_table(source: LaneLayout) -> npt.NDArray[np.int32]:
    """Return the source's element of each pixel in planar order, [height · width]."""
    row, column = np.meshgrid(np.arange(source.height), np.arange(source.width), indexing="ij")
    return source.elements(row.reshape(-1), column.reshape(-1)).astype(np.int32)
