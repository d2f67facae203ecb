"""Random convolutions for the op's tests: odd sizes and every argument, drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DENSITIES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class ConvCase:
    """One convolution's tensors (float64) and arguments."""

    x: Tensor
    weight: Tensor
    mask: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    def to(self, dtype: torch.dtype) -> ConvCase:
        bias = None if self.bias is None else self.bias.to(dtype)
        return ConvCase(self.x.to(dtype), self.weight.to(dtype), self.mask, bias, *self.geometry)


def random_cases(count: int, seed: int, max_size: int = 40) -> Iterator[ConvCase]:
    """Draw `count` cases; each third one has an output channel without kept weights."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    while count:
        groups = draw.choice((1, 1, 1, 2, 3))
        c, k = draw.randint(1, 20), draw.randint(1, 12)
        r, s = draw.choice(((1, 1), (3, 3), (5, 5), (1, 3), (4, 2), (7, 7)))
        stride = draw.randint(1, 3), draw.randint(1, 3)
        padding = draw.randint(0, 3), draw.randint(0, 3)
        dilation = draw.randint(1, 2), draw.randint(1, 3)
        n, h, w = draw.randint(1, 3), draw.randint(1, max_size), draw.randint(1, max_size)
        if h + 2 * padding[0] <= dilation[0] * (r - 1) or w + 2 * padding[1] <= dilation[1] * (s - 1):
            continue
        count -= 1
        x = torch.randn(n, groups * c, h, w, dtype=torch.float64, generator=generator)
        weight = torch.randn(groups * k, c, r, s, dtype=torch.float64, generator=generator)
        mask = torch.rand(weight.shape, generator=generator) < draw.choice(DENSITIES)
        if count % 3 == 0:
            mask[draw.randrange(groups * k)] = False
        bias = torch.randn(groups * k, dtype=torch.float64, generator=generator) if draw.random() < 0.5 else None
        yield ConvCase(x, weight, mask, bias, stride, padding, dilation, groups)
