"""Whether rounding numbers of channels up pays, measured in the form that models are deployed in.

In torch eager as they are, small models are mostly overhead and odd widths look slower than they run: YOLOv3 with 75 %
of its filters masked was timed fastest in multiples of 16 there, and ran 1.4 times as long as without rounding once
accelerated. So candidates are timed with BatchNorm folded and channels last, as `accelerate` and compilers do it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from prunekit.graph.calls import Call
from prunekit.nn.fusion import find_fusible, fold_batch_norms
from prunekit.timing import time_in_turn

#: Multiples that are tried where the caller leaves the choice to measurement.
MULTIPLES = (1, 8, 16)
# Rounding must pay by this much: less is noise.
_CLEARLY_FASTER = 0.95
_LEAST_RUNS = 15


@torch.no_grad()
def measure(models: Mapping[int, nn.Module], example: Call, runs: int) -> dict[int, float]:
    """Return the milliseconds of models that differ in size, by the multiple that they are rounded to."""
    different = {_widths(model): multiple for multiple, model in reversed(list(models.items()))}
    deployed = {multiple: _deployed(models[multiple]) for multiple in sorted(different.values())}
    last = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in example.tensors]
    inputs = {multiple: example.with_tensors(last).copied() for multiple in deployed}  # a forward may write into them
    calls = {str(m): partial(model, *inputs[m].args, **inputs[m].kwargs) for m, model in deployed.items()}
    times = time_in_turn(calls, max(runs, _LEAST_RUNS)) if len(calls) > 1 else {}
    return {int(multiple): timing.median_ms for multiple, timing in times.items()}


def fastest(rounding_ms: Mapping[int, float]) -> int:
    """Return the multiple that was clearly fastest; 1, no rounding, where none was."""
    if not rounding_ms:
        return 1
    best = min(rounding_ms, key=lambda multiple: rounding_ms[multiple])
    return best if rounding_ms[best] < _CLEARLY_FASTER * rounding_ms[1] else 1


def _widths(model: nn.Module) -> tuple[torch.Size, ...]:
    return tuple(parameter.shape for parameter in model.parameters())


def _deployed(model: nn.Module) -> nn.Module:
    """Copy a model with BatchNorm folded where that is possible, and channels last."""
    fast = copy.deepcopy(model).requires_grad_(False)
    fold_batch_norms(fast, find_fusible(fast))
    return fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
