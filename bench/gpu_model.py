"""What would YOLOv3 take on GPUs that are not here? Modelled times of the CUDA kernels, layer by layer.

    python -m bench.gpu_model [--dtype float16] [--batch 16] [--layers rtx-2070-super]

Nothing is run on a GPU. The models (prunekit/ops/record_launch.py for float32, condensed_launch.py for float16) count
the compiled kernels' instructions, shared memory's cycles, an assumed latency and the bytes of memory; the dense side
is the same convolutions as an implicit GEMM at 70 % of the dtype's peak, which is kind to it at batch 1. docs/gpu.md
lists the assumptions.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.detection.yolov3 import yolov3
from prunekit.ops import condensed_launch
from prunekit.ops.condensed_launch import CondensedLaunch, CondensedProblem
from prunekit.ops.conv_arguments import pair
from prunekit.ops.record_launch import GPUS, Gpu, RecordLaunch, RecordProblem, choose_launch, memory_seconds

RATIOS = (50, 60, 70, 75, 80, 85, 90, 95, 99)
DENSE_SHARE_OF_PEAK = 0.7
#: Winograd's F(2×2, 3×3) multiplies 2.25 times less; transforms and memory are taken to leave this much of it.
WINOGRAD_GAIN = 1.6


@dataclass(frozen=True)
class Layer:
    """A convolution of the net: what tells its time."""

    out_channels: int
    in_channels: int
    kernel: int
    stride: int
    size: int  # of the output
    batch: int = 1

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense convolution."""
        return self.batch * self.out_channels * self.in_channels * self.kernel**2 * self.size**2


