"""The PTX that nvcc makes of every CUDA kernel, executed: against the float64 loop, and with planted bugs.

The interpreter (tests/gpu_checks/ptx) shares no code with the emulation of the source, and sees what the compiler made
of it: jumps of a warp, shared memory between barriers, asynchronous copies, and the fragments of tensor cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from prunekit.ops.cuda.record.cost import RecordLaunch
from prunekit.ops.cuda.record.filter import pack_records
from tests.support.bitmap_problems import bitmap_problems
from tests.support.condensed_problems import condensed_problems
from tests.support.cuda_compiler import ARCHITECTURES, nvcc
from tests.support.emulated_kernels import COMPILER, Convolution, EmulationError, FilterCase
from tests.support.executed_ptx import PtxBug, account_of, execute
from tests.support.oracles import TOLERANCE, relative_difference
from tests.support.record_problems import record_problems
from tests.support.semi_structured_problems import semi_structured_problems

pytestmark = pytest.mark.skipif(nvcc() is None or not COMPILER, reason="no nvcc or no g++ on this machine")

#: Hundreds, where the environment asks for them.
PROBLEMS = max(6, int(os.environ.get("PRUNEKIT_SHAPES", "0")))
_DRAWN: dict[str, Callable[..., Iterator[tuple[FilterCase, Tensor]]]] = {
    "record": record_problems,
    "condensed": condensed_problems,
    "bitmap": bitmap_problems,
    "semi_structured": semi_structured_problems,
}
COMPILED = [
    (kernel, architecture)
    for kernel in _DRAWN
    for architecture in ARCHITECTURES
    if kernel != "semi_structured" or architecture != "75"
]
BUGS = {
    "no barrier before a chunk is read": PtxBug("record", r"bar\.sync\s+0;", "", 1),
    "no barrier before a buffer is written again": PtxBug("record", r"bar\.sync\s+0;", "", 2),
    "no barrier before slices are added": PtxBug("record", r"bar\.sync\s+0;", "", 3),
    "a chunk is read while it is copied": PtxBug("record", r"cp\.async\.wait_group 0;", "cp.async.wait_group 1;"),
    "a chunk is read two copies ahead": PtxBug("record", r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;"),
    "copies are not committed": PtxBug("record", r"cp\.async\.commit_group;", ""),
    "two slots change places in the table": PtxBug("record", r"(SLOT0_\d+), (SLOT1_\d+),", r"\2, \1,"),
    "the table lacks its last entry": PtxBug("record", r"(\.branchtargets [^;]*), END_SEGMENT_\d+;", r"\1;"),
    "a slot multiplies another input": PtxBug("record", r"(fma\.rn\.f32 %f\d+, weight), x1,", r"\1, x0,", 0),
    "a window's second pair is its first": PtxBug("record", r"\[place\+8\]", "[place+0]", 0),
    "a batch of loads is stored before it came": PtxBug("record", r"bar\.sync\s+0;", "", 0, "75"),
    "the first two fragments of weights change places": PtxBug(
        "condensed", r"(mma\.sync\.\S+ \{[^}]*\}, \{)(%r\d+), (%r\d+),", r"\1\3, \2,"
    ),
    "the fragments of inputs change places": PtxBug(
        "condensed", r"(mma\.sync\.\S+ \{[^}]*\}, \{[^}]*\}, \{)(%r\d+), (%r\d+)\}", r"\1\3, \2}"
    ),
    "on 7.5 the second half of the columns is the first": PtxBug(
        "condensed", r"(mma\.sync\.aligned\.m16n8k8\S+ \{[^}]*\}, \{[^}]*\}, \{)%r\d+\}", r"\1%r1}", 1, "75"
    ),
    "two matrices change places": PtxBug("condensed", r"(ldmatrix\.sync\S+ \{)(%r\d+), (%r\d+), ", r"\1\3, \2, ", 0),
    "no barrier before the inputs of a chunk are read": PtxBug("condensed", r"bar\.sync\s+0;", "", 0),
    "the selector names the other lanes": PtxBug("semi_structured", r"(mma\.sp[^;]*), 1;", r"\1, 0;"),
    "weights of 2:4 change places": PtxBug(
        "semi_structured", r"(mma\.sp\S+ \{[^}]*\}, \{)(%r\d+), (%r\d+),", r"\1\3, \2,"
    ),
    "the sums of two products change places": PtxBug(
        "semi_structured", r"(mma\.sp\S+ \{)(%f\d+), (%f\d+),", r"\1\3, \2,", 0
    ),
    "a bitmap's bits are counted before the first": PtxBug("bitmap", r"popc\.b32(\s+%r\d+), %r\d+;", r"mov.b32\1, 0;"),
    "cuts are added but the first": PtxBug("bitmap", r"(ld\.global\.v4\.f32\s+\{[^}]*\}, \[%rd\d+)\]", r"\1+16]", 0),
}


@cache
def _problems(kernel: str, architecture: str, count: int) -> list[tuple[FilterCase, Tensor]]:
    settings: dict[str, Any] = {}
    if kernel != "record":
        settings["dtypes"] = (torch.float16,) if architecture == "75" else (torch.float16, torch.bfloat16)
    return list(_DRAWN[kernel](count, seed=40 + int(architecture), max_size=12, **settings))


@pytest.mark.parametrize(("kernel", "architecture"), COMPILED)
def test_the_executed_kernel_agrees_with_the_oracle(kernel: str, architecture: str) -> None:
    problems = _problems(kernel, architecture, PROBLEMS)
    outputs = execute([case for case, _ in problems], architecture, seed=int(architecture) % 2)
    for (case, expected), y in zip(problems, outputs, strict=True):
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype], case


def _is_caught(bug: PtxBug) -> bool:
    """Whether the interpreter stops at what the PTX does, or an output is not the float64 loop's."""
    problems = _problems(bug.kernel, bug.architecture, 30)
    try:
        outputs = execute([case for case, _ in problems], bug.architecture, seed=3, bug=bug)
    except EmulationError as error:
        return "unknown" not in str(error)  # which would be no bug but no PTX
    return any(
        bool((y.isfinite() != expected.isfinite()).any()) or relative_difference(expected, y) > TOLERANCE[y.dtype]
        for (_, expected), y in zip(problems, outputs, strict=True)
    )


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str) -> None:
    assert _is_caught(BUGS[name])


@pytest.mark.parametrize("slices", [1, 2, 8])
def test_a_block_ends_with_few_waits_and_whole_sectors(slices: int) -> None:
    """64 → 32 channels at 26×26: the output has 2704 sectors of 32 bytes, lines that begin anywhere in one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, 3, 3, generator=generator)
    packed = pack_records(weight, torch.rand(weight.shape, generator=generator) < 0.1, 1, 9, 16, slices)
    x = torch.randn(1, 64, 26, 26, generator=generator)
    conv = Convolution(x, torch.randn(32, generator=generator), None, (1, 1), (1, 1), (1, 1), "leaky_relu", 0.1)
    launch = RecordLaunch(16, slices, tile_h=4, lanes=31, lanes_w=13, row_groups=1, buffers=1)
    account = account_of(FilterCase("record", conv, packed, launch.words()), "75")
    end, stored = account["end"], 4 * 32 * 26 * 26
    assert end["stored_bytes"] == stored
    assert end["sectors"] <= 1.45 * stored / 32
    assert end["barriers"] <= 9 * account["blocks"]  # two rows at once or more
    assert end["instructions"] <= (1300 + 700 * slices) * account["blocks"]  # a block has one warp a slice
