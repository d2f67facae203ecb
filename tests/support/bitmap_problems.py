"""Random problems for the bitmap kernels: every instantiation, odd sizes, empty rows, any cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunekit.ops.cuda.bitmap.filter import BitmapFilter, pack_bitmaps
from prunekit.ops.cuda.condensed.filter import DTYPES, ROWS
from tests.support.condensed_problems import draw_launch
from tests.support.emulated_kernels import Convolution
from tests.support.record_problems import random_convolutions


@dataclass(frozen=True)
class BitmapProblemCase:
    """Everything that one run of the bitmap kernels reads."""

    source: ClassVar[str] = "bitmap_conv2d"
    conv: Convolution
    packed: BitmapFilter
    launch: Sequence[int]

    def output(self) -> Tensor:
        return self.conv.output(self.packed.header.shape)

    def arguments(self) -> tuple[object, ...]:
        """The op's arguments, for the reference."""
        packed = self.packed
        filter = packed.header.words(), packed.starts, packed.records, packed.values, packed.rows
        return self.conv.x, *filter, *self.conv.arguments(), list(self.launch)

    def parts(self, y: Tensor) -> list[np.ndarray[Any, Any]]:
        packed = self.packed
        is_bfloat16 = int(y.dtype == torch.bfloat16)
        words = [is_bfloat16, *self.conv.sizes(y), *self.launch, *self.conv.x.stride(), *y.stride()]
        header = [np.array(numbers, np.int64) for numbers in (words, packed.header.words())]
        filter = [packed.starts.ravel(), packed.records.ravel(), packed.values.view(torch.int16), packed.rows]
        return [header[0], self.conv.slope(), header[1], *(t.numpy() for t in filter), *self.conv.tensors(y)]


def bitmap_problems(
    count: int, seed: int, max_size: int = 18, dtypes: Sequence[torch.dtype] = DTYPES
) -> Iterator[tuple[BitmapProblemCase, Tensor]]:
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
        yield BitmapProblemCase(drawn.conv, packed, [*launch, cuts]), drawn.expected