def yolov3_layers(image_size: int, batch: int = 1) -> Counter[Layer]:
    """The net's convolutions, from a run on the meta device, and how often each shape comes."""
    found: Counter[Layer] = Counter()
    net = yolov3(80).to("meta").eval()

    def note(conv: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        kernel, stride = pair("kernel_size", conv.kernel_size)[0], pair("stride", conv.stride)[0]
        found[Layer(conv.out_channels, conv.in_channels, kernel, stride, y.shape[2], batch)] += 1

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    net(torch.empty(1, 3, image_size, image_size, device="meta"))
    return found


def modelled_layer(layer: Layer, density: float, gpu: Gpu) -> tuple[float, RecordLaunch | None, float]:
    """Return (seconds, launch, seconds of memory alone); without a launch the layer runs dense."""
    kernel, stride, size = (layer.kernel, layer.kernel), (layer.stride, layer.stride), (layer.size, layer.size)
    problem = RecordProblem(layer.out_channels, layer.in_channels, kernel, 1, density, layer.batch, size, stride)
    chosen = choose_launch(problem, gpu)
    if chosen is None:
        return dense_seconds(layer, gpu), None, memory_seconds(problem, gpu)
    return chosen[1], chosen[0], memory_seconds(problem, gpu)


def condensed_layer(layer: Layer, density: float, gpu: Gpu) -> tuple[float, CondensedLaunch | None, float]:
    """Return the same of the tensor-core kernel in float16."""
    kernel, stride, size = (layer.kernel, layer.kernel), (layer.stride, layer.stride), (layer.size, layer.size)
    padding = layer.kernel // 2, layer.kernel // 2
    problem = CondensedProblem(
        layer.out_channels, layer.in_channels, kernel, 1, density, layer.batch, size, stride, padding
    )
    chosen = condensed_launch.choose_launch(problem, gpu)
    if chosen is None:
        return dense_seconds(layer, gpu, "float16"), None, 0.0
    return chosen[1], chosen[0], condensed_launch.memory_seconds(problem, chosen[0], gpu)


#: By dtype, the kernel's modelled time of a layer.
MODELS: dict[str, Callable[[Layer, float, Gpu], tuple[float, RecordLaunch | CondensedLaunch | None, float]]] = {
    "float32": modelled_layer,
    "float16": condensed_layer,
}


def dense_seconds(layer: Layer, gpu: Gpu, dtype: str = "float32") -> float:
    """An implicit GEMM at a fixed share of the peak, or the bytes of its weights, input and output."""
    peak, width = (gpu.fma_peak_gflops, 4) if dtype == "float32" else (gpu.tensor_peak_gflops, 2)
    compute = 2 * layer.macs / (DENSE_SHARE_OF_PEAK * peak * 1e9)
    area = layer.batch * layer.size**2
    elements = layer.macs / area + layer.out_channels * area + layer.in_channels * area * layer.stride**2
    return max(compute, width * elements / (gpu.memory_gb_per_s * 1e9))


def winograd_seconds(layer: Layer, gpu: Gpu) -> float:
    """The dense time where 3×3 layers of stride 1 run by Winograd's algorithm."""
    is_suited = layer.kernel == 3 and layer.stride == 1
    return dense_seconds(layer, gpu) / (WINOGRAD_GAIN if is_suited else 1)


def net_seconds(layers: Mapping[Layer, int], density: float, gpu: Gpu, dtype: str = "float32") -> tuple[float, float]:
    """Return (the sum over layers of the faster of sparse and dense, of dense alone)."""
    sparse = sum(
        count * min(MODELS[dtype](layer, density, gpu)[0], dense_seconds(layer, gpu, dtype))
        for layer, count in layers.items()
    )
    return sparse, sum(count * dense_seconds(layer, gpu, dtype) for layer, count in layers.items())


def break_even(layer: Layer, gpu: Gpu, dtype: str = "float32") -> float | None:
    """The sparsity in percent from which the sparse kernel's modelled time is below the dense one's, or None."""
    low, high = 0.0, 0.995
    dense = dense_seconds(layer, gpu, dtype)
    if MODELS[dtype](layer, 1 - high, gpu)[0] > dense:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        if MODELS[dtype](layer, 1 - middle, gpu)[0] > dense:
            low = middle
        else:
            high = middle
    return 100 * high


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", choices=sorted(GPUS), help="print every layer at 90 %% on this GPU")
    parser.add_argument("--dtype", choices=sorted(MODELS), default="float32")
    options = parser.parse_args()
    dtype: str = options.dtype
    layers = yolov3_layers(options.image_size, options.batch)
    write = sys.stdout.write
    if options.layers:
        gpu = GPUS[options.layers]
        for layer, count in sorted(layers.items(), key=lambda pair: -pair[1] * pair[0].macs):
            seconds, launch, floor = MODELS[dtype](layer, 0.1, gpu)
            dense = dense_seconds(layer, gpu, dtype)
            shape = f"{layer.in_channels}→{layer.out_channels} {layer.kernel}×{layer.kernel}/{layer.stride}"
            write(
                f"{count} × {shape} at {layer.size}: modelled {1e6 * seconds:.0f} µs, memory {1e6 * floor:.0f}, "
                f"dense {1e6 * dense:.0f}, {dense / seconds:.1f}×, {launch}, "
                f"break-even {break_even(layer, gpu, dtype)}\n"
            )
        return
    has_winograd = dtype == "float32"
    write(f"| modelled, batch {options.batch}, {dtype} | " + " | ".join(f"{ratio} %" for ratio in RATIOS))
    write(" | dense ms |" + (" by Winograd |" if has_winograd else ""))
    write("\n" + "|---" * (len(RATIOS) + 2 + has_winograd) + "|\n")
    for gpu in GPUS.values():
        times = [net_seconds(layers, 1 - ratio / 100, gpu, dtype) for ratio in RATIOS]
        speedups = " | ".join(f"{dense / sparse:.2f}×" for sparse, dense in times)
        winograd = sum(count * winograd_seconds(layer, gpu) for layer, count in layers.items())
        last = f" {1e3 * winograd:.2f} |" if has_winograd else ""
        write(f"| {gpu.name} | {speedups} | {1e3 * times[0][1]:.2f} |{last}\n")


if __name__ == "__main__":
    main()
