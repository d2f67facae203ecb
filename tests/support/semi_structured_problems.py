"""Random problems for the kernel on sparse tensor cores: every instantiation, odd sizes, empty rows, any cut."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunekit.ops.cuda.condensed.filter import DTYPES, ROWS
from prunekit.ops.cuda.semi_structured.filter import FRAGMENTS, pack_semi_structured
from tests.support.condensed_problems import UNIT_PIXELS
from tests.support.emulated_kernels import FilterCase
from tests.support.record_problems import random_convolutions

#: Units that a warp sums, by fragments (csrc/cuda/semi_structured/launch.h).
WARP_UNITS = {1: 8, 2: 4, 4: 8}


def semi_structured_problems(
    count: int, seed: int, max_size: int = 14, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[tuple[FilterCase, Tensor]]:
    """Yield `count` problems with what a float64 loop makes of them."""
    for drawn, draw in random_convolutions(count, seed, max_size, dtypes, most_channels=150):
        channels = drawn.weight.shape[1]
        p, q = drawn.expected.shape[2:]
        if drawn.weight.shape[2:] == (1, 1) and draw.random() < 0.5:
            p, q = 1, p * q  # where lines are joined, blocks may be as long
        fragments = draw.choice(FRAGMENTS)
        launch = draw_launch(p, q, -(-drawn.weight.shape[0] // drawn.groups // (ROWS * fragments)), fragments, draw)
        # Slices share a run's steps: long runs, so that each has some.
        chunk_channels = channels if launch[5] > 1 else draw.choice((1, 2, 5, 8, 16, 32, channels))
        packed = pack_semi_structured(drawn.weight, drawn.mask, drawn.groups, chunk_channels, fragments)
        yield FilterCase("semi_structured", drawn.conv, packed, launch), drawn.expected


def draw_launch(p: int, q: int, num_row_groups: int, fragments: int, draw: random.Random) -> list[int]:
    """Any cut that the kernel knows, few warps more often than many: emulated threads take their time."""
    most, warp_units = draw.choice((1, 2, 4, 6)), WARP_UNITS[fragments]
    pixel_warps = draw.choice([n for n in (1, 2, 3) if n <= most])
    units_w = min(draw.choice((1, 2, 3, 4)), -(-q // UNIT_PIXELS), warp_units * pixel_warps)
    tile_h = draw.randint(1, min(p, warp_units * pixel_warps // units_w))
    slices = draw.randint(1, max(1, min(4, most // pixel_warps)))
    row_groups = draw.randint(1, max(1, min(num_row_groups + 1, most // pixel_warps // slices)))
    return [warp_units, tile_h, units_w, pixel_warps, row_groups, slices, draw.choice((1, 2))]
