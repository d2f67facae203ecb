"""Bitmap filters: fragment filters of which only kept weights and a bitmap are stored.

    packed = pack_bitmaps(weight, mask, groups, chunk_channels=16)

csrc/cuda/bitmap/filter.h describes the pieces. A bitmap filter runs on every input size, stride and dilation; how many
channels make a chunk is chosen for one size and device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.cuda.condensed.filter import (
    STEP_COLUMNS,
    FragmentFilter,
    FragmentHeader,
    fragment_packer,
    pack_fragments,
)
from prunekit.ops.cuda.packed_filter import FilterPattern, PackedFilter

#: int32 words of a step, and values that each run is filled up to (csrc/cuda/bitmap/filter.h).
RECORD_WORDS = 20
ALIGNMENT = 8
_WORDS = 8  # of bitmap in a step
#: Rows of a kernel, tap columns in a chunk, and one more than the weights of a run, which halfwords count.
MOST_TAP_ROWS, MOST_PLANES, MOST_VALUES = 16, 1 << 12, 1 << 16
_DROPPED = -0x8000  # the bits of -0.0, as fragment filters have it


@dataclass(frozen=True)
class BitmapHeader(FragmentHeader):
    """What launches need to know about a bitmap filter, in the order of csrc/cuda/bitmap/filter.h.

    Attributes:
        out_channels, group_channels, kernel_h, kernel_w, groups: the convolution's.
        chunk_channels: input channels that a block stages at once.
        nnz: kept weights.
        num_steps: steps of all runs.
        longest: steps of the longest run, one row group's in one chunk.
        num_aligned: values of all runs, in eights.
        longest_aligned: values of the run that has most, in eights.
    """

    FORMAT = "bitmap"

    num_aligned: int
    longest_aligned: int


@dataclass(frozen=True)
class BitmapFilter(PackedFilter):
    """A filter packed by `pack_bitmaps`.

    Attributes:
        header: see there.
        starts: int32 [runs + 1, 2]: the first step, the first eight values.
        records: int32 [steps, 20].
        values: [8 · num_aligned] in the weight's dtype.
        rows: int32 [row groups · 16], the output channel of each row; -1 where there is none.
    """

    HEADER, WEIGHTS = BitmapHeader, "values"

    header: BitmapHeader
    starts: Tensor
    records: Tensor
    values: Tensor
    rows: Tensor

    def unpack(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return expand_bitmaps(self).unpack()


def pack_bitmaps(weight: Tensor, mask: Tensor, groups: int, chunk_channels: int) -> BitmapFilter:
    """Pack the weights that `mask` keeps.

    Args:
        weight: float16 or bfloat16 [K, C / groups, R, S], R at most 16; kept weights are finite.
        mask: bool, of weight's shape, True = kept.
        groups: number of channel groups.
        chunk_channels: input channels that a block stages at once; times S at most 4096, and no 16 output channels may
            keep 2^16 weights in a chunk.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    return compress_fragments(pack_fragments(weight, mask, groups, chunk_channels))


def bitmap_packer(mask: Tensor, groups: int, sources: Tensor | None = None) -> Callable[[int], FilterPattern]:
    """Condense a mask; return what packs its places for a number of channels a chunk; see `SparseKernel.packer`.

    Raises:
        InputError: shapes, dtypes or numbers do not fit, now or for the chunk.
    """
    pack_fragment = fragment_packer(mask, groups, sources)

    def pack(chunk_channels: int) -> FilterPattern:
        pattern = pack_fragment(chunk_channels)
        assert pattern.slots is not None
        # Zeros are kept: any bits but those of what is dropped.
        compressed, places = _compress(pattern.fill(torch.zeros(mask.numel(), dtype=torch.float16)))
        # Of each value its element of the weight: both stand in the order of the fragments' elements.
        element = pattern.sources[pattern.slots.argsort()].numpy()
        of_value = np.full(len(compressed.values), -1)
        of_value[places] = np.arange(len(places))
        last = np.maximum.accumulate(of_value)  # what fills a run up repeats the value before it
        blank = replace(compressed, values=compressed.values[:0])
        return FilterPattern(blank, None, torch.from_numpy(element[last]))

    return pack


def compress_fragments(packed: FragmentFilter) -> BitmapFilter:
    """Leave out what a fragment filter has dropped.

    Raises:
        InputError: the filter's sizes are none that a bitmap filter can name.
    """
    return _compress(packed)[0]


