"""accelerate's int8: a whole graph whose convolutions run on levels wherever that is exact enough and faster.

The float32 graph is there first. Its values are observed on calibration inputs, each layer's noise is measured, and
what is too noisy, not supported or measured slower stays float32 in the same graph. Every layer in int8 is compared
with a slow reference on the levels that reach it before anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.comparison import MAX_RELATIVE_RMS, Comparison, check_within
from prunekit.engine.calibration import METHODS, observe
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph, Node, Quantization
from prunekit.engine.interpreter import quantized_conv2d
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.program import Program, StepTime
from prunekit.engine.quantization import levels_of, quantizations_of, values_of
from prunekit.engine.quantizing import Ranges, quantized_graph, reasons_for_float32, values_to_observe
from prunekit.engine.tuning import TunedConv, tune
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError, WrongOutputError
from prunekit.nn.calls import Call
from prunekit.ops import native, native_status

#: Decibels of a layer's output over its noise in int8 below which it stays float32: a tenth of its amplitude.
MIN_SIGNAL_TO_NOISE = 20.0
# Inputs that the noise is measured on, and runs of a graph for its layers' times.
_NOISE_INPUTS, _PROFILES = 4, 3
#: Activations that the kernels compute as torch does, to the bit.
_EXACT = ("none", "relu", "relu6", "leaky_relu")

Inputs = tuple[Tensor, ...]


class StaysFloat32(Exception):
    """There is no int8 to be had; the message is why, without a full stop."""


@dataclass(frozen=True)
class Int8Graph:
    """A float32 graph with convolutions in int8.

    Attributes:
        model: Compared layer by layer.
        tuned: What was chosen for each convolution in int8.
        noise: Signal to noise in decibels of every convolution that could be in int8, by its node's name.
        reasons: Why the others are float32, by their layers' names.
        compared: What the comparison of the layers looked at.
        inputs: How many inputs the ranges were observed on.
    """

    model: AcceleratedModel
    tuned: Mapping[str, TunedConv]
    noise: Mapping[str, float]
    reasons: Mapping[str, str]
    compared: Comparison
    inputs: int

    def notes(self) -> list[str]:
        """Return what a report says about it, without full stops."""
        convolutions = list(self.model.graph.convolutions())
        in_int8 = sum(node.op == "quantized_conv2d" for node in convolutions)
        words = [
            f"{in_int8} of {len(convolutions)} convolutions run in int8, calibrated on {self.inputs} "
            f"input{'s'[: self.inputs != 1]} and compared layer by layer with a slow reference ({self.compared})"
        ]
        by_reason: dict[str, list[str]] = {}
        for layer, reason in self.reasons.items():
            by_reason.setdefault(reason, []).append(layer)
        return words + [f"float32 in {_listed(layers)}: {reason}" for reason, layers in by_reason.items()]


def calibration_inputs(calibration: object, example: Call) -> list[Inputs]:
    """Return what a user gave for calibration as tensors in the order of the example's.

    Args:
        calibration: a tensor [N, ...] for a forward with one tensor, or an iterable of forward arguments: a tensor, or
            a list or tuple of positional ones.
        example: the call that the model is accelerated for.

    Raises:
        InputError: there is none, or it does not fit the example, or holds nan or infinity.
    """
    if calibration is None:
        raise InputError('accelerate expects calibration inputs with precision="int8"; got none.')
    if isinstance(calibration, Tensor):
        if len(example.tensors) != 1 or calibration.dim() != example.tensors[0].dim():
            raise InputError(
                f"accelerate expects calibration tensors like the example's, of shape {example.words}; "
                f"got one of {tuple(calibration.shape)}."
            )
        given: Iterable[object] = torch.split(calibration, max(1, len(example.tensors[0]))) if len(calibration) else ()
    elif isinstance(calibration, Iterable):
        given = calibration
    else:
        raise InputError(
            "accelerate expects calibration to be a tensor or an iterable of arguments; "
            f"got {type(calibration).__name__}."
        )
    inputs = [_like_example(item, example, number) for number, item in enumerate(given)]
    if not inputs:
        raise InputError("accelerate expects at least one calibration input; got an empty iterable.")
    return inputs


def _like_example(item: object, example: Call, number: int) -> Inputs:
    args = tuple(item) if isinstance(item, (list, tuple)) else (item,)
    tensors = example.signature.tensors(args, {})
    for tensor, like in zip(tensors, example.tensors, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dim() != like.dim() or tensor.shape[1:2] != like.shape[1:2]:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"Expected {tuple(like.shape)} or its like as calibration input {number}, got {found}.")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"Expected finite numbers in calibration input {number}, got nan or inf.")
    return tuple(t.detach().float() if t.is_floating_point() else t.detach() for t in tensors)


def build_int8(
    float32: AcceleratedModel,
    example: Sequence[Tensor],
    inputs: Sequence[Inputs],
    method: str,
    seconds: float,
    cache: TuningCache,
    *,
    only_where_faster: bool = True,
) -> Int8Graph:
    """Put the convolutions of a float32 graph into int8.

    Args:
        float32: on the engine, found equal to the model.
        example: the tensors to be fast on.
        inputs: for calibration.
        method: of `prunekit.engine.calibration.METHODS`.
        seconds: for tuning.
        cache: of choices of earlier runs.
        only_where_faster: False also takes kernels and layers that are not.

    Raises:
        StaysFloat32: there is nothing that could or should be in int8.
        InputError: a value is not finite on a calibration input.
        WrongOutputError: a layer differs from the reference.
    """
    if only_where_faster and native.quad_layout().rate == 0:
        raise StaysFloat32(f"the {native_status().instruction_set} kernels have no instruction for int8")
    graph = float32.graph
    reasons = reasons_for_float32(graph)
    names = [name for name, reason in reasons.items() if reason is None]
    ranges = observe(graph, values_to_observe(graph, names), inputs, method)
    found = noise_of_layers(graph, names, ranges, inputs[:_NOISE_INPUTS])
    noise = {name: layer.decibels for name, layer in found.items()}
    shifts = {name: layer.shift for name, layer in found.items()}
    noisy = f"its signal is less than {MIN_SIGNAL_TO_NOISE:g} dB over the noise"
    reasons |= {name: noisy for name in names if noise[name] < MIN_SIGNAL_TO_NOISE}
    built = _built(
        float32, names := [name for name in names if reasons[name] is None], ranges, shifts, example, seconds, cache
    )
    if only_where_faster:
        slower = _slower(float32, built[0], names, example)
        if slower:
            reasons |= dict.fromkeys(slower, "it was measured faster")
            names = [name for name in names if name not in slower]
            built = _built(float32, names, ranges, shifts, example, seconds, cache)
    model, tuned = built
    compared = check_layers(model.graph, model.choices, example)
    by_layer = {node.name: node.layer or node.name for node in graph.nodes}
    told = {by_layer[name]: reason for name, reason in reasons.items() if reason is not None}
    return Int8Graph(model, tuned, noise, told, compared, len(inputs))


def _built(
    float32: AcceleratedModel, names: Sequence[str], ranges: Ranges, shifts: Mapping[str, Tensor],
    example: Sequence[Tensor], seconds: float, cache: TuningCache,
) -> tuple[AcceleratedModel, Mapping[str, TunedConv]]:  # fmt: skip
    if not names:
        raise StaysFloat32("no convolution is both exact enough and faster in it")
    graph = quantized_graph(float32.graph, names, ranges, shifts)
    tuned = tune(graph, cache, seconds)
    choices = {**float32.choices, **{name: found.choice for name, found in tuned.items()}}
    left = {name: choice for name, choice in choices.items() if name in tuned or name not in names}
    return AcceleratedModel(graph, left, [list(x.shape) for x in example], float32.signature), tuned


def _slower(
    float32: AcceleratedModel, int8: AcceleratedModel, names: Sequence[str], example: Sequence[Tensor]
) -> set[str]:
    """Return the convolutions that took longer in int8."""
    before, after = (_layer_times(model, example) for model in (float32, int8))
    return {name for name in names if after.get(name, 0.0) >= before.get(name, math.inf)}


def _layer_times(model: AcceleratedModel, example: Sequence[Tensor]) -> dict[str, float]:
    """Return the least milliseconds of each node in a few runs."""
    program, best = Program(model.graph, model.choices), dict[str, float]()
    for _ in range(_PROFILES):
        steps: list[StepTime] = []
        program.run(example, steps)
        ms: dict[str, float] = {}
        for step in steps:
            if step.node is not None:
                ms[step.node] = ms.get(step.node, 0.0) + step.ms
        best = {name: min(found, best.get(name, math.inf)) for name, found in ms.items()}
    return best


@dataclass(frozen=True)
class LayerNoise:
    """What int8 does to a convolution's sums, before its activation.

    Attributes:
        decibels: 10 · log10(Σ y² / Σ (y₈ - y - shift)²), y of float32 numbers, y₈ of the same numbers with input and
            weight in int8: a layer alone, without what the layers before it changed.
        shift: The mean of y₈ - y in each output channel, float32 [K], which is taken from the bias (bias correction).
    """

    decibels: float
    shift: Tensor


@dataclass
class _Differences:
    """Sums over inputs: of squares of y, and of y₈ - y and its squares by output channel, float64."""

    signal: float = 0.0
    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, y: Tensor, difference: Tensor) -> None:
        self.signal += float(y.double().square().sum())
        self.count += difference.numel() // difference.shape[1]
        self.total = self.total + difference.double().sum((0, 2, 3))
        self.squares = self.squares + difference.double().square().sum((0, 2, 3))

    def noise(self) -> LayerNoise:
        total, squares = torch.as_tensor(self.total), torch.as_tensor(self.squares)
        rest = float((squares - total.square() / max(self.count, 1)).clamp(min=0.0).sum())
        return LayerNoise(_decibels(self.signal, rest), (total / max(self.count, 1)).float())


def noise_of_layers(
    graph: Graph, names: Sequence[str], ranges: Ranges, inputs: Sequence[Inputs]
) -> dict[str, LayerNoise]:
    """Measure what int8 does to each convolution.

    Args:
        graph: in float32.
        names: of its convolutions.
        ranges: of its values.
        inputs: that it is run on.
    """
    wanted = {node.name: node for node in graph.nodes if node.name in names}
    whole = quantized_graph(graph, names, ranges)
    quantized = {node.name: node for node in whole.nodes if node.name in wanted}
    found = {name: _Differences() for name in wanted}
    read = list(dict.fromkeys(node.inputs[0] for node in wanted.values()))
    program = Program(replace(graph, outputs=read), {})
    for tensors in inputs:
        values = dict(zip(read, program.run(tensors), strict=True))
        for name, node in wanted.items():
            x = values[node.inputs[0]]
            y = _sums(x, graph.weights[node.attributes["weight"]].dense(), node)
            found[name].add(y, _sums_in_int8(x, quantized[name], whole) - y)
    return {name: differences.noise() for name, differences in found.items()}


def _sums_in_int8(x: Tensor, node: Node, graph: Graph) -> Tensor:
    """Return a quantized convolution's sums of float32 x, in float32."""
    levels: Quantization = node.attributes["input"]
    weight = graph.weights[node.attributes["weight"]].dense()
    scale = graph.constants[node.attributes["weight_scale"]]
    return _sums(values_of(levels_of(x, levels), levels), weight * scale[:, None, None, None], node)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _sums(x: Tensor, weight: Tensor, node: Node) -> Tensor:
    a = node.attributes
    return F.conv2d(x, weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])


