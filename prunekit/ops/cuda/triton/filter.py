"""Condensed filters as the dispatch packs them: a mask's places once, its weights at every call.

    pattern = condensed_pattern(mask, groups)
    packed = pattern.fill(weight)       # float16, bfloat16 or float32

kernels/prunekit_kernels/condensed_filter.py condenses, and describes the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.cuda.condensed.filter import condensed_filter
from prunekit.ops.cuda.packed_filter import FilterHeader, FilterPattern, PackedFilter, pattern_of, scattered

if TYPE_CHECKING:
    from prunekit_kernels.condensed_filter import CondensedFilter

#: Output channels of a row group, and fewer input channels than this (prunekit_kernels.condensed_filter).
ROWS, MAX_CHANNELS = 16, 2**15

_Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class TritonHeader(FilterHeader):
    """What launches need to know about a condensed filter.

    Attributes:
        out_channels, group_channels, kernel_h, kernel_w, groups: the convolution's.
        chunk_channels: group_channels, as the kernel reads its inputs where they are.
        nnz: kept weights.
        num_columns: of all row groups.
    """

    FORMAT = "Triton"

    nnz: int
    num_columns: int


@dataclass(frozen=True)
class TritonFilter(PackedFilter):
    """A condensed filter.

    Attributes:
        header: see there.
        rows: int32 [row groups · 16], the output channel of each row; -1 where there is none.
        starts: int32 [row groups + 1].
        columns: int32 [columns].
        values: [columns, 16] in the weight's dtype; a weight that is not kept is -0.0, a kept zero +0.0.
    """

    HEADER, WEIGHTS = TritonHeader, "values"

    header: TritonHeader
    rows: Tensor
    starts: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def stored(cls, weights: Tensor) -> Tensor:
        """Return kept weights: adding +0.0 makes a kept -0.0 the +0.0 by which kernels know that it is kept."""
        return weights.add_(0.0)

    def unfilled(self, dtype: torch.dtype) -> Tensor:
        """Return -0.0 everywhere."""
        return torch.full(self.values.shape, -0.0, dtype=dtype, device=self.values.device)

    def condensed(self) -> CondensedFilter:
        """Return the same as the kernels take it."""
        from prunekit_kernels.condensed_filter import CondensedFilter  # so that prunekit stands without that package

        header = self.header
        tensors = self.rows, self.starts, self.columns, self.values
        return CondensedFilter(header.shape, header.groups, *tensors, header.nnz)

    def unpack(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        sizes, header = [len(t) for t in (self.rows, self.columns, self.values)], self.header
        if sizes != [ROWS * (len(self.starts) - 1), header.num_columns, header.num_columns]:
            raise InputError(
                f"Expected {ROWS * (len(self.starts) - 1)} rows and {header.num_columns} columns in the condensed "
                f"filter, got {sizes[0]}, {sizes[1]} and {sizes[2]}."
            )
        values = self.values.cpu()
        slots, *where = _kept(self, (values != 0) | ~values.signbit())
        weight, mask = scattered(header, where, values.flatten()[torch.from_numpy(slots)])
        return weight.to(self.values.device), mask.to(self.values.device)


def condensed_pattern(mask: Tensor, groups: int, sources: Tensor | None = None) -> FilterPattern:
    """Pack a mask's places, on the CPU; see `SparseKernel.packer`.

    Args:
        mask: bool [K, C / groups, R, S] on the CPU, True = kept.
        groups: number of channel groups.
        sources: int64 of mask's shape, the element of the weight that belongs there; None: that of the same place.

    Raises:
        InputError: shapes or numbers do not fit.
    """
    filter = condensed_filter(torch.ones(mask.shape, dtype=torch.float16), mask, groups)
    k, c, r, s = mask.shape
    header = TritonHeader(k, c, r, s, groups, c, filter.nnz, len(filter.columns))
    packed = TritonFilter(header, filter.rows, filter.starts, filter.columns, filter.values)
    slots, *where = _kept(packed, filter.values != 0)
    return pattern_of(packed, slots, where, sources)


def _kept(packed: TritonFilter, is_kept: Tensor) -> tuple[_Array, Any, Any, Any]:
    """Return each kept weight's place in the values, output channel, input channel of its group, and tap."""
    header = packed.header
    code = packed.columns.cpu().numpy().astype(np.int64)
    row_group = np.repeat(np.arange(len(packed.starts) - 1), np.diff(packed.starts.cpu().numpy()))
    column, place = is_kept.numpy().nonzero()
    row = packed.rows.cpu().numpy()[row_group[column] * ROWS + place].astype(np.int64)
    channel = (code[column] >> 16) % header.group_channels
    tap = (code[column] >> 8 & 255) * header.kernel_w + (code[column] & 255)
    return column * ROWS + place, row, channel, tap
