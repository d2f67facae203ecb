"""Sizes and layouts: what each node makes of which sizes, and which layout the planes of a size get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunekit.engine.graph import CONVOLUTIONS, Graph, Node
from prunekit.engine.lanes import LaneLayout, Window
from prunekit.errors import InputError
from prunekit.ops import native

Size = tuple[int, int, int]  # channels, height, width
Layouts = Mapping[tuple[int, int], LaneLayout]  # by height, width
#: Ops that look at neighbors, and ops of two images or an image and a pixel.
WINDOWS = (*CONVOLUTIONS, "max_pool2d", "avg_pool2d")
PIXELWISE = ("add", "sub", "mul")


def output_size(node: Node, sizes: Sequence[Size], graph: Graph) -> Size:
    """Return [C, H, W] of what a native node makes of inputs of `sizes`.

    Raises:
        InputError: the sizes do not fit the node.
    """
    channels, height, width = sizes[0]
    if node.op in CONVOLUTIONS:
        out_channels, group_channels = graph.weights[node.attributes["weight"]].shape[:2]
        expected = group_channels * node.attributes["groups"]
        if channels != expected:
            raise InputError(f"{node.layer or node.name}: expected {expected} input channels, got {channels}.")
        size = (out_channels, *window_of(node, graph).output_size(height, width))
    elif node.op in WINDOWS:
        size = (channels, *window_of(node, graph).output_size(height, width))
    elif node.op == "upsample":
        size = (channels, *upsampled_size(node, height, width))
    elif node.op == "pad":
        left, right, top, bottom = node.attributes["sides"]
        size = (channels, height + top + bottom, width + left + right)
    elif node.op == "global_mean":
        size = (channels, 1, 1)
    elif node.op == "concat":
        size = (sum(s[0] for s in sizes), height, width)
    elif node.op == "select":
        wanted = node.attributes["channels"]
        if max(wanted) >= channels:
            raise InputError(f"{node.layer or node.name}: expected more than {max(wanted)} channels, got {channels}.")
        size = (len(wanted), height, width)
    elif node.op in PIXELWISE:
        return _broadcast(node, sizes)
    else:
        size = (channels, height, width)
    same = sizes if node.op == "concat" else [(size[0], *sizes[1][1:])] if len(sizes) > 1 else []
    if min(size) < 1 or any(s[1:] != (size if node.op in CONVOLUTIONS else sizes[0])[-2:] for s in same):
        raise InputError(f"{node.layer or node.name}: inputs of sizes {[list(s) for s in sizes]} do not fit.")
    return size


def _broadcast(node: Node, sizes: Sequence[Size]) -> Size:
    """Return the size that all `sizes` become: single channels and single pixels are repeated."""
    channels = max(size[0] for size in sizes)
    height, width = max(size[1:] for size in sizes)
    if any(size[0] not in (1, channels) or size[1:] not in ((1, 1), (height, width)) for size in sizes):
        raise InputError(f"{node.layer or node.name}: inputs of sizes {[list(s) for s in sizes]} do not fit.")
    return channels, height, width


def upsampled_size(node: Node, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of what "upsample" makes: given, or multiples of the input's."""
    if "output_size" in node.attributes:
        rows, columns = node.attributes["output_size"]
        return int(rows), int(columns)
    return height * node.attributes["factors"][0], width * node.attributes["factors"][1]


def window_of(node: Node, graph: Graph) -> Window:
    """Return how a convolution or pool looks at its input."""
    a = node.attributes
    kernel = graph.weights[a["weight"]].shape[2:] if node.op in CONVOLUTIONS else a["kernel"]
    kernel, stride, padding, dilation = (
        (int(p[0]), int(p[1])) for p in (kernel, a["stride"], a["padding"], a["dilation"])
    )
    return Window(kernel, stride, padding, dilation, is_ceil=a.get("is_ceil", False))


