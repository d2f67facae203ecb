"""What every kernel's model knows of a convolution and of the way that its work is cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ConvProblem:
    """A convolution as the models see it: its sizes, and its mask by the density alone, or its columns too.

    Kernels have classes of their own, with what follows for them; `of` makes one of another.

    Attributes:
        shared_columns: The share of (input channel, tap) columns in which some of 16 consecutive filters of a group
            have a weight, where blocks of filters share theirs; None where weights lie as if at random.
    """

    ROWS: ClassVar[int] = 1  # output channels of a kernel's row group

    out_channels: int
    group_channels: int
    kernel_size: tuple[int, int]
    groups: int
    density: float
    batch: int
    size: tuple[int, int]  # P, Q
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    shared_columns: float | None = None

    @classmethod
    def of(cls, problem: ConvProblem) -> Self:
        """Return the same convolution as this class."""
        return cls(*(getattr(problem, field.name) for field in fields(ConvProblem)))

    @property
    def num_row_groups(self) -> int:
        """Row groups of one conv group."""
        return -(-(self.out_channels // self.groups) // self.ROWS)

    @property
    def num_weights(self) -> int:
        """Weights, dropped ones included."""
        return self.out_channels * self.group_channels * math.prod(self.kernel_size)

    @property
    def macs(self) -> int:
        """Multiply-adds with all weights."""
        return self.batch * self.num_weights * self.size[0] * self.size[1]

    @property
    def num_pixels(self) -> tuple[int, int]:
        """(elements of the input, elements of the output), the input as large as the output and the stride tell."""
        (p, q), channels = self.size, self.groups * self.group_channels
        inputs = self.batch * channels * p * self.stride[0] * q * self.stride[1]
        return inputs, self.batch * self.out_channels * p * q


@dataclass(frozen=True)
class KernelLaunch:
    """One cut of a kernel's work into blocks; kernels add their numbers.

    A model may hold arrays in place of the numbers, for many cuts at once (`columns`).

    Attributes:
        PACKED: the numbers that are packed into the filter.
    """

    PACKED: ClassVar[tuple[str, ...]] = ("chunk_channels",)

    @classmethod
    def columns(cls, numbers: np.ndarray[Any, Any]) -> Self:
        """Return all cuts in one: `numbers` is int64 [cuts, fields]."""
        return cls(*numbers.T)

    def numbers(self) -> list[int]:
        """Flatten for files."""
        return list(astuple(self))

    @classmethod
    def word_names(cls) -> tuple[str, ...]:
        """Return the names of `words`."""
        return tuple(field.name for field in fields(cls) if field.name not in cls.PACKED)

    def words(self) -> list[int]:
        """Return what the op is told: all that is not packed into the filter."""
        return [getattr(self, name) for name in self.word_names()]

    def packed(self) -> tuple[int, ...]:
        """Return what is packed into the filter: cuts that agree in it share a pattern."""
        return tuple(getattr(self, name) for name in self.PACKED)

    @property
    def warps(self) -> int:
        """Warps of a block: over the pixels, times row groups, times slices of a row group's share."""
        cut: Any = self
        warps: int = cut.pixel_warps * cut.row_groups * cut.slices
        return warps


def crossed(*choices: Sequence[Any] | np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return int64 [combinations, numbers]: each choice of the first with each of the second and so on, in order."""
    tables = [np.array(c, np.int64).reshape(len(c), -1) for c in choices]
    if not all(len(table) for table in tables):
        return np.empty((0, sum(table.shape[1] for table in tables)), np.int64)
    places = np.meshgrid(*(np.arange(len(table)) for table in tables), indexing="ij")
    return np.concatenate([table[at.ravel()] for table, at in zip(tables, places, strict=True)], 1)


def least(seconds: np.ndarray[Any, Any], count: int) -> list[int]:
    """Return the places of the `count` smallest finite times, the first of equals first."""
    order = np.argsort(seconds, kind="stable")[:count]
    return [int(place) for place in order if np.isfinite(seconds[place])]