def check_layers(graph: Graph, choices: Mapping[str, ConvChoice], example: Sequence[Tensor]) -> Comparison:
    """Compare each convolution in int8 with the reference, on the levels that reach it.

    Levels have to be the reference's, to the bit; behind an activation that the kernels approximate, they may be one
    apart. Float32 numbers have to be equal up to rounding.

    Raises:
        WrongOutputError: a layer differs, or there is none.
    """
    graph = graph.at([list(x.shape) for x in example])
    quantizations = quantizations_of(graph)
    seen = {name: f"{name}@seen" for name in quantizations}
    extra = [Node(seen[name], "dequantize", [name], {"input": found}) for name, found in quantizations.items()]
    convolutions = [node for node in graph.nodes if node.op == "quantized_conv2d"]
    floats = [node.name for node in convolutions if node.name not in quantizations]
    wanted = [*seen.values(), *floats]
    outputs = Program(replace(graph, nodes=[*graph.nodes, *extra], outputs=wanted), choices).run(example)
    values = dict(zip([*seen, *floats], outputs, strict=True))
    levels = {name: levels_of(values[name], found) for name, found in quantizations.items()}
    compared = Comparison(inputs=0)
    for node in convolutions:
        expected = quantized_conv2d(node, levels, graph)
        what = f"layer {node.layer or node.name} in int8"
        if node.name in levels:
            compared += _check_levels(levels_of(expected, quantizations[node.name]), levels[node.name], node, what)
        else:
            compared += check_within(expected, values[node.name], what, MAX_RELATIVE_RMS, "the reference")
    if not compared.elements:
        raise WrongOutputError("int8: there is no layer to compare")
    return replace(compared, inputs=1)


def _check_levels(expected: Tensor, found: Tensor, node: Node, what: str) -> Comparison:
    is_exact = all(node.attributes[key].kind in _EXACT for key in ("before", "after"))
    difference = float((expected - found).abs().max())
    if not difference <= (0.0 if is_exact else 1.0):
        raise WrongOutputError(f"{what} differs from the reference by {difference:g} levels")
    return Comparison(tensors=1, elements=expected.numel(), largest=difference, inputs=0)


def check_precision(precision: str, method: str) -> None:
    """Check what a user asks for.

    Raises:
        InputError: there is no such precision or calibration method.
    """
    if precision not in PRECISIONS:
        raise InputError(f"accelerate expects precision {' or '.join(map(repr, PRECISIONS))}; got {precision!r}.")
    if method not in METHODS:
        raise InputError(f"accelerate expects calibration_method out of {', '.join(METHODS)}; got {method!r}.")


#: Of accelerated models.
PRECISIONS = ("float32", "int8")


def _listed(layers: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(layers[:most])
    return shown if len(layers) <= most else f"{shown} and {len(layers) - most} more layers"
