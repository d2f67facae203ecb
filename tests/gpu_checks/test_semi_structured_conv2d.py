"""The kernel on sparse tensor cores, compiled for a processor: against the float64 oracle and under sanitizers."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from tests.support.emulated_kernels import COMPILER, Build, EmulationError, FilterCase, emulate
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference
from tests.support.semi_structured_problems import semi_structured_problems

SHAPES = int(os.environ.get("PRUNEKIT_SHAPES", "100"))
pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")


@pytest.mark.parametrize("seed", [0, 11])
def test_the_emulated_kernel_agrees_with_the_oracle(seed: int) -> None:
    """A seed shuffles the order of threads."""
    problems = list(semi_structured_problems(SHAPES // 4, seed=84 + seed))
    outputs = emulate([case for case, _ in problems], Build(), seed)
    for (case, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype], case


def test_a_dropped_weight_contributes_nothing_to_inf_and_nan() -> None:
    generator = torch.Generator().manual_seed(85)
    cases, expected = [], []
    for case, _ in semi_structured_problems(SHAPES // 8, seed=86, max_size=10):
        conv = case.conv
        x = conv.x.clone()
        places = torch.randint(x.numel(), (2,), generator=generator)
        for place, special in zip(places.tolist(), (torch.inf, torch.nan), strict=True):
            torch.as_strided(x, (x.numel(),), (1,))[place] = special
        weight, mask = case.packed.unpack()
        geometry = conv.stride, conv.padding, conv.dilation, case.packed.header.groups
        expected.append(masked_conv2d_oracle(x, weight, mask, None, *geometry))
        plain = replace(conv, x=x, bias=None, residual=None, activation="none")
        cases.append(FilterCase("semi_structured", plain, case.packed, case.launch))
    for wanted, y in zip(expected, emulate(cases, Build(), seed=3), strict=True):
        assert relative_difference(wanted, y) <= TOLERANCE[y.dtype]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_emulated_kernel_is_clean_under_sanitizers(sanitizer: str) -> None:
    problems = list(semi_structured_problems(max(8, SHAPES // 12), seed=87, max_size=8))
    outputs = emulate([case for case, _ in problems], Build(sanitizer=sanitizer), seed=5)
    for (_, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype]


def test_a_launch_that_the_kernel_does_not_know_is_refused() -> None:
    case, _ = next(semi_structured_problems(1, seed=88))
    other = 12 - case.launch[0]  # units that its row groups do not have
    for launch in ([other, 1, 1, 1, 1, 1, 1], [*case.launch[:5], 0, 2], [case.launch[0], 1, 1, 3, 3, 1, 2]):
        with pytest.raises(EmulationError, match="none that the kernel knows"):
            emulate([replace(case, launch=launch)], Build())
