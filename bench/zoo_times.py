"""Interleaved timing of a model and its results, for `bench.zoo`: ratios within each round, and their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from bench.zoo_rows import Latency
from prunekit.timing import WARM_UP_RUNS

Call = Callable[[], object]

# Rounds last about two seconds a call, and no fewer than what quartiles make sense of.
_SECONDS_A_CALL = 2.0
_FEWEST, _MOST = 9, 41


def measure(calls: Mapping[str, Call], against: str) -> tuple[int, dict[str, Latency]]:
    """Time calls interleaved, each round in the opposite order of the last one.

    A B B A A B B A: whatever slows the machine down meets all of them, and none always finds the caches as the same
    other call left them.

    Args:
        calls: By name; gradients are off.
        against: The name of the call that ratios are over.

    Returns:
        The number of rounds, and each call's latency.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        warm = [_seconds(call) for _ in range(WARM_UP_RUNS) for call in calls.values()]
        slowest = max(warm[-len(calls) :])
        rounds = int(min(max(_SECONDS_A_CALL / slowest, _FEWEST), _MOST))
        names = list(calls)
        for _ in range(rounds):
            for name in names:
                seconds[name].append(_seconds(calls[name]))
            names.reverse()
    base = np.asarray(seconds[against])
    return rounds, {name: _latency(np.asarray(values), base) for name, values in seconds.items()}


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _latency(seconds: Any, base: Any) -> Latency:
    low, median, high = np.percentile(seconds, (25, 50, 75))
    ratio_low, ratio, ratio_high = np.percentile(seconds / base, (25, 50, 75))
    return Latency(
        median_ms=float(1e3 * median),
        spread=float((high - low) / median),
        ratio=float(ratio),
        ratio_spread=float(ratio_high - ratio_low),
    )
