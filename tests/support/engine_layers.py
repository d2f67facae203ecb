"""Layers of the random networks: gates, arithmetic and channels in the ways that models write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


class SqueezeExcite(nn.Module):
    """A gate for each channel: the mean of all pixels through two layers, multiplied with the image."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__()
        hidden = draw.randint(1, 4)
        self.is_linear = draw.random() < 0.5
        kind: Callable[[int, int], nn.Module] = nn.Linear if self.is_linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.reduce, self.expand = kind(channels, hidden), kind(hidden, channels)
        self.inner: Function = draw.choice((F.relu, F.silu, F.hardswish, F.gelu))
        self.gate: Function = draw.choice((torch.sigmoid, F.hardsigmoid, torch.tanh, lambda y: F.relu6(y + 3) / 6))
        self.mean: Function = draw.choice(
            (lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_avg_pool2d(x, 1),
             lambda x: x.mean((2, 3))[:, :, None, None], lambda x: x.sum(dim=(2, 3), keepdim=True) / 100)
        )  # fmt: skip
        self.apply_gate: Callable[[Tensor, Tensor], Tensor] = draw.choice(
            (lambda x, y: x * y, lambda x, y: y * x, torch.mul, lambda x, y: x * y.expand_as(x),
             lambda x, y: x.clone().mul_(y), lambda x, y: x + x * y, lambda x, y: F.relu(x * y + x), lambda x, y: x - y)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.mean(x)
        if self.is_linear:
            y = y.flatten(1) if y.shape[0] % 2 else y.view(y.shape[0], -1)
        y = self.gate(self.expand(self.inner(self.reduce(y))))
        if self.is_linear:
            y = y.view(*y.shape[:2], 1, 1)
        return self.apply_gate(x, y)


class ByConstant(nn.Module):
    """An image and a constant for each channel, or one for all of them."""

    def __init__(self, channels: int, draw: random.Random, generator: torch.Generator) -> None:
        super().__init__()
        shape = draw.choice(((1, channels, 1, 1), (channels, 1, 1), (1,), (1, 1, 1, 1)))
        self.register_buffer("constant", torch.randn(shape, generator=generator) + 2.0)
        self.operator: Callable[[Tensor, Tensor], Tensor] = draw.choice(
            (lambda x, c: x * c, lambda x, c: c + x, lambda x, c: x - c, lambda x, c: c - x, lambda x, c: x / c)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x, self.get_buffer("constant"))


NUMBERS: Sequence[Function] = (
    lambda x: x * 0.5, lambda x: x + 1, lambda x: 1.5 - x, lambda x: x - 0.25, lambda x: x / 3, lambda x: -x,
    lambda x: (x + 3).clamp(0, 6), lambda x: x * 2 - 1, lambda x: 0.5 * x + 0.5 * x.relu(),
)  # fmt: skip
#: Of two images of one size.
PAIRS: Sequence[Callable[[Tensor, Tensor], Tensor]] = (
    torch.mul, torch.sub, torch.add, lambda x, y: x * torch.sigmoid(y), lambda x, y: F.relu(x - y),
    lambda x, y: x * y + x, lambda x, y: x * y + y.mean((2, 3), keepdim=True), lambda x, y: x * y[:, :1],
    lambda x, y: x[:, :1] - y, lambda x, y: x.mean((2, 3), keepdim=True) * y[:, :1],
)  # fmt: skip


def shuffle(groups: int) -> Function:
    """Return the channel shuffle of ShuffleNet."""

    def run(x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        return x.view(n, groups, channels // groups, height, width).transpose(1, 2).reshape(n, channels, height, width)

    return run


def of_channels(channels: int, draw: random.Random) -> Function:
    """Return a function that takes an image's channels apart."""
    groups = draw.choice([g for g in range(1, channels + 1) if channels % g == 0])
    first, step = draw.randrange(channels), draw.randint(1, 3)
    size = draw.randint(1, channels)
    mixed = shuffle(groups)

    def split_and_join(x: Tensor) -> Tensor:
        parts = list(torch.split(x, size, 1))
        sums = [parts[0]]
        for part in parts[1:]:  # as Res2Net does
            sums.append(F.relu(part + sums[-1]) if part.shape == sums[-1].shape else part)
        return torch.cat(sums[::-1], 1)

    def halves(x: Tensor) -> Tensor:  # a gated linear unit
        if channels < 2:
            return x
        a, b, *_ = x.chunk(2, 1)
        return a[:, : b.shape[1]] * torch.sigmoid(b)

    def grouped(x: Tensor) -> Tensor:  # through values that are no images
        parts = torch.unflatten(x, 1, (groups, channels // groups)).unbind(1)
        return torch.cat([parts[-1], mixed(x), *parts[:-1]], 1)

    return draw.choice((
        mixed, lambda x: F.relu(mixed(x)), lambda x: mixed(mixed(x)) + x, lambda x: x[:, first:], lambda x: x.flip(1),
        lambda x: x[:, ::step], lambda x: x.narrow(1, first, 1), split_and_join, halves, grouped,
        lambda x: mixed(x).chunk(2, 1)[0], lambda x: x.select(1, first).unsqueeze(1) + x,
        lambda x: x.view(len(x), groups, -1, *x.shape[2:]).sum(1),
        lambda x: x.view(len(x), groups, -1, *x.shape[2:]).softmax(1).reshape(x.shape),
    ))  # fmt: skip
