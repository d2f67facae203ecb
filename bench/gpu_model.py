"""What would YOLOv3 take on GPUs that are not here? Modelled times of the CUDA kernels, layer by layer.

    python -m bench.gpu_model [--dtype float16] [--kernel semi-structured] [--batch 16] [--layers rtx-2070-super | --choices] [--image-size 416]

Nothing is run on a GPU. The models (prunekit/ops/record_launch.py for float32, condensed_launch.py and
semi_structured_launch.py for float16) count
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
from prunekit.ops import condensed_launch, kernel_choice, semi_structured_launch
from prunekit.ops.condensed_launch import CondensedLaunch, CondensedProblem
from prunekit.ops.conv_arguments import pair
from prunekit.ops.record_launch import GPUS, Gpu, RecordLaunch, RecordProblem, choose_launch, memory_seconds
from prunekit.ops.record_plan import extra_seconds, input_grad_problem
from prunekit.ops.semi_structured_launch import SemiStructuredLaunch
from prunekit.ops.transposed_conv import TransposedConv

RATIOS = (50, 60, 70, 75, 80, 85, 90, 95, 99)


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

    def problem(self, density: float) -> RecordProblem:
        """The layer as the model sees it."""
        kernel, stride, size = (self.kernel, self.kernel), (self.stride, self.stride), (self.size, self.size)
        return RecordProblem(self.out_channels, self.in_channels, kernel, 1, density, self.batch, size, stride)

    def condensed_problem(self, density: float) -> CondensedProblem:
        """The layer as the models of tensor cores see it."""
        kernel, stride, size = (self.kernel, self.kernel), (self.stride, self.stride), (self.size, self.size)
        padding = self.kernel // 2, self.kernel // 2
        return CondensedProblem(
            self.out_channels, self.in_channels, kernel, 1, density, self.batch, size, stride, padding
        )


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
    problem = layer.problem(density)
    chosen = choose_launch(problem, gpu)
    if chosen is None:
        return dense_seconds(layer, gpu), None, memory_seconds(problem, gpu)
    return chosen[1], chosen[0], memory_seconds(problem, gpu)


def condensed_layer(layer: Layer, density: float, gpu: Gpu) -> tuple[float, CondensedLaunch | None, float]:
    """Return the same of the tensor-core kernel in float16."""
    problem = layer.condensed_problem(density)
    chosen = condensed_launch.choose_launch(problem, gpu)
    if chosen is None:
        return dense_seconds(layer, gpu, "float16"), None, 0.0
    return chosen[1], chosen[0], condensed_launch.memory_seconds(problem, chosen[0], gpu)


def semi_structured_layer(
    layer: Layer, density: float, gpu: Gpu
) -> tuple[float, CondensedLaunch | SemiStructuredLaunch | None, float]:
    """Return the same of the faster of both tensor-core kernels: from 8.0 on there is the sparse one."""
    problem = layer.condensed_problem(density)
    condensed, chosen = condensed_layer(layer, density, gpu), semi_structured_launch.choose_launch(problem, gpu)
    if chosen is None or (condensed[1] is not None and condensed[0] <= chosen[1]):
        return condensed
    return chosen[1], chosen[0], semi_structured_launch.memory_seconds(problem, chosen[0], gpu)


_Launch = RecordLaunch | CondensedLaunch | SemiStructuredLaunch
#: By dtype, or by kernel where it is named, the modelled time of a layer.
MODELS: dict[str, Callable[[Layer, float, Gpu], tuple[float, _Launch | None, float]]] = {
    "float32": modelled_layer,
    "float16": condensed_layer,
    "semi-structured": semi_structured_layer,
}


def dense_seconds(layer: Layer, gpu: Gpu, dtype: str = "float32") -> float:
    """An implicit GEMM at a fixed share of the peak, or the bytes of its weights, input and output."""
    if dtype == "float32":
        return kernel_choice.dense_seconds(layer.problem(1.0), gpu, by_winograd=False)
    compute = 2 * layer.macs / (kernel_choice.DENSE_SHARE_OF_PEAK * gpu.tensor_peak_gflops * 1e9)
    area = layer.batch * layer.size**2
    elements = layer.macs / area + layer.out_channels * area + layer.in_channels * area * layer.stride**2
    return max(compute, 2 * elements / (gpu.memory_gb_per_s * 1e9))


def winograd_seconds(layer: Layer, gpu: Gpu) -> float:
    """The dense time where 3×3 layers of stride 1 run by Winograd's algorithm."""
    is_suited = layer.kernel == 3 and layer.stride == 1
    return dense_seconds(layer, gpu) / (kernel_choice.WINOGRAD_GAIN if is_suited else 1)


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


def dispatched(layers: Mapping[Layer, int], direction: str, ratio: int, gpu: Gpu, allow_tf32: bool) -> str:
    """What the dispatch would bring at a ratio: the speed-up over dense at its best, and how many layers are sparse."""
    total, dense, sparse_layers = 0.0, 0.0, 0
    for layer, count in layers.items():
        forward = problem = layer.problem(1 - ratio / 100)
        if direction == "input_grad":
            padding, x_size = layer.kernel // 2, (layer.size * layer.stride,) * 2
            transposed = TransposedConv.of(forward.kernel_size, forward.stride, (padding, padding), (1, 1), 1)
            problem = input_grad_problem(forward, transposed, x_size)
        slow = kernel_choice.dense_seconds(forward, gpu, allow_tf32=allow_tf32)
        extra = extra_seconds(direction, problem, forward, gpu)
        choice = kernel_choice.choose_kernel(
            problem, torch.float32, gpu, allow_tf32=allow_tf32, dense=slow, extra=extra
        )
        total, dense = total + count * choice.seconds, dense + count * slow
        sparse_layers += count * (choice.kernel != "dense")
    return f"{dense / total:.2f}×, {sparse_layers}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", choices=sorted(GPUS), help="print every layer at 90 %% on this GPU")
    parser.add_argument("--choices", action="store_true", help="print what the dispatch would choose")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float32")
    parser.add_argument(
        "--kernel", choices=("semi-structured",), help="of float16: allow this one beside the dense steps'"
    )
    options = parser.parse_args()
    dtype: str = options.kernel or options.dtype
    layers = yolov3_layers(options.image_size, options.batch)
    write = sys.stdout.write
    if options.choices:
        write("| modelled, batch 1 | dense | " + " | ".join(f"{ratio} %" for ratio in RATIOS) + " |\n")
        write("|---" * (len(RATIOS) + 2) + "|\n")
        for gpu in GPUS.values():
            for direction in ("inference", "input_grad"):
                for allow_tf32 in (False, True)[: 1 + bool(gpu.tf32_lanes)]:
                    cells = " | ".join(dispatched(layers, direction, r, gpu, allow_tf32) for r in RATIOS)
                    write(f"| {gpu.name}, {direction} | {'tf32' if allow_tf32 else 'float32'} | {cells} |\n")
        return
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
