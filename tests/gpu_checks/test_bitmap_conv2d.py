"""Bitmap filters, and their CUDA kernels compiled for a processor: against the float64 oracle and under sanitizers."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from prunekit_kernels import condense
from torch._subclasses.fake_tensor import FakeTensorMode

from prunekit.errors import InputError
from prunekit.ops.cuda.bitmap.filter import (
    ALIGNMENT,
    RECORD_WORDS,
    BitmapHeader,
    compress_fragments,
    expand_bitmaps,
    pack_bitmaps,
)
from prunekit.ops.cuda.bitmap.op import bitmap_conv2d_reference
from prunekit.ops.cuda.condensed.filter import DTYPES, cut_into_steps, pack_fragments
from tests.support.bitmap_problems import bitmap_problems
from tests.support.conv_cases import random_cases
from tests.support.emulated_kernels import COMPILER, Build, EmulationError, FilterCase, emulate
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference

SHAPES = int(os.environ.get("PRUNEKIT_SHAPES", "60"))
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_and_reading_back_gives_the_weight(dtype: torch.dtype) -> None:
    for case in random_cases(40, seed=61, max_size=8):
        weight = case.weight.to(dtype)
        for chunk_channels in (1, 3, 100):
            packed = pack_bitmaps(weight, case.mask, case.groups, chunk_channels)
            unpacked, mask = packed.unpack()
            assert torch.equal(mask, case.mask)
            assert torch.equal(unpacked, torch.where(case.mask, weight, 0))
            assert packed.header.nnz == int(case.mask.sum())
            assert BitmapHeader.read(packed.header.words()) == packed.header
            fragments, expanded = pack_fragments(weight, case.mask, case.groups, chunk_channels), expand_bitmaps(packed)
            assert torch.equal(expanded.fragments.view(torch.int16), fragments.fragments.view(torch.int16))
            assert torch.equal(expanded.columns, fragments.columns)


def test_kept_zeros_stay_kept() -> None:
    weight = torch.zeros(3, 2, 1, 1, dtype=torch.float16)
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]]).view(3, 2, 1, 1) > 0
    for zeros in (weight, -weight):
        assert torch.equal(pack_bitmaps(zeros, mask, 1, 4).unpack()[1], mask)


def test_a_step_takes_80_bytes_and_two_for_each_kept_weight() -> None:
    weight = torch.randn(64, 48, 3, 3).half()
    condensed = condense(weight, torch.rand(weight.shape) < 0.2)
    for chunk in (16, 48):
        packed = compress_fragments(cut_into_steps(condensed, chunk))
        header = packed.header
        assert packed.records.numel() == RECORD_WORDS * header.num_steps
        assert 0 <= packed.values.numel() - header.nnz < ALIGNMENT * header.num_runs
        assert header.longest_aligned == int(packed.starts[:, 1].diff().max())


def test_the_reference_agrees_with_the_oracle() -> None:
    for case, expected in bitmap_problems(30, seed=62):
        y = bitmap_conv2d_reference(*case.arguments())
        assert y.dtype == case.conv.x.dtype
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype]
        assert torch.equal(y, torch.ops.prunekit.bitmap_conv2d(*case.arguments()))


def test_opcheck() -> None:
    case, _ = next(bitmap_problems(1, seed=63))
    torch.library.opcheck(torch.ops.prunekit.bitmap_conv2d.default, case.arguments())


def test_fake_cuda_tensors_give_shapes() -> None:
    packed = pack_bitmaps(torch.randn(6, 5, 3, 3).bfloat16(), torch.rand(6, 5, 3, 3) < 0.3, 1, 2)
    with FakeTensorMode():
        x = torch.empty(2, 5, 20, 30, device="cuda", dtype=torch.bfloat16)
        tensors = [
            torch.empty(t.shape, dtype=t.dtype, device="cuda")
            for t in (packed.starts, packed.records, packed.values, packed.rows)
        ]
        geometry = [2, 2], [1, 1], [1, 1]
        y = torch.ops.prunekit.bitmap_conv2d(
            x, packed.header.words(), *tensors, None, None, *geometry, "none", 0.0, [8, 1, 1, 1, 1, 1, 1, 2]
        )
    assert (y.shape, y.dtype, y.device.type) == ((2, 6, 10, 15), torch.bfloat16, "cuda")


@pytest.mark.parametrize(("architecture", "seed"), [(750, 0), (800, 11)])
@needs_compiler
def test_the_emulated_kernels_agree_with_the_oracle(architecture: int, seed: int) -> None:
    """Architecture 750 copies plainly and multiplies 16×8×8; a seed shuffles the order of threads."""
    dtypes = DTYPES if architecture >= 800 else DTYPES[:1]
    problems = list(bitmap_problems(SHAPES, seed=64 + architecture + seed, dtypes=dtypes))
    assert any(case.launch[-1] > 1 for case, _ in problems)
    outputs = emulate([case for case, _ in problems], Build(architecture), seed)
    for (case, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype], case


@needs_compiler
def test_two_runs_in_other_orders_of_threads_give_the_same_bits() -> None:
    cases = [case for case, _ in bitmap_problems(SHAPES // 3, seed=65)]
    for one, other in zip(emulate(cases, Build(), seed=1), emulate(cases, Build(), seed=2), strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))


@needs_compiler
def test_a_dropped_weight_contributes_nothing_to_inf_and_nan() -> None:
    generator = torch.Generator().manual_seed(66)
    cases, expected = [], []
    for case, _ in bitmap_problems(30, seed=67, max_size=12):
        conv = case.conv
        x = conv.x.clone()
        places = torch.randint(x.numel(), (2,), generator=generator)
        for place, special in zip(places.tolist(), (torch.inf, torch.nan), strict=True):
            torch.as_strided(x, (x.numel(),), (1,))[place] = special
        weight, mask = case.packed.unpack()
        geometry = conv.stride, conv.padding, conv.dilation, case.packed.header.groups
        expected.append(masked_conv2d_oracle(x, weight, mask, None, *geometry))
        plain = replace(conv, x=x, bias=None, residual=None, activation="none")
        cases.append(FilterCase("bitmap", plain, case.packed, case.launch))
    for wanted, y in zip(expected, emulate(cases, Build(), seed=3), strict=True):
        assert relative_difference(wanted, y) <= TOLERANCE[y.dtype]


@pytest.mark.parametrize(("sanitizer", "count", "max_size"), [("address,undefined", 12, 9), ("thread", 40, 5)])
@needs_compiler
def test_the_emulated_kernels_are_clean_under_sanitizers(sanitizer: str, count: int, max_size: int) -> None:
    """Asynchronous copies alone: how inputs are staged is the condensed kernel's, which is tested both ways."""
    problems = list(bitmap_problems(count, seed=68, max_size=max_size))
    if sanitizer == "thread":  # it takes its time for each thread
        problems = [pair for pair in problems if 1 < math.prod(pair[0].launch[3:6]) < 4][:6]
    assert any(case.launch[-1] > 1 for case, _ in problems)
    outputs = emulate([case for case, _ in problems], Build(800, sanitizer), seed=5)
    for (_, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype]


