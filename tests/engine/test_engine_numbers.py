"""Numbers at the edge in the engine: what is dropped adds nothing to inf and nan; what is tiny becomes zero."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunekit.engine.activations import Activation
from prunekit.engine.filters import ConvChoice
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops.native import native_status
from tests.support.conv_variants import READINGS, EngineConv, conv_of_reading, every_cut, random_conv, random_cut
from tests.support.oracles import TOLERANCE, relative_difference

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
TINY = 1e-40  # not normal in float32


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reading", READINGS)
def test_dropped_weights_add_nothing_to_pixels_that_are_not_finite(reading: str, poison: float) -> None:
    conv = conv_of_reading(reading)
    is_dropped_everywhere = (conv.weight == 0).all(0)  # of channel 2 no weight is kept
    weight = conv.weight.clone()
    weight[:, 2] = 0.0
    x = conv.x.clone()
    x[:, 2] = poison
    clean = replace(conv, x=x, weight=weight)
    for choice, y in zip(every_cut(clean, 0), clean.results(every_cut(clean, 0)), strict=True):
        assert y.isfinite().all(), choice
    poisoned = conv.with_poison(poison, torch.Generator().manual_seed(1))
    expected = poisoned.expected()
    assert not expected.isfinite().all()
    assert expected[:, 3].isfinite().all()  # it keeps no weight
    for choice, y in zip(every_cut(conv, 1), poisoned.results(every_cut(conv, 1)), strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[torch.float32], choice
    assert not is_dropped_everywhere.all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_kept_weights_that_are_not_finite_stay(value: float) -> None:
    for seed in range(40):
        conv = replace(random_conv(seed), before=Activation(), after=Activation())
        weight = conv.weight.clone()
        weight.view(-1)[seed % weight.numel()] = value
        conv = replace(conv, weight=weight)
        (y,) = conv.results([random_cut(conv, seed)])
        assert relative_difference(conv.expected(), y) <= TOLERANCE[torch.float32], seed


def one_weight(value: float) -> EngineConv:
    return EngineConv(torch.full((1, 1, 3, 3), value), torch.ones(1, 1, 1, 1))


def test_numbers_too_small_to_be_normal_become_zero_and_only_inside() -> None:
    normal = torch.finfo(torch.float32).tiny
    tiny = torch.tensor([TINY])
    for value, expected in ((TINY, 0.0), (normal, normal), (-TINY, 0.0)):
        (y,) = one_weight(value).results([ConvChoice(1, 1, 1)])
        assert sorted(set(y.flatten().tolist())) == [expected]
        assert float(tiny * 1) == float(tiny) > 0  # torch's own setting is as before
    half = replace(one_weight(normal), weight=torch.full((1, 1, 1, 1), 0.5))
    assert not half.results([ConvChoice(1, 1, 1)])[0].any()


def test_the_callers_setting_survives_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1)).eval()
    x = torch.zeros(1, 1, 4, 4)
    fast: AcceleratedModel = build_whole_graph(model, [x], 0.0, TuningCache(None), lambda done, total: None).model
    fast(x)
    with pytest.raises(InputError):
        fast(x.double())
    tiny = torch.tensor([TINY])
    assert float(tiny * 1) > 0
