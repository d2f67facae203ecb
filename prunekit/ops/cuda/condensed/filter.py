"""Fragment filters: a condensed filter cut into the pieces that the tensor cores of NVIDIA GPUs read.

    packed = pack_fragments(weight, mask, groups, chunk_channels=16)

csrc/cuda/condensed/filter.h describes the pieces. A fragment filter runs on every input size, stride and dilation; how
many channels make a chunk is chosen for one size and device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.cuda.packed_filter import FilterHeader, FilterPattern, PackedFilter, pattern_of, scattered

if TYPE_CHECKING:
    from prunekit_kernels.condensed_filter import CondensedFilter

#: Output channels of a row group (csrc/cuda/condensed/filter.h), which are those of a condensed filter.
ROWS = 16

#: Columns of a step (csrc/cuda/condensed/filter.h).
STEP_COLUMNS = 16
DTYPES = (torch.float16, torch.bfloat16)
#: Fewer input channels than this, of all groups.
MAX_CHANNELS = 2**15
_DROPPED = -0x8000  # the bits of -0.0
_BANKS = 8  # of 16 bytes, in a line of shared memory

_Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class FragmentHeader(FilterHeader):
    """What launches need to know about a fragment filter, in the order of csrc/cuda/condensed/filter.h.

    Attributes:
        out_channels, group_channels, kernel_h, kernel_w, groups: the convolution's.
        chunk_channels: input channels that a block stages at once.
        nnz: kept weights.
        num_steps: steps of all runs.
        longest: steps of the longest run, one row group's in one chunk.
    """

    FORMAT = "fragment"

    nnz: int
    num_steps: int
    longest: int

    @property
    def num_row_groups(self) -> int:
        """Row groups in one conv group."""
        return -(-self.out_channels // self.groups // ROWS)

    @property
    def num_chunks(self) -> int:
        """Chunks of one conv group."""
        return -(-self.group_channels // self.chunk_channels)

    @property
    def num_runs(self) -> int:
        """Runs of all groups."""
        return self.groups * self.num_row_groups * self.num_chunks


@dataclass(frozen=True)
class FragmentFilter(PackedFilter):
    """A filter packed by `pack_fragments`.

    Attributes:
        header: see there.
        starts: int32 [runs + 1].
        columns: int32 [steps, 16].
        fragments: [steps, 32, 8] in the weight's dtype; a weight that is not kept is -0.0, a kept zero +0.0.
        rows: int32 [row groups · 16], the output channel of each row; -1 where there is none.
    """

    HEADER, WEIGHTS = FragmentHeader, "fragments"

    header: FragmentHeader
    starts: Tensor
    columns: Tensor
    fragments: Tensor
    rows: Tensor

    @classmethod
    def stored(cls, weights: Tensor) -> Tensor:
        """Return kept weights: adding +0.0 makes a kept -0.0 the +0.0 by which kernels know that it is kept."""
        return weights.add_(0.0)

    def unpack(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        header = self.header
        sizes = [len(t) for t in (self.starts, self.columns, self.fragments, self.rows)]
        num_rows = header.groups * header.num_row_groups * ROWS
        if sizes != [header.num_runs + 1, header.num_steps, header.num_steps, num_rows]:
            raise InputError(
                f"the fragment filter's header tells of {header.num_runs} runs, {header.num_steps} steps and "
                f"{num_rows} rows; got {sizes[0] - 1}, {sizes[1]} columns, {sizes[2]} fragments and {sizes[3]}."
            )
        return unpacked(self, *_kept(self))


def pack_fragments(weight: Tensor, mask: Tensor, groups: int, chunk_channels: int) -> FragmentFilter:
    """Pack the weights that `mask` keeps.

    Args:
        weight: float16 or bfloat16 [K, C / groups, R, S]; kept weights are finite.
        mask: bool, of weight's shape, True = kept.
        groups: number of channel groups.
        chunk_channels: input channels that a block stages at once.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    if weight.dtype not in DTYPES:
        raise InputError(f"pack_fragments expects a float16 or bfloat16 weight; got {weight.dtype}.")
    if chunk_channels < 1:
        raise InputError(f"chunk_channels must be at least 1; got {chunk_channels}.")
    return cut_into_steps(condensed_filter(weight, mask, groups), chunk_channels)


