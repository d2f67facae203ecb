"""What would a net take on GPUs that are not here? Modeled times of the CUDA kernels, layer by layer.

    python -m bench.gpu_model [--net resnet50] [--dtype float16] [--batch 16]
        [--layers rtx-2070-super | --choices | --kernels | --break-even | --small-maps]

Nothing is run on a GPU. The models (the cost.py of each folder of prunekit/ops/cuda: record for float32; condensed,
bitmap and semi_structured for float16) count the compiled kernels' instructions, shared memory's cycles, assumed
latencies and the bytes of memory; the dense side is the same convolutions as an implicit GEMM at 70 % of the dtype's
peak, which is kind to it at batch 1. Each layer takes the fastest of its dtype's sparse kernels.
docs/gpu-kernels.md lists the assumptions.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.scripts import command_line
from prunekit.benchmark.problems import NETS
from prunekit.ops.conv_arguments import pair
from prunekit.ops.cuda import choice as kernel_choice
from prunekit.ops.cuda.bitmap.cost import MODEL as BITMAP
from prunekit.ops.cuda.condensed.cost import MODEL as CONDENSED
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.devices import GPUS, Gpu
from prunekit.ops.cuda.plan import input_grad_problem
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.registry import SPARSE_KERNELS, kernels_for
from prunekit.ops.cuda.transposed_conv import TransposedConv

MODELED_NETS = "yolov3", "resnet50", "vgg16"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
RATIOS = (50, 60, 70, 75, 80, 85, 90, 95, 99)
KERNEL_RATIOS = (50, 75, 90, 95, 99)
SMALL_RATIOS = (50, 80, 90, 95, 99)
# Out channels, in channels, kernel, stride, output.
SMALL_LAYERS = (
    (1024, 512, 3, 1, 13), (1024, 512, 3, 2, 13), (512, 1024, 1, 1, 13), (512, 256, 3, 1, 26), (256, 512, 1, 1, 26),
)  # fmt: skip


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

    def problem(self, density: float) -> ConvProblem:
        """The layer as the models see it; 1 - 0.9 is a density of 0.1."""
        density = round(density, 6)
        kernel, stride, size = (self.kernel, self.kernel), (self.stride, self.stride), (self.size, self.size)
        sizes = self.out_channels, self.in_channels, kernel, 1, density, self.batch, size, stride
        return ConvProblem(*sizes, padding=(self.kernel // 2, self.kernel // 2))

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.in_channels} → {self.out_channels}, {self.kernel}×{self.kernel}{stride}"


def net_layers(name: str, image_size: int, batch: int = 1) -> Counter[Layer]:
    """A net's convolutions, from a run on the meta device, and how often each shape comes.

    Args:
        name: One of `MODELED_NETS`.
        image_size: Side of its input, in pixels.
        batch: Images.
    """
    found: Counter[Layer] = Counter()
    with torch.device("meta"):
        net = NETS[name].build().eval()

    def note(conv: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        kernel, stride = pair("kernel_size", conv.kernel_size)[0], pair("stride", conv.stride)[0]
        found[Layer(conv.out_channels, conv.in_channels, kernel, stride, y.shape[2], batch)] += 1

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    net(torch.empty(1, 3, image_size, image_size, device="meta"))
    return found


def modeled_layer(layer: Layer, density: float, gpu: Gpu, dtype: str = "float32") -> tuple[float, str]:
    """Return (seconds of the dtype's fastest sparse kernel, its name and cut); where none fits, of dense."""
    problem, found = layer.problem(density), []
    for kernel in kernels_for(problem, DTYPES[dtype], gpu):
        for launch in kernel.best_launches(problem, gpu, 1):
            found.append((kernel.seconds(problem, launch, gpu), f"{kernel.name} {launch}"))
    return min(found, default=(dense_seconds(layer, gpu, dtype), "dense"))


def dense_seconds(layer: Layer, gpu: Gpu, dtype: str = "float32") -> float:
    """An implicit GEMM at a fixed share of the peak, or the bytes of its weights, input and output."""
    return kernel_choice.dense_seconds(layer.problem(1.0), gpu, by_winograd=False, dtype=DTYPES[dtype])


def winograd_seconds(layer: Layer, gpu: Gpu) -> float:
    """The dense time where 3×3 layers of stride 1 run by Winograd's algorithm."""
    is_suited = layer.kernel == 3 and layer.stride == 1
    return dense_seconds(layer, gpu) / (kernel_choice.WINOGRAD_GAIN if is_suited else 1)


def net_seconds(layers: Mapping[Layer, int], density: float, gpu: Gpu, dtype: str = "float32") -> tuple[float, float]:
    """Return (the sum over layers of the faster of sparse and dense, of dense alone)."""
    sparse = sum(
        count * min(modeled_layer(layer, density, gpu, dtype)[0], dense_seconds(layer, gpu, dtype))
        for layer, count in layers.items()
    )
    return sparse, sum(count * dense_seconds(layer, gpu, dtype) for layer, count in layers.items())


def break_even(layer: Layer, gpu: Gpu, dtype: str = "float32") -> float | None:
    """The sparsity in percent from which the sparse kernel's modeled time is below the dense one's, or None."""
    low, high = 0.0, 0.995
    dense = dense_seconds(layer, gpu, dtype)
    if modeled_layer(layer, 1 - high, gpu, dtype)[0] > dense:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        if modeled_layer(layer, 1 - middle, gpu, dtype)[0] > dense:
            low = middle
        else:
            high = middle
    return 100 * high


def dispatched(layers: Mapping[Layer, int], direction: str, ratio: int, gpu: Gpu, dtype: str, allow_tf32: bool) -> str:
    """What the dispatch would bring at a ratio: the speed-up over dense at its best, and how many layers are sparse."""
    total, dense, sparse_layers = 0.0, 0.0, 0
    for layer, count in layers.items():
        forward = layer.problem(1 - ratio / 100)
        problem = forward
        if direction == "input_grad":
            padding, x_size = layer.kernel // 2, (layer.size * layer.stride,) * 2
            transposed = TransposedConv.of(forward.kernel_size, forward.stride, (padding, padding), (1, 1), 1)
            problem = input_grad_problem(forward, transposed, x_size)
        choice = kernel_choice.choose_kernel(
            problem, DTYPES[dtype], gpu, allow_tf32=allow_tf32, direction=direction, dense_problem=forward
        )
        total, dense = total + count * choice.seconds, dense + count * choice.dense_seconds
        sparse_layers += count * (choice.kernel != "dense")
    return f"{dense / total:.2f}×, {sparse_layers}"


def kernel_seconds(layer: Layer, density: float, gpu: Gpu, dtype: str) -> dict[str, float]:
    """Seconds of the dense convolution at its best, the first, and of each sparse kernel that takes the layer."""
    problem, torch_dtype = layer.problem(density), DTYPES[dtype]
    dense = kernel_choice.dense_seconds(problem, gpu, dtype=torch_dtype)
    sparse = kernel_choice.candidates(problem, torch_dtype, gpu, 1)
    return {"dense": dense} | {candidate.kernel.name: candidate.seconds for candidate in sparse}


def speed_up(times: Sequence[tuple[int, Mapping[str, float]]], left_out: str | None = None) -> float:
    """What the net gains over dense where each layer runs by its fastest kernel, or by its fastest but one.

    Args:
        times: Of each layer shape, how often it comes and `kernel_seconds`.
        left_out: A kernel that is not there.
    """
    fastest = sum(count * min(s for name, s in of.items() if name != left_out) for count, of in times)
    return sum(count * of["dense"] for count, of in times) / fastest


def taken_kernels(times: Sequence[tuple[int, Mapping[str, float]]]) -> Counter[str]:
    """How many layers each kernel runs, or dense where that is as fast; for `times` see `speed_up`."""
    taken: Counter[str] = Counter()
    for count, seconds in times:
        taken[min(seconds, key=seconds.__getitem__)] += count
    return taken


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for cells in (headings, ["---"] * len(headings), *rows):
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


def print_choices(layers: Mapping[Layer, int], batch: int, dtype: str) -> None:
    """Print what the dispatch would bring, forward and backward, on every GPU."""
    rows = []
    for gpu in GPUS.values():
        dense_sides = [dtype, "tf32"] if dtype == "float32" and gpu.tf32_lanes else [dtype]
        for direction in ("inference", "input_grad"):
            for side in dense_sides:
                cells = [dispatched(layers, direction, r, gpu, dtype, side == "tf32") for r in RATIOS]
                rows.append([f"{gpu.name}, {direction}", side, *cells])
    print_table([f"modeled, batch {batch}", "dense", *(f"{ratio} %" for ratio in RATIOS)], rows)


def print_kernels(net: str, layers: Mapping[Layer, int], batch: int, dtype: str) -> None:
    """Print how many layers each kernel takes on every GPU, and what the net gains with all and without each one."""
    names = [
        name
        for name, kernel in SPARSE_KERNELS.items()
        if kernel.source == "cuda" and DTYPES[dtype] in kernel.architectures
    ]
    rows = []
    for gpu in GPUS.values():
        for ratio in KERNEL_RATIOS:
            times = [(count, kernel_seconds(layer, 1 - ratio / 100, gpu, dtype)) for layer, count in layers.items()]
            taken = ", ".join(f"{name} {count}" for name, count in taken_kernels(times).most_common())
            gains = [f"{speed_up(times, left_out):.2f}×" for left_out in (None, *names)]
            rows.append([gpu.name, f"{ratio} %", taken, *gains])
    headings = [f"modeled, {net}, batch {batch}, {dtype}", "zeros", "layers", "all kernels"]
    print_table([*headings, *(f"without {name}" for name in names)], rows)


def print_break_even(layers: Mapping[Layer, int], dtype: str) -> None:
    """Print for every layer shape and GPU from which percentage of zeros on the sparse kernel is faster."""
    rows = []
    for layer, count in sorted(layers.items(), key=lambda pair: (pair[0].kernel, pair[0].stride, -pair[0].size)):
        points = [break_even(layer, gpu, dtype) for gpu in GPUS.values()]
        cells = ["none" if p is None else f"{p:.1f}" if p > 99 else f"{p:.0f}" for p in points]
        rows.append([str(layer), f"{layer.size}×{layer.size}", str(count), *cells])
    print_table(["layer", "output", "layers", *(gpu.name for gpu in GPUS.values())], rows)


def print_small_maps(batch: int) -> None:
    """Print for layers of 13×13 and 26×26 the float16 microseconds of the bitmap and the condensed kernel, and dense.

    The dense floor is an implicit GEMM at 70 % of the tensor cores' peak or the bytes of weights, input and output,
    whichever is larger, without a launch; inf stands where no block of a kernel fits.
    """
    for gpu in GPUS.values():
        rows = []
        for sizes in SMALL_LAYERS:
            layer = Layer(*sizes, batch)
            pairs = [small_map_seconds(layer, 1 - ratio / 100, gpu) for ratio in SMALL_RATIOS]
            cells = [" / ".join(f"{1e6 * seconds:.1f}" for seconds in pair) for pair in pairs]
            dense = f"{1e6 * dense_seconds(layer, gpu, 'float16'):.1f}"
            rows.append([f"{layer}, {layer.size}×{layer.size}", dense, *cells])
        sys.stdout.write("\n")
        print_table([f"{gpu.name}, batch {batch}", "dense floor", *(f"{ratio} %" for ratio in SMALL_RATIOS)], rows)


def small_map_seconds(layer: Layer, density: float, gpu: Gpu) -> list[float]:
    """Return the modeled times of the bitmap and condensed kernels at their best cuts; inf where no block fits."""
    problem = CondensedProblem.of(layer.problem(density))
    chosen = BITMAP.choose_launch(problem, gpu), CONDENSED.choose_launch(problem, gpu)
    return [one[1] if one else float("inf") for one in chosen]


def main() -> None:
    """Print the tables."""
    parser = command_line(__doc__)
    parser.add_argument("--net", choices=MODELED_NETS, default="yolov3")
    parser.add_argument("--image-size", type=int, help="in pixels; by default the net's usual size")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", choices=sorted(GPUS), help="print every layer at 90 %% on this GPU")
    parser.add_argument("--choices", action="store_true", help="print what the dispatch would choose")
    parser.add_argument(
        "--kernels", action="store_true", help="print which kernels layers take, and what each one brings"
    )
    parser.add_argument("--break-even", action="store_true", help="print it for every layer shape and GPU")
    parser.add_argument("--small-maps", action="store_true", help="compare two float16 kernels on 13×13 and 26×26")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    options = parser.parse_args()
    dtype: str = options.dtype
    layers = net_layers(options.net, options.image_size or NETS[options.net].image_size, options.batch)
    write = sys.stdout.write
    if options.choices:
        print_choices(layers, options.batch, dtype)
        return
    if options.kernels:
        print_kernels(options.net, layers, options.batch, dtype)
        return
    if options.break_even:
        print_break_even(layers, dtype)
        return
    if options.small_maps:
        print_small_maps(options.batch)
        return
    if options.layers:
        gpu = GPUS[options.layers]
        for layer, count in sorted(layers.items(), key=lambda pair: -pair[1] * pair[0].macs):
            seconds, launch = modeled_layer(layer, 0.1, gpu, dtype)
            dense = dense_seconds(layer, gpu, dtype)
            floor = kernel_choice.floor_seconds(layer.problem(0.1), gpu, DTYPES[dtype])
            write(
                f"{count} × {layer} at {layer.size}: modeled {1e6 * seconds:.0f} µs, floor {1e6 * floor:.0f}, "
                f"dense {1e6 * dense:.0f}, {dense / seconds:.1f}×, {launch}, "
                f"break-even {break_even(layer, gpu, dtype)}\n"
            )
        return
    has_winograd = dtype == "float32"
    rows = []
    for gpu in GPUS.values():
        times = [net_seconds(layers, 1 - ratio / 100, gpu, dtype) for ratio in RATIOS]
        winograd = sum(count * winograd_seconds(layer, gpu) for layer, count in layers.items())
        milliseconds = [times[0][1], winograd][: 1 + has_winograd]
        cells = [f"{dense / sparse:.2f}×" for sparse, dense in times]
        rows.append([gpu.name, *cells, *(f"{1e3 * seconds:.2f}" for seconds in milliseconds)])
    headings = ["dense ms", "by Winograd"][: 1 + has_winograd]
    print_table(
        [f"modeled, {options.net}, batch {options.batch}, {dtype}", *(f"{ratio} %" for ratio in RATIOS), *headings],
        rows,
    )


if __name__ == "__main__":
    main()
