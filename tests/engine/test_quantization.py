"""Levels, their ranges, and weights in int8."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.engine.calibration import METHODS, observe
from prunekit.engine.graph import Graph, Node, Quantization, SparseWeight
from prunekit.engine.quantization import (
    levels_of,
    padding_level,
    quad_words,
    quantization_of,
    quantizations_of,
    quantized_weight,
    values_of,
    within_pairs,
)
from prunekit.errors import InputError

NUMBERS = st.floats(-1e6, 1e6, width=32)


@given(NUMBERS, NUMBERS)
def test_a_range_has_levels_for_its_ends_and_for_zero(a: float, b: float) -> None:
    found = quantization_of(min(a, b), max(a, b))
    assert 0 <= found.zero_point <= 255
    ends = torch.tensor([min(a, b, 0.0), 0.0, max(a, b, 0.0)])
    back = values_of(levels_of(ends, found), found)
    assert back[1] == 0
    assert (back - ends).abs().max() <= 1.01 * found.scale


@given(NUMBERS, st.floats(1e-3, 1e3), st.integers(0, 255))
def test_a_value_becomes_its_nearest_level(value: float, scale: float, zero_point: int) -> None:
    quantization = Quantization(float(np.float32(scale)), zero_point)
    level = int(levels_of(torch.tensor(value), quantization))
    exact = value / quantization.scale + zero_point
    assert 0 <= level <= 255
    assert abs(level - min(max(exact, 0), 255)) <= 0.5 + 1e-3 * abs(exact - zero_point)


@pytest.mark.parametrize(("value", "level"), [(math.inf, 255), (-math.inf, 0), (math.nan, 0)])
def test_what_is_no_number_has_a_level_too(value: float, level: int) -> None:
    assert levels_of(torch.tensor(value), Quantization(1.0, 7)) == level


@pytest.mark.parametrize("ends", [(-math.inf, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_range_that_is_not_finite_has_no_levels(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="has no levels"):
        quantization_of(*ends)


def test_a_weight_in_int8_is_within_half_a_level_and_keeps_its_zeros() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[weight.abs() < 0.7] = 0
    weight[3] = 0
    found, scale = quantized_weight(SparseWeight.of(weight))
    assert found.values.dtype == torch.int8
    assert found.dense().abs().max() == 127
    restored = found.dense() * scale[:, None, None, None]
    assert ((restored - weight).abs() <= 0.5 * scale[:, None, None, None] + 1e-7).all()
    assert not restored[weight == 0].any()


@pytest.mark.parametrize(("out_channels", "group_channels", "groups"), [(4, 4, 1), (6, 5, 1), (6, 3, 2), (5, 1, 5)])
def test_a_word_holds_four_channels_of_all_groups(out_channels: int, group_channels: int, groups: int) -> None:
    weight = torch.randint(-127, 128, (out_channels, group_channels, 2, 3), dtype=torch.int8)
    words = quad_words(SparseWeight.of(weight), groups)
    channels = group_channels * groups
    assert words.shape == (out_channels, -(-channels // 4), 2, 3)
    for k in range(out_channels):
        group = k // (out_channels // groups)
        for c in range(4 * words.shape[1]):
            inside = group * group_channels <= c < (group + 1) * group_channels
            expected = weight[k, c - group * group_channels] if inside else torch.zeros(2, 3, dtype=torch.int8)
            found = (words[k, c // 4] >> 8 * (c % 4)).to(torch.int8)
            assert torch.equal(found, expected)


@given(st.lists(st.integers(-127, 127), min_size=4, max_size=24), st.integers(127, 254))
def test_two_words_add_up_to_one_and_keep_within_what_a_pair_may_be(weights: list[int], most: int) -> None:
    quads = torch.tensor(weights[: len(weights) // 4 * 4], dtype=torch.int8).reshape(1, -1, 4, 1, 1)
    words = quad_words(SparseWeight.of(quads.flatten(1, 2)), 1)
    first, second = (word.contiguous().view(torch.int8).reshape(-1, 2, 2) for word in within_pairs(words, most))
    assert torch.equal(first + second, quads.reshape(-1, 2, 2))
    assert not (first.bool() & second.bool()).any()
    for pairs in (first.int(), second.int()):
        assert int(pairs.clamp(min=0).sum(-1).max()) <= most
        assert int(pairs.clamp(max=0).sum(-1).min()) >= -most
    of_a_sign = torch.maximum(
        *(abs(quads.reshape(-1, 2, 2).int().clamp(*ends).sum(-1)) for ends in ((0, None), (None, 0)))
    )
    assert not second[of_a_sign <= most].any(), "a pair that needs no second word has one"


@pytest.mark.parametrize(("fill", "level"), [(0.0, 9), (-math.inf, 0)])
def test_padding_has_the_level_of_what_it_pads_with(fill: float, level: int) -> None:
    assert padding_level(Node("p", "pad", ["x"], {"fill": fill}), Quantization(1.0, 9)) == level


def test_levels_do_not_leave_a_graph_and_are_read_by_nothing_that_takes_numbers() -> None:
    quantize = Node("q", "quantize", ["x"], {"output": Quantization(1.0, 0)})
    mean = Node("m", "global_mean", ["q"], {})
    with pytest.raises(ValueError, match="the output q is levels"):
        quantizations_of(Graph(["x"], [quantize], ["q"], {}, ""))
    with pytest.raises(ValueError, match=r"m \(global_mean\) reads levels"):
        quantizations_of(Graph(["x"], [quantize, mean], ["m"], {}, ""))
    other = Node("d", "dequantize", ["q"], {"input": Quantization(2.0, 0)})
    with pytest.raises(ValueError, match="d reads levels of"):
        quantizations_of(Graph(["x"], [quantize, other], ["d"], {}, ""))


def relu_graph() -> Graph:
    return Graph(["x"], [Node("y", "global_mean", ["x"], {})], ["y"], {}, "", {"x": (2, 40, 50), "y": (2, 1, 1)})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_range_inside_of_what_was_seen(method: str) -> None:
    inputs = [(torch.randn(1, 2, 40, 50, generator=torch.Generator().manual_seed(i)),) for i in range(3)]
    low, high = observe(relu_graph(), ["x"], inputs, method)["x"]
    smallest, largest = (float(f(x.flatten() for (x,) in inputs)) for f in (_smallest, _largest))
    assert smallest <= low < -1
    assert 1 < high <= largest
    if method == "minmax":
        assert (low, high) == (smallest, largest)


def _smallest(values: object) -> float:
    return min(float(v.min()) for v in values)  # type: ignore[attr-defined]


def _largest(values: object) -> float:
    return max(float(v.max()) for v in values)  # type: ignore[attr-defined]


def test_outliers_are_cut_off_by_the_methods_that_say_so() -> None:
    x = torch.rand(1, 2, 200, 250, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 50.0
    found = {method: observe(relu_graph(), ["x"], [(x,)], method)["x"][1] for method in METHODS}
    assert found["minmax"] == 50
    assert found["percentile"] < 2
    assert found["mse"] < 50  # the squared error weighs one far number against many small errors


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_value_that_never_changes_has_a_range(value: float, method: str) -> None:
    x = torch.full((1, 2, 40, 50), value)
    low, high = observe(relu_graph(), ["x"], [(x,)], method)["x"]
    quantization = quantization_of(low, high)
    assert abs(float(values_of(levels_of(torch.tensor(value), quantization), quantization)) - value) <= 0.05 * abs(
        value
    )


def test_calibration_with_nan_says_where() -> None:
    x = torch.zeros(1, 2, 40, 50)
    x[0, 1, 3, 4] = math.nan
    with pytest.raises(InputError, match="Expected finite values in calibration, got nan or inf in value x"):
        observe(relu_graph(), ["x"], [(x,)], "minmax")