@needs_compiler
def test_a_launch_that_the_kernel_does_not_know_is_refused() -> None:
    case, _ = next(bitmap_problems(1, seed=69))
    for launch in ([4, 1, 1, 1, 1, 1, 1, 1], [8, 9, 1, 1, 1, 1, 1, 1], [8, 1, 1, 3, 3, 1, 2, 1], [8] + [1] * 6 + [99]):
        with pytest.raises(EmulationError, match="none that the kernel knows"):
            emulate([replace(case, launch=launch)], Build())


def test_wrong_filters_are_refused() -> None:
    weight = torch.randn(6, 5, 3, 3).half()
    mask = weight > 0
    tall, wide = torch.ones(1, 1, 17, 1).half(), torch.ones(16, 4100, 1, 1).half()
    for arguments, words in (
        ((weight.float(), mask, 1, 4), "float16 or bfloat16 weight"),
        ((weight, mask, 1, 0), "chunk_channels must be"),
        ((tall, tall > 0, 1, 1), "kernels of up to 16 rows"),
        ((wide, wide > 0, 1, 4100), "4096 tap columns"),
        ((wide, wide > 0, 1, 4096), "use smaller chunks"),
    ):
        with pytest.raises(InputError, match=words):
            pack_bitmaps(*arguments)
    packed = pack_bitmaps(weight, mask, 1, 2)
    with pytest.raises(InputError, match="header tells of"):
        replace(packed, values=packed.values[2:]).unpack()
    with pytest.raises(InputError, match="11 numbers"):
        BitmapHeader.read([1, 2, 3])
