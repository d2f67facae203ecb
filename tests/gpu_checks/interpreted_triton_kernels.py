"""The Triton kernels on triton's interpreter. test_triton_kernels.py starts this file in a process of its own, because
TRITON_INTERPRET=1 must be set before triton is imported."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import prunekit_kernels as kernels
import pytest
import torch

from prunekit.ops.cuda.filter_op import finish
from prunekit.ops.cuda.triton.cost import CUTS
from prunekit.ops.cuda.triton.filter import condensed_pattern
from prunekit.ops.cuda.triton.op import run_triton
from prunekit.ops.memory_format import conv_memory_format
from tests.support.conv_cases import ConvCase, random_cases
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference
from tests.support.triton_interpreter import install_checks, only, poisoned

SHAPES = int(os.environ.get("PRUNEKIT_SHAPES", "60"))
install_checks()
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ACTIVATIONS = (("none", 0.0), ("leaky_relu", 0.1), ("leaky_relu", 0.0), ("leaky_relu_last", 0.1))


def _filter(case: ConvCase, permute: bool = True):  # type: ignore[no-untyped-def]
    return kernels.condense(case.weight, case.mask, case.groups, permute)


def _rounded(case: ConvCase, dtype: torch.dtype) -> ConvCase:
    """The case in dtype; the oracle then sums what the kernel reads."""
    return case.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_condensing_and_reading_back_gives_the_weight(dtype: torch.dtype) -> None:
    for case in random_cases(40, seed=31, max_size=8):
        typed = _rounded(case, dtype)
        for permute in (False, True):
            weight, mask = kernels.uncondense(_filter(typed, permute))
            assert torch.equal(mask, case.mask)
            assert torch.equal(weight, torch.where(case.mask, typed.weight, 0))


def test_kept_zeros_stay_kept() -> None:
    weight = torch.zeros(3, 2, 1, 1)
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]]).view(3, 2, 1, 1) > 0
    assert torch.equal(kernels.uncondense(kernels.condense(weight, mask))[1], mask)


def test_permuting_lets_channels_that_share_taps_meet() -> None:
    mask = torch.zeros(64, 40, 1, 1, dtype=torch.bool)
    mask[::2, :20], mask[1::2, 20:] = True, True
    weight = torch.randn(mask.shape)
    kept, permuted = kernels.condense(weight, mask, 1, False), kernels.condense(weight, mask, 1, True)
    assert len(kept.columns) == 4 * 48
    assert len(permuted.columns) == 4 * 32  # 20 taps, padded to two blocks of 16


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_interpreted_kernel_agrees_with_the_oracle(dtype: torch.dtype) -> None:
    draw = random.Random(32)
    for case in random_cases(SHAPES, seed=32, max_size=14):
        typed = _rounded(case, dtype)
        x = typed.x.to(memory_format=torch.channels_last) if draw.random() < 0.3 else typed.x
        x = poisoned(x)
        filter = _filter(typed)
        activation: Any
        activation, slope = draw.choice(ACTIVATIONS)
        expected = masked_conv2d_oracle(typed.x, typed.weight, case.mask, typed.bias, *case.geometry)
        residual = torch.randn(expected.shape).to(dtype) if draw.random() < 0.3 else None
        expected = finish(expected, None if residual is None else residual.double(), activation, slope)
        geometry = case.stride, case.padding, case.dilation
        y = torch.full(expected.shape, torch.nan, dtype=dtype)
        if x.stride(1) == 1:
            y = y.to(memory_format=torch.channels_last)
        if residual is not None:
            residual = torch.empty_like(y).copy_(residual)
        with only(x, typed.bias, residual, y, filter.rows, filter.starts, filter.columns, filter.values):
            kernels.condensed_conv2d(x, filter, typed.bias, residual, *geometry, activation, slope, out=y)
        assert y.dtype == dtype
        assert relative_difference(expected, y) <= TOLERANCE[dtype]
        if activation != "leaky_relu_last":
            reference = kernels.condensed_conv2d_reference(
                typed.x, filter, typed.bias, residual, *geometry, activation, slope
            )
            assert relative_difference(expected, reference) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_dispatch_runs_agrees_with_the_oracle(dtype: torch.dtype) -> None:
    """A mask packed once, and filled twice with weights."""
    draw = random.Random(35)
    for case in random_cases(SHAPES // 3, seed=35, max_size=10):
        pattern = condensed_pattern(case.mask, case.groups)
        activation, slope = draw.choice(ACTIVATIONS)
        for sign in (1, -1):
            typed = replace(case, weight=sign * case.weight).to(dtype)
            x = typed.x.to(memory_format=torch.channels_last) if draw.random() < 0.3 else typed.x
            expected = masked_conv2d_oracle(typed.x, typed.weight, case.mask, typed.bias, *case.geometry)
            residual = torch.randn(expected.shape).to(dtype)
            expected = finish(expected, residual.double(), activation, slope)
            filled = pattern.fill(typed.weight).arguments()
            geometry = list(case.stride), list(case.padding), list(case.dilation)
            y = run_triton(x, *filled, typed.bias, residual, *geometry, activation, slope, [32, 16, 1, 1])
            assert y.is_contiguous(memory_format=conv_memory_format(x))
            assert relative_difference(expected, y) <= TOLERANCE[dtype]


def test_the_model_compares_the_cuts_that_the_kernel_names() -> None:
    from prunekit_kernels.condensed_conv2d import CUTS as COMPILED

    assert tuple(map(tuple, COMPILED)) == CUTS


def test_the_guard_sees_reads_outside() -> None:
    case = next(random_cases(1, seed=33)).to(torch.float32)
    filter = _filter(case)
    with (
        pytest.raises(Exception, match="active pointers lie outside"),
        only(filter.rows, filter.starts, filter.columns, filter.values),
    ):
        kernels.condensed_conv2d(case.x, filter, None, None, case.stride, case.padding, case.dilation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dropped_weight_contributes_nothing_to_inf_and_nan(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(34)
    for case in random_cases(12, seed=34, max_size=8):
        typed = _rounded(case, dtype)
        x = typed.x.clone()
        x.view(-1)[torch.randint(x.numel(), (2,), generator=generator)] = torch.tensor([torch.inf, torch.nan]).to(dtype)
        expected = masked_conv2d_oracle(x, typed.weight, case.mask, typed.bias, *case.geometry)
        filter = kernels.condense(typed.weight, case.mask, case.groups)
        y = kernels.condensed_conv2d(x, filter, typed.bias, None, case.stride, case.padding, case.dilation)
        assert relative_difference(expected, y) <= TOLERANCE[dtype]


def test_wrong_arguments_are_refused() -> None:
    weight = torch.randn(4, 3, 3, 3)
    filter = kernels.condense(weight, weight > 0)
    for arguments, words in (
        ((weight.double(), weight > 0), "float16, bfloat16 or float32"),
        ((weight, weight), "bool mask"),
        ((weight, weight > 0, 3), "not divisible by groups 3"),
        ((weight / 0, weight == weight), "finite weights"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.condense(*arguments)
    with pytest.raises(ValueError, match=r"expects x \[N, 3, H, W\]"):
        kernels.condensed_conv2d(torch.randn(1, 2, 5, 5), filter)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.condensed_conv2d(torch.randn(1, 3, 2, 2), filter)
    with pytest.raises(ValueError, match="residual"):
        kernels.condensed_conv2d(torch.randn(1, 3, 5, 5), filter, residual=torch.randn(1, 4, 5, 5))
