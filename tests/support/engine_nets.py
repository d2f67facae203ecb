"""Random small networks for the engine's tests: every operator it runs, some it leaves to torch, odd sizes and wirings.

A seed gives a network: layers (modules) and wiring (which values each layer reads), so that torch.export, the engine
and eager torch all see an ordinary nn.Module.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.engine_layers import NUMBERS, PAIRS, ByConstant, SqueezeExcite, of_channels

#: Elements of a plane, and channels, above which a network does not grow.
_MAX_PLANE, _MAX_CHANNELS = 1600, 40
_KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (2, 2), (4, 4), (5, 5), (7, 7), (1, 3), (5, 2), (3, 1))
_DENSITIES = (0.0, 0.02, 0.1, 0.3, 0.6, 1.0, 1.0)

Shape = tuple[int, int, int]  # channels, height, width


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class Net(nn.Module):
    """Layers over a growing list of values; the first values are the inputs."""

    def __init__(
        self, layers: Sequence[nn.Module], wiring: Sequence[tuple[int, tuple[int, ...]]], outputs: Sequence[int],
        nesting: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.wiring, self.outputs, self.nesting = list(wiring), list(outputs), nesting

    def forward(self, *inputs: Tensor) -> object:
        values = list(inputs)
        for layer, reads in self.wiring:
            values.append(self.layers[layer](*(values[i] for i in reads)))
        leaves = [values[i] for i in self.outputs]
        if self.nesting == "tensor":
            return leaves[0]
        if self.nesting == "dict":
            return {"first": leaves[0], "rest": {str(i): leaf for i, leaf in enumerate(leaves[1:])}}
        if self.nesting == "nested":
            return leaves[0], [leaves[1:], {"again": leaves[0]}]
        return tuple(leaves)


@dataclass
class NetCase:
    """A network in eval mode and its example inputs."""

    seed: int
    net: Net
    inputs: tuple[Tensor, ...]
    shapes: list[Shape] = field(default_factory=list)

    def fresh_inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Draw inputs of the example's image sizes."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *x.shape[1:], generator=generator) for x in self.inputs)


def random_net(seed: int) -> NetCase:
    """Build the network of a seed."""
    return _Builder(seed).build()


def randomize(module: nn.Module, generator: torch.Generator, density: float) -> None:
    """Give a convolution weights that keep the scale of its input, some zero; give BatchNorm statistics that matter."""
    with torch.no_grad():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            weight = torch.randn(module.weight.shape, generator=generator)
            weight *= torch.rand(weight.shape, generator=generator) < density
            if weight.dim() == 4 and density < 1 and len(weight) > 1:
                weight[int(torch.randint(len(weight), (1,), generator=generator))] = 0.0
            module.weight.copy_(weight / max(1.0, weight[0].numel() * density) ** 0.5)
            if module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 2)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                if tensor is not None:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias, module.running_mean):
                if tensor is not None:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)


class _Builder:
    """Draws layer after layer, and runs each once to know its output's shape."""

    def __init__(self, seed: int) -> None:
        self.seed, self.draw = seed, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: list[nn.Module] = []
        self.wiring: list[tuple[int, tuple[int, ...]]] = []
        self.values: list[Tensor] = []
        self.batch = self.draw.choice((1, 1, 2, 3))

    def build(self) -> NetCase:
        draw = self.draw
        count = draw.choice((1, 1, 1, 2))
        size = self._size()
        for _ in range(count):
            shape = (self.batch, draw.choice((1, 2, 3, 5, 8)), *(size if draw.random() < 0.7 else self._size()))
            self.values.append(torch.randn(shape, generator=self.generator))
        inputs = tuple(self.values)
        kinds: list[Callable[[], None]] = [
            self._conv, self._conv, self._conv, self._conv_block, self._conv_block, self._residual, self._add,
            self._concat, self._activation, self._upsample, self._pool, self._pad, self._foreign, self._again,
            self._halving, self._far_reaching, self._gate, self._arithmetic, self._channels, self._channels,
        ]  # fmt: skip
        self._conv()
        for _ in range(draw.randint(1, 9)):
            draw.choice(kinds)()
        outputs = [len(self.values) - 1]
        for _ in range(draw.choice((0, 0, 1, 2))):
            outputs.append(draw.randrange(len(self.values)))  # also an input as it is, also one value twice
        nesting = draw.choice(("tuple", "dict", "nested")) if len(outputs) > 1 or draw.random() < 0.3 else "tensor"
        net = Net(self.layers, self.wiring, outputs, nesting).eval().requires_grad_(False)
        return NetCase(self.seed, net, inputs)

    # Drawing.

    def _size(self) -> tuple[int, int]:
        draw = self.draw
        if draw.random() < 0.3:  # strides by whole lanes, of 4, 8 and 16
            return draw.choice((8, 16, 32)), draw.choice((2, 8, 16, 20, 34))
        return draw.choice((1, 2, 3, 5, 7, 8, 9, 12, 13, 17, 24)), draw.choice((1, 2, 3, 4, 7, 8, 11, 15, 16, 19, 25))

    def _images(self) -> list[int]:
        return [i for i, value in enumerate(self.values) if value.dim() == 4]

    def _image(self, recent: bool = True) -> int:
        images = self._images()
        return images[-1] if recent and self.draw.random() < 0.6 else self.draw.choice(images)

    def _append(self, layer: nn.Module | int, *reads: int) -> bool:
        """Add a layer, or call an earlier one again; return False where its output would be empty or too large."""
        module = self.layers[layer] if isinstance(layer, int) else layer.eval()
        with torch.no_grad():
            y = module(*(self.values[i].clone() for i in reads))
        if y.dim() == 4 and (y.shape[2] * y.shape[3] > _MAX_PLANE or y.shape[1] > _MAX_CHANNELS or not y.numel()):
            return False
        if isinstance(layer, int):
            at = layer
        else:
            self.layers.append(layer)
            at = len(self.layers) - 1
        self.wiring.append((at, reads))
        self.values.append(y)
        return True

    def _random_conv(self, x: Tensor, *, keeps_shape: bool = False, stride: int | None = None) -> nn.Conv2d | None:
        draw, channels = self.draw, x.shape[1]
        kernel = draw.choice(((1, 1), (3, 3), (5, 3), (1, 7)) if keeps_shape else _KERNELS)
        dilation = (draw.choice((1, 1, 1, 2)), draw.choice((1, 1, 1, 3)))
        strides = draw.choice(((1, 1), (1, 1), (2, 2), (3, 1)))
        if keeps_shape or stride:
            strides = (stride or 1, stride or 1)
        padding = (draw.randint(0, 3), draw.randint(0, 3))
        if keeps_shape or draw.random() < 0.5:
            padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(size + 2 * p <= r for size, p, r in zip(x.shape[2:], padding, reach, strict=True)):
            return None
        groups = draw.choice([1, 1, 1, *(g for g in (2, 4, channels) if channels % g == 0)])
        out = channels if keeps_shape else groups * draw.choice((1, 2, 3, 5)) if groups > 1 else draw.randint(1, 12)
        is_biased = draw.random() < 0.6
        conv = nn.Conv2d(channels, out, kernel, strides, padding, dilation, groups, is_biased)
        randomize(conv, self.generator, draw.choice(_DENSITIES))
        return conv

    def _random_activation(self) -> nn.Module:
        choices: list[nn.Module] = [
            nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.LeakyReLU(0.3, inplace=True), nn.ReLU6(),
            nn.ReLU6(inplace=True), nn.SiLU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.Hardswish(inplace=True),
            nn.Hardtanh(0.0, 6.0), nn.Hardtanh(-1.0, 1.0), Apply(F.relu), Apply(F.silu), Apply(F.hardswish),
            Apply(lambda x: F.leaky_relu(x, 0.2)), Apply(torch.relu), Apply(lambda x: F.leaky_relu_(x.clone(), 0.2)),
            nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.ELU(0.7),
            nn.ELU(inplace=True), nn.Hardsigmoid(inplace=True), Apply(torch.sigmoid),
        ]  # fmt: skip
        return self.draw.choice(choices)

    # Layers.

    def _conv(self) -> None:
        i = self._image()
        conv = self._random_conv(self.values[i])
        if conv is not None:
            self._append(conv, i)

    def _conv_block(self) -> None:
        i = self._image()
        conv = self._random_conv(self.values[i])
        if conv is None:
            return
        norm = nn.BatchNorm2d(conv.out_channels, affine=self.draw.random() < 0.8)
        randomize(norm, self.generator, 1.0)
        parts: list[nn.Module] = [conv, norm, self._random_activation()]
        if self.draw.random() < 0.2:  # before the convolution: stays a layer of its own
            norm = nn.BatchNorm2d(conv.in_channels)
            randomize(norm, self.generator, 1.0)
            parts = [norm, self._random_activation(), conv]
        self._append(nn.Sequential(*parts), i)

    def _residual(self) -> None:
        i = self._image()
        conv = self._random_conv(self.values[i], keeps_shape=True)
        if conv is None or not self._append(conv, i):
            return
        last = len(self.values) - 1
        if self.draw.random() < 0.5 and self._append(self._random_activation(), last):
            last += 1
        add: Callable[[Tensor, Tensor], Tensor] = self.draw.choice(
            (lambda x, y: x + y, lambda x, y: y + x, torch.add, lambda x, y: y.clone().add_(x))
        )
        if self._append(Apply(add), i, last) and self.draw.random() < 0.5:
            self._append(self._random_activation(), last + 1)

    def _add(self) -> None:
        i = self._image()
        same = [j for j in self._images() if self.values[j].shape == self.values[i].shape]
        self._append(Apply(torch.add), i, self.draw.choice(same))  # also x + x

    def _concat(self) -> None:
        i = self._image()
        same = [j for j in self._images() if self.values[j].shape[2:] == self.values[i].shape[2:]]
        reads = [i, *(self.draw.choice(same) for _ in range(self.draw.randint(0, 3)))]
        self.draw.shuffle(reads)
        dim = self.draw.choice((1, -3))
        self._append(Apply(lambda *inputs: torch.cat(inputs, dim)), *reads)

    def _activation(self) -> None:
        self._append(self._random_activation(), self._image())

    def _upsample(self) -> None:
        factors = self.draw.choice((2, 2, 3, (2, 1), (1, 3)))
        self._append(nn.Upsample(scale_factor=factors, mode="nearest"), self._image())

    def _pool(self) -> None:
        i, draw = self._image(), self.draw
        kernel = draw.choice((2, 2, 3, 5, (3, 2)))
        least = min(kernel) if isinstance(kernel, tuple) else kernel
        stride, padding, dilation = draw.choice((1, 2, 2, 3)), draw.randint(0, least // 2), draw.choice((1, 1, 2))
        if draw.random() < 0.6:
            pool: nn.Module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw.random() < 0.4)
        else:
            dilation = 1
            divisor = draw.choice((None, None, None, 5))
            pool = nn.AvgPool2d(kernel, stride, padding, draw.random() < 0.4, draw.random() < 0.6, divisor)
        sizes = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        reach = [dilation * (k - 1) for k in sizes]
        if all(size + 2 * padding > r for size, r in zip(self.values[i].shape[2:], reach, strict=True)):
            self._append(pool, i)

    def _pad(self) -> None:
        i, draw = self._image(), self.draw
        height, width = self.values[i].shape[2:]
        if draw.random() < 0.3:  # as a max-pool's own padding
            kernel = draw.choice((2, 3))
            sides = [draw.randint(0, kernel - 1) for _ in range(4)]
            if height + sides[2] + sides[3] < kernel or width + sides[0] + sides[1] < kernel:
                return
            pad = nn.ConstantPad2d(tuple(sides), float("-inf"))  # type: ignore[arg-type]
            self._append(nn.Sequential(pad, nn.MaxPool2d(kernel, draw.choice((1, 2)))), i)
            return
        sides = [draw.randint(-1, 3) for _ in range(4)]
        if width + sides[0] + sides[1] > 0 and height + sides[2] + sides[3] > 0:
            fill = draw.choice((0.0, 0.0, 1.5, -2.0))
            self._append(Apply(lambda x: F.pad(x, sides, value=fill)), i)

    def _halving(self) -> None:
        i = self._image()
        conv = self._random_conv(self.values[i], stride=2)
        if conv is not None:
            self._append(conv, i)

    def _far_reaching(self) -> None:
        """Keep the size with taps far apart: rows lie many columns apart."""
        i, draw = self._image(), self.draw
        channels, reach = self.values[i].shape[1], draw.choice((2, 3, 5, 7, 9, 14, 30))
        if draw.random() < 0.4 and reach < 10:
            self._append(nn.MaxPool2d(2 * reach + 1, 1, reach), i)
            return
        conv = nn.Conv2d(channels, draw.randint(1, 6), 3, padding=reach, dilation=reach)
        randomize(conv, self.generator, draw.choice(_DENSITIES))
        self._append(conv, i)

    def _gate(self) -> None:
        i = self._image()
        layer = SqueezeExcite(self.values[i].shape[1], self.draw)
        for module in layer.children():
            randomize(module, self.generator, self.draw.choice((0.1, 0.5, 1.0)))
        self._append(layer, i)

    def _arithmetic(self) -> None:
        i, draw = self._image(), self.draw
        kind = draw.random()
        if kind < 0.3:
            self._append(Apply(draw.choice(NUMBERS)), i)
        elif kind < 0.6:
            self._append(ByConstant(self.values[i].shape[1], draw, self.generator), i)
        else:
            same = [j for j in self._images() if self.values[j].shape == self.values[i].shape]
            self._append(Apply(draw.choice(PAIRS)), i, draw.choice(same))

    def _channels(self) -> None:
        i = self._image()
        self._append(Apply(of_channels(self.values[i].shape[1], self.draw)), i)

    def _again(self) -> None:
        """Call a layer again, or make one that shares another's weight."""
        convs = [
            (layer, reads) for layer, reads in self.wiring if isinstance(self.layers[layer], (nn.Conv2d, nn.Sequential))
        ]
        if not convs:
            return
        layer, reads = self.draw.choice(convs)
        shape = self.values[reads[0]].shape
        same = [i for i in self._images() if self.values[i].shape[1:] == shape[1:]]
        module = self.layers[layer]
        if isinstance(module, nn.Conv2d) and self.draw.random() < 0.5:
            twin = nn.Conv2d(
                module.in_channels, module.out_channels, module.kernel_size, 1, 3, 1, module.groups, bias=False  # type: ignore[arg-type]
            )  # fmt: skip
            twin.weight = module.weight
            i = self.draw.choice(same)
            if all(size + 6 >= k for size, k in zip(self.values[i].shape[2:], module.kernel_size, strict=True)):
                self._append(twin, i)
        else:
            self._append(layer, self.draw.choice(same))

    def _foreign(self) -> None:
        i, draw = self._image(), self.draw
        x = self.values[i]
        channels = x.shape[1]
        functions: list[Callable[[Tensor], Tensor]] = [
            torch.sigmoid, torch.tanh, lambda x: x * torch.sigmoid(x), lambda x: x * 0.5 + 1.0,
            lambda x: torch.softmax(x, 1), lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
            lambda x: x * F.adaptive_avg_pool2d(x, 1), lambda x: x.permute(0, 1, 3, 2), lambda x: x + x[:, :1],
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), F.gelu,
            lambda x: x - 0.5 * x.mean((2, 3), keepdim=True),
        ]  # fmt: skip
        kind = draw.random()
        if kind < 0.15:
            layer: nn.Module = nn.ConvTranspose2d(channels, draw.randint(1, 5), 2, 2)
            randomize(layer, self.generator, 0.5)
        elif kind < 0.3:
            linear = nn.Linear(channels, draw.randint(1, 6))
            randomize(linear, self.generator, 0.5)
            layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
        else:
            layer = Apply(draw.choice(functions))
        self._append(layer, i)
