"""Ratios for so many milliseconds: layers' times as functions of their ratios, and what keeps the most importance.

The time of a convolution depends on the share of its multiply-adds that is left: the density of its weights, or, where
filters go, the share of its filters times that of the channels that it reads. A few shares are measured and the rest
interpolated. What a plan takes in the end, with all that is no convolution, is measured on the model that it makes
(`deployed_ms`).
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.accelerate import accelerate, on_engine_untimed
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import own_random_state
from prunekit.ops.cuda.dispatch import device_of
from prunekit.ops.cuda.sources import missing_kernels
from prunekit.prune.allocations import Part, Ratios
from prunekit.prune.channel_groups import ChannelGroups
from prunekit.prune.layer_times import ConvShape, LayerTimes, milliseconds_on_gpu
from prunekit.prune.layers import prunable_layers
from prunekit.prune.masks import apply_masks
from prunekit.timing import time_in_turn

Floats = npt.NDArray[np.float64]

#: Shares of a layer's multiply-adds that are measured: times bend most where little is left.
SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
#: No part loses more than this by a plan for milliseconds: below, times hardly fall.
MAX_RATIO = 0.98
_LEVELS = np.linspace(0, MAX_RATIO, 99)
_SWEEPS = 4
_TIMED_SECONDS, _MIN_RUNS, _MAX_RUNS = 4.0, 5, 25
_TUNING_SECONDS = 12.0


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Milliseconds of a model as a function of its parts' ratios.

    Attributes:
        times: float64 [layers, shares], the milliseconds of each convolution at `SHARES`.
        written: float64 [layers, 1 + parts]: the share of a layer's filters (or weights) that always stays, then of
            each part; a row sums to 1.
        read: Likewise of the channels that a layer reads.
        layers: The convolutions' names.
    """

    times: Floats
    written: Floats
    read: Floats
    layers: tuple[str, ...]

    def ms(self, ratios: Tensor) -> float:
        """Return what the convolutions of a model with a ratio for each part take."""
        return float(self.layer_ms(ratios).sum())

    def layer_ms(self, ratios: Tensor) -> Floats:
        """Return what each convolution takes, [layers]."""
        density = np.concatenate([[1.0], 1 - ratios.numpy()])
        return self._times(np.arange(len(self.layers)), (self.written @ density) * (self.read @ density))

    def levels_ms(self, density: Floats, part: int) -> Floats:
        """Return what the convolutions that a part has to do with take at each of its `_LEVELS`, [levels].

        Args:
            density: [1 + parts] of the other parts.
            part: Its number.
        """
        layers = np.flatnonzero(self.written[:, 1 + part] + self.read[:, 1 + part])
        shares = [
            (table[layers] @ density)[:, None] + table[layers, 1 + part, None] * (1 - _LEVELS - density[1 + part])
            for table in (self.written, self.read)
        ]
        found = np.zeros(len(_LEVELS))
        for layer, of_levels in zip(layers.tolist(), shares[0] * shares[1], strict=True):
            found += self._times(np.full(len(_LEVELS), layer), of_levels)
        return found

    def _times(self, layers: npt.NDArray[np.int64], shares: Floats) -> Floats:
        """Interpolate the times of layers at one share each."""
        grid = np.array([0.0, *SHARES])
        table = np.concatenate([self.times[:, :1] * 0.5, self.times], axis=1)[layers]
        right = np.clip(np.searchsorted(grid, shares), 1, len(grid) - 1)
        rows = np.arange(len(shares))
        low, high = table[rows, right - 1], table[rows, right]
        found: Floats = low + (high - low) * (shares - grid[right - 1]) / (grid[right] - grid[right - 1])
        return found


def latency_model(
    model: nn.Module,
    x: Tensor,
    parts: Sequence[Part],
    groups: ChannelGroups | None,
    part_of_unit: Tensor | None,
) -> LatencyModel:
    """Measure what is not known yet of a model's convolutions; on a GPU the models of its kernels fill in.

    Args:
        model: Any module; it runs once, in eval mode.
        x: One image, [1, C, H, W].
        parts: What gets a ratio.
        groups: The channel groups, where filters go.
        part_of_unit: int64 [units], each unit's part; -1 for one that always stays.

    Raises:
        InputError: The image is on a GPU, and neither the CUDA kernels nor Triton are there.
    """
    convs, calls = prunable_layers(model), conv_calls(model, x)
    names = [name for name in convs if name in calls]
    shapes = {name: [ConvShape.of(convs[name], size) for size in calls[name]] for name in names}
    at = {(name, share): [_at(shape, share, groups) for shape in shapes[name]] for name in names for share in SHARES}
    ms = _milliseconds({shape for found in at.values() for shape in found}, x)
    times = np.array([[sum(ms[shape] for shape in at[name, share]) for share in SHARES] for name in names])
    times = np.maximum.accumulate(times.reshape(len(names), len(SHARES)), axis=1)
    written, read = _tables(names, convs, parts, groups, part_of_unit)
    return LatencyModel(times, written, read, tuple(names))


