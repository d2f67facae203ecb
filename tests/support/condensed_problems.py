"""Random problems for the tensor-core kernel: every instantiation, odd sizes, empty rows, any cut into blocks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunekit.ops.cuda.condensed.filter import DTYPES, ROWS, pack_fragments
from tests.support.emulated_kernels import FilterCase
from tests.support.record_problems import random_convolutions

UNIT_PIXELS = 8


def condensed_problems(
    count: int, seed: int, max_size: int = 18, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[tuple[FilterCase, Tensor]]:
    """Yield `count` problems with what a float64 loop makes of them."""
    for drawn, draw in random_convolutions(count, seed, max_size, dtypes):
        channels = drawn.weight.shape[1]
        p, q = drawn.expected.shape[2:]
        if drawn.weight.shape[2:] == (1, 1) and draw.random() < 0.5:
            p, q = 1, p * q  # where lines are joined, blocks may be as long
        launch = draw_launch(p, q, -(-drawn.weight.shape[0] // drawn.groups // ROWS), draw)
        # Slices share a run's steps: long runs, so that each has some.
        is_sliced = launch[5] > 1
        chunk_channels = channels if is_sliced else draw.choice((1, 2, 5, 8, 16, 32, channels))
        packed = pack_fragments(drawn.weight, drawn.mask, drawn.groups, chunk_channels)
        yield FilterCase("condensed", drawn.conv, packed, launch), drawn.expected


def draw_launch(p: int, q: int, num_row_groups: int, draw: random.Random) -> list[int]:
    """Any cut that the kernel knows, few warps more often than many: emulated threads take their time."""
    most = draw.choice((1, 2, 4, 6))
    warp_units, pixel_warps = draw.choice((4, 8)), draw.choice([n for n in (1, 2, 3) if n <= most])
    units_w = min(draw.choice((1, 2, 3, 4)), -(-q // UNIT_PIXELS), warp_units * pixel_warps)
    tile_h = draw.randint(1, min(p, warp_units * pixel_warps // units_w))
    slices = draw.randint(1, max(1, min(4, most // pixel_warps)))
    row_groups = draw.randint(1, max(1, min(num_row_groups + 1, most // pixel_warps // slices)))
    return [warp_units, tile_h, units_w, pixel_warps, row_groups, slices, draw.choice((1, 2))]
