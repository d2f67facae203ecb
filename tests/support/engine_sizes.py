"""Nets that compute with sizes, put on the engine and compared with themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.structure import flatten
from tests.support.oracles import relative_difference

TOLERANCE = 1e-5


CHANNELS = 8


Forward = Callable[[nn.Module, Tensor], Any]


class Net(nn.Module):
    """Two convolutions around a forward that computes with sizes."""

    def __init__(self, forward: Forward, outputs: int = CHANNELS) -> None:
        super().__init__()
        torch.manual_seed(outputs)
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, outputs, 1)
        self.computing = forward

    def forward(self, x: Tensor) -> Any:
        return self.computing(self, x)


def on_engine(model: nn.Module, *inputs: Tensor) -> AcceleratedModel:
    return build_whole_graph(
        model.eval(), [x.clone() for x in inputs], 0.0, TuningCache(None), lambda done, total: None
    ).model


def check_same(model: nn.Module, fast: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected, structure = flatten(model(*(x.clone() for x in inputs)))
    found, other = flatten(fast(*inputs))
    assert structure.differs_from(other) is None
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert relative_difference(a, b) <= TOLERANCE


def pad_to_even(net: Any, x: Tensor) -> Any:
    h, w = x.shape[2:]
    return net.last(net.first(F.pad(x, [0, w % 2, 0, h % 2])).relu())


def threshold(net: Any, x: Tensor) -> Any:
    y = net.last(net.first(x))
    return F.avg_pool2d(y, 2) if x.shape[2] >= 20 else y


def alone_or_not(net: Any, x: Tensor) -> Any:
    y = net.last(net.first(x))
    return y - y.mean(0, keepdim=True) if len(x) > 1 else y


def over_the_batch(net: Any, x: Tensor) -> Any:
    y = net.last(net.first(x))
    return y - y.mean(0, keepdim=True)


sizes = st.tuples(st.sampled_from([1, 1, 2, 3]), st.integers(4, 40), st.integers(4, 40))
