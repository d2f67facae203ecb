"""Semi-structured filters: any mask in steps of 2:4, as the sparse tensor cores of NVIDIA GPUs read them.

    packed = pack_semi_structured(weight, mask, groups, chunk_channels=32, fragments=2)

csrc/cuda/semi_structured/filter.h describes the pieces. Columns are ordered so that few rows keep more than two of four
in a row; the weights that find no place stand in a repeated column, so that every kept weight is multiplied once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.cuda.condensed.filter import (
    DTYPES,
    ROWS,
    FragmentFilter,
    FragmentHeader,
    _bank_order,
    _from_fragments,
    _to_fragments,
    condensed_filter,
    unpacked,
    without_weights,
)
from prunekit.ops.cuda.packed_filter import FilterPattern, PackedFilter
from prunekit.ops.cuda.semi_structured.quad_order import order_columns

if TYPE_CHECKING:
    from prunekit_kernels.condensed_filter import CondensedFilter

#: Columns of a step (csrc/cuda/semi_structured/filter.h).
SPARSE_STEP_COLUMNS = 32
#: How many fragments of 16 rows may share their columns.
FRAGMENTS = (1, 2, 4)
_QUAD = 4
_DROPPED = -0x8000  # the bits of -0.0

_Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
_Words = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
_Bits = np.ndarray[tuple[int, ...], np.dtype[np.int16]]


@dataclass(frozen=True)
class SemiStructuredHeader(FragmentHeader):
    """What launches need to know about a semi-structured filter, in the order of csrc/cuda/semi_structured/filter.h.

    Attributes:
        fragments: fragments of 16 rows that share their columns: 1, 2 or 4. All else as in a fragment filter.
    """

    FORMAT = "semi-structured"

    fragments: int

    @property
    def num_row_groups(self) -> int:
        """Row groups in one conv group."""
        return -(-self.out_channels // self.groups // (ROWS * self.fragments))


@dataclass(frozen=True)
class SemiStructuredFilter(PackedFilter):
    """A filter packed by `pack_semi_structured`.

    Attributes:
        header: see there.
        starts: int32 [runs + 1].
        columns: int32 [steps, 32].
        fragments: [steps, fragments, 32, 8] in the weight's dtype; what is not kept is -0.0, a kept zero +0.0.
        metadata: int32 [steps, fragments, 8, 2].
        rows: int32 [row groups · fragments · 16], the output channel of each row; -1 where there is none.
    """

    HEADER, WEIGHTS = SemiStructuredHeader, "fragments"

    header: SemiStructuredHeader
    starts: Tensor
    columns: Tensor
    fragments: Tensor
    metadata: Tensor
    rows: Tensor

    @classmethod
    def stored(cls, weights: Tensor) -> Tensor:  # noqa: D102
        return FragmentFilter.stored(weights)

    def unpack(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        header, sizes = self.header, [len(t) for t in self.tensors()]
        num_rows = header.groups * header.num_row_groups * header.fragments * ROWS
        steps = header.num_steps
        if sizes != [header.num_runs + 1, steps, steps, steps, num_rows]:
            raise InputError(
                f"the semi-structured filter's header tells of {header.num_runs} runs, {steps} steps and {num_rows} "
                f"rows; got tensors of {sizes}."
            )
        return unpacked(self, *_kept(self))


def pack_semi_structured(
    weight: Tensor, mask: Tensor, groups: int, chunk_channels: int, fragments: int
) -> SemiStructuredFilter:
    """Pack the weights that `mask` keeps.

    Args:
        weight: float16 or bfloat16 [K, C / groups, R, S]; kept weights are finite.
        mask: bool, of weight's shape, True = kept.
        groups: number of channel groups.
        chunk_channels: input channels that a block stages at once.
        fragments: fragments of 16 rows that share their columns: 1, 2 or 4.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    if weight.dtype not in DTYPES:
        raise InputError(f"pack_semi_structured expects a float16 or bfloat16 weight; got {weight.dtype}.")
    if chunk_channels < 1:
        raise InputError(f"chunk_channels must be at least 1; got {chunk_channels}.")
    if fragments not in FRAGMENTS:
        raise InputError(f"fragments must be one of {FRAGMENTS}; got {fragments}.")
    return cover_columns(condensed_filter(weight, mask, groups), chunk_channels, fragments)