def _milliseconds(shapes: Iterable[ConvShape], x: Tensor) -> dict[ConvShape, float]:
    """Return what each shape takes where x is."""
    if not x.is_cuda:
        return LayerTimes.default().measure(shapes)
    device = device_of(x)
    if device is None:
        wanted = f"prunekit's CUDA kernels or Triton for a latency budget on {x.device}"
        raise InputError(f"Expected {wanted}, but {missing_kernels()}.")
    return {shape: milliseconds_on_gpu(shape, x.dtype, device) for shape in shapes}


def _at(shape: ConvShape, share: float, groups: ChannelGroups | None) -> ConvShape:
    return shape.thinned(share) if groups is not None else ConvShape(**{**vars(shape), "density": share})


def conv_calls(model: nn.Module, x: Tensor) -> dict[str, list[tuple[int, int]]]:
    """Return the sizes [H, W] of the images that each convolution reads, call by call."""
    found: dict[str, list[tuple[int, int]]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: found.setdefault(name, []).append(tuple(args[0].shape[2:]))

    hooks = [conv.register_forward_hook(note(name)) for name, conv in prunable_layers(model).items()]
    try:
        with held_still(model), own_random_state(), torch.no_grad():
            model(x.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _tables(
    names: Sequence[str],
    convs: Mapping[str, nn.Conv2d],
    parts: Sequence[Part],
    groups: ChannelGroups | None,
    part_of_unit: Tensor | None,
) -> tuple[Floats, Floats]:
    """Return the shares of filters and of channels read that each part has in each layer, [layers, 1 + parts]."""
    written, read = (np.zeros([len(names), 1 + len(parts)]) for _ in range(2))
    part_of_layer = {layer: number for number, part in enumerate(parts) for layer in part.layers}
    for row, name in enumerate(names):
        if groups is None or part_of_unit is None:
            written[row, 1 + part_of_layer.get(name, -1)] = read[row, 0] = 1
            continue
        of_unit = torch.cat([part_of_unit, torch.tensor([-1])])  # the last one is for unit -1
        written[row] = _shares(of_unit[groups.units[name]], len(parts))
        is_grouped = convs[name].groups > 1  # what it reads goes with what it writes
        read[row, 0] = 1
        if name in groups.input_units and not is_grouped:
            read[row] = _shares(of_unit[groups.input_units[name]], len(parts))
    return written, read


def _shares(part_of_channel: Tensor, num_parts: int) -> Floats:
    counts = torch.bincount(part_of_channel + 1, minlength=1 + num_parts).double()
    found: Floats = (counts / counts.sum()).numpy()
    return found


def by_latency(parts: Sequence[Part], times: LatencyModel) -> Ratios:
    """Keep the most importance for its milliseconds: the ratios that maximize importance - λ · milliseconds.

    λ grows with the strength. Part by part the best of 99 ratios is taken while the others stand, until none changes:
    at once the optimum where layers do not share channels, as with weights.
    """
    worth = np.stack([_kept_importance(part) for part in parts])
    scale = worth[:, 0].sum() / max(times.ms(torch.zeros(len(parts)).double()), 1e-9)

    def ratios(strength: float) -> Tensor:
        price = scale * strength / max(1 - strength, 1e-12)
        density = np.ones(1 + len(parts))
        for _ in range(_SWEEPS):
            before = density.copy()
            for part in range(len(parts)):
                best = int(np.argmax(worth[part] - price * times.levels_ms(density, part)))
                density[1 + part] = 1 - _LEVELS[best]
            if np.array_equal(before, density):
                break
        return torch.from_numpy(1 - density[1:])

    return ratios


def _kept_importance(part: Part) -> Floats:
    """Return the summed importance of a part's weights that are left at each of `_LEVELS`."""
    importance = part.importance.double().numpy()
    finite = importance[np.isfinite(importance)]
    importance = np.minimum(importance, finite.max() if len(finite) else 1.0)
    lost = np.concatenate([[0.0], np.cumsum(importance)])
    kept: Floats = (lost[-1] - lost[np.round(_LEVELS * part.size).astype(int)]) * part.num_weights / part.size
    return kept


def deployed(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor, groups: ChannelGroups | None) -> nn.Module:
    """Return the model that masks make, as it is deployed: without its dropped filters, and on the engine.

    Where a whole graph can be there, it is not timed against the model's own code, as `accelerate` does: that takes
    longer than all the rest, and of models with many zeros the answer is known.
    """
    pruned = copy.deepcopy(model).eval()
    apply_masks(pruned, masks, groups)
    if groups is not None:
        compaction = importlib.import_module("prunekit.compaction")  # a room below: it knows masks, masks know nothing
        pruned = compaction.compact(pruned, x, masks, multiple_of=1, latency_runs=0).model
    if not x.is_cuda:
        with suppress(Exception):  # whatever a foreign forward does that no graph can
            return on_engine_untimed(pruned, x, _TUNING_SECONDS)
    return accelerate(pruned, x, tuning_seconds=_TUNING_SECONDS)


def deployed_ms(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor, groups: ChannelGroups | None) -> float:
    """Build the model that masks make, and return the median milliseconds of one image."""
    fast = deployed(model, masks, x, groups)

    def call() -> None:
        fast(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    ms = time_in_turn({"": call}, 1)[""].median_ms
    runs = int(min(max(_TIMED_SECONDS * 1e3 / ms, _MIN_RUNS), _MAX_RUNS))
    return time_in_turn({"": call}, runs)[""].median_ms