def window_on(node: Node, graph: Graph, source: Size) -> Window:
    """Return how a convolution or pool looks at an input of this size; taps that only see padding are left out.

    So are a convolution's, where they add 0 · weight = 0: not where weights are not finite.
    """
    window = window_of(node, graph)
    is_exact = node.op in CONVOLUTIONS and graph.weights[node.attributes["weight"]].is_finite
    return window.trimmed(*source[1:]) if is_exact else window


def sizes_of(graph: Graph, nodes: Sequence[Node], inputs: Mapping[str, Size]) -> dict[str, Size]:
    """Return [C, H, W] of `inputs` and of every value that the native `nodes` make of them.

    Raises:
        InputError: the sizes do not fit a node.
    """
    sizes = dict(inputs)
    for node in nodes:
        sizes[node.name] = output_size(node, [sizes[name] for name in node.inputs], graph)
    return sizes


def is_direct(node: Node, graph: Graph, sizes: Mapping[str, Size], lanes: int) -> bool:
    """Tell whether a window reads its input in place: one that keeps the size, or strides by whole lanes.

    Chunks of whole rows, twice as many in the input as in the output, put the input pixels of an output chunk into
    the same lane.
    """
    if node.op not in WINDOWS:
        return False
    source, size = sizes[node.inputs[0]], sizes[node.name]
    window = window_on(node, graph, source)
    is_halved = window.stride == (2, 2) and source[1:] == (2 * size[1], 2 * size[2]) and size[1] % lanes == 0
    if node.op in CONVOLUTIONS:
        return is_halved or (window.keeps_size(*source[1:]) and not _is_far(window, source, lanes))
    # A max-pool's padding is no zero.
    return is_halved and window.padding == (0, 0) and window.fits(*source[1:])


def is_shifted(node: Node, graph: Graph, sizes: Mapping[str, Size], lanes: int) -> bool:
    """Tell whether a convolution that keeps the size reads a shifted copy of its input for each tap."""
    if node.op != "conv2d":
        return False
    source = sizes[node.inputs[0]]
    window = window_on(node, graph, source)
    return window.keeps_size(*source[1:]) and _is_far(window, source, lanes)


def _is_far(window: Window, source: Size, lanes: int) -> bool:
    """Tell whether the halo that a window needs is larger than a copy of the image for each tap.

    So it is with dilations that are not much smaller than the image: 12 at 20×20 pixels makes a plane of 50 vectors
    one of 871, and all other maps of that size would have rows 32 apart.
    """
    _, height, width = source
    distances = window.distances(width + window.columns_beyond)
    halo = max(0, -int(distances.min())) + max(0, int(distances.max()))
    return halo > len(distances) * -(-height * width // lanes)


def layouts_of(graph: Graph, nodes: Sequence[Node], sizes: Mapping[str, Size]) -> Layouts:
    """Return the layout of each plane size: rows are as far apart as the windows of `nodes` need zeros between them."""
    lanes, _ = native.lane_layout()
    beyond = dict.fromkeys((size[1:] for size in sizes.values()), 0)
    for node in nodes:
        if node.op not in WINDOWS or is_shifted(node, graph, sizes, lanes):
            continue
        window = window_on(node, graph, sizes[node.inputs[0]])
        source, size = sizes[node.inputs[0]][1:], sizes[node.name][1:]
        if is_direct(node, graph, sizes, lanes):
            beyond[source] = max(beyond[source], window.columns_beyond)
        else:
            beyond[size] = max(beyond[size], window.last_column // window.stride[1])
    return {(h, w): LaneLayout(h, w, w + extra, lanes) for (h, w), extra in beyond.items()}


def row_vectors_of(node: Node, graph: Graph, sizes: Mapping[str, Size], layouts: Layouts) -> int:
    """Return the output vectors among which a convolution's tiles are cut: a plane's, or a row's with a stride."""
    layout = layouts[sizes[node.name][1:]]
    is_strided = window_of(node, graph).stride != (1, 1) and is_direct(node, graph, sizes, layout.lanes)
    return layout.pitch if is_strided else layout.vectors
