"""YOLOv3's layer shapes in pytest-benchmark's table: what a change of the kernel does to which layer.

python -m pytest bench/bench_layers.py --benchmark-group-by=param:layer --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import prunekit
from prunekit.benchmark.problems import Problem, layer_problems
from prunekit.comparison import relative_rms
from prunekit.nn import MAX_RELATIVE_RMS

IMAGE_SIZE = 416
NUM_LAYERS = 23  # distinct shapes of YOLOv3


@cache
def problems() -> list[Problem]:
    """Return YOLOv3's distinct convolutions on the inputs that reach them."""
    return layer_problems("yolov3", IMAGE_SIZE)


@pytest.mark.parametrize("ratio", [0, 50, 75, 90, 95, 99])
@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def bench_layer(benchmark: BenchmarkFixture, layer: int, ratio: int) -> None:
    """Time one accelerated layer at one pruning ratio, after it was found right."""
    assert len(problems()) == NUM_LAYERS
    problem = problems()[layer]
    conv = problem.build(ratio)
    fast = prunekit.accelerate(conv, problem.x)
    with torch.inference_mode():
        assert relative_rms(conv(problem.x), fast(problem.x)) <= MAX_RELATIVE_RMS
        benchmark.extra_info["layer"] = problem.layer
        benchmark(fast, problem.x)
