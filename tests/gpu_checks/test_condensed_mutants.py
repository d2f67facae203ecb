"""The tensor-core kernel's emulation tests itself: one planted bug a kernel, every one of which it must catch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prunekit.ops.cuda.condensed.filter import pack_fragments
from tests.support.condensed_problems import condensed_problems
from tests.support.emulated_kernels import COMPILER, Convolution, FilterCase
from tests.support.oracles import masked_conv2d_oracle
from tests.support.planted_bugs import all_caught

pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")

KERNEL, STAGE, LAUNCH = "condensed/conv2d.cuh", "condensed/stage.cuh", "condensed/launch.h"
MUTANTS = {
    "no barrier before a chunk is read": (
        KERNEL,
        "const bool is_special = __syncthreads_or(ahead > chunk ? has_special : has_special_ahead);",
        "const bool is_special = false;",
        "thread",
    ),
    "no barrier before a buffer is written again": (
        KERNEL,
        "    __syncthreads();\n    has_special = has_special_ahead;",
        "    has_special = has_special_ahead;",
        "thread",
    ),
    "no barrier before slices are added": (
        KERNEL,
        "  __syncthreads();\n  if (slice == 0) {\n    for",
        "  if (slice == 0) {\n    for",
        "thread",
    ),
    "weights are not waited for": (KERNEL, "wait_for_copies<1>", "wait_for_copies<2>", ""),
    "one buffer is read while it is copied": (KERNEL, "wait_for_copies<0>", "wait_for_copies<1>", ""),
    "inputs of both buffers in one": (STAGE, "(shared) + buffer * num_inputs;", "(shared);", ""),
    "one lane does not multiply": (
        KERNEL,
        "      device::multiply_add<IS_BFLOAT16>(sum[0][2 * pair + 1]",
        "      if (lane != 5) device::multiply_add<IS_BFLOAT16>(sum[0][2 * pair + 1]",
        "",
    ),
    "halves of the inputs swapped": (KERNEL, "weights, input[0], input[1]", "weights, input[1], input[0]", ""),
    "both units multiply the first one's inputs": (KERNEL, "weights, input[2]", "weights, input[0]", ""),
    "all lanes name the first eight taps": (KERNEL, "lane % STEP_COLUMNS];", "lane % 8];", ""),
    "the second unit of a pair is the first": (
        KERNEL,
        "first_unit + threadIdx.x % 32 * UNITS_A_LOAD / 32",
        "first_unit",
        "",
    ),
    "every slice runs all steps": (
        KERNEL,
        "int step = first; step < count; step += conv.slices) {\n      const int4",
        "int step = 0; step < count; step += 1) {\n      const int4",
        "",
    ),
    "one slice is not added": (KERNEL, "for (int other = 1;", "for (int other = 2;", ""),
    "columns of the last step are not turned": (
        STAGE,
        "at < count * STEP.columns;",
        "at < count * STEP.columns - 3;",
        "",
    ),
    "row groups past the last are copied": (
        STAGE,
        "min(conv.block_row_groups, conv.num_row_groups - block.first_row_group)",
        "conv.block_row_groups",
        "address,undefined",
    ),
    "the dilation of lines is forgotten": (STAGE, "(code >> 8 & 255) * conv.dilation_h", "(code >> 8 & 255)", ""),
    "tap columns at stride 2 begin at the first": (STAGE, "pack_unit<1, STRIDE>", "pack_unit<0, STRIDE>", ""),
    "an input left of the image": (
        STAGE,
        "static_cast<unsigned>(x) < w ?",
        "x < static_cast<int>(w) ?",
        "address,undefined",
    ),
    "a dense unit past the line's end": (STAGE, "tap_x + UNIT_PIXELS <= conv.w", "tap_x < conv.w", ""),
    "a dense unit's high halves are not seen to be inf": (STAGE, "(word >> 16 & EXPONENT) == EXPONENT", "false", ""),
    "lines with gaps are joined": (LAUNCH, "conv.padding_h == 0 &&", "true &&", ""),
    "the last chunk is taken for a full one": (
        STAGE,
        "min(conv.chunk_channels, conv.group_channels - first)",
        "conv.chunk_channels",
        "address,undefined",
    ),
    "inf and nan go the fast way": (KERNEL, "      if (is_special) {", "      if (is_special && false) {", ""),
    "dropped weights meet inf and nan": (KERNEL, "if (weight != DROPPED)", "if (weight != 1)", ""),
    "inf and nan meet another row's weights": (KERNEL, "weights[i / 2 * 2]", "weights[i % 2 * 2]", ""),
    "rows are stored where they stand": (
        KERNEL,
        "{__ldg(rows), __ldg(rows + 8)}",
        "{__ldg(rows) < 0 ? -1 : group * 16 + lane / 4, __ldg(rows + 8) < 0 ? -1 : group * 16 + lane / 4 + 8}",
        "address,undefined",
    ),
    "a pixel past the line's end is stored": (KERNEL, "&& q < conv.q", "&& q <= conv.q", "address,undefined"),
    "the last activation comes before the residual, too": (
        KERNEL,
        "float value = activate(conv, BEFORE_RESIDUAL, sum[unit][i] + bias[i / 2]);",
        "float value = activate(conv, ActivationPlace(conv.activation), sum[unit][i] + bias[i / 2]);",
        "",
    ),
    "no activation after the residual": (KERNEL, "activate(conv, AFTER_RESIDUAL, value)", "value", ""),
    "shared memory for one buffer only": (
        LAUNCH,
        "sums ? conv.buffers * (inputs + filter)",
        "sums ? conv.buffers * inputs + filter",
        "address,undefined",
    ),
}


@pytest.fixture(scope="module")
def problems() -> list[tuple[FilterCase, Tensor]]:
    """Random ones, and some whose inputs hold inf: the last in the upper half of a word."""
    problems = list(condensed_problems(24, seed=71, max_size=10))
    specials = [case for case, expected in problems[:8] if expected.numel() and case.packed.header.nnz]
    weight = torch.randn(16, 4, 1, 1).half()
    packed = pack_fragments(weight, torch.rand(weight.shape) < 0.5, 1, 4)
    one_line = Convolution(torch.randn(1, 4, 1, 16).half(), None, None, (1, 1), (0, 0), (1, 1), "none", 0.0)
    specials.append(FilterCase("condensed", one_line, packed, [4, 1, 2, 1, 1, 1, 1]))
    for case in specials:
        conv = replace(case.conv, x=case.conv.x.clone(), bias=None, residual=None, activation="none")
        torch.as_strided(conv.x, (conv.x.numel(),), (1,))[conv.x.numel() // 2 | 1] = torch.inf
        weight, mask = case.packed.unpack()
        geometry = conv.stride, conv.padding, conv.dilation, case.packed.header.groups
        expected = masked_conv2d_oracle(conv.x, weight, mask, None, *geometry)
        problems.append((replace(case, conv=conv), expected))
    return problems


@pytest.fixture(scope="module")
def caught(problems: list[tuple[FilterCase, Tensor]]) -> dict[str, bool]:
    return all_caught(MUTANTS, problems)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str, caught: dict[str, bool]) -> None:
    assert caught[name]
