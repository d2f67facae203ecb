"""The bitmap kernels' emulation tests itself: one planted bug a kernel, every one of which it must catch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.bitmap_problems import bitmap_problems
from tests.support.emulated_kernels import COMPILER, FilterCase
from tests.support.oracles import masked_conv2d_oracle
from tests.support.planted_bugs import all_caught

pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")

KERNEL, STAGE, LAUNCH = "bitmap/conv2d.cuh", "bitmap/stage.cuh", "bitmap/launch.h"
MUTANTS = {
    "no barrier before a chunk is read": (
        KERNEL,
        "const bool is_special = __syncthreads_or(ahead > chunk ? has_special : has_special_ahead);",
        "const bool is_special = false;",
        "thread",
    ),
    "no barrier before a buffer is written again": (
        KERNEL,
        "      __syncthreads();\n      has_special = has_special_ahead;",
        "      has_special = has_special_ahead;",
        "thread",
    ),
    "bitmaps are not waited for": (KERNEL, "wait_for_copies<1>", "wait_for_copies<2>", ""),
    "a lane's own first bit is counted too": (STAGE, "<< bit) - 1", "<< (bit + 1)) - 1", ""),
    "words of a step begin at its first value": (STAGE, "halfwords()[STEP_COLUMNS + word]", "0", ""),
    "a dropped weight takes a value": (STAGE, "if (kept >> j & 1) {", "if (kept != 0) {", ""),
    "the next step's weights are multiplied": (
        KERNEL,
        "next.decode(lane, decoded);",
        "next.decode(lane, decoded), weights = pack_weights(decoded);",
        "",
    ),
    "the dilation of lines is forgotten": (STAGE, "(16 * conv.dilation_h * conv.units_w)", "(16 * conv.units_w)", ""),
    "one cut is left out": (KERNEL, "for (int cut = 0; cut < conv.cuts", "for (int cut = 1; cut < conv.cuts", ""),
    "row groups write their sums to one place": (
        KERNEL,
        "row_group * conv.pixel_warps + warp % conv.pixel_warps;",
        "warp % conv.pixel_warps;",
        "",
    ),
    "a workspace without its last unit": (
        LAUNCH,
        "* conv.num_units * 32 * 4",
        "* conv.num_units * 32 * 4 - 128",
        "address,undefined",
    ),
    "inf and nan go the fast way": (KERNEL, "        if (is_special) {", "        if (is_special && false) {", ""),
    "dropped weights meet inf and nan": (KERNEL, "if (is_kept[i / 2]) {", "if (is_kept[i / 2] || true) {", ""),
    "inf and nan meet the next column's weights": (KERNEL, "column / 8 * 4 + column % 2;", "column / 8 * 4;", ""),
}


@pytest.fixture(scope="module")
def problems() -> list[tuple[FilterCase, Tensor]]:
    """Random ones, some of them with several row groups in a block, and some whose inputs hold inf."""
    problems = list(bitmap_problems(14, seed=72, max_size=8))
    drawn = bitmap_problems(100, seed=73, max_size=6)
    problems += [pair for pair in drawn if pair[0].launch[4] > 1 and pair[0].packed.header.num_row_groups > 1][:6]
    assert sum(case.launch[-1] > 1 for case, _ in problems) > 3
    for case in [case for case, expected in problems[:6] if expected.numel() and case.packed.header.nnz]:
        conv = replace(case.conv, x=case.conv.x.clone(), bias=None, residual=None, activation="none")
        torch.as_strided(conv.x, (conv.x.numel(),), (1,))[conv.x.numel() // 2] = torch.inf
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
