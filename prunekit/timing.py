"""Timing that can be trusted on a shared machine: warm-up, competitors in turn, medians and spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

WARM_UP_RUNS = 2


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median, 90th and 99th percentile of single calls."""

    median_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarize single measurements, given in seconds."""
        median, p90, p99 = np.percentile(np.asarray(seconds) * 1e3, (50, 90, 99))
        return cls(float(median), float(p90), float(p99))


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], runs: int, warm_up: int = WARM_UP_RUNS
) -> dict[str, Timing]:
    """Time several calls in turn, A B C A B C …, so that whatever slows the machine down meets all of them.

    Args:
        calls: what to time, by name; gradients are off.
        runs: timed calls of each.
        warm_up: calls of each before that, not timed.
    """
    return {name: Timing.of(values) for name, values in seconds_in_turn(calls, runs, warm_up).items()}


def seconds_in_turn(
    calls: Mapping[str, Callable[[], object]], runs: int, warm_up: int = WARM_UP_RUNS
) -> dict[str, list[float]]:
    """Return the seconds of each call's runs, in their order; the arguments are those of `time_in_turn`."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for run in range(warm_up + runs):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                elapsed = time.perf_counter() - start
                if run >= warm_up:
                    seconds[name].append(elapsed)
    return seconds


def cuda_seconds(call: Callable[[], object], runs: int = 10) -> float:
    """Return the median time of a call on the current GPU, replayed as a CUDA graph, so without Python's share.

    Args:
        call: launches work, waits for nothing, and allocates nothing but its output.
        runs: replays that are timed, one by one.
    """
    return float(np.median(replay_seconds(captured(call), WARM_UP_RUNS + runs)[WARM_UP_RUNS:]))


def captured(call: Callable[[], object], device: torch.device | None = None) -> Callable[[], None]:
    """Capture a call, after a warm-up, as a CUDA graph, and return its replay; `call` is as in `cuda_seconds`."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def replay_seconds(replay: Callable[[], None], runs: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """Return the seconds of each replay by the GPU's clock; `before` is called before each, and not timed."""
    seconds = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before()
        begin.record()
        replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return seconds
