"""DeepLIFT in plain numpy, float64, step by step, for small nets; and the same nets in torch.

A net is a list of steps; step i makes value i + 1 of earlier values, of which 0 is the input and the last the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import erf, expit
from torch import Tensor, nn
from torch.nn import functional

Array = npt.NDArray[np.float64]
# A place in the output [N, C, P, Q], and the places (row, column) that feed it, with their values.
Window = tuple[tuple[int, ...], list[tuple[tuple[int, int], float]]]


@dataclass(frozen=True)
class Step:
    """One step: its kind, the values it reads, and what else it needs."""

    kind: str
    inputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x * expit(x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "sigmoid": expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0, x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
}
# Every way of writing an activation in torch: module, function, method, in place.
TORCH_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "relu": (nn.ReLU(), nn.ReLU(inplace=True), functional.relu, torch.relu, torch.relu_, lambda x: x.clamp(min=0)),
    "leaky_relu": (
        nn.LeakyReLU(0.1),
        nn.LeakyReLU(0.1, inplace=True),
        lambda x: functional.leaky_relu(x, 0.1),
        lambda x: functional.leaky_relu_(x, 0.1),
    ),
    "relu6": (nn.ReLU6(), nn.ReLU6(inplace=True), functional.relu6, lambda x: functional.hardtanh(x, 0, 6)),
    "silu": (nn.SiLU(), nn.SiLU(inplace=True), functional.silu),
    "hardswish": (nn.Hardswish(), nn.Hardswish(inplace=True), functional.hardswish),
    "mish": (nn.Mish(), nn.Mish(inplace=True), functional.mish),
    "sigmoid": (nn.Sigmoid(), functional.sigmoid, torch.sigmoid, lambda x: x.sigmoid(), lambda x: x.sigmoid_()),
    "tanh": (nn.Tanh(), torch.tanh, lambda x: x.tanh_()),
    "softplus": (nn.Softplus(), functional.softplus),
    "gelu": (nn.GELU(), functional.gelu),
}


class StepNet(nn.Module):
    """The net in torch; `spelling` picks one of the ways to write an activation."""

    def __init__(self, steps: Sequence[Step], spelling: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.spelling = spelling
        self.layers = nn.ModuleDict()
        for place, step in enumerate(steps):
            if step.kind == "conv":
                self.layers[str(place)] = conv_module(step.options)
            elif step.kind == "norm":
                self.layers[str(place)] = norm_module(step.options)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for place, step in enumerate(self.steps):
            values.append(self._run_step(place, step, [values[i] for i in step.inputs]))
        return values[-1]

    def _run_step(self, place: int, step: Step, inputs: list[Tensor]) -> Tensor:
        if str(place) in self.layers:
            out: Tensor = self.layers[str(place)](inputs[0])
        elif step.kind == "activation":
            spellings = TORCH_ACTIVATIONS[step.options["name"]]
            out = spellings[self.spelling % len(spellings)](inputs[0])
        elif step.kind == "pool":
            out = functional.max_pool2d(inputs[0], **step.options)
        elif step.kind == "upsample":
            out = functional.interpolate(inputs[0], scale_factor=2)
        else:
            join = {"add": lambda a, b: a + b, "cat": lambda a, b: torch.cat([a, b], 1), "mul": lambda a, b: a * b}
            out = join[step.kind](*inputs)  # type: ignore[no-untyped-call]
        return out


def conv_module(options: dict[str, Any]) -> nn.Conv2d:
    weight, bias = options["weight"], options["bias"]
    conv = nn.Conv2d(
        weight.shape[1], weight.shape[0], weight.shape[2:], options.get("stride", 1), options.get("padding", 0)
    )
    conv.weight.data, conv.bias.data = torch.tensor(weight), torch.tensor(bias)  # type: ignore[union-attr]
    return conv


def norm_module(options: dict[str, Any]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(options["scale"]), eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor(options["scale"]), torch.tensor(options["shift"])
    return norm


def forward(steps: Sequence[Step], x: Array) -> list[Array]:
    values = [x]
    for step in steps:
        values.append(_forward_step(step, [values[i] for i in step.inputs]))
    return values


def _forward_step(step: Step, inputs: list[Array]) -> Array:
    x, options = inputs[0], step.options
    out: Array
    if step.kind == "conv":
        out = _per_channel(x, options["bias"])
        for r, s, patch in _patches(x, options):
            out = out + np.einsum("ki,nihw->nkhw", options["weight"][:, :, r, s], patch)
        return out
    if step.kind == "norm":
        return _per_channel(x, options["scale"]) * x + _per_channel(x, options["shift"])
    if step.kind == "activation":
        out = ACTIVATIONS[options["name"]](x)
        return out
    if step.kind == "pool":
        out = np.full(_pooled_shape(x, options), -np.inf)
        for (n, c, p, q), window in _windows(x, options):
            out[n, c, p, q] = max(value for _, value in window)
        return out
    if step.kind == "upsample":
        return x.repeat(2, axis=2).repeat(2, axis=3)
    if step.kind == "cat":
        return np.concatenate(inputs, axis=1)
    return inputs[0] + inputs[1] if step.kind == "add" else inputs[0] * inputs[1]


def rescale(steps: Sequence[Step], x: Array, x_ref: Array, out_weights: Array) -> dict[str, Array]:
    """Return the signed contributions [N, K, C, R, S] of each convolution, for the target Σ out_weights · output."""
    values, references = forward(steps, x), forward(steps, x_ref)
    multipliers = [np.zeros_like(value) for value in values]
    multipliers[-1] += out_weights
    contributions: dict[str, Array] = {}
    for place in reversed(range(len(steps))):
        step, m = steps[place], multipliers[place + 1]
        new = [values[i] for i in step.inputs]
        old = [references[i] for i in step.inputs]
        if step.kind == "conv":
            contributions[f"layers.{place}"] = _conv_contributions(step.options, new[0] - old[0], m)
        for i, share in zip(step.inputs, _backward_step(step, new, old, m), strict=True):
            multipliers[i] += share
    return contributions


def _backward_step(step: Step, new: list[Array], old: list[Array], m: Array) -> list[Array]:
    options = step.options
    if step.kind == "conv":
        return [_conv_backward(options, new[0].shape, m)]
    if step.kind == "norm":
        return [m * _per_channel(m, options["scale"])]
    if step.kind == "activation":
        function = ACTIVATIONS[options["name"]]
        return [m * _secant(function, new[0], old[0])]
    if step.kind == "pool":
        return [_pool_backward(options, new[0], old[0], m)]
    if step.kind == "upsample":
        return [m[:, :, ::2, ::2] + m[:, :, 1::2, ::2] + m[:, :, ::2, 1::2] + m[:, :, 1::2, 1::2]]
    if step.kind == "cat":
        return [m[:, : new[0].shape[1]], m[:, new[0].shape[1] :]]
    if step.kind == "add":
        return [m, m]
    return [m * (new[1] + old[1]) / 2, m * (new[0] + old[0]) / 2]


def _secant(function: Callable[[Array], Array], x: Array, x_ref: Array) -> Array:
    delta = x - x_ref
    is_tiny = np.abs(delta) < 1e-12
    step = 1e-6
    slope = (function(x + step) - function(x - step)) / (2 * step)
    return np.where(is_tiny, slope, (function(x) - function(x_ref)) / np.where(is_tiny, 1, delta))


def _per_channel(x: Array, values: Array) -> Array:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _patches(x: Array, options: dict[str, Any]) -> list[tuple[int, int, Array]]:
    """Return, per filter tap (r, s), the input under it at every output position, as views of one padded copy."""
    weight, stride, padding = options["weight"], options.get("stride", 1), options.get("padding", 0)
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    return _patches_of_padded(padded, weight.shape, stride)


def _patches_of_padded(padded: Array, shape: tuple[int, ...], stride: int) -> list[tuple[int, int, Array]]:
    rows = (padded.shape[2] - shape[2]) // stride + 1
    columns = (padded.shape[3] - shape[3]) // stride + 1
    return [
        (r, s, padded[:, :, r : r + stride * (rows - 1) + 1 : stride, s : s + stride * (columns - 1) + 1 : stride])
        for r in range(shape[2])
        for s in range(shape[3])
    ]


def _conv_contributions(options: dict[str, Any], delta: Array, m: Array) -> Array:
    weight = options["weight"]
    result = np.zeros((len(delta), *weight.shape))
    for r, s, patch in _patches(delta, options):
        result[:, :, :, r, s] = weight[:, :, r, s] * np.einsum("nkpq,nipq->nki", m, patch)
    return result


def _conv_backward(options: dict[str, Any], shape: tuple[int, ...], m: Array) -> Array:
    weight, stride, padding = options["weight"], options.get("stride", 1), options.get("padding", 0)
    padded = np.zeros((*shape[:2], shape[2] + 2 * padding, shape[3] + 2 * padding))
    for r, s, view in _patches_of_padded(padded, weight.shape, stride):
        view += np.einsum("nkpq,ki->nipq", m, weight[:, :, r, s])
    return padded[:, :, padding : padding + shape[2], padding : padding + shape[3]]


def _pooled_shape(x: Array, options: dict[str, int]) -> tuple[int, ...]:
    size, stride, padding = options["kernel_size"], options["stride"], options["padding"]
    return (*x.shape[:2], *((length + 2 * padding - size) // stride + 1 for length in x.shape[2:]))


def _windows(x: Array, options: dict[str, int]) -> list[Window]:
    """Return, per output position, the places inside the image that its window covers, with their values."""
    size, stride, padding = options["kernel_size"], options["stride"], options["padding"]
    result: list[Window] = []
    for n, c, p, q in np.ndindex(*_pooled_shape(x, options)):
        places = [
            (h, w)
            for h in range(p * stride - padding, p * stride - padding + size)
            for w in range(q * stride - padding, q * stride - padding + size)
            if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]
        ]
        result.append(((n, c, p, q), [(place, float(x[n, c, place[0], place[1]])) for place in places]))
    return result


def _pool_backward(options: dict[str, int], x: Array, x_ref: Array, m: Array) -> Array:
    """Credit each window's change to the place of the larger of its two maxima."""
    result = np.zeros_like(x)
    windows = zip(_windows(x, options), _windows(np.broadcast_to(x_ref, x.shape), options), strict=True)
    for ((n, c, p, q), window), (_, window_ref) in windows:
        (place, y), (place_ref, y_ref) = (max(w, key=lambda item: item[1]) for w in (window, window_ref))
        h, w = place if y >= y_ref else place_ref
        delta = dict(window)[h, w] - dict(window_ref)[h, w]
        result[n, c, h, w] += m[n, c, p, q] * ((y - y_ref) / delta if delta else 1.0)
    return result
