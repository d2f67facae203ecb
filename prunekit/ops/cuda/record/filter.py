"""Record filters: kept weights as a stream of records that a GPU's warps read like a small program.

    packed = pack_records(weight, mask, groups, window_taps=9, chunk_channels=8, slices=2)

csrc/cuda/record/filter.h describes the records. A record filter runs on every input size; how it is cut into chunks and
slices is chosen for one size and device (`prunekit.ops.cuda.record.cost`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.cuda.packed_filter import FilterHeader, FilterPattern, PackedFilter, scattered

#: Output channels of a row group: what a lane sums in registers (csrc/cuda/record/filter.h).
ROWS = 8
#: Pixels side by side in a lane's tile (csrc/cuda/record/launch.h).
TILE_W = 2
#: Input channels that one load brings for a 1×1 kernel.
WINDOW_CHANNELS = 2
#: Fewer weights than this, and kernels of up to so many taps a side.
MAX_WEIGHTS, MAX_KERNEL = 2**29, 256

_Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class RecordHeader(FilterHeader):
    """What launches need to know about a record filter, in the order of csrc/cuda/record/filter.h.

    Attributes:
        out_channels, group_channels, kernel_h, kernel_w, groups: the convolution's.
        chunk_channels: input channels that a block stages at once.
        slices: warps that share a row group.
        window_taps: taps that one load brings, 1, 2 or 9.
        nnz: kept weights.
        num_records: all records, loads and ends included.
        longest: records of the longest run, one row group's in one chunk.
    """

    FORMAT = "record"

    slices: int
    window_taps: int
    nnz: int
    num_records: int
    longest: int

    @property
    def rows_per_group(self) -> int:
        """Output channels of one conv group."""
        return self.out_channels // self.groups

    @property
    def num_row_groups(self) -> int:
        """Row groups in one conv group."""
        return -(-self.rows_per_group // ROWS)

    @property
    def num_chunks(self) -> int:
        """Chunks of one conv group."""
        return -(-self.group_channels // self.chunk_channels)

    @property
    def num_runs(self) -> int:
        """Runs of all groups."""
        return self.groups * self.num_row_groups * self.num_chunks

    @property
    def load_window(self) -> int:
        """The operation that brings a window's inputs."""
        return ROWS * self.window_taps

    @property
    def end_segment(self) -> int:
        """The operation that ends a segment."""
        return self.load_window + 1


