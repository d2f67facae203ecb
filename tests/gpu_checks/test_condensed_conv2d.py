"""Fragment filters, and their CUDA kernel compiled for a processor: against the float64 oracle and under sanitizers."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from prunekit_kernels import condense

from prunekit.errors import InputError
from prunekit.ops.cuda.condensed.filter import (
    DTYPES,
    FragmentFilter,
    FragmentHeader,
    cut_into_steps,
    pack_fragments,
)
from prunekit.ops.cuda.condensed.op import condensed_conv2d_reference
from tests.support.condensed_problems import condensed_problems
from tests.support.conv_cases import random_cases
from tests.support.emulated_kernels import COMPILER, Build, EmulationError, FilterCase, compile_all, emulate
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference

SHAPES = int(os.environ.get("PRUNEKIT_SHAPES", "100"))
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")


@pytest.fixture(scope="module", autouse=True)
def compiled_kernels() -> None:
    compile_all("condensed_conv2d")


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_and_reading_back_gives_the_weight(dtype: torch.dtype) -> None:
    for case in random_cases(60, seed=51, max_size=8):
        weight = case.weight.to(dtype)
        for chunk_channels in (1, 3, 16, 100):
            packed = pack_fragments(weight, case.mask, case.groups, chunk_channels)
            unpacked, mask = packed.unpack()
            assert torch.equal(mask, case.mask)
            assert torch.equal(unpacked, torch.where(case.mask, weight, 0))
            assert packed.header.nnz == int(case.mask.sum())
            assert FragmentHeader.read(packed.header.words()) == packed.header


def test_kept_zeros_stay_kept() -> None:
    weight = torch.zeros(3, 2, 1, 1, dtype=torch.float16)
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]]).view(3, 2, 1, 1) > 0
    for zeros in (weight, -weight):
        assert torch.equal(pack_fragments(zeros, mask, 1, 4).unpack()[1], mask)


def test_one_condensed_filter_serves_several_cuts() -> None:
    weight = torch.randn(40, 30, 3, 3).half()
    mask = torch.rand(weight.shape) < 0.1
    condensed = condense(weight, mask)
    taps = {chunk: cut_into_steps(condensed, chunk) for chunk in (4, 30)}
    for packed in taps.values():
        assert torch.equal(packed.unpack()[1], mask)
    assert taps[30].header.num_steps == len(condensed.columns) // 16
    assert taps[4].header.num_steps > taps[30].header.num_steps  # each chunk is padded to 16 columns


def _busiest_bank(packed: FragmentFilter) -> float:
    """Mean over steps' halves: of eight inputs that a warp loads together, how many stand in the busiest bank.

    For planes of 8 · i + 1 units whose lines are one unit. Repeats are read once.
    """
    busiest = []
    for eight in packed.columns.view(-1, 8).tolist():
        places = [(c >> 16) * packed.header.kernel_w + (c & 255) + (c >> 8 & 255) for c in set(eight)]
        banks = [place % 8 for place in places]
        busiest.append(max(banks.count(bank) for bank in banks))
    return sum(busiest) / len(busiest)


def test_eight_columns_in_a_row_lie_in_different_banks() -> None:
    for density, most in ((0.3, 1.2), (0.1, 1.4), (0.01, 2.3)):
        weight = torch.randn(64, 128, 3, 3).half()
        assert _busiest_bank(pack_fragments(weight, torch.rand(weight.shape) < density, 1, 32)) < most


def test_the_reference_agrees_with_the_oracle() -> None:
    for case, expected in condensed_problems(60, seed=52):
        y = condensed_conv2d_reference(*case.arguments())
        assert y.dtype == case.conv.x.dtype
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype]
        assert torch.equal(y, torch.ops.prunekit.condensed_conv2d(*case.arguments()))


def test_opcheck() -> None:
    case, _ = next(condensed_problems(1, seed=53))
    torch.library.opcheck(torch.ops.prunekit.condensed_conv2d.default, case.arguments())


@pytest.mark.parametrize(("architecture", "seed"), [(750, 0), (800, 0), (800, 11)])
@needs_compiler
def test_the_emulated_kernel_agrees_with_the_oracle(architecture: int, seed: int) -> None:
    """Architecture 750 copies plainly and multiplies 16×8×8; a seed shuffles the order of threads."""
    dtypes = DTYPES if architecture >= 800 else DTYPES[:1]
    problems = list(condensed_problems(SHAPES, seed=54 + architecture + seed, dtypes=dtypes))
    outputs = emulate([case for case, _ in problems], Build(architecture), seed)
    for (case, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype], case


@needs_compiler
def test_a_dropped_weight_contributes_nothing_to_inf_and_nan() -> None:
    generator = torch.Generator().manual_seed(55)
    cases, expected = [], []
    for case, _ in condensed_problems(40, seed=56, max_size=12):
        conv = case.conv
        x = conv.x.clone()
        places = torch.randint(x.numel(), (2,), generator=generator)
        for place, special in zip(places.tolist(), (torch.inf, torch.nan), strict=True):
            torch.as_strided(x, (x.numel(),), (1,))[place] = special
        weight, mask = case.packed.unpack()
        geometry = conv.stride, conv.padding, conv.dilation, case.packed.header.groups
        expected.append(masked_conv2d_oracle(x, weight, mask, None, *geometry))
        plain = replace(conv, x=x, bias=None, residual=None, activation="none")
        cases.append(FilterCase("condensed", plain, case.packed, case.launch))
    for wanted, y in zip(expected, emulate(cases, Build(), seed=3), strict=True):
        assert relative_difference(wanted, y) <= TOLERANCE[y.dtype]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("architecture", [750, 800])
@needs_compiler
def test_the_emulated_kernel_is_clean_under_sanitizers(sanitizer: str, architecture: int) -> None:
    dtypes = DTYPES if architecture >= 800 else DTYPES[:1]
    problems = list(condensed_problems(max(12, SHAPES // 8), seed=57, max_size=9, dtypes=dtypes))
    outputs = emulate([case for case, _ in problems], Build(architecture, sanitizer), seed=5)
    for (_, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype]


@needs_compiler
def test_a_launch_that_the_kernel_does_not_know_is_refused() -> None:
    case, _ = next(condensed_problems(1, seed=58))
    for launch in ([6, 1, 1, 1, 1, 1, 1], [4, 5, 1, 1, 1, 1, 1], [8, 1, 1, 3, 3, 1, 2], [8, 1, 1, 1, 1, 0, 2]):
        with pytest.raises(EmulationError, match="none that the kernel knows"):
            emulate([replace(case, launch=launch)], Build())


def test_wrong_filters_are_refused() -> None:
    weight = torch.randn(6, 5, 3, 3).half()
    mask = weight > 0
    for arguments, words in (
        ((weight.float(), mask, 1, 4), "float16 or bfloat16 weight"),
        ((weight, mask[:5], 1, 4), "bool mask"),
        ((weight, mask, 4, 4), "not divisible by groups 4"),
        ((weight / 0, mask, 1, 4), "finite weights"),
        ((weight, mask, 1, 0), "chunk_channels must be"),
    ):
        with pytest.raises(InputError, match=words):
            pack_fragments(*arguments)
    packed = pack_fragments(weight, mask, 1, 2)
    with pytest.raises(InputError, match="header tells of"):
        replace(packed, rows=packed.rows[2:]).unpack()
    with pytest.raises(InputError, match="9 numbers"):
        FragmentHeader.read([1, 2, 3])