def semi_structured_packer(
    mask: Tensor, groups: int, sources: Tensor | None = None
) -> Callable[[int, int], FilterPattern]:
    """Condense a mask; return what packs its places for (channels a chunk, fragments); see `SparseKernel.packer`.

    Raises:
        InputError: shapes, dtypes or numbers do not fit.
    """
    condensed = condensed_filter(torch.ones(mask.shape, dtype=torch.float16), mask, groups)

    def pack(chunk_channels: int, fragments: int) -> FilterPattern:
        packed = cover_columns(condensed, chunk_channels, fragments)
        return without_weights(packed, *_kept(packed), sources=sources)

    return pack


def cover_columns(condensed: CondensedFilter, chunk_channels: int, fragments: int) -> SemiStructuredFilter:
    """Cut a condensed filter into chunks of channels and steps of 2:4; several may be made of one.

    Args:
        condensed: of `prunekit_kernels.condense`, float16 or bfloat16.
        chunk_channels: input channels that a block stages at once.
        fragments: neighboring groups of 16 rows that share their columns: 1, 2 or 4.
    """
    k, c, r, s = condensed.shape
    header = SemiStructuredHeader(k, c, r, s, condensed.groups, chunk_channels, condensed.nnz, 0, 0, fragments)
    run, column, kept, values = _columns(condensed, header)
    order = _bank_order(run, column, s)
    run, column, kept, values = run[order], column[order], kept[order], values[order]
    slot_run, slot, item, placed = order_columns(run, kept, _bank_bits(column, s), header.num_runs)

    length = np.bincount(run[:0], minlength=header.num_runs)
    np.maximum.at(length, slot_run, slot + 1)
    steps = -(-length // SPARSE_STEP_COLUMNS)
    starts = np.concatenate([[0], np.cumsum(steps)])
    header = replace(header, num_steps=int(starts[-1]), longest=int(steps.max()))
    place = starts[slot_run] * SPARSE_STEP_COLUMNS + slot
    slots = np.full(header.num_steps * SPARSE_STEP_COLUMNS, -1)
    slots[place] = item
    # A place without a column repeats the one before: its inputs are at hand.
    source = slots[np.maximum.accumulate(np.where(slots >= 0, np.arange(len(slots)), 0))]
    placed_at = np.zeros(len(slots), np.uint64)
    placed_at[place] = placed
    stored, metadata = _store_pairs(placed_at, source, values, fragments)

    rows = np.full((condensed.groups * header.num_row_groups, fragments * ROWS), -1, np.int32)
    per_group = condensed.num_row_groups // condensed.groups
    condensed_rows = condensed.rows.cpu().numpy().reshape(condensed.groups, per_group * ROWS)
    rows.reshape(condensed.groups, -1)[:, : per_group * ROWS] = condensed_rows
    device, dtype = condensed.values.device, condensed.values.dtype
    return SemiStructuredFilter(
        header,
        torch.from_numpy(starts.astype(np.int32)).to(device),
        torch.from_numpy(column[source].astype(np.int32)).view(-1, SPARSE_STEP_COLUMNS).to(device),
        torch.from_numpy(stored).view(dtype).view(-1, fragments, 32, 8).to(device),
        torch.from_numpy(metadata).to(device),
        torch.from_numpy(rows.ravel()).to(device),
    )


def _columns(condensed: CondensedFilter, header: SemiStructuredHeader) -> tuple[_Array, _Array, _Words, _Bits]:
    """Return of each column of each run: (run, column's code, which rows keep it as bits, values [rows])."""
    bits = condensed.values.cpu().view(torch.int16).numpy()
    code = condensed.columns.cpu().numpy().astype(np.int64)
    row_group = np.repeat(np.arange(condensed.num_row_groups), np.diff(condensed.starts.cpu().numpy()))
    is_used = (bits != _DROPPED).any(1)  # padding keeps nothing
    bits, code, row_group = bits[is_used], code[is_used], row_group[is_used]
    group, member = np.divmod(row_group, condensed.num_row_groups // condensed.groups)
    row_group, fragment = np.divmod(member, header.fragments)
    chunk, channel = np.divmod((code >> 16) % header.group_channels, header.chunk_channels)
    run = (group * header.num_row_groups + row_group) * header.num_chunks + chunk
    column = channel << 16 | code & 0xFFFF
    keys, place = np.unique(run << 32 | column, return_inverse=True)
    kept = np.zeros(len(keys), np.uint64)
    values = np.full((len(keys), header.fragments, ROWS), _DROPPED, np.int16)
    for each in range(header.fragments):
        is_here = fragment == each
        values[place[is_here], each] = bits[is_here]
        rows = ((bits[is_here] != _DROPPED) << np.arange(ROWS)).sum(1).astype(np.uint64)
        kept[place[is_here]] |= rows << np.uint64(ROWS * each)
    return keys >> 32, keys & 0xFFFFFFFF, kept, values.reshape(-1, header.fragments * ROWS)


def _bank_bits(column: _Array, kernel_w: int) -> _Words:
    """One bit for the bank of shared memory that a column's inputs begin in; tap rows' banks are not compared."""
    bank = ((column >> 16) * kernel_w + (column & 255)) % 8 + 8 * ((column >> 8 & 255) % 8)
    bits: _Words = np.uint64(1) << bank.astype(np.uint64)
    return bits


def _pairs() -> tuple[_Array, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """Of the 16 ways of keeping columns of a quad: the two places that are stored, and whether they are kept."""
    places, is_kept = np.zeros((16, 2), np.int64), np.zeros((16, 2), bool)
    for kept in range(16):
        here = [place for place in range(_QUAD) if kept >> place & 1][:2]
        pair = sorted([*here, *[place for place in (3, 0, 1) if place not in here][: 2 - len(here)]])
        places[kept], is_kept[kept] = pair, [place in here for place in pair]
    return places, is_kept


_PLACES, _IS_KEPT = _pairs()


def _store_pairs(
    placed: _Words, item: _Array, values: _Bits, fragments: int
) -> tuple[_Bits, np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    """Return (fragments [steps · fragments, 32, 8], metadata [steps, fragments, 8, 2]) of columns in their places."""
    num_rows = fragments * ROWS
    rows = np.arange(num_rows, dtype=np.uint64)
    is_placed = (placed.reshape(-1, _QUAD, 1) >> rows & np.uint64(1)).astype(np.int64)  # [quads, 4, rows]
    kept = (is_placed << np.arange(_QUAD)[:, None]).sum(1)
    places, is_kept = _PLACES[kept], _IS_KEPT[kept]  # [quads, rows, 2]
    source = np.take_along_axis(item.reshape(-1, _QUAD, 1), places.reshape(len(kept), 2 * num_rows, 1), 1)
    bits = (
        values[source.reshape(places.shape), np.arange(num_rows)[:, None]] if len(values) else places.astype(np.int16)
    )
    stored = np.where(is_kept, bits, _DROPPED).astype(np.int16)
    by_fragment = stored.reshape(-1, 8, fragments, ROWS, 2).transpose(0, 2, 1, 4, 3)  # steps, fragments, quads, 2, rows
    # Four bits a quad; of a word the low 16 are a row's, the high ones those of eight rows below.
    words = (places[..., 0] | places[..., 1] << 2).reshape(-1, 2, 4, fragments, 2, 8)  # …, half, quad, f, row half, row
    shift = 16 * np.arange(2)[None, :] + 4 * np.arange(4)[:, None]
    metadata = (words.transpose(0, 3, 5, 1, 2, 4) << shift).sum((-1, -2))
    return _to_fragments(by_fragment.reshape(-1, ROWS)), metadata.astype(np.uint32).view(np.int32)


def _kept(packed: SemiStructuredFilter) -> tuple[_Array, _Array, _Array, _Array]:
    """Return each kept weight's place in the fragments, output channel, input channel of its group, and tap."""
    header = packed.header
    shape = header.num_steps, header.fragments, 8, 2, ROWS  # steps, fragments, quads, stored, rows
    bits = _from_fragments(packed.fragments.cpu().view(torch.int16).numpy().reshape(-1, 32, 8)).reshape(shape)
    slots = _from_fragments(np.arange(bits.size).reshape(-1, 32, 8)).reshape(shape)
    words = packed.metadata.cpu().numpy().view(np.uint32).astype(np.int64)  # [steps, fragments, 8, 2]
    step, fragment, quad, which, row = (bits != _DROPPED).nonzero()
    word = words[step, fragment, row % 8, quad // 4]
    place = word >> (16 * (row // 8) + 4 * (quad % 4) + 2 * which) & 3
    code = packed.columns.cpu().numpy().astype(np.int64)[step, _QUAD * quad + place]
    run = np.repeat(np.arange(header.num_runs), np.diff(packed.starts.cpu().numpy()))[step]
    row_group, chunk = np.divmod(run, header.num_chunks)
    out = packed.rows.cpu().numpy()[(row_group * header.fragments + fragment) * ROWS + row].astype(np.int64)
    channel = chunk * header.chunk_channels + (code >> 16)
    tap = (code >> 8 & 255) * header.kernel_w + (code & 255)
    return slots[step, fragment, quad, which, row], out, channel, tap