@dataclass(frozen=True)
class RecordFilter(PackedFilter):
    """A filter packed by `pack_records`.

    Attributes:
        header: see there.
        starts: int32 [runs · slices + 1].
        records: int32 [records, 2].
        rows: int32 [K].
    """

    HEADER, WEIGHTS = RecordHeader, "records"

    header: RecordHeader
    starts: Tensor
    records: Tensor
    rows: Tensor

    @classmethod
    def stored(cls, weights: Tensor) -> Tensor:
        """Return the bits of kept weights."""
        return weights.view(torch.int32)

    def unpack(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        header = self.header
        num_segments = header.num_runs * header.slices
        if (len(self.starts), len(self.records), len(self.rows)) != (
            num_segments + 1,
            header.num_records,
            header.out_channels,
        ):
            raise InputError(
                f"the record filter's header tells of {num_segments} segments, {header.num_records} records and "
                f"{header.out_channels} rows; got {len(self.starts) - 1}, {len(self.records)} and {len(self.rows)}."
            )
        stream = self.records.cpu().numpy()
        operation, argument = np.roll(stream[:, 0], 1).astype(np.int64), stream[:, 1]
        run = np.repeat(np.arange(num_segments), np.diff(self.starts.cpu().numpy())) // header.slices
        is_load, is_slot = operation == header.load_window, operation < header.load_window
        last_load = np.maximum.accumulate(np.where(is_load, np.arange(len(stream)), -1))
        window = argument[last_load[is_slot]].astype(np.int64)
        group_row, chunk = np.divmod(run[is_slot], header.num_chunks)
        group, row_group = np.divmod(group_row, header.num_row_groups)
        row_in_tile, window_tap = np.divmod(operation[is_slot], header.window_taps)
        row = self.rows.cpu().numpy()[group * header.rows_per_group + row_group * ROWS + row_in_tile]
        channel = chunk * header.chunk_channels + (window >> 16)
        tap = (window >> 8 & 255) * header.kernel_w + (window & 255)
        if header.window_taps == WINDOW_CHANNELS:
            channel += window_tap
        else:
            tap += window_tap
        weight, mask = scattered(header, (row, channel, tap), torch.from_numpy(argument[is_slot].view(np.float32)))
        return weight.to(self.records.device), mask.to(self.records.device)


def window_taps(kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """Return how many taps one load brings: a 3×3 kernel's of stride 1 or 2, those of 2 channels of a 1×1, else 1."""
    if tuple(kernel_size) == (1, 1) and tuple(stride) == (1, 1):
        return WINDOW_CHANNELS
    is_plain = tuple(dilation) == (1, 1) and tuple(stride) in ((1, 1), (2, 2))
    return 9 if tuple(kernel_size) == (3, 3) and is_plain else 1


def pack_records(
    weight: Tensor, mask: Tensor, groups: int, window_taps: int, chunk_channels: int, slices: int
) -> RecordFilter:
    """Pack the weights that `mask` keeps.

    Args:
        weight: float32 [K, C / groups, R, S].
        mask: bool, of weight's shape, True = kept.
        groups: number of channel groups.
        window_taps: of the function of that name, for the geometry that the filter will run with.
        chunk_channels: input channels that a block stages at once; `record_cost` chooses it for a size and a device.
        slices: warps that share a row group, likewise.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    if weight.dim() != 4 or weight.dtype != torch.float32 or weight.shape != mask.shape:
        raise InputError(
            f"pack_records expects a float32 weight [K, C / groups, R, S] and a bool mask of its shape; "
            f"got {weight.dtype} of shape {tuple(weight.shape)} and {mask.dtype} of shape {tuple(mask.shape)}."
        )
    pattern = pack_pattern(mask, groups, window_taps, chunk_channels, slices)
    packed: RecordFilter = pattern.to(weight.device).fill(weight)
    return packed


def pack_pattern(
    mask: Tensor, groups: int, window_taps: int, chunk_channels: int, slices: int, sources: Tensor | None = None
) -> FilterPattern:
    """Pack the places of the weights that `mask` keeps; `FilterPattern.fill` adds the weights, float32.

    Args:
        mask: bool [K, C / groups, R, S], True = kept.
        groups: as in `pack_records`, as are `window_taps`, `chunk_channels` and `slices`.
        window_taps: see there.
        chunk_channels: see there.
        slices: see there.
        sources: int64 of mask's shape, the element of the weight that belongs there; None: the one in the same place.

    Returns:
        The pattern, on the CPU.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    _check(mask, groups, window_taps)
    if chunk_channels < 1 or not 1 <= slices <= _MAX_SLICES:
        raise InputError(
            f"chunk_channels must be at least 1 and slices 1 to {_MAX_SLICES}; got {chunk_channels} and {slices}."
        )
    k, c, r, s = mask.shape
    if window_taps == WINDOW_CHANNELS and chunk_channels % WINDOW_CHANNELS:
        raise InputError(f"chunk_channels must be a multiple of {WINDOW_CHANNELS} here; got {chunk_channels}.")
    kept = mask.cpu().numpy().reshape(k, c, r * s)
    header = RecordHeader(k, c, r, s, groups, chunk_channels, slices, window_taps, int(kept.sum()), 0, 0)
    rows = _row_order(kept.sum((1, 2)), groups)
    row, channel, tap = (a.astype(np.int64) for a in kept[rows].nonzero())
    elements = np.arange(kept.size) if sources is None else sources.cpu().numpy()
    starts, records = _stream(
        header, *_places(header, row, channel, tap), elements.reshape(kept.shape)[rows[row], channel, tap]
    )
    runs = starts[::slices]
    header = replace(header, num_records=len(records), longest=int(np.diff(runs).max()))
    slots = (np.roll(records[:, 0], 1) < header.load_window).nonzero()[0]
    carried = records[slots, 1].copy()
    records[slots, 1] = 0
    tensors = [torch.from_numpy(a.astype(np.int32)) for a in (starts, records, rows)]
    blank = RecordFilter(header, *tensors)
    return FilterPattern(blank, torch.from_numpy(2 * slots + 1), torch.from_numpy(carried))


_LAST = np.iinfo(np.int64).max
_MAX_SLICES = 16  # csrc/cuda/record/launch.h: as many warps as a block has


def _row_order(kept_in_row: _Array, groups: int) -> _Array:
    """Order rows inside their conv group, those with most weights first."""
    per_group = kept_in_row.reshape(groups, -1)
    order = np.argsort(-per_group, axis=1, kind="stable") + np.arange(groups)[:, None] * per_group.shape[1]
    return order.ravel()


def _stream(
    header: RecordHeader, run: _Array, window: _Array, argument: _Array, slot: _Array, source: _Array
) -> tuple[_Array, _Array]:
    """Return (starts, records) of the weights in `run`, its `window`, and that one's `slot`; records hold sources."""
    order = np.lexsort((slot, window, run))
    run, window, argument, slot, source = (a[order] for a in (run, window, argument, slot, source))
    segment = _cut_runs(header, run, window)
    loads = np.unique(np.stack([segment, window, argument]), axis=1)
    num_segments = header.num_runs * header.slices
    counts = np.bincount(segment, minlength=num_segments) + np.bincount(loads[0], minlength=num_segments)
    begins = np.arange(num_segments)
    ends = np.repeat(begins, 1 + counts % 2)
    nothing, end = np.zeros_like(ends), np.full_like(ends, header.end_segment)
    # Columns in the order of sorting: segment, window, load before slots, operation; then the argument.
    stream = np.concatenate(
        [
            [begins, np.full_like(begins, -1), begins * 0, np.full_like(begins, header.end_segment), begins * 0],
            [loads[0], loads[1], loads[0] * 0, np.full_like(loads[0], header.load_window), loads[2]],
            [segment, window, np.ones_like(segment), slot, source],
            [ends, np.full_like(ends, _LAST), nothing, end, nothing],
        ],
        axis=1,
    )
    stream = stream[:, np.lexsort((stream[3], stream[2], stream[1], stream[0]))]
    starts = np.concatenate([[0], np.cumsum(np.bincount(stream[0], minlength=num_segments))])
    # An operation stands one record before its argument; the last one of a segment names none, so it takes END_SEGMENT.
    return starts, np.ascontiguousarray(np.stack([np.roll(stream[3], -1), stream[4]], axis=1))


def _cut_runs(header: RecordHeader, run: _Array, window: _Array) -> _Array:
    """Return each weight's segment: its run's weights and loads, in order, in `slices` parts of equal length."""
    if not len(run):
        return run
    is_new_window = np.concatenate([[True], (run[1:] != run[:-1]) | (window[1:] != window[:-1])])
    done = np.cumsum(1 + is_new_window)  # records up to and with this weight's
    length = np.bincount(run, weights=1 + is_new_window, minlength=header.num_runs).astype(np.int64)
    before_run = np.concatenate([[0], np.cumsum(length)])[run]
    segment: _Array = run * header.slices + (done - 1 - before_run) * header.slices // length[run]
    return segment


def _check(mask: Tensor, groups: int, window_taps: int) -> None:
    if mask.dim() != 4 or mask.dtype != torch.bool or not 0 < mask.numel() < MAX_WEIGHTS:
        raise InputError(
            f"a record filter is packed of a bool mask [K, C / groups, R, S] of 1 to 2^29 elements; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if groups < 1 or mask.shape[0] % groups:
        raise InputError(f"output channels {mask.shape[0]} are not divisible by groups {groups}.")
    kernels = {9: (3, 3), WINDOW_CHANNELS: (1, 1), 1: tuple(mask.shape[2:])}
    if kernels.get(window_taps) != tuple(mask.shape[2:]):
        raise InputError(f"window_taps must be 1, 9 for a 3×3 or 2 for a 1×1 kernel; got {window_taps}.")
    if max(mask.shape[2:]) > MAX_KERNEL:
        raise InputError(f"record filters hold kernels of up to 256×256; got {tuple(mask.shape[2:])}.")


def _places(header: RecordHeader, row: _Array, channel: _Array, tap: _Array) -> tuple[_Array, _Array, _Array, _Array]:
    """Return each kept weight's run, its window's place in the run, that window's argument, and its slot."""
    group, row_in_group = np.divmod(row, header.rows_per_group)
    row_group, row_in_tile = np.divmod(row_in_group, ROWS)
    chunk, channel_in_chunk = np.divmod(channel, header.chunk_channels)
    run = (group * header.num_row_groups + row_group) * header.num_chunks + chunk
    if header.window_taps == WINDOW_CHANNELS:
        quad, place = np.divmod(channel_in_chunk, WINDOW_CHANNELS)
        return run, quad, quad * WINDOW_CHANNELS << 16, row_in_tile * WINDOW_CHANNELS + place
    if header.window_taps > 1:
        return run, channel_in_chunk, channel_in_chunk << 16, row_in_tile * header.window_taps + tap
    tap_h, tap_w = np.divmod(tap, header.kernel_w)
    taps = header.kernel_h * header.kernel_w
    return run, channel_in_chunk * taps + tap, channel_in_chunk << 16 | tap_h << 8 | tap_w, row_in_tile
