"""One op, several implementations, in pytest-benchmark's table.

python -m pytest bench/bench_masked_conv2d.py --benchmark-group-by=param:ratio --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from prunekit.comparison import relative_rms
from prunekit.nn import MAX_RELATIVE_RMS, MaskedConv2d
from prunekit.ops.masked_conv2d import IMPLEMENTATIONS

# The YOLOv3 layer shape that holds the most multiply-adds: 11 layers of the 75.
X_SHAPE, WEIGHT_SHAPE = (1, 256, 26, 26), (512, 256, 3, 3)
GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)


def make_call(name: str, x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """Bind an implementation to its arguments; "packed" is a MaskedConv2d with its filter ready."""
    if name == "dense":
        return lambda: F.conv2d(x, weight, None, *GEOMETRY)
    if name == "packed":
        conv = torch.nn.Conv2d(WEIGHT_SHAPE[1], WEIGHT_SHAPE[0], 3, padding=1, bias=False).eval()
        conv.weight = torch.nn.Parameter(weight)
        masked = MaskedConv2d.from_dense(conv)
        return lambda: masked(x)
    return lambda: IMPLEMENTATIONS[name](x, weight, weight != 0, None, *GEOMETRY)


@pytest.mark.parametrize("ratio", [50, 75, 90, 95])
@pytest.mark.parametrize("name", ["dense", *IMPLEMENTATIONS, "packed"])
def bench_layer(benchmark: BenchmarkFixture, name: str, ratio: int) -> None:
    """Time one implementation at one pruning ratio, after it was found right."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(X_SHAPE, generator=generator), torch.randn(WEIGHT_SHAPE, generator=generator)
    weight *= torch.rand(WEIGHT_SHAPE, generator=generator) >= ratio / 100
    with torch.inference_mode():
        call = make_call(name, x, weight)
        assert relative_rms(F.conv2d(x, weight, None, *GEOMETRY), call()) <= MAX_RELATIVE_RMS
        benchmark(call)
