"""Two convolutions with zeros and what is put around them, accelerated without tuning, and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import prunekit
from prunekit.comparison import compare
from prunekit.nn import AccelerationReport
from tests.support.untouched import untouched

X = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with zeros, and what a test puts around them."""

    middle: Any

    def __init__(self, after: Callable[..., Any] = lambda y: y, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.middle = middle or nn.Identity()
        self.after = after
        with torch.no_grad():
            for conv in (self.first, self.second):
                conv.weight.mul_(torch.rand_like(conv.weight) < 0.4)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.second(self.middle(self.first(x).relu())))


def accelerated(model: nn.Module, *args: Any, **options: Any) -> tuple[Any, AccelerationReport]:
    with untouched(model, args, options.get("example_kwargs")):
        fast = prunekit.accelerate(model, args or (X,), tuning_seconds=0.0, tuning_cache=None, **options)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    return fast, report


def check(model: nn.Module, fast: nn.Module, *args: Any, most: float = 1e-5, **kwargs: Any) -> None:
    with torch.no_grad():
        found = compare(model(*args, **kwargs), fast(*args, **kwargs))
    assert found.elements
    assert found.relative_rms <= most
