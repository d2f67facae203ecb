"""Which weights of a convolution go together: single ones, kernels, and blocks of filters × input channels.

Here a weight is [K, C, R, S]: filters, the input channels that each of them reads, and taps. A block "4x1" is four
consecutive filters × one input channel at one tap, "1x4" one filter × four consecutive input channels. Blocks start at
multiples of their size, counted inside each group of the convolution, whose end no block crosses; what is left over
there is a smaller block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The size of what is kept or dropped together.

    Attributes:
        filters: Consecutive filters (output channels) of one group.
        channels: Consecutive input channels of one group.
        every_tap: Whether all taps go together, instead of each by itself.
    """

    filters: int = 1
    channels: int = 1
    every_tap: bool = False

    def means(self, x: Tensor, groups: int = 1) -> Tensor:
        """Return the mean of each block, of what there is of it at the edges.

        Args:
            x: One value a weight, [K, C, R, S] (C: of one group).
            groups: The convolution's.

        Returns:
            [groups · ⌈K / groups / filters⌉, ⌈C / channels⌉, R, S], with every tap together R = S = 1; `x` itself for
            blocks of a single weight.
        """
        if self.every_tap:
            x = x.mean(dim=(2, 3), keepdim=True)
        if self.filters == self.channels == 1:
            return x
        filters, channels = len(x) // groups, x.shape[1]
        missing = (0, 0, 0, -channels % self.channels, 0, -filters % self.filters)
        padded = F.pad(x.reshape(groups, filters, channels, -1), missing)
        sizes = torch.outer(_sizes(filters, self.filters), _sizes(channels, self.channels))
        rows, columns = sizes.shape
        tiles = padded.view(groups, rows, self.filters, columns, self.channels, -1)
        sums = tiles.sum(dim=(2, 4))  # [groups, rows, columns, taps]
        return (sums / sizes[..., None].to(sums)).reshape(-1, columns, *x.shape[2:])

    def spread(self, values: Tensor, shape: torch.Size, groups: int = 1) -> Tensor:
        """Return each block's value at each of its weights: [K, C, R, S], from what has the shape of `means`."""
        if self == Block():
            return values
        filters, channels = shape[0] // groups, shape[1]
        values = values.reshape(groups, math.ceil(filters / self.filters), *values.shape[1:])
        values = values.repeat_interleave(self.filters, dim=1)[:, :filters]
        values = values.repeat_interleave(self.channels, dim=2)[:, :, :channels]
        return values.flatten(0, 1).expand(shape).contiguous()


def _sizes(count: int, size: int) -> Tensor:
    """Return how many of `count` things are in each block of `size`, [blocks]."""
    return torch.bincount(torch.arange(count) // size)


#: Structures whose units are equally large parts of a layer's weight. `block1x4` is what a dot product of four int8
#: channels skips; `block4x1` and `block16x1` are weights of several filters at one place, which share loads.
BLOCKS: dict[str, Block] = {
    "unstructured": Block(),
    "block1x4": Block(channels=4),
    "block4x1": Block(filters=4),
    "block16x1": Block(filters=16),
    "kernel2d": Block(every_tap=True),
}
#: Those that the order of channels means something to.
PERMUTABLE = tuple(name for name, block in BLOCKS.items() if block.filters * block.channels > 1)
