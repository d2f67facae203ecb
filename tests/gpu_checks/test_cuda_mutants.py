"""The emulation's own test: kernels with one planted bug each, every one of which it must catch."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.support.emulated_kernels import COMPILER, FilterCase
from tests.support.planted_bugs import all_caught
from tests.support.record_problems import record_problems

pytestmark = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")

KERNEL, STORE, LAUNCH, EPILOGUE = "record/conv2d.cuh", "record/store.cuh", "record/launch.h", "epilogue.cuh"
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
    "no barrier before slices are added": (STORE, "    __syncthreads();\n    store_rows", "    store_rows", "thread"),
    "no barrier before the next rows' sums": (
        STORE,
        "shared + column, columns);\n    __syncthreads();\n  }\n}",
        "shared + column, columns);\n  }\n}",
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
        STORE,
        "__ldg(conv.rows + block.group * conv.rows_per_group + first + at)",
        "block.group * conv.rows_per_group + first + at",
        "",
    ),
    "one slice is not added": (STORE, "int left = conv.slices;", "int left = conv.slices - 1;", ""),
    "rows past the last are stored": (STORE, "first + at < conv.rows_per_group", "at >= 0", "address,undefined"),
    "a pixel past the last line is stored": (STORE, "min(TILE_H, conv.p - p)", "TILE_H", "address,undefined"),
    "a pixel past the line's end is stored": (STORE, "&& q < conv.q", "&& q <= conv.q", "address,undefined"),
    "the stride of a lane is forgotten": (KERNEL, "STRIDE ? TILE_W : TILE_W * conv.stride_w", "TILE_W", ""),
    "the residual is activated": (
        STORE,
        "value[at / 2][at % 2] = activate(conv, BEFORE_RESIDUAL, value[at / 2][at % 2]);",
        "if (!conv.residual) value[at / 2][at % 2] = activate(conv, BEFORE_RESIDUAL, value[at / 2][at % 2]);",
        "",
    ),
    "the residual comes after the last activation": (
        STORE,
        "activate(conv, AFTER_RESIDUAL, sum);",
        "activate(conv, AFTER_RESIDUAL, value[at / 2][at % 2]) + residual[at / 2][at % 2];",
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
    "a place's channels are one fewer where threads share it": (
        KERNEL,
        "by_copy_parts.of(channels - part + parts - 1)",
        "by_copy_parts.of(channels - part)",
        "",
    ),
    "two slices finish the same rows": (STORE, "slice - line * conv.row_parts : conv", "0 : conv", "thread"),
    "two slices finish the same lines": (STORE, "conv.rows_at_once, line};", "conv.rows_at_once, 0};", "thread"),
    "half of the pixels are stored twice": (STORE, "block, column + columns)", "block, column)", ""),
    "a line of pixels is left out": (STORE, "line += LINES * conv.line_parts", "line += TILE_H", ""),
    "lanes of the line before are stored again": (
        STORE,
        "block.skipped + min(lane, block.lanes - 1)",
        "min(lane, block.lanes - 1)",
        "",
    ),
    "every row group stores the first one's channels": (STORE, "rows[pixel.row_group * RECORD_ROWS + ", "rows[", ""),
    "slices write over one another": (STORE, "+ slice * TILE_H * columns + column;", "+ column;", ""),
    "shared memory for the tiles only": (LAUNCH, "std::max(staged, row_sums)", "staged", "address,undefined"),
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