def fragment_packer(mask: Tensor, groups: int, sources: Tensor | None = None) -> Callable[[int], FilterPattern]:
    """Condense a mask; return what packs its places for a number of channels a chunk; see `SparseKernel.packer`.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    condensed = condensed_filter(torch.ones(mask.shape, dtype=torch.float16), mask, groups)

    def pack(chunk_channels: int) -> FilterPattern:
        packed = cut_into_steps(condensed, chunk_channels)
        return without_weights(packed, *_kept(packed), sources=sources)

    return pack


def without_weights(packed: Any, slots: _Array, *where: _Array, sources: Tensor | None) -> FilterPattern:
    """Return the pattern of a filter of fragments, its weights replaced by the bits of -0.0.

    Args:
        packed: has `fragments`.
        slots: of its kept weights' elements.
        where: output channel, input channel of its group and tap of each.
        sources: int64 of the mask's shape, the element of the weight that belongs there; None: the one in the same
            place.
    """
    blank = replace(packed, fragments=torch.full(packed.fragments.shape, _DROPPED, dtype=torch.int16))
    return pattern_of(blank, slots, where, sources)


def unpacked(packed: Any, slots: _Array, *where: _Array) -> tuple[Tensor, Tensor]:
    """Return the weight and the mask of a filter of fragments; for the arguments see `without_weights`."""
    weight, mask = scattered(packed.header, where, packed.fragments.cpu().flatten()[torch.from_numpy(slots)])
    return weight.to(packed.fragments.device), mask.to(packed.fragments.device)


def condensed_filter(weight: Tensor, mask: Tensor, groups: int) -> CondensedFilter:
    """Condense a filter for the formats that begin so; InputError where shapes or numbers do not fit.

    Args:
        weight: [K, C / groups, R, S].
        mask: bool of the same shape, True where a weight is kept.
        groups: of the convolution.
    """
    # The one implementation of condensing is that of the Triton kernels, whose package stands without this one; read
    # here, at the first packing, so that prunekit stands without theirs.
    from prunekit_kernels.condensed_filter import condense

    try:
        return condense(weight, mask, groups)
    except ValueError as error:
        raise InputError(str(error)) from error


def cut_into_steps(condensed: CondensedFilter, chunk_channels: int) -> FragmentFilter:
    """Cut a condensed filter into chunks of channels: several may be made of one, to compare them on a device.

    Args:
        condensed: of `prunekit_kernels.condense`, float16 or bfloat16.
        chunk_channels: input channels that a block stages at once.
    """
    k, c, r, s = condensed.shape
    code = condensed.columns.cpu().numpy().astype(np.int64)
    row_group = np.repeat(np.arange(condensed.num_row_groups), np.diff(condensed.starts.cpu().numpy()))
    is_first = np.ones(len(code), bool)  # padding repeats the tap before it
    is_first[1:] = (code[1:] != code[:-1]) | (row_group[1:] != row_group[:-1])
    source = is_first.nonzero()[0]
    code, row_group = code[source], row_group[source]
    chunk, channel = np.divmod((code >> 16) % c, chunk_channels)
    run = row_group * -(-c // chunk_channels) + chunk
    column = channel << 16 | code & 0xFFFF
    order = _bank_order(run, column, s)
    run, column, source = run[order], column[order], source[order]

    header = FragmentHeader(k, c, r, s, condensed.groups, chunk_channels, condensed.nnz, 0, 0)
    length = np.bincount(run, minlength=header.num_runs)
    steps = -(-length // STEP_COLUMNS)
    starts = np.concatenate([[0], np.cumsum(steps)])
    header = replace(header, num_steps=int(starts[-1]), longest=int(steps.max()))
    place = starts[run] * STEP_COLUMNS + _rank(run)
    columns = np.zeros(header.num_steps * STEP_COLUMNS, np.int64)
    columns[place] = column
    # Padding repeats the run's last tap: its inputs are at hand.
    last_place = np.maximum.accumulate(np.where(_marked(place, len(columns)), np.arange(len(columns)), 0))
    columns = columns[last_place]
    bits = np.full((header.num_steps * STEP_COLUMNS, ROWS), _DROPPED, np.int16)
    bits[place] = condensed.values.cpu().view(torch.int16).numpy()[source]

    device = condensed.values.device
    fragments = torch.from_numpy(_to_fragments(bits)).view(condensed.values.dtype)
    return FragmentFilter(
        header,
        torch.from_numpy(starts.astype(np.int32)).to(device),
        torch.from_numpy(columns.astype(np.int32)).view(-1, STEP_COLUMNS).to(device),
        fragments.to(device),
        condensed.rows,
    )


def _marked(places: _Array, length: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    marked = np.zeros(length, bool)
    marked[places] = True
    return marked


def _rank(sorted_keys: _Array) -> _Array:
    """Return each element's place among those of the same key."""
    is_new = np.ones(len(sorted_keys), bool)
    is_new[1:] = sorted_keys[1:] != sorted_keys[:-1]
    first = np.maximum.accumulate(np.where(is_new, np.arange(len(sorted_keys)), 0))
    rank: _Array = np.arange(len(sorted_keys)) - first
    return rank


