"""The inputs on which int8 engines find the ranges of activations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

#: Enough for noise, in which every map has thousands of like values. Photographs want hundreds.
NUM_INPUTS = 8
SEED = 0


def calibration_inputs(x: Tensor) -> Iterator[np.ndarray]:
    """Yield `NUM_INPUTS` arrays that are distributed as `x` [N, C, H, W] is, whether it is an image or a layer's input.

    Each is `x` shifted in a circle by rows and columns drawn with `SEED`, and every second one is also mirrored, so
    `x` itself, on which the error is measured, is not among them but by chance.
    """
    generator = torch.Generator().manual_seed(SEED)
    for index in range(NUM_INPUTS):
        shift = [int(torch.randint(side, (), generator=generator)) for side in x.shape[2:]]
        shifted = x.roll(shift, (2, 3))
        yield (shifted.flip(3) if index % 2 else shifted).contiguous().numpy()
