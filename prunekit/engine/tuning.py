"""How each convolution is cut, by measurement on this machine; every candidate is checked before it is timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.comparison import MAX_RELATIVE_RMS, check_within
from prunekit.engine.activations import activate
from prunekit.engine.filters import MAX_BLOCK_TAPS, ConvChoice, cut, max_quads_a_block
from prunekit.engine.geometry import Layouts, Size, layouts_of, row_vectors_of, window_of
from prunekit.engine.graph import CONVOLUTIONS, Graph, Node
from prunekit.engine.interpreter import quantized_conv2d
from prunekit.engine.planning import plan_segment
from prunekit.engine.program import Segment
from prunekit.engine.quantization import QUAD, levels_of, quad_words, with_output
from prunekit.engine.tuning_cache import TuningCache, TuningKey
from prunekit.ops import native

# Bytes of a channel block's input to try: a quarter, half and twice of a 32 KB L1, and a quarter of a 512 KB L2.
_BLOCK_BYTES = (8 * 1024, 16 * 1024, 40 * 1024, 128 * 1024)
# Tiles in one go to try where all channels are one block.
_REPEATS = (1, 4, 16)
_RUNS, _FINALISTS, _FINAL_RUNS = 2, 3, 5
_OUTPUT_BYTES = 64 << 20  # of candidates that are checked together, about
_SHORT_TILE = 2 / 3
_QUAD_BITS = 8  # of weights that the kernels of quads take


@dataclass(frozen=True)
class TunedConv:
    """One convolution's choice and what it measured.

    Attributes:
        choice: How it is cut.
        ms: Of the convolution alone, the least of a few runs; None when it was not timed now.
        is_cached: Whether the choice comes from the cache.
    """

    choice: ConvChoice
    ms: float | None
    is_cached: bool


def tune(
    graph: Graph,
    cache: TuningCache,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, TunedConv]:
    """Choose for each convolution of `graph`, at the sizes it was captured with; the costliest first.

    Args:
        graph: fused and compressed.
        cache: choices of earlier runs; new ones are added.
        seconds: after which the rest keeps the rule of thumb.
        progress: called with (done, total).

    Raises:
        WrongOutputError: a candidate differs from torch's convolution.
    """
    sizes = graph.sizes
    keys: dict[str, TuningKey] = {}
    layouts_by_name: dict[str, Layouts] = {}
    for nodes in graph.native_parts():
        names = {name for node in nodes for name in (node.name, *node.inputs)}
        layouts = layouts_of(graph, nodes, {name: sizes[name] for name in names})
        for node in nodes:
            if node.op in CONVOLUTIONS:
                keys[node.name] = _key(graph, node, sizes, layouts)
                layouts_by_name[node.name] = layouts
    by_name = {node.name: node for node in graph.convolutions()}
    distinct: dict[TuningKey, str] = {}
    for name, key in keys.items():
        distinct.setdefault(key, name)
    chosen: dict[TuningKey, TunedConv] = {}
    begin = time.perf_counter()
    for done, (key, name) in enumerate(sorted(distinct.items(), key=lambda item: -item[0].work)):
        progress(done, len(distinct))
        choice = cache.get(key)
        if choice is not None and _fits(choice, key):
            chosen[key] = TunedConv(choice, None, is_cached=True)
        elif time.perf_counter() - begin < seconds:
            chosen[key] = _measure(graph, by_name[name], sizes, layouts_by_name[name], key)
            cache.put(key, chosen[key].choice)
    progress(len(distinct), len(distinct))
    cache.save()
    return {name: chosen[key] for name, key in keys.items() if key in chosen}


def _fits(choice: ConvChoice, key: TuningKey) -> bool:
    longest = native.lane_layout()[1][{1: 0, 2: 1, 4: 2}[choice.rows]]
    if key.weight_bits == _QUAD_BITS:
        longest = native.quad_layout().max_vectors if choice.rows == QUAD else 0
    vectors = key.size[0] * max(key.pitches)  # more than there are
    is_sound = choice.repeats == 1 or (choice.channel_block == key.weight[1] and _fits_one_block(key))
    is_sound = is_sound and choice.row_parts <= key.weight[0] and choice.repeats <= vectors
    return is_sound and choice.tile_vectors <= longest and choice.channel_block <= key.weight[1]


def _fits_one_block(key: TuningKey) -> bool:
    """Tell whether all channels can be one block: taps in it are numbered in 16 bits."""
    if key.weight_bits == _QUAD_BITS:
        return key.weight[1] <= max_quads_a_block(key.weight)
    return math.prod(key.weight[1:]) <= MAX_BLOCK_TAPS


def _key(graph: Graph, node: Node, sizes: Mapping[str, Size], layouts: Layouts) -> TuningKey:
    weight, groups = graph.weights[node.attributes["weight"]], node.attributes["groups"]
    shape, density, kept = weight.shape, weight.density, weight.values.numel()
    window = window_of(node, graph)
    size = sizes[node.inputs[0]]
    output = window.output_size(*size[1:])
    if node.op == "quantized_conv2d":  # a convolution of quads, in one group
        words = quad_words(weight, groups)
        shape, groups, kept = tuple(words.shape), 1, int(words.count_nonzero())
        density = kept / words.numel()
    return TuningKey(
        weight=shape,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=groups,
        size=size[1:],
        pitches=(layouts[size[1:]].pitch, layouts[output].pitch),
        density=float(f"{density:.2g}"),
        weight_bits=8 * weight.values.element_size(),
        threads=torch.get_num_threads(),
        lanes=native.lane_layout()[0],
        work=kept * output[0] * output[1],
    )


def candidates(key: TuningKey, vectors: int, max_vectors: tuple[int, int, int]) -> list[ConvChoice]:
    """Return the cuts worth trying for a convolution whose rows (or plane) have `vectors` vectors."""
    shape = (key.weight[0] // key.groups, *key.weight[1:])
    choices: dict[ConvChoice, None] = {}
    if key.weight_bits == _QUAD_BITS:
        return _quad_candidates(key, vectors)
    if vectors == 1:  # a linear layer: packing it for each of many cuts takes longer than they differ by
        wide = cut(1, 1, 1, shape, 1.0, key.lanes, key.threads)  # type: ignore[arg-type]
        blocked = cut(min(2, shape[0]), 1, 1, shape, 1.0, key.lanes, key.threads, 40 * 1024)  # type: ignore[arg-type]
        return [replace(wide, channel_block=shape[1]), blocked]
    for rows, longest in zip((1, 2, 4), max_vectors, strict=True):
        if rows > max(1, shape[0]) or (rows == 4 and longest < 4):
            continue
        for tile in (longest, max(1, round(longest * _SHORT_TILE))):
            for block_bytes in _BLOCK_BYTES:
                choice = cut(rows, tile, vectors, shape, 1.0, key.lanes, key.threads, block_bytes)  # type: ignore[arg-type]
                choices[choice] = None
            for repeats in _REPEATS if _fits_one_block(key) else ():
                if repeats == 1 or repeats * choice.tile_vectors <= vectors:
                    choices[replace(choice, channel_block=shape[1], repeats=repeats)] = None
    return list(choices)


def _quad_candidates(key: TuningKey, vectors: int) -> list[ConvChoice]:
    longest = native.quad_layout().max_vectors
    choices: dict[ConvChoice, None] = {}
    for tile in dict.fromkeys((longest, max(1, round(longest * _SHORT_TILE)))):
        for block_bytes in _BLOCK_BYTES:
            choice = cut(QUAD, tile, vectors, key.weight, 1.0, key.lanes, key.threads, block_bytes)  # type: ignore[arg-type]
            choices[choice] = None
        for repeats in _REPEATS if _fits_one_block(key) else ():
            if repeats == 1 or repeats * choice.tile_vectors <= vectors:
                choices[replace(choice, channel_block=key.weight[1], repeats=repeats)] = None
    return list(choices)


def _measure(graph: Graph, node: Node, sizes: Mapping[str, Size], layouts: Layouts, key: TuningKey) -> TunedConv:
    """Run the candidates on one input, in turn; those with large outputs a few at a time."""
    choices = candidates(key, row_vectors_of(node, graph, sizes, layouts), native.lane_layout()[1])
    name = node.attributes["weight"]
    graph = replace(graph, outputs=[], weights={**graph.weights, name: graph.weights[name].unpacked()})
    size = sizes[node.inputs[0]]
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    a_time = max(_FINALISTS, _OUTPUT_BYTES // (4 * math.prod(sizes[node.name])))
    best: dict[ConvChoice, float] = {}
    for first in range(0, len(choices), a_time):
        best |= _run(graph, node, x, choices[first : first + a_time], layouts, _RUNS, is_checked=True)
    finalists = sorted(best, key=lambda choice: best[choice])[:_FINALISTS]
    best = _run(graph, node, x, finalists, layouts, _FINAL_RUNS, is_checked=False)
    choice = min(best, key=lambda choice: best[choice])
    return TunedConv(choice, best[choice], is_cached=False)


def _run(
    graph: Graph, node: Node, x: Tensor, choices: list[ConvChoice], layouts: Layouts, runs: int, *, is_checked: bool
) -> dict[ConvChoice, float]:
    """Return the least milliseconds of each choice in one plan, compared with torch's convolution first."""
    if is_checked and node.op == "quantized_conv2d":  # compared before levels hide a difference, then timed as it is
        _run_alone(graph, with_output(node, None), x, choices, layouts, 1, is_checked=True)
        is_checked = False
    return _run_alone(graph, node, x, choices, layouts, runs, is_checked=is_checked)


