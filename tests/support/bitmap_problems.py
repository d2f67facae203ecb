"""Random problems for the bitmap kernels: every instantiation, odd sizes, empty rows, any cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunekit.ops.cuda.bitmap.filter import pack_bitmaps
from prunekit.ops.cuda.condensed.filter import DTYPES, ROWS
from tests.support.condensed_problems import draw_launch
from tests.support.emulated_kernels import FilterCase
from tests.support.record_problems import random_convolutions


def bitmap_problems(
    count: int, seed: int, max_size: int = 18, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[tuple[FilterCase, Tensor]]:
    """Yield `count` problems with what a float64 loop makes of them."""
    for drawn, draw in random_convolutions(count, seed, max_size, dtypes):
        channels = drawn.weight.shape[1]
        p, q = drawn.expected.shape[2:]
        if drawn.weight.shape[2:] == (1, 1) and draw.random() < 0.5:
            p, q = 1, p * q  # where lines are joined, blocks may be as long
        launch = draw_launch(p, q, -(-drawn.weight.shape[0] // drawn.groups // ROWS), draw)
        launch[0] = 8 if launch[0] == 4 else 14
        chunk_channels = draw.choice((1, 2, 3, 5, 8, 16, 32, channels))
        cuts = draw.randint(1, min(5, -(-channels // chunk_channels)))
        packed = pack_bitmaps(drawn.weight, drawn.mask, drawn.groups, chunk_channels)
        yield FilterCase("bitmap", drawn.conv, packed, [*launch, cuts]), drawn.expected