def _compress(packed: FragmentFilter) -> tuple[BitmapFilter, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Return the filter, and of its kept weights, in the order of the fragments' elements, the place in its values."""
    header = packed.header
    planes = min(header.chunk_channels, header.group_channels) * header.kernel_w
    if header.kernel_h > MOST_TAP_ROWS or planes > MOST_PLANES:
        raise InputError(
            f"a bitmap filter takes kernels of up to {MOST_TAP_ROWS} rows and {MOST_PLANES} tap columns in a chunk; "
            f"got {header.kernel_h} and {planes}."
        )
    bits = packed.fragments.cpu().view(torch.int16).numpy().reshape(-1, 32, 8)
    is_kept = bits != _DROPPED
    first_step = packed.starts.cpu().numpy().astype(np.int64)

    in_word = is_kept.reshape(-1, _WORDS, 32).sum(2)  # [steps, words]
    before = np.concatenate([[0], np.cumsum(in_word)])  # the last: all
    first_value = before[first_step * _WORDS]  # [runs + 1]
    run_values = np.diff(first_value)
    if run_values.max(initial=0) >= MOST_VALUES:
        raise InputError(
            f"a bitmap filter takes up to {MOST_VALUES - 1} weights of 16 output channels in a chunk; got "
            f"{run_values.max()} in {header.chunk_channels} input channels: use smaller chunks."
        )
    run_of_step = np.repeat(np.arange(header.num_runs), np.diff(first_step))
    word_start = before[:-1].reshape(-1, _WORDS) - first_value[run_of_step, None]

    eights = -(-run_values // ALIGNMENT)
    first_eight = np.concatenate([[0], np.cumsum(eights)])
    run_of_value = np.repeat(np.arange(header.num_runs), run_values)
    shift = first_eight[:-1] * ALIGNMENT - first_value[:-1]
    values = np.zeros(int(first_eight[-1]) * ALIGNMENT, np.int16)
    places = np.arange(len(run_of_value)) + shift[run_of_value]
    values[places] = bits[is_kept]

    column = packed.columns.cpu().numpy().astype(np.int64)
    code = ((column >> 16) * header.kernel_w + (column & 255)) << 4 | (column >> 8 & 255)
    records = np.zeros((header.num_steps, RECORD_WORDS), np.int32)
    records[:, :_WORDS] = np.packbits(is_kept, axis=2, bitorder="little").reshape(-1, 32).view(np.int32)
    records[:, _WORDS : 2 * _WORDS] = code.astype(np.uint16).reshape(-1, STEP_COLUMNS).view(np.int32)
    records[:, 2 * _WORDS :] = word_start.astype(np.uint16).view(np.int32)

    device = packed.fragments.device
    starts = np.stack([first_step, first_eight], 1).astype(np.int32)
    aligned = len(values) // ALIGNMENT, int(eights.max(initial=0))
    compressed = BitmapFilter(
        BitmapHeader.read([*header.words(), *aligned]),
        torch.from_numpy(starts).to(device),
        torch.from_numpy(records).to(device),
        torch.from_numpy(values).view(packed.fragments.dtype).to(device),
        packed.rows,
    )
    return compressed, places


def expand_bitmaps(packed: BitmapFilter) -> FragmentFilter:
    """Undo `compress_fragments`, by reading the pieces as the kernel does.

    Raises:
        InputError: the tensors are not the ones of the header.
    """
    header = packed.header
    sizes = [len(t) for t in (packed.starts, packed.records, packed.values)]
    expected = [header.num_runs + 1, header.num_steps, header.num_aligned * ALIGNMENT]
    if sizes != expected:
        raise InputError(
            f"the bitmap filter's header tells of {expected[0]} starts, {expected[1]} steps and {expected[2]} values; "
            f"got {sizes[0]}, {sizes[1]} and {sizes[2]}."
        )
    starts = packed.starts.cpu().numpy().astype(np.int64)
    records = np.ascontiguousarray(packed.records.cpu().numpy())
    bitmap = np.ascontiguousarray(records[:, :_WORDS]).view(np.uint8)  # [steps, lanes]
    is_kept = np.unpackbits(bitmap, axis=1, bitorder="little").reshape(-1, _WORDS, 32) != 0
    word_start = np.ascontiguousarray(records[:, 2 * _WORDS :]).view(np.uint16).astype(np.int64)
    run = np.repeat(np.arange(header.num_runs), np.diff(starts[:, 0]))
    place = (starts[run, 1] * ALIGNMENT)[:, None, None] + word_start[:, :, None] + is_kept.cumsum(2) - is_kept
    bits = np.full(is_kept.shape, _DROPPED, np.int16)
    values = packed.values.cpu().view(torch.int16).numpy()[place[is_kept]]
    bits[is_kept] = np.where(values == _DROPPED, 0, values)  # a kept -0.0 is +0.0 in a fragment filter

    code = np.ascontiguousarray(records[:, _WORDS : 2 * _WORDS]).view(np.uint16).astype(np.int64)
    channel, tap_column = np.divmod(code >> 4, header.kernel_w)
    columns = channel << 16 | (code & 15) << 8 | tap_column
    device = packed.values.device
    return FragmentFilter(
        FragmentHeader(*header.words()[:-2]),
        packed.starts[:, 0].contiguous(),
        torch.from_numpy(columns.astype(np.int32)).to(device),
        torch.from_numpy(bits.reshape(-1, 32, 8)).view(packed.values.dtype).to(device),
        packed.rows,
    )
