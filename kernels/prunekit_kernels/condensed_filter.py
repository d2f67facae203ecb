"""Condensed filters: for every 16 output channels, only the taps that some of them keep, as dense columns.

A tap is (input channel, tap row, tap column). Output channels are permuted so that those that share taps meet in one
group; each group's columns are multiplied densely on tensor cores, on inputs gathered by the columns' taps. At 90 %
random zeros 16 channels keep 81 % of the taps between them, at 99 % 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GROUP_ROWS = 16  # of one tensor-core fragment
COLUMN_BLOCK = 16  # columns of a group are padded to a multiple of this
_MAX_CHANNELS, _MAX_KERNEL = 2**15, 2**8
_Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class CondensedFilter:
    """A filter packed by `condense`.

    Attributes:
        shape: the weight's [K, C / groups, R, S].
        groups: channel groups of the convolution.
        rows: int32 [row groups · 16], the output channel of each row; -1 where there is none.
        starts: int32 [row groups + 1], the first column of each row group, a multiple of 16.
        columns: int32 [columns], input channel << 16 | tap row << 8 | tap column; padding repeats a tap.
        values: [columns, 16] in the weight's dtype; a weight that is not kept is -0.0, a kept zero +0.0.
        nnz: kept weights.
    """

    shape: tuple[int, int, int, int]
    groups: int
    rows: Tensor
    starts: Tensor
    columns: Tensor
    values: Tensor
    nnz: int

    def to(self, device: torch.device | str) -> CondensedFilter:
        """Move the tensors to `device`."""
        rows, starts, columns, values = (t.to(device) for t in (self.rows, self.starts, self.columns, self.values))
        return CondensedFilter(self.shape, self.groups, rows, starts, columns, values, self.nnz)

    @property
    def num_row_groups(self) -> int:
        """Groups of 16 rows."""
        return len(self.starts) - 1


def condense(weight: Tensor, mask: Tensor, groups: int = 1, permute: bool = True) -> CondensedFilter:
    """Pack the weights that `mask` keeps.

    Args:
        weight: [K, C / groups, R, S], float16, bfloat16 or float32.
        mask: bool, of weight's shape, True = kept.
        groups: number of channel groups.
        permute: let output channels that share taps meet; False keeps their order.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(weight, mask, groups)
    k, c, r, s = weight.shape
    kept: _Mask = mask.cpu().numpy().reshape(k, -1)
    flat = weight.detach().cpu().reshape(k, -1)
    per_group = k // groups
    rows, starts, taps, values = [], [0], [], []
    for group in range(groups):
        members = kept[group * per_group : (group + 1) * per_group]
        for chosen in _group_rows(members, permute):
            columns = members[chosen].any(0).nonzero()[0]
            padded = -len(columns) % COLUMN_BLOCK
            row = np.full(GROUP_ROWS, -1)
            row[: len(chosen)] = chosen + group * per_group
            rows.append(row)
            block = torch.full((len(columns) + padded, GROUP_ROWS), -0.0, dtype=weight.dtype)
            is_kept = torch.from_numpy(members[chosen][:, columns].T)
            block[: len(columns), : len(chosen)] = torch.where(
                is_kept, _plain(flat[row[: len(chosen)]][:, columns].T), -0.0
            )
            values.append(block)
            # Padding repeats the last tap: its inputs are at hand, and its weights count for nothing.
            taps.append(
                _encode(np.pad(columns, (0, padded), mode="edge") if len(columns) else columns, group * c, r, s)
            )
            starts.append(starts[-1] + len(columns) + padded)
    device = weight.device
    return CondensedFilter(
        (k, c, r, s),
        groups,
        torch.from_numpy(np.concatenate(rows).astype(np.int32)).to(device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.from_numpy(np.concatenate(taps).astype(np.int32)).to(device),
        torch.cat(values).to(device),
        int(kept.sum()),
    )


def _plain(values: Tensor) -> Tensor:
    """-0.0 marks what is not kept, so kept zeros are positive."""
    return torch.where(values == 0, 0.0, values)


def _check(weight: Tensor, mask: Tensor, groups: int) -> None:
    if weight.dim() != 4 or weight.dtype not in (torch.float16, torch.bfloat16, torch.float32) or not weight.numel():
        raise ValueError(
            "condense expects a weight [K, C / groups, R, S] in float16, bfloat16 or float32; "
            f"got {weight.dtype} of shape {tuple(weight.shape)}."
        )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ValueError(
            f"condense expects a bool mask of the weight's shape {tuple(weight.shape)}; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if not bool(weight[mask].isfinite().all()):
        raise ValueError("condense expects finite weights where the mask keeps them.")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"output channels {weight.shape[0]} are not divisible by groups {groups}.")
    if weight.shape[1] * groups >= _MAX_CHANNELS or max(weight.shape[2:]) > _MAX_KERNEL:
        raise ValueError(
            f"condensed filters hold fewer than {_MAX_CHANNELS} input channels and kernels of up to "
            f"{_MAX_KERNEL}×{_MAX_KERNEL}; got {weight.shape[1] * groups} and {tuple(weight.shape[2:])}."
        )


def _encode(
    columns: np.ndarray[tuple[int], np.dtype[np.int64]], first_channel: int, r: int, s: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    channel, tap = np.divmod(columns, r * s)
    tap_h, tap_w = np.divmod(tap, s)
    return (channel + first_channel) << 16 | tap_h << 8 | tap_w


def _group_rows(kept: _Mask, permute: bool) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Cut the rows into groups of 16: from the fullest row on, always the one that adds the fewest taps."""
    k = len(kept)
    if not permute or k <= GROUP_ROWS:
        return [np.arange(first, min(first + GROUP_ROWS, k)) for first in range(0, k, GROUP_ROWS)]
    counts = kept.sum(1).astype(np.float32)
    dense = kept.astype(np.float32)
    left = np.ones(k, bool)
    groups = []
    while left.any():
        group = [int(np.where(left, counts, -1).argmax())]
        left[group[0]] = False
        union = kept[group[0]].copy()
        while len(group) < GROUP_ROWS and left.any():
            added = counts - dense @ union.astype(np.float32)
            row = int(np.where(left, added, np.inf).argmin())
            left[row] = False
            union |= kept[row]
            group.append(row)
        groups.append(np.array(group))
    return groups


def uncondense(filter: CondensedFilter) -> tuple[Tensor, Tensor]:
    """Return (weight with zeros where dropped, mask) of a condensed filter."""
    k, c, r, s = filter.shape
    weight = filter.values.new_zeros(k, c * r * s)
    mask = torch.zeros(k, c * r * s, dtype=torch.bool, device=weight.device)
    is_kept = (filter.values != 0) | ~filter.values.signbit()
    for group in range(filter.num_row_groups):
        first, last = int(filter.starts[group]), int(filter.starts[group + 1])
        code = filter.columns[first:last].long()
        tap = ((code >> 16) % c * r + (code >> 8 & 255)) * s + (code & 255)
        for place in range(GROUP_ROWS):
            row = int(filter.rows[group * GROUP_ROWS + place])
            here = is_kept[first:last, place]
            if row >= 0:
                weight[row, tap[here]] = filter.values[first:last, place][here]
                mask[row, tap[here]] = True
    return weight.view(filter.shape), mask.view(filter.shape)
