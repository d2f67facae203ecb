"""What bounds an unstructured-pruned net on this machine: one thread's time, layer by layer, against what caches allow.

    python -m bench.limits --model yolov3 --ratios 50,75,90,95,99

The loops of `native.vector_times` give, in the same run, the nanoseconds that a vector takes to be multiplied and
added, and to be rewritten, in memory of any size. The account of a convolution is what its cut makes it do, each at the
rate of the cache that it fits into:

* `products`: a multiply-add in registers for each kept weight and output vector, and a load for each tap that any of a
  group's rows keeps, whichever takes longer; the loads from as much memory as a tile of a channel block reads;
* `sums`: those that rest in memory between channel blocks, rewritten once a block;
* `results`: the output's vectors, rewritten: the caches read a line before they write it;
* `weights`: a load of each kept weight and of each tap's place, once for every tile, at the rate of multiply-adds in
  registers; or their six bytes from where they lie, whichever takes longer.

Nothing is taken to overlap, so it is an account and not a floor: a kernel that hides one behind the other is faster.
Copies (phases of strides, upsampling, in and out) and halos are taken as measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import prunekit
from bench.scripts import command_line, print_row
from prunekit.benchmark.problems import NETS, pruned_net, random_image
from prunekit.engine.filters import ConvChoice
from prunekit.engine.geometry import layouts_of, row_vectors_of
from prunekit.engine.model import AcceleratedModel
from prunekit.ops import native

_FLOAT_BYTES, _WEIGHT_BYTES, _FLOPS = 4, 6, 2
_SMALLEST = 8 * 1024  # bytes: any first cache holds them


@dataclass(frozen=True)
class Rates:
    """Nanoseconds a vector.

    Attributes:
        product_ns: Of a multiply-add in registers.
        from_ns: Of a multiply-add from memory of so many bytes.
        rewrite_ns: Of reading, changing and writing, likewise.
    """

    product_ns: float
    from_ns: Callable[[int], float]
    rewrite_ns: Callable[[int], float]


@dataclass(frozen=True)
class Conv:
    """A convolution as it is cut.

    Attributes:
        weight: [K, C / groups, R, S].
        density: Fraction of weights that are kept.
        choice: The cut.
        vectors: Of an output plane.
        row_vectors: Output vectors among which tiles are cut.
        lanes: Elements of a vector.
    """

    weight: tuple[int, ...]
    density: float
    choice: ConvChoice
    vectors: int
    row_vectors: int
    lanes: int


@dataclass(frozen=True)
class Account:
    """Milliseconds."""

    products: float = 0.0
    sums: float = 0.0
    results: float = 0.0
    weights: float = 0.0

    @property
    def total(self) -> float:
        """All of them, one after the other."""
        return self.products + self.sums + self.results + self.weights

    def __add__(self, other: Account) -> Account:
        return Account(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def account(conv: Conv, rates: Rates) -> Account:
    """Add up what a convolution does, by the cut that was chosen for it."""
    out_channels, channels, kernel_h, kernel_w = conv.weight
    choice, vector_bytes = conv.choice, conv.lanes * _FLOAT_BYTES
    taps = out_channels * channels * kernel_h * kernel_w
    loads = taps / choice.rows * (1 - (1 - conv.density) ** choice.rows)
    long_tile = choice.tile_vectors * choice.repeats
    read = min(choice.channel_block, channels) * kernel_h * (long_tile + kernel_w - 1) * vector_bytes
    products = conv.vectors * max(conv.density * taps * rates.product_ns, loads * rates.from_ns(read))
    blocks = math.ceil(channels / choice.channel_block)
    rows = math.ceil(out_channels / choice.row_parts)
    resting = rows * choice.tile_vectors * vector_bytes
    sums = (blocks - 1) * out_channels * conv.vectors * rates.rewrite_ns(resting)
    results = out_channels * conv.vectors * rates.rewrite_ns(out_channels * conv.vectors * vector_bytes)
    tiles = math.ceil(conv.row_vectors / long_tile) * math.ceil(conv.vectors / conv.row_vectors)
    weight_bytes = int(conv.density * taps * _WEIGHT_BYTES)
    moved = weight_bytes / vector_bytes * rates.from_ns(weight_bytes)
    weights = tiles * max(moved, (conv.density * taps + loads) * rates.product_ns)
    return Account(*(ns / 1e6 for ns in (products, sums, results, weights)))


def convolutions(fast: AcceleratedModel) -> dict[str, Conv]:
    """Return the convolutions that the engine runs, by their nodes' names."""
    graph, found = fast.graph, dict[str, Conv]()
    cuts = {name: choice for segment in fast.segments() for name, choice in segment.plan.choices.items()}
    for nodes in graph.native_parts():
        sizes = {name: graph.sizes[name] for node in nodes for name in (node.name, *node.inputs)}
        layouts = layouts_of(graph, nodes, sizes)
        for node in nodes:
            if node.op == "conv2d":
                weight = graph.weights[node.attributes["weight"]]
                layout = layouts[sizes[node.name][1:]]
                row_vectors = row_vectors_of(node, graph, sizes, layouts)
                found[node.name] = Conv(
                    weight.shape, weight.density, cuts[node.name], layout.vectors, row_vectors, layout.lanes
                )
    return found