def _bank_order(run: _Array, column: _Array, kernel_w: int) -> _Array:
    """Order columns by run, so that eight in a row lie in different banks of shared memory as far as it goes.

    A plane of inputs (one channel at one tap column) takes an odd number of units, so planes begin in all banks in
    turn; a tap row moves all banks by the same, so columns of one tap row stay together.
    """
    bank = ((column >> 16) * kernel_w + (column & 255)) % _BANKS
    tap_row = column >> 8 & 255
    by_bank = np.lexsort((column, bank, tap_row, run))
    turn = np.empty(len(run), np.int64)
    turn[by_bank] = _rank((run * 256 + tap_row)[by_bank] * _BANKS + bank[by_bank])
    return np.lexsort((bank, turn, tap_row, run))


def _to_fragments(
    bits: np.ndarray[tuple[int, ...], np.dtype[np.int16]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Turn [steps · 16 columns, 16 rows] into [steps, 32 lanes, 8]: see csrc/cuda/condensed/filter.h."""
    # Column = 8 · column_half + 2 · thread + pair, row = 8 · row_half + group; lane = 4 · group + thread.
    blocks = bits.reshape(-1, 2, 4, 2, 2, 8)  # steps, column_half, thread, pair, row_half, group
    return np.ascontiguousarray(blocks.transpose(0, 5, 2, 1, 4, 3)).reshape(-1, 32, 8)


def _from_fragments(fragments: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Undo `_to_fragments`."""
    blocks = fragments.reshape(-1, 8, 4, 2, 2, 2)  # steps, group, thread, column_half, row_half, pair
    return np.ascontiguousarray(blocks.transpose(0, 3, 2, 5, 4, 1)).reshape(-1, ROWS)


def _kept(packed: FragmentFilter) -> tuple[_Array, _Array, _Array, _Array]:
    """Return each kept weight's place in the fragments, output channel, input channel of its group, and tap."""
    header = packed.header
    bits = _from_fragments(packed.fragments.cpu().view(torch.int16).numpy())
    places = _from_fragments(np.arange(bits.size).reshape(-1, 32, 8))
    code = packed.columns.cpu().numpy().astype(np.int64).ravel()
    run = np.repeat(np.arange(header.num_runs), np.diff(packed.starts.cpu().numpy()) * STEP_COLUMNS)
    column, place = (bits != _DROPPED).nonzero()
    row_group, chunk = np.divmod(run[column], header.num_chunks)
    row = packed.rows.cpu().numpy()[row_group * ROWS + place].astype(np.int64)
    channel = chunk * header.chunk_channels + (code[column] >> 16)
    tap = (code[column] >> 8 & 255) * header.kernel_w + (code[column] & 255)
    return places[column, place], row, channel, tap
