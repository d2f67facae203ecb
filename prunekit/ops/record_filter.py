"""Record filters: kept weights as a stream of records that a GPU's warps read like a small program.

    header, starts, records = pack_records(weight, mask, groups, window_taps=9)

csrc/record_filter.h describes the records. Packing depends on the filter and on how many taps one load brings, so one
record filter serves every input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError

#: Output channels of a row group: what a lane sums in registers (csrc/cuda/record_launch.h).
ROWS = 8
#: Segments of one row group that a block may stage together.
SLICE_CHOICES = (1, 2, 4, 8)

_SEGMENT_RECORDS = 48  # enough to hide a copy behind, few enough for two buffers of a dozen warps
_MAX_CHANNEL_BLOCK = 8
_Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class RecordHeader:
    """What launches need to know about a record filter, in the order of csrc/record_filter.h.

    Attributes:
        out_channels, group_channels, kernel_h, kernel_w, groups: the convolution's.
        channel_block: input channels of a segment.
        window_taps: taps that one load brings, 1 or 9.
        nnz: kept weights.
        num_records: all records, loads and ends included.
        longest: the longest run of records that 1, 2, 4 and 8 neighbouring segments of a row group take.
    """

    out_channels: int
    group_channels: int
    kernel_h: int
    kernel_w: int
    groups: int
    channel_block: int
    window_taps: int
    nnz: int
    num_records: int
    longest: tuple[int, int, int, int]

    def words(self) -> list[int]:
        """Flatten for the op."""
        *numbers, longest = astuple(self)
        return [*numbers, *longest]

    @classmethod
    def read(cls, words: Sequence[int]) -> RecordHeader:
        """Undo `words`."""
        if len(words) != 9 + len(SLICE_CHOICES):
            raise InputError(f"a record filter's header has {9 + len(SLICE_CHOICES)} numbers; got {len(words)}.")
        return cls(*words[:9], tuple(words[9:]))  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The weight's shape [K, C / groups, R, S]."""
        return self.out_channels, self.group_channels, self.kernel_h, self.kernel_w

    @property
    def rows_per_group(self) -> int:
        """Output channels of one conv group."""
        return self.out_channels // self.groups

    @property
    def num_row_groups(self) -> int:
        """Row groups in one conv group."""
        return -(-self.rows_per_group // ROWS)

    @property
    def num_channel_blocks(self) -> int:
        """Channel blocks in one conv group."""
        return -(-self.group_channels // self.channel_block)

    @property
    def num_segments(self) -> int:
        """Segments of all groups."""
        return self.groups * self.num_row_groups * self.num_channel_blocks

    @property
    def load_window(self) -> int:
        """The operation that brings a window's inputs."""
        return ROWS * self.window_taps

    @property
    def end_segment(self) -> int:
        """The operation that ends a segment."""
        return self.load_window + 1


def window_taps(kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """Return how many taps one load brings: all of a 3×3 kernel of stride 1 or 2, else one."""
    is_plain = tuple(dilation) == (1, 1) and tuple(stride) in ((1, 1), (2, 2))
    return 9 if tuple(kernel_size) == (3, 3) and is_plain else 1


def pack_records(
    weight: Tensor, mask: Tensor, groups: int, window_taps: int, channel_block: int = 0
) -> tuple[RecordHeader, Tensor, Tensor]:
    """Pack the weights that `mask` keeps.

    Args:
        weight: float32 [K, C / groups, R, S].
        mask: bool, of weight's shape, True = kept.
        groups: number of channel groups.
        window_taps: of the function of that name, for the geometry that the filter will run with.
        channel_block: input channels of a segment; 0 chooses by density.

    Returns:
        (header, starts int32 [segments + 1], records int32 [records, 2]), the tensors on weight's device.

    Raises:
        InputError: shapes or dtypes do not fit.
    """
    _check(weight, mask, groups, window_taps)
    k, c, r, s = weight.shape
    flat = mask.cpu().numpy()
    nnz = int(flat.sum())
    block = channel_block or _choose_channel_block(nnz / flat.size, r * s)
    header = RecordHeader(k, c, r, s, groups, min(block, c), window_taps, nnz, 0, (0, 0, 0, 0))
    row, channel, tap = (a.astype(np.int64) for a in flat.reshape(k, c, r * s).nonzero())
    bits = weight.detach().cpu().contiguous().numpy().view(np.int32).reshape(k, c, r * s)[row, channel, tap]

    segment, window, argument, slot = _places(header, row, channel, tap)
    loads = np.unique(np.stack([segment, window, argument]), axis=1)
    counts = np.bincount(segment, minlength=header.num_segments) + np.bincount(loads[0], minlength=header.num_segments)
    ends = np.repeat(np.arange(header.num_segments), 1 + (counts + 1) % 2)
    stream = np.concatenate(
        [
            np.stack(
                [loads[0], loads[1], np.zeros_like(loads[0]), np.full_like(loads[0], header.load_window), loads[2]]
            ),
            np.stack([segment, window, np.ones_like(segment), slot, bits]),
            np.stack([ends, np.full_like(ends, _LAST), ends * 0, np.full_like(ends, header.end_segment), ends * 0]),
        ],
        axis=1,
    )
    order = np.lexsort((stream[3], stream[2], stream[1], stream[0]))
    records = np.ascontiguousarray(stream[3:, order].T.astype(np.int32))
    starts = np.zeros(header.num_segments + 1, np.int64)
    starts[1:] = np.cumsum(np.bincount(stream[0], minlength=header.num_segments))
    header = RecordHeader(
        k, c, r, s, groups, header.channel_block, window_taps, nnz, len(records), _longest(header, starts)
    )
    device = weight.device
    return header, torch.from_numpy(starts.astype(np.int32)).to(device), torch.from_numpy(records).to(device)


_LAST = np.iinfo(np.int64).max


def _check(weight: Tensor, mask: Tensor, groups: int, window_taps: int) -> None:
    if weight.dim() != 4 or weight.dtype != torch.float32 or not 0 < weight.numel() < 2**29:
        raise InputError(
            f"pack_records expects a float32 weight [K, C / groups, R, S] of 1 to 2^29 elements; "
            f"got {weight.dtype} of shape {tuple(weight.shape)}."
        )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise InputError(
            f"pack_records expects a bool mask of the weight's shape {tuple(weight.shape)}; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"output channels {weight.shape[0]} are not divisible by groups {groups}.")
    if window_taps not in (1, 9) or (window_taps == 9 and tuple(weight.shape[2:]) != (3, 3)):
        raise InputError(f"window_taps must be 1, or 9 for a 3×3 kernel; got {window_taps}.")
    if max(weight.shape[2:]) > 256:
        raise InputError(f"record filters hold kernels of up to 256×256; got {tuple(weight.shape[2:])}.")


def _choose_channel_block(density: float, taps: int) -> int:
    per_channel = ROWS * taps * density + 1
    return max(1, min(_MAX_CHANNEL_BLOCK, round(_SEGMENT_RECORDS / per_channel)))


def _places(header: RecordHeader, row: _Array, channel: _Array, tap: _Array) -> tuple[_Array, _Array, _Array, _Array]:
    """Return each kept weight's segment, its window's place in the segment, that window's argument, and its slot."""
    group, row_in_group = np.divmod(row, header.rows_per_group)
    row_group, row_in_tile = np.divmod(row_in_group, ROWS)
    block, channel_in_block = np.divmod(channel, header.channel_block)
    segment = (group * header.num_row_groups + row_group) * header.num_channel_blocks + block
    if header.window_taps > 1:
        return segment, channel_in_block, channel_in_block << 16, row_in_tile * header.window_taps + tap
    tap_h, tap_w = np.divmod(tap, header.kernel_w)
    taps = header.kernel_h * header.kernel_w
    return segment, channel_in_block * taps + tap, channel_in_block << 16 | tap_h << 8 | tap_w, row_in_tile


def _longest(header: RecordHeader, starts: _Array) -> tuple[int, int, int, int]:
    begins = starts[:-1].reshape(-1, header.num_channel_blocks)
    ends = starts[1:].reshape(-1, header.num_channel_blocks)
    runs = []
    for slices in SLICE_CHOICES:
        first = np.arange(0, header.num_channel_blocks, slices)
        last = np.minimum(first + slices, header.num_channel_blocks) - 1
        runs.append(int((ends[:, last] - begins[:, first]).max()))
    return runs[0], runs[1], runs[2], runs[3]


def unpack_records(header: RecordHeader, starts: Tensor, records: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight [K, C / groups, R, S] with zeros where dropped, mask) of a record filter, by reading its records.

    Raises:
        InputError: the tensors are not the ones of this header.
    """
    if len(starts) != header.num_segments + 1 or len(records) != header.num_records:
        raise InputError(
            f"the header tells of {header.num_segments} segments and {header.num_records} records; "
            f"got {len(starts) - 1} and {len(records)}."
        )
    stream = records.cpu().numpy()
    operation, argument = stream[:, 0].astype(np.int64), stream[:, 1]
    segment = np.repeat(np.arange(header.num_segments), np.diff(starts.cpu().numpy()))
    is_load, is_slot = operation == header.load_window, operation < header.load_window
    last_load = np.maximum.accumulate(np.where(is_load, np.arange(len(stream)), -1))
    window = argument[last_load[is_slot]].astype(np.int64)
    group_row, block = np.divmod(segment[is_slot], header.num_channel_blocks)
    group, row_group = np.divmod(group_row, header.num_row_groups)
    row_in_tile, window_tap = np.divmod(operation[is_slot], header.window_taps)
    row = group * header.rows_per_group + row_group * ROWS + row_in_tile
    channel = block * header.channel_block + (window >> 16)
    tap = window_tap + (window >> 8 & 255) * header.kernel_w + (window & 255)
    weight = np.zeros((header.out_channels, header.group_channels, header.kernel_h * header.kernel_w), np.float32)
    mask = np.zeros(weight.shape, bool)
    weight[row, channel, tap] = argument[is_slot].view(np.float32)
    mask[row, channel, tap] = True
    return (
        torch.from_numpy(weight.reshape(header.shape)).to(records.device),
        torch.from_numpy(mask.reshape(header.shape)).to(records.device),
    )
