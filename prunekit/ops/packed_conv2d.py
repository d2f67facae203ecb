"""Packed filters: kept weights in the order in which the kernel reads them, and the convolution that runs on them.

    index, values = pack_filter(weight, mask, groups)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) = packed_conv2d(x, index, values, bias, …)

csrc/sparse_filter.h describes the layout; `pack_filter_reference` and `unpack_filter` are its twins here. Packing
depends on the filter alone, so one packed filter serves every input size. The ops have no gradients: a module that
trains uses `masked_conv2d`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.library import define, fake, fallback
from prunekit.ops.masked_conv2d import masked_conv2d_reference
from prunekit.ops.memory_format import conv_memory_format

define("pack_filter(Tensor weight, Tensor mask, int groups, int rows, int channel_block) -> (Tensor, Tensor)")
define(
    "packed_conv2d(Tensor x, Tensor index, Tensor values, Tensor? bias, int[4] weight_shape, int[2] stride, "
    "int[2] padding, int[2] dilation, int groups, str activation, float negative_slope) -> Tensor"
)

#: Output channels that may share input loads; 0 lets the packer choose by density.
ROW_CHOICES = (1, 4)

_MAGIC = 0x504B4631
_HEADER_WORDS = 16


@dataclass(frozen=True)
class FilterHeader:
    """The first words of a packed filter's index; see csrc/sparse_filter.h."""

    out_channels: int
    group_channels: int
    kernel_h: int
    kernel_w: int
    groups: int
    rows: int
    channel_block: int
    nnz: int
    num_ids: int

    @classmethod
    def read(cls, index: Tensor) -> FilterHeader:
        """Read the header of `index` (int32, 1-D)."""
        words = index[:_HEADER_WORDS].tolist()
        if len(words) < _HEADER_WORDS or words[0] != _MAGIC:
            raise InputError("the index is not a packed filter of this version.")
        return cls(*words[1:10])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The weight's shape [K, C / groups, R, S]."""
        return self.out_channels, self.group_channels, self.kernel_h, self.kernel_w

    @property
    def num_row_groups(self) -> int:
        """Row groups in one conv group."""
        return -(-(self.out_channels // self.groups) // self.rows)

    @property
    def num_channel_blocks(self) -> int:
        """Channel blocks in one conv group."""
        return -(-self.group_channels // self.channel_block)

    @property
    def num_patterns(self) -> int:
        """Non-empty sets of rows."""
        return (1 << self.rows) - 1

    @property
    def segment_words(self) -> int:
        """int32 words of a segment: two starts and a uint16 count per pattern."""
        return 2 + (self.num_patterns + 1) // 2

    @property
    def ids_begin(self) -> int:
        """The word at which the ids begin."""
        segments = self.groups * self.num_channel_blocks * self.num_row_groups
        return _HEADER_WORDS + segments * self.segment_words


@dataclass(frozen=True)
class _Taps:
    """Every tap that some row of its row group keeps, in stream order; one array entry a tap."""

    segment: np.ndarray[tuple[int], np.dtype[np.int64]]
    pattern: np.ndarray[tuple[int], np.dtype[np.int64]]
    identifier: np.ndarray[tuple[int], np.dtype[np.int64]]
    first_row: np.ndarray[tuple[int], np.dtype[np.int64]]
    position: np.ndarray[tuple[int], np.dtype[np.int64]]  # of the tap in a row of C / groups · R · S weights


@fallback("pack_filter")
def pack_filter_reference(
    weight: Tensor, mask: Tensor, groups: int, rows: int, channel_block: int
) -> tuple[Tensor, Tensor]:
    """Pack with numpy, word for word what the compiled packer writes; `rows` and `channel_block` must be given."""
    if rows not in ROW_CHOICES or channel_block < 1:
        raise InputError(
            f"pack_filter_reference needs rows in {ROW_CHOICES} and a channel_block of at least 1; "
            f"got {rows} and {channel_block}."
        )
    k, c, r, s = weight.shape
    header = FilterHeader(k, c, r, s, groups, rows, min(channel_block, c), int(mask.sum()), 0)
    taps = _sorted_taps(mask.cpu().numpy().reshape(k, -1), header)
    kept = (taps.pattern[:, None] >> np.arange(rows)) & 1 == 1  # [taps, rows]
    row = (taps.first_row[:, None] + np.arange(rows))[kept]
    flat = weight.detach().cpu().numpy().reshape(k, -1)
    values = flat[row, np.broadcast_to(taps.position[:, None], kept.shape)[kept]]

    segments = groups * header.num_channel_blocks * header.num_row_groups
    counts = np.zeros((segments, header.num_patterns), np.int64)
    np.add.at(counts, (taps.segment, taps.pattern - 1), 1)
    popcount = np.array([bin(p).count("1") for p in range(1, header.num_patterns + 1)])
    words = np.zeros((segments, header.segment_words), np.int32)
    words[1:, 0] = np.cumsum(counts.sum(1))[:-1]
    words[1:, 1] = np.cumsum((counts * popcount).sum(1))[:-1]
    words[:, 2:].view(np.uint16)[:, : header.num_patterns] = counts

    head = np.zeros(_HEADER_WORDS, np.int32)
    head[:10] = [_MAGIC, k, c, r, s, groups, rows, header.channel_block, header.nnz, len(taps.identifier)]
    ids = np.zeros(len(taps.identifier) + len(taps.identifier) % 2, np.uint16)
    ids[: len(taps.identifier)] = taps.identifier
    index = np.concatenate([head, words.ravel(), ids.view(np.int32)])
    return torch.from_numpy(index).to(weight.device), torch.from_numpy(values).to(weight.device)


def _sorted_taps(mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]], header: FilterHeader) -> _Taps:
    rows_per_group = header.out_channels // header.groups
    padded = np.zeros((header.groups, header.num_row_groups * header.rows, mask.shape[1]), bool)
    padded[:, :rows_per_group] = mask.reshape(header.groups, rows_per_group, -1)
    by_row_group = padded.reshape(header.groups, header.num_row_groups, header.rows, -1)
    patterns = (by_row_group * (1 << np.arange(header.rows))[:, None]).sum(2)  # [groups, row groups, taps]
    group, row_group, position = patterns.nonzero()
    pattern = patterns[group, row_group, position]
    block, identifier = np.divmod(position, header.channel_block * header.kernel_h * header.kernel_w)
    segment = (group * header.num_channel_blocks + block) * header.num_row_groups + row_group
    order = np.lexsort((identifier, pattern, segment))
    first_row = group * rows_per_group + row_group * header.rows
    return _Taps(segment[order], pattern[order], identifier[order], first_row[order], position[order])


def unpack_filter(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight [K, C / groups, R, S] with zeros where dropped, mask) of a packed filter."""
    header = FilterHeader.read(index)
    words = index.cpu().numpy()
    segments = words[_HEADER_WORDS : header.ids_begin].reshape(-1, header.segment_words)
    counts = segments[:, 2:].copy().view(np.uint16)[:, : header.num_patterns].astype(np.int64)
    identifier = words[header.ids_begin :].view(np.uint16)[: header.num_ids].astype(np.int64)
    segment, pattern = (a.ravel() for a in np.indices(counts.shape))
    segment, pattern = (np.repeat(a, counts.ravel()) for a in (segment, pattern + 1))

    group_block, row_group = np.divmod(segment, header.num_row_groups)
    group, block = np.divmod(group_block, header.num_channel_blocks)
    position = block * header.channel_block * header.kernel_h * header.kernel_w + identifier
    first_row = group * (header.out_channels // header.groups) + row_group * header.rows
    kept = (pattern[:, None] >> np.arange(header.rows)) & 1 == 1
    row = (first_row[:, None] + np.arange(header.rows))[kept]
    column = np.broadcast_to(position[:, None], kept.shape)[kept]
    weight = values.new_zeros(header.shape)
    mask = torch.zeros(header.shape, dtype=torch.bool, device=values.device)
    at = (torch.from_numpy(row), torch.from_numpy(column))
    weight.view(header.out_channels, -1)[at] = values
    mask.view(header.out_channels, -1)[at] = True
    return weight, mask


def activate(y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Apply "none" or "leaky_relu" as the kernel does; a slope of 0 is ReLU, which keeps -inf from becoming nan."""
    if activation == "none":
        return y
    return F.relu(y) if negative_slope == 0 else F.leaky_relu(y, negative_slope)


@fallback("packed_conv2d")
def packed_conv2d_reference(
    x: Tensor, index: Tensor, values: Tensor, bias: Tensor | None, weight_shape: list[int], *arguments: Any
) -> Tensor:
    """Unpack and run the masked reference: slow, for judging and for devices without a kernel."""
    *geometry, activation, negative_slope = arguments
    y = masked_conv2d_reference(x, *unpack_filter(index, values), bias, *geometry)
    return activate(y, activation, negative_slope)


@fake("packed_conv2d")
def _(
    x: Tensor, index: Tensor, values: Tensor, bias: Tensor | None, weight_shape: list[int], *arguments: Any
) -> Tensor:
    size = conv_output_size(x.shape, weight_shape, *arguments[:3])
    y = x.new_empty((x.shape[0], weight_shape[0], *size))
    return y.contiguous(memory_format=conv_memory_format(x))
