"""The engine's convolution in every variant against the float64 loop: cuts, readings, shapes, instruction sets."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.engine.filters import ConvChoice
from prunekit.ops.native import native_status
from tests.support.conv_variants import (
    READINGS,
    EngineConv,
    conv_of_reading,
    every_cut,
    instruction_set,
    random_conv,
    random_cut,
    wide_offsets,
)
from tests.support.oracles import TOLERANCE, relative_difference

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]

SETS = native_status().supported_sets
#: PRUNEKIT_NETS=1000 tries more.
NUM_EXAMPLES = int(os.environ.get("PRUNEKIT_NETS", "90")) // 2


def check(conv: EngineConv, choices: list[ConvChoice]) -> list[torch.Tensor]:
    """Run the convolution in all cuts, compare, and return the results."""
    expected, results = conv.expected(), conv.results(choices)
    for choice, y in zip(choices, results, strict=True):
        assert y.shape == expected.shape
        assert relative_difference(expected, y) <= TOLERANCE[torch.float32], choice
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", SETS)
def test_every_cut_in_every_reading(name: str, reading: str, dtype: torch.dtype) -> None:
    with instruction_set(name), wide_offsets(reading == "32 bits"):
        conv = conv_of_reading(reading, dtype)
        assert conv.reading() == READINGS[reading]
        for seed in range(2):
            check(conv, every_cut(conv, seed))


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32), is_wide=st.booleans(), poison=st.sampled_from((None, None, torch.inf, torch.nan)))
def test_random_convolutions(name: str, seed: int, is_wide: bool, poison: float | None) -> None:
    conv = random_conv(seed)
    if poison is not None and {conv.before.kind, conv.after.kind} <= {"none", "relu"}:
        conv = conv.with_poison(poison, torch.Generator().manual_seed(seed))
    with instruction_set(name), wide_offsets(is_wide):
        choices = [random_cut(conv, seed + i) for i in range(3)]
        results = check(conv, choices)
        if poison is None:
            for y, again in zip(results, conv.results(choices), strict=True):
                assert torch.equal(y, again)


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32), threads=st.sampled_from((2, 3, 5)))
def test_the_same_bits_for_any_threads_and_place_in_the_batch(seed: int, threads: int) -> None:
    conv = random_conv(seed)
    choice = random_cut(conv, seed)
    (alone,) = conv.results([choice])
    torch.set_num_threads(threads)  # the fixture restores it
    try:
        (together,) = conv.results([choice])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone, together)
    for i in range(len(conv.x)):
        residual = None if conv.residual is None else conv.residual[i : i + 1]
        single = EngineConv(
            conv.x[i : i + 1], conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups,
            conv.before, conv.after, residual, conv.weight_dtype,
        )  # fmt: skip
        assert torch.equal(single.results([choice])[0], alone[i : i + 1])
