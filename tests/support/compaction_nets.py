"""Random small networks for compaction's tests: layers, their wiring and filter masks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.LeakyReLU(0.1),
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.SiLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.Identity,
)


class Wired(nn.Module):
    """Layers over a growing list of values; `wiring` says which layer reads which values."""

    def __init__(
        self, layers: Sequence[nn.Module], wiring: Sequence[tuple[str, int, tuple[int, ...]]], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.wiring, self.outputs = tuple(wiring), tuple(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for kind, layer, reads in self.wiring:
            inputs = [values[i] for i in reads]
            if kind == "add":
                values.append(inputs[0] + inputs[1])
            elif kind == "cat":
                values.append(torch.cat(inputs, dim=1))
            elif kind == "mean":
                values.append(inputs[0].mean(dim=(2, 3)))
            else:
                values.append(self.layers[layer](inputs[0]))
        return tuple(values[i] for i in self.outputs)


@dataclass
class Case:
    """A network in eval mode and float64, with masks for its convolutions, one entry a filter."""

    net: Wired
    masks: dict[str, Tensor]
    example: Tensor


def random_case(draw: random.Random) -> Case:
    """Build a network, its wiring and masks drawn from `draw`."""
    with torch.random.fork_rng([]):
        torch.manual_seed(draw.randrange(2**32))
        return _Builder(draw).build()


class _Builder:
    """Draws layer after layer; the size of every value is known from running it."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.layers: list[nn.Module] = []
        self.wiring: list[tuple[str, int, tuple[int, ...]]] = []
        self.values: list[Tensor] = [torch.zeros(1, draw.choice((1, 3)), 24, 24)]

    def build(self) -> Case:
        self._block(0)
        steps: tuple[Callable[[], None], ...] = (
            self._more, self._more, self._residual, self._residual, self._concat, self._resize, self._depthwise,
        )  # fmt: skip
        for _ in range(self.draw.randint(2, 7)):
            self.draw.choice(steps)()
        outputs = [self._head() for _ in range(self.draw.choice((1, 1, 2, 3)))]
        net = self._without_idle_layers(outputs)
        randomize(net)
        density = self.draw.choice((0.2, 0.5, 0.8))
        masks = {
            name: self._mask(len(conv.weight), density)
            for name, conv in net.named_modules()
            if isinstance(conv, nn.Conv2d) and self.draw.random() < 0.9
        }
        return Case(net.double().eval(), masks, torch.randn(1, self.values[0].shape[1], 24, 24, dtype=torch.float64))

    def _without_idle_layers(self, outputs: list[int]) -> Wired:
        """Wire the net anew with the steps that the outputs need."""
        needed = set(outputs)
        for step in reversed(range(len(self.wiring))):
            if step + 1 in needed:
                needed |= set(self.wiring[step][2])
        places = {old: new for new, old in enumerate(sorted(needed | {0}))}
        layers: list[nn.Module] = []
        wiring = []
        for step, (kind, layer, reads) in enumerate(self.wiring):
            if step + 1 in needed:
                layers += [self.layers[layer]] if layer >= 0 else []
                wiring.append((kind, len(layers) - 1 if layer >= 0 else -1, tuple(places[i] for i in reads)))
        return Wired(layers, wiring, [places[i] for i in outputs])

    def _mask(self, filters: int, density: float) -> Tensor:
        mask = torch.rand(filters) < density
        mask[self.draw.randrange(filters)] = True
        return mask

    def _images(self) -> list[int]:
        return [i for i, value in enumerate(self.values) if value.dim() == 4 and i > 0]

    def _apply(self, layer: nn.Module, read: int) -> int:
        self.layers.append(layer)
        self.wiring.append(("layer", len(self.layers) - 1, (read,)))
        with torch.no_grad():
            self.values.append(layer.eval()(self.values[read].clone()))
        return len(self.values) - 1

    def _join(self, kind: str, reads: tuple[int, ...], value: Tensor) -> int:
        self.wiring.append((kind, -1, reads))
        self.values.append(value)
        return len(self.values) - 1

    def _block(self, read: int, out_channels: int | None = None, keep_size: bool = False) -> int:
        draw, x = self.draw, self.values[read]
        in_channels, kernel_size = x.shape[1], draw.choice((1, 3, 3, 5))
        dilation = draw.choice((1, 1, 2))
        padding = dilation * (kernel_size // 2) if keep_size else draw.randint(0, 3)
        out_channels = out_channels or draw.choice((4, 6, 8, 12))
        groups = draw.choice((1, 1, 1, 2)) if in_channels % 2 == 0 and out_channels % 2 == 0 else 1
        mode: Any = draw.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
        if min(x.shape[2:]) < 8:
            mode, kernel_size, padding, dilation = "zeros", 1 if not keep_size else kernel_size, padding, dilation
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, 1 if keep_size else draw.choice((1, 1, 2)), padding, dilation,
            groups, draw.random() < 0.5, mode,
        )  # fmt: skip
        place = self._apply(conv, read)
        if draw.random() < 0.7:
            place = self._apply(nn.BatchNorm2d(out_channels), place)
        return self._apply(draw.choice(ACTIVATIONS)(), place)

    def _more(self) -> None:
        self._block(self.draw.choice(self._images()))

    def _residual(self) -> None:
        read = self.draw.choice(self._images())
        other = self._block(read, self.values[read].shape[1], keep_size=True)
        if self.values[other].shape == self.values[read].shape:
            place = self._join("add", (read, other), self.values[read])
            self._apply(self.draw.choice(ACTIVATIONS)(), place)

    def _depthwise(self) -> None:
        read = self.draw.choice(self._images())
        channels = self.values[read].shape[1]
        conv = nn.Conv2d(channels, channels * self.draw.choice((1, 1, 2)), 3, padding=1, groups=channels, bias=False)
        place = self._apply(conv, read)
        self._apply(nn.BatchNorm2d(self.values[place].shape[1]), place)

    def _concat(self) -> None:
        first = self.draw.choice(self._images())
        alike = [i for i in self._images() if self.values[i].shape[2:] == self.values[first].shape[2:]]
        reads = (first, *self.draw.choices(alike, k=self.draw.choice((1, 2))))
        if sum(self.values[i].shape[1] for i in reads) <= 40:
            self._join("cat", reads, torch.cat([self.values[i] for i in reads], dim=1))

    def _resize(self) -> None:
        read = self.draw.choice(self._images())
        choices: list[nn.Module] = [
            nn.MaxPool2d(3, 2, 1),
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 1, 1),
            nn.AdaptiveAvgPool2d(4),
        ]
        choices.append(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False))
        if max(self.values[read].shape[2:]) <= 16:
            choices += [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")]
        if min(self.values[read].shape[2:]) >= 4:
            self._apply(self.draw.choice(choices), read)

    def _head(self) -> int:
        read = self.draw.choice(self._images()[len(self._images()) // 2 :])
        channels = self.values[read].shape[1]
        if self.draw.random() < 0.3:
            place = self._join("mean", (read,), self.values[read].mean(dim=(2, 3)))
            return self._apply(nn.Linear(channels, 5), place)
        return self._apply(nn.Conv2d(channels, 5, self.draw.choice((1, 3)), padding=1), read)


@torch.no_grad()
def randomize(net: nn.Module) -> None:
    """Give normalizations statistics that matter, so that masked filters answer constants other than zero."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def masked(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Zero the filters that masks drop, in place."""
    for name, mask in masks.items():
        net.get_submodule(name).weight[~mask] = 0.0  # type: ignore[operator]
    return net


class Shuffle(nn.Module):
    """Channel shuffle as ShuffleNet writes it."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        x = x.view(n, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(n, channels, height, width)


class SqueezeExcite(nn.Module):
    """Channels weighted by what a small net makes of their means."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(gate))))