def measure_rates() -> Rates:
    """Measure this machine; a size once, rounded up to a power of √2."""

    @cache
    def times(exponent: int) -> tuple[float, float]:
        return native.vector_times(math.ceil(2 ** (exponent / 2)))

    def size(num_bytes: int) -> int:
        return math.ceil(2 * math.log2(max(num_bytes, _SMALLEST)))

    flops = native.fma_peak_gflops() / torch.get_num_threads()
    lanes = native.lane_layout()[0]
    return Rates(_FLOPS * lanes / flops, lambda n: times(size(n))[0], lambda n: times(size(n))[1])


def measure(fast: AcceleratedModel, x: Tensor, runs: int) -> tuple[dict[str, float], float]:
    """Return the least milliseconds of each convolution, and of everything else together."""
    best: list[float] = []
    for _ in range(runs):
        steps = fast.profile(x)
        best = [min(pair) for pair in zip(best or [math.inf] * len(steps), (s.ms for s in steps), strict=True)]
    convs = dict[str, float]()
    for step, ms in zip(steps, best, strict=True):
        if step.kind == "conv" and step.node is not None:
            convs[step.node] = convs.get(step.node, 0.0) + ms
    return convs, sum(best) - sum(convs.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, a line a ratio, and with --layers JSON lines, one a convolution."""
    parser = command_line(__doc__)
    parser.add_argument("--model", choices=sorted(NETS), default="yolov3")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--ratios", default="50,75,90,95,99")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    x = random_image(options.image_size)
    names = [field.name for field in fields(Account)]
    table = Table("% zeros", "measured ms", "copies, halos", *names, "account", title=f"{options.model}, 1 thread")
    for ratio in (float(ratio) for ratio in options.ratios.split(",")):
        rates, total = measure_rates(), Account()
        fast = prunekit.accelerate(pruned_net(options.model, ratio, options.width), x)
        if not isinstance(fast, AcceleratedModel):
            raise SystemExit(
                f"{options.model} at {ratio:g} % zeros runs dense on this machine: there is no account of it."
            )
        milliseconds, other = measure(fast, x, options.runs)
        for name, conv in convolutions(fast).items():
            costs = account(conv, rates)
            total += costs
            if options.layers:
                row = dict(zip(names, astuple(costs), strict=True))
                facts = {"ratio": ratio, "layer": name, "weight": conv.weight, "cut": str(conv.choice)}
                print_row({**facts, "ms": milliseconds[name], "account_ms": costs.total, **row})
        measured = sum(milliseconds.values()) + other
        numbers = (measured, other, *astuple(total), total.total + other)
        table.add_row(f"{ratio:g}", *(f"{number:.1f}" for number in numbers))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
