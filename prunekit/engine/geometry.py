"""Sizes and layouts: what each node makes of which sizes, and which layout the planes of a size get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunekit.engine.graph import Graph, Node
from prunekit.engine.lanes import LaneLayout, Window
from prunekit.errors import InputError
from prunekit.ops import native

Size = tuple[int, int, int]  # channels, height, width
Layouts = Mapping[tuple[int, int], LaneLayout]  # by height, width


def output_size(node: Node, sizes: Sequence[Size], graph: Graph) -> Size:
    """Return [C, H, W] of what a native node makes of inputs of `sizes`.

    Raises:
        InputError: the sizes do not fit the node.
    """
    channels, height, width = sizes[0]
    if node.op == "conv2d":
        out_channels, group_channels = graph.weights[node.attributes["weight"]].shape[:2]
        expected = group_channels * node.attributes["groups"]
        if channels != expected:
            raise InputError(f"{node.layer or node.name}: expected {expected} input channels, got {channels}.")
        size = (out_channels, *window_of(node, graph).output_size(height, width))
    elif node.op in ("max_pool2d", "avg_pool2d"):
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
    else:
        size = (channels, height, width)
    same = sizes if node.op in ("concat", "add") else [(size[0], *sizes[1][1:])] if len(sizes) > 1 else []
    if min(size) < 1 or any(s[1:] != (size if node.op == "conv2d" else sizes[0])[-2:] for s in same):
        raise InputError(f"{node.layer or node.name}: inputs of sizes {[list(s) for s in sizes]} do not fit.")
    return size


def upsampled_size(node: Node, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of what "upsample" makes: given, or multiples of the input's."""
    if "output_size" in node.attributes:
        rows, columns = node.attributes["output_size"]
        return int(rows), int(columns)
    return height * node.attributes["factors"][0], width * node.attributes["factors"][1]


def window_of(node: Node, graph: Graph) -> Window:
    """Return how a convolution or pool looks at its input."""
    a = node.attributes
    kernel = graph.weights[a["weight"]].shape[2:] if node.op == "conv2d" else a["kernel"]
    return Window(*((int(p[0]), int(p[1])) for p in (kernel, a["stride"], a["padding"], a["dilation"])))


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
    if node.op not in ("conv2d", "max_pool2d", "avg_pool2d"):
        return False
    window, source, size = window_of(node, graph), sizes[node.inputs[0]], sizes[node.name]
    is_halved = window.stride == (2, 2) and source[1:] == (2 * size[1], 2 * size[2]) and size[1] % lanes == 0
    if node.op == "conv2d":
        return window.keeps_size(*source[1:]) or is_halved
    return is_halved and window.padding == (0, 0)  # a max-pool's padding is no zero


def layouts_of(graph: Graph, nodes: Sequence[Node], sizes: Mapping[str, Size]) -> Layouts:
    """Return the layout of each plane size: rows are as far apart as the windows of `nodes` need zeros between them."""
    lanes, _ = native.lane_layout()
    beyond = dict.fromkeys((size[1:] for size in sizes.values()), 0)
    for node in nodes:
        if node.op not in ("conv2d", "max_pool2d", "avg_pool2d"):
            continue
        window = window_of(node, graph)
        source, size = sizes[node.inputs[0]][1:], sizes[node.name][1:]
        if is_direct(node, graph, sizes, lanes):
            beyond[source] = max(beyond[source], window.columns_beyond)
        else:
            beyond[size] = max(beyond[size], window.reach[1] // window.stride[1])
    return {(h, w): LaneLayout(h, w, w + extra, lanes) for (h, w), extra in beyond.items()}


def row_vectors_of(node: Node, graph: Graph, sizes: Mapping[str, Size], layouts: Layouts) -> int:
    """Return the output vectors among which a convolution's tiles are cut: a plane's, or a row's with a stride."""
    layout = layouts[sizes[node.name][1:]]
    is_strided = window_of(node, graph).stride != (1, 1) and is_direct(node, graph, sizes, layout.lanes)
    return layout.pitch if is_strided else layout.vectors
