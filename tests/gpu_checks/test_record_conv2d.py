"""Record filters, and their CUDA kernel compiled for a processor: against the float64 oracle and under sanitizers."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from prunekit.errors import InputError
from prunekit.ops.cuda.record.filter import RecordHeader, pack_records, window_taps
from prunekit.ops.cuda.record.op import record_conv2d_reference
from tests.support.conv_cases import random_cases
from tests.support.emulated_kernels import COMPILER, Build, EmulationError, compile_all, emulate
from tests.support.oracles import TOLERANCE, relative_difference
from tests.support.record_problems import record_problems

SHAPES = int(os.environ.get("PRUNEKIT_SHAPES", "200"))
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")


@pytest.fixture(scope="module", autouse=True)
def compiled_kernels() -> None:
    compile_all("record_conv2d")


def test_packing_and_reading_back_gives_the_weight() -> None:
    for case in random_cases(60, seed=3, max_size=12):
        weight = case.weight.float()
        taps = window_taps(weight.shape[2:], case.stride, case.dilation)
        for chunk_channels, slices in ((4, 1), (12, 2), (100, 5)) if taps == 2 else ((1, 1), (3, 2), (100, 5)):
            packed = pack_records(weight, case.mask, case.groups, taps, chunk_channels, slices)
            unpacked, mask = packed.unpack()
            assert torch.equal(mask, case.mask)
            assert torch.equal(unpacked, torch.where(case.mask, weight, 0))
            assert packed.header.nnz == int(case.mask.sum())
            assert RecordHeader.read(packed.header.words()) == packed.header
            assert bool((packed.starts % 2 == 0).all())


def test_slices_share_a_run_evenly_and_full_rows_come_first() -> None:
    weight = torch.randn(32, 16, 3, 3)
    mask = torch.rand(weight.shape) < 0.4
    mask[16:] &= torch.rand(16, 16, 3, 3) < 0.2
    packed = pack_records(weight, mask, 1, 9, 8, 4)
    lengths = packed.starts.diff().view(-1, 4)
    assert bool((lengths.amax(1) - lengths.amin(1) <= 4).all())  # one load, one weight and the padding
    kept = mask.flatten(1).sum(1)[packed.rows]
    assert torch.equal(kept, kept.sort(descending=True).values)


def test_the_reference_agrees_with_the_oracle() -> None:
    for case, expected in record_problems(60, seed=4):
        y = record_conv2d_reference(*case.arguments())
        assert relative_difference(expected, y) <= TOLERANCE[torch.float32]
        assert torch.equal(y, torch.ops.prunekit.record_conv2d(*case.arguments()))


def test_opcheck() -> None:
    case, _ = next(record_problems(1, seed=5))
    torch.library.opcheck(torch.ops.prunekit.record_conv2d.default, case.arguments())


@pytest.mark.parametrize(("architecture", "seed"), [(750, 0), (800, 0), (800, 11)])
@needs_compiler
def test_the_emulated_kernel_agrees_with_the_oracle(architecture: int, seed: int) -> None:
    """Architecture 750 copies plainly, 800 asynchronously; a seed shuffles the order of threads."""
    problems = list(record_problems(SHAPES, seed=6 + architecture + seed))
    outputs = emulate([case for case, _ in problems], Build(architecture), seed)
    for (case, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[torch.float32], case


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("architecture", [750, 800])
@needs_compiler
def test_the_emulated_kernel_is_clean_under_sanitizers(sanitizer: str, architecture: int) -> None:
    problems = list(record_problems(max(12, SHAPES // 10), seed=7, max_size=14))
    outputs = emulate([case for case, _ in problems], Build(architecture, sanitizer), seed=5)
    for (_, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[torch.float32]


@needs_compiler
def test_a_launch_that_the_kernel_does_not_know_is_refused() -> None:
    case, _ = next(record_problems(1, seed=8))
    for launch in ([1, 1, 1, 1, 2], [4, 1, 1, 17, 2], [4, 0, 1, 1, 1], [4, 33, 33, 1, 1], [4, 1, 1, 1, 3]):
        with pytest.raises(EmulationError, match="none that the kernel knows"):
            emulate([replace(case, launch=launch)], Build())


def test_wrong_filters_are_refused() -> None:
    weight = torch.randn(6, 5, 3, 3)
    mask = weight > 0
    for arguments, words in (
        ((weight.double(), mask, 1, 1, 1, 1), "float32 weight"),
        ((weight, mask[:5], 1, 1, 1, 1), "bool mask"),
        ((weight, mask, 4, 1, 1, 1), "not divisible by groups 4"),
        ((weight[..., :2], mask[..., :2], 1, 9, 1, 1), "window_taps must be 1"),
        ((torch.zeros(1, 1, 257, 1), torch.ones(1, 1, 257, 1) > 0, 1, 1, 1, 1), "up to 256×256"),
        ((weight, mask, 1, 9, 0, 1), "chunk_channels must be"),
        ((weight, mask, 1, 9, 1, 17), "slices 1 to 16"),
    ):
        with pytest.raises(InputError, match=words):
            pack_records(*arguments)
    packed = pack_records(weight, mask, 1, 9, 2, 1)
    with pytest.raises(InputError, match="header tells of"):
        replace(packed, records=packed.records[2:]).unpack()
    with pytest.raises(InputError, match="11 numbers"):
        RecordHeader.read([1, 2, 3])
