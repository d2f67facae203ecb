"""How long a convolution takes at a density, or with fewer channels: measured on the engine and kept for later.

On a GPU it is what the choice of kernels goes by: a measurement of the device if there is one, else the cost model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.engine.capture import CaptureError
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.measurements import MeasurementCache
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops.conv_arguments import conv_output_size, pair, split_padding
from prunekit.ops.cuda.choice import choose_kernel
from prunekit.ops.cuda.dispatch import CudaDevice, kernel_cache
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.native import native_status
from prunekit.processor import processor

# Of all shapes at one density, for choosing their schedules; what is not chosen then keeps a rule of thumb.
_TUNING_SECONDS = 5.0
_RUNS = 3


@dataclass(frozen=True)
class ConvShape:
    """What the time of a convolution depends on.

    Attributes:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: As in nn.Conv2d.
        size: [H, W] of the input.
        density: Share of its weights that are kept.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    density: float = 1.0

    @classmethod
    def of(cls, conv: nn.Conv2d, size: tuple[int, int]) -> ConvShape:
        """Return the shape of a layer that reads images of [H, W]."""
        kernel, stride, dilation = (pair(name, getattr(conv, name)) for name in ("kernel_size", "stride", "dilation"))
        padding = split_padding(conv.padding, kernel, stride, dilation)[1]
        return cls(conv.in_channels, conv.out_channels, kernel, stride, padding, dilation, conv.groups, size)

    def thinned(self, share: float) -> ConvShape:
        """Return the shape with so many of its multiply-adds, since input and output lost as many channels each."""
        if self.groups > 1:  # channels go with their groups
            groups = max(round(self.groups * share), 1)
            read, written = self.in_channels // self.groups, self.out_channels // self.groups
            return replace(self, in_channels=read * groups, out_channels=written * groups, groups=groups)
        read, written = (max(round(n * share**0.5), 1) for n in (self.in_channels, self.out_channels))
        return replace(self, in_channels=read, out_channels=written)

    def layer(self) -> nn.Conv2d:
        """Build it, with random weights of its density."""
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        )
        with torch.no_grad():
            conv.weight.mul_(torch.rand_like(conv.weight) < self.density)
        return conv

    def problem(self) -> ConvProblem:
        """Return it as the models of GPU kernels see it, on one image."""
        read = self.in_channels // self.groups
        x_shape, weight_shape = (1, self.in_channels, *self.size), (self.out_channels, read, *self.kernel_size)
        size = conv_output_size(x_shape, weight_shape, self.stride, self.padding, self.dilation)
        geometry = (self.stride, self.padding, self.dilation)
        return ConvProblem(self.out_channels, read, self.kernel_size, self.groups, self.density, 1, size, *geometry)

    def __str__(self) -> str:
        machine = {"processor": processor().name, "instruction_set": native_status().instruction_set}
        return json.dumps({**machine, "threads": torch.get_num_threads(), **asdict(self)}, sort_keys=True)


class LayerTimes(MeasurementCache[ConvShape, float]):
    """Milliseconds of convolutions, by their shape, on this machine."""

    NAME, FILE = "file of layer times", "layer_times.json"

    def encode(self, value: float) -> list[float]:  # noqa: D102
        return [value]

    def decode(self, written: Any) -> float:  # noqa: D102
        (ms,) = written
        if not float(ms) >= 0:
            raise ValueError(f"{ms!r} is no time")
        return float(ms)

    def measure(self, shapes: Iterable[ConvShape]) -> dict[ConvShape, float]:
        """Return the milliseconds of each shape; what no earlier run measured is measured now.

        Raises:
            InputError: When the engine is not there.
        """
        wanted = list(dict.fromkeys(shapes))
        missing = [shape for shape in wanted if self.get(shape) is None]
        for density in sorted({shape.density for shape in missing}):
            alike = [shape for shape in missing if shape.density == density]
            for shape, ms in zip(alike, measured_ms(alike), strict=True):
                self.put(shape, ms)
        self.save()
        return {shape: self.get(shape) or 0.0 for shape in wanted}


class _Each(nn.Module):
    """Convolutions beside each other, an input for each."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, images, strict=True))


def measured_ms(shapes: Sequence[ConvShape]) -> list[float]:
    """Return the least milliseconds of a few runs of each, all of them taking turns; one image."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        images = [torch.rand(1, shape.in_channels, *shape.size) for shape in shapes]
        model = _Each([shape.layer() for shape in shapes]).eval()
        try:
            fast = build_whole_graph(model, images, _TUNING_SECONDS, TuningCache.default(), _silent).model
        except CaptureError as error:
            raise InputError(f"Expected the engine, to measure layers for a latency budget, but {error}.") from error
        best: dict[str, float] = {}
        for _ in range(_RUNS):
            for name, ms in _spans(fast.profile(*images)).items():
                best[name] = min(best.get(name, float("inf")), ms)
    of_layer = {node.layer: best.get(node.name, 0.0) for node in fast.graph.convolutions()}
    return [of_layer.get(f"layers.{number}", 0.0) for number in range(len(shapes))]


def milliseconds_on_gpu(shape: ConvShape, dtype: torch.dtype, device: CudaDevice) -> float:
    """Return what one image takes on the kernel that would be chosen."""
    found = choose_kernel(shape.problem(), dtype, device.gpu, allow_tf32=device.allow_tf32, cache=kernel_cache())
    return 1e3 * found.seconds


_silent: Callable[[int, int], None] = lambda done, total: None  # noqa: E731


def _spans(steps: Iterable[Any]) -> dict[str, float]:
    """Return the milliseconds of each node, whose steps may be several."""
    found: dict[str, float] = {}
    for step in steps:
        if step.node is not None:
            found[step.node] = found.get(step.node, 0.0) + step.ms
    return found