def _run_alone(
    graph: Graph, node: Node, x: Tensor, choices: list[ConvChoice], layouts: Layouts, runs: int, *, is_checked: bool
) -> dict[ConvChoice, float]:
    alone = {f"candidate{i}": choice for i, choice in enumerate(choices)}
    nodes = [replace(node, name=name, inputs=["x"]) for name in alone]
    if node.op == "quantized_conv2d":
        quantize = Node("levels", "quantize", ["x"], {"output": node.attributes["input"]})
        nodes = [
            quantize,
            *(replace(n, inputs=["levels"], attributes={**n.attributes, "residual": None}) for n in nodes),
        ]
    outputs = list(alone) if is_checked else []
    plan = plan_segment(graph, nodes, {"x": (x.shape[1], x.shape[2], x.shape[3])}, outputs, alone, layouts)
    segment, values = Segment(plan, ["x"], outputs), {"x": x}
    if is_checked:
        segment.run(values)
        _check(graph, node, x, {choice: values[name] for name, choice in alone.items()})
    return {alone[name]: ms for name, ms in _time(segment, values, runs).items()}


def _time(segment: Segment, values: dict[str, Tensor], runs: int) -> dict[str, float]:
    """Return the least milliseconds of each convolution; all of them take turns."""
    best: dict[str, float] = {}
    for _ in range(runs):
        ends = torch.zeros(len(segment.plan.kinds), dtype=torch.int64)
        segment.run(values, ends)
        spans = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
        for label, kind, span in zip(segment.plan.labels, segment.plan.kinds, spans, strict=True):
            if kind in ("conv", "quad_conv") and label is not None:
                best[label] = min(best.get(label, float("inf")), span / 1e6)
    return best


def _check(graph: Graph, node: Node, x: Tensor, outputs: Mapping[ConvChoice, Tensor]) -> None:
    expected = _expected(graph, replace(node, inputs=["x"]), x)
    if not expected.isfinite().all():
        return
    for choice, output in outputs.items():
        check_within(expected, output, f"layer {node.layer or node.name} ({choice})", MAX_RELATIVE_RMS, "dense")


def _expected(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Return what a convolution makes of float32 x, without a residual."""
    a = node.attributes
    if node.op == "quantized_conv2d":
        return quantized_conv2d(node, {"x": levels_of(x, a["input"])}, graph)
    bias = graph.constants[a["bias"]].float() if a["bias"] is not None else None
    y = F.conv2d(x, graph.weights[a["weight"]].dense(), bias, a["stride"], a["padding"], a["dilation"], a["groups"])
    return activate(y, a["before"])
