"""Where pixels lie: the lane layout of csrc/cpu/lane_kernels.h, and which rows and columns planes are made of.

A plane of `height` rows, `pitch` apart, is flattened and cut into `lanes` chunks of `vectors` pixels; element
`j · lanes + l` is pixel j of chunk l. A tap at any offset is then a whole vector, and never an unaligned one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

#: float32 of a cache line.
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

    @cached_property
    def mask(self) -> npt.NDArray[np.int32]:
        """All ones (-1) where an element is a pixel, 0 elsewhere; [vectors · lanes]."""
        position = (np.arange(self.lanes) * self.vectors + np.arange(self.vectors)[:, None]).reshape(-1)
        is_pixel = (position % self.pitch < self.width) & (position // self.pitch < self.height)
        return -is_pixel.astype(np.int32)

    def mask_of_columns(self, ahead: int) -> npt.NDArray[np.int32]:
        """All ones where an element is a pixel, and the pixel `ahead` columns further on is in the same row; else 0."""
        position = (np.arange(self.lanes) * self.vectors + np.arange(self.vectors)[:, None]).reshape(-1)
        column = position % self.pitch + ahead
        return self.mask & -((column >= 0) & (column < self.width)).astype(np.int32)

    def to_lanes(self, plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the elements of a plane [rows, pitch] that has all rows that a plane touches; [vectors · lanes]."""
        pixels = plane.reshape(-1)[: self.vectors * self.lanes]
        return np.ascontiguousarray(pixels.reshape(self.lanes, self.vectors).T).reshape(-1)

    def rows(self, back: int = 0) -> Indices:
        """Return the numbers of all rows, those beyond the image included, that a plane and `back` vectors touch."""
        return np.arange(-(-(self.vectors * self.lanes + back) // self.pitch))


@dataclass(frozen=True)
class PlanarLayout:
    """Rows one after the other, as torch stores a contiguous image."""

    height: int
    width: int

    @property
    def pitch(self) -> int:
        """Pixels from row to row."""
        return self.width

    @property
    def vectors(self) -> int:
        """No lanes: the kernels' word for planar."""
        return 0


@dataclass(frozen=True)
class Picks:
    """Planes made of another's pixels.

    Attributes:
        rows: int32 [planes, rows]: the source's row, or -1 where there is none.
        columns: int32 [planes, columns], likewise.
    """

    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]

    @classmethod
    def within(cls, rows: Indices, columns: Indices, height: int, width: int) -> Picks:
        """Pick of a source of `height` by `width` pixels; numbers outside of it are none."""

        def inside(numbers: Indices, size: int) -> npt.NDArray[np.int32]:
            return np.where((numbers >= 0) & (numbers < size), numbers, -1).astype(np.int32)

        return cls(np.atleast_2d(inside(rows, height)), np.atleast_2d(inside(columns, width)))


@dataclass(frozen=True)
class Window:
    """How a convolution or a pool looks at its input: [rows, columns] each.

    Attributes:
        kernel, stride, padding, dilation: As in torch.
        is_ceil: Whether a last window may reach beyond the padding, as long as it begins within the image.
        rows, columns: Of the kernel, those whose taps count; None: all.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    is_ceil: bool = False
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels from the first tap to the last."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output's size; not positive where the kernel does not fit."""

        def count(size: int, axis: int) -> int:
            span, stride = size + 2 * self.padding[axis] - self.reach[axis] - 1, self.stride[axis]
            if not self.is_ceil:
                return span // stride + 1
            windows = -(-span // stride) + 1
            return windows - ((windows - 1) * stride >= size + self.padding[axis])

        return count(height, 0), count(width, 1)

    def keeps_size(self, height: int, width: int) -> bool:
        """Tell whether output pixel (i, j) looks around input pixel (i, j)."""
        return self.stride == (1, 1) and self.output_size(height, width) == (height, width)

    def fits(self, height: int, width: int) -> bool:
        """Tell whether no window reaches beyond the image and its padding."""
        output = self.output_size(height, width)
        return all(
            (count - 1) * stride + reach < size + 2 * padding
            for count, stride, reach, size, padding in zip(
                output, self.stride, self.reach, (height, width), self.padding, strict=True
            )
        )

    def trimmed(self, height: int, width: int) -> Window:
        """Return the window without the rows and columns of the kernel that only ever see padding.

        Of a kernel all of whose taps do, one stays.
        """

        def seeing(size: int, count: int, axis: int) -> tuple[int, ...]:
            stride = self.stride[axis]
            seen = []
            for i in range(self.kernel[axis]):
                ahead = i * self.dilation[axis] - self.padding[axis]
                if max(0, -(ahead // stride)) <= min(count - 1, (size - 1 - ahead) // stride):
                    seen.append(i)
            return tuple(seen) or (0,)

        sizes = zip((height, width), self.output_size(height, width), strict=True)
        rows, columns = (seeing(size, count, i) for i, (size, count) in enumerate(sizes))
        return replace(self, rows=rows, columns=columns)

    @property
    def is_trimmed(self) -> bool:
        """Whether some taps do not count."""
        return (self.live_rows, self.live_columns) != (tuple(range(self.kernel[0])), tuple(range(self.kernel[1])))

    @property
    def live_rows(self) -> tuple[int, ...]:
        """The kernel's rows that count."""
        return self.rows if self.rows is not None else tuple(range(self.kernel[0]))

    @property
    def live_columns(self) -> tuple[int, ...]:
        """The kernel's columns that count."""
        return self.columns if self.columns is not None else tuple(range(self.kernel[1]))

    @property
    def last_column(self) -> int:
        """Pixels from the kernel's first column to the last that counts."""
        return self.live_columns[-1] * self.dilation[1]

    @property
    def columns_beyond(self) -> int:
        """Zero columns that rows must have between them where the window reads in place."""
        first = self.live_columns[0] * self.dilation[1]
        return max(self.padding[1] - first, self.last_column - self.padding[1], 0)

    def taps(self) -> tuple[Indices, Indices]:
        """Return row and column of each tap that counts, relative to the kernel's first, in the filter's order."""
        kept = self.live_rows, self.live_columns
        rows, columns = np.meshgrid(*(np.array(k) * d for k, d in zip(kept, self.dilation, strict=True)))
        return rows.T.reshape(-1), columns.T.reshape(-1)

    def distances(self, pitch: int) -> Indices:
        """Return how many pixels of a plane each tap that counts looks further on than the output's pixel."""
        rows, columns = self.taps()
        return (rows - self.padding[0]) * pitch + columns - self.padding[1]


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

    def picks(self, height: int, width: int) -> Picks:
        """Return which pixels of an image of `height` by `width` the phases hold, a plane each."""
        phase = np.array(self.used)
        (sh, sw), (top, left) = self.window.stride, self.window.padding
        rows = self.output.rows(self.back) * sh + phase[:, :1] - top
        columns = np.arange(self.output.pitch) * sw + phase[:, 1:] - left
        return Picks.within(rows, columns, height, width)
