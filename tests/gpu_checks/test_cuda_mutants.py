"""The emulation's own test: kernels with one planted bug each, every one of which it must catch."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.support.emulated_kernels import COMPILER, FilterCase
from tests.support.planted_bugs import all_caught
from tests.support.record_problems import record_problems

pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")

KERNEL, LAUNCH, EPILOGUE = "record/conv2d.cuh", "record/launch.h", "epilogue.cuh"
MUTANTS = {
    "no barrier before a chunk is read": (
        KERNEL,
        "    }\n    __syncthreads();\n    if (share >= 0) {",
        "    }\n    if (share >= 0) {",
        "thread",
    ),
    "no barrier before a buffer is written again": (
        KERNEL,
        "    }\n    __syncthreads();\n  }\n  // Found anew",
        "    }\n  }\n  // Found anew",
        "thread",
    ),
    "no barrier before slices write over the tile": (
        KERNEL,
        "    __syncthreads();\n    if (turn > 0) {",
        "    if (turn > 0) {",
        "thread",
    ),
    "copies are not waited for": (KERNEL, "wait_for_copies<1>", "wait_for_copies<2>", ""),
    "one buffer is read while it is copied": (KERNEL, "wait_for_copies<0>", "wait_for_copies<1>", ""),
    "a copy into the buffer in use": (KERNEL, "starts, tiles + buffer * tile_floats,", "starts, tiles,", ""),
    "padding off by one": (KERNEL, "stride_h - conv.padding_h;", "stride_h - conv.padding_h + 1;", ""),
    "a column right of the image": (KERNEL, "x < conv.w;", "x <= conv.w;", ""),
    "the first line is left out": (KERNEL, "y >= 0 && y < conv.h", "y > 0 && y < conv.h", ""),
    "a conv group reads the first group's input": (
        KERNEL,
        "(block.group * conv.group_channels + first_channel + static_cast<int>(part))",
        "(first_channel + static_cast<int>(part))",
        "",
    ),
    "the last chunk is taken for a full one": (
        KERNEL,
        "min(conv.chunk_channels, conv.group_channels - first)",
        "conv.chunk_channels",
        "address,undefined",
    ),
    "the last records of a chunk are not copied": (KERNEL, "at < count;", "at < count - 2;", ""),
    "the last segment's end is not copied": (KERNEL, "at <= row_groups * runs;", "at < row_groups * runs;", ""),
    "starts of row groups past the last are copied": (
        KERNEL,
        "row_groups = min(conv.block_row_groups, conv.num_row_groups - block.first_row_group);",
        "row_groups = conv.block_row_groups;",
        "address,undefined",
    ),
    "two warps copy the same part of a run": (
        KERNEL,
        "2 * (part * 32 + thread % 32)",
        "2 * (0 * part + thread % 32)",
        "",
    ),
    "every slice reads the first one's records": (
        KERNEL,
        "run + starts[first + slice] - starts[first]",
        "run + 0 * starts[first + slice]",
        "",
    ),
    "rows are stored where they stand": (
        KERNEL,
        "__ldg(channels + min(row, rows - 1))",
        "block.group * conv.rows_per_group + first_row + min(row, rows - 1)",
        "",
    ),
    "one slice is not added": (KERNEL, "for (int other = 1;", "for (int other = 2;", ""),
    "rows past the last are stored": (KERNEL, "turn > 0 || row >= rows", "turn > 0", "address,undefined"),
    "a pixel past the last line is stored": (KERNEL, "p < conv.p && q", "p <= conv.p && q", "address,undefined"),
    "a pixel past the line's end is stored": (KERNEL, "&& q < conv.q", "&& q <= conv.q", "address,undefined"),
    "the stride of a lane is forgotten": (KERNEL, "STRIDE ? TILE_W : TILE_W * conv.stride_w", "TILE_W", ""),
    "the residual is activated": (
        KERNEL,
        "activate(conv, BEFORE_RESIDUAL, sum[row][i] + bias[row]) + residual[i];",
        "activate(conv, BEFORE_RESIDUAL, sum[row][i] + bias[row] + residual[i]);",
        "",
    ),
    "the residual comes after the last activation": (
        KERNEL,
        "activate(conv, AFTER_RESIDUAL, value);",
        "activate(conv, AFTER_RESIDUAL, value - residual[i]) + residual[i];",
        "",
    ),
    "an activation before the residual is done again after it": (
        EPILOGUE,
        "conv.activation == place ?",
        "(conv.activation == place || (place == AFTER_RESIDUAL && conv.activation == BEFORE_RESIDUAL)) ?",
        "",
    ),
    "the slope is applied to positive values": (EPILOGUE, "value < 0.0f ?", "value > 0.0f ?", ""),
    "the halo is one column short": (LAUNCH, "conv.stride_w + reach_w + 1;", "conv.stride_w + reach_w - 1;", ""),
    "lanes of a line begun by the block before are counted again": (
        KERNEL,
        "block.skipped + min(pixel, block.lanes - 1)",
        "min(pixel, block.lanes - 1)",
        "",
    ),
    "every run is taken to begin with a line": (LAUNCH, "lanes_w - std::gcd(lanes, lanes_w)", "0", ""),
    "a line of lanes is staged where it would be without skew": (
        KERNEL,
        "to += line / (TILE_H * STRIDE) * conv.skew;",
        "to += 0 * line;",
        "",
    ),
    "odd columns stand where even ones do": (KERNEL, "column % 2 * (conv.pitch / 2)", "column % 2 * 0", ""),
    "the tile is not zero at first": (KERNEL, "at < conv.buffers * tile_floats;", "at < 0 * tile_floats;", ""),
    "threads that share a place copy the same channels": (
        KERNEL,
        "first_channel + static_cast<int>(part)) *",
        "first_channel) *",
        "",
    ),
    "channels that batches leave are not copied": (
        KERNEL,
        "for (; count > 0; --count)",
        "for (; count > 1; --count)",
        "",
    ),
    "two slices finish the same row": (
        KERNEL,
        "turn = turn ? turn - 1 : conv.slices - 1) {\n    if (turn",
        "turn = 0) {\n    if (turn",
        "",
    ),
    "shared memory for one record buffer only": (
        LAUNCH,
        "staged = conv.buffers * (tile + records);",
        "staged = conv.buffers * tile + records;",
        "address,undefined",
    ),
}


@pytest.fixture(scope="module")
def problems() -> list[tuple[FilterCase, Tensor]]:
    return list(record_problems(40, seed=50, max_size=16))


@pytest.fixture(scope="module")
def caught(problems: list[tuple[FilterCase, Tensor]]) -> dict[str, bool]:
    return all_caught(MUTANTS, problems)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str, caught: dict[str, bool]) -> None:
    assert caught[name]
