"""What a block of the record kernel takes before its first chunk and after its last, as its executed PTX counts it.

At the end (csrc/cuda/record/store.cuh) the sums of `rows_at_once` rows pass through shared memory at a time. Each of a
row group's warps then adds, finishes and stores its share of these rows and of their lines of pixels, half the lines of
a tile in one iteration. The constants fit the account of ten cuts within 4 % (tests/gpu_checks/test_block_accounts.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunekit.ops.cuda.cost_model import BlockPart, sectors
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.record.filter import ROWS, TILE_W

# Cycles of the slowest thread, and instructions of a warp: once, for each float4 that clears the tile at the start, or
# for each passing of rows through shared memory, each iteration, and each slice that an iteration adds.
_START_CYCLES, _CLEAR_CYCLES = 1230, 18
_START_INSTRUCTIONS, _CLEAR_INSTRUCTIONS = 118, 6
_END_CYCLES, _PASS_CYCLES, _ITERATION_CYCLES, _ADD_CYCLES = 437, 222, 287, 147
_END_INSTRUCTIONS, _PASS_INSTRUCTIONS, _ITERATION_INSTRUCTIONS, _ADD_INSTRUCTIONS = 229, 62, 72, 19
# Instructions that stand there, each in the code once.
_START_CODE, _END_CODE = 172, 450


def rows_at_once(launch: Any, staged_bytes: Any) -> Any:
    """Return the rows of a row group whose sums fit where the tiles were: csrc/cuda/record/launch.h has the same."""
    row_bytes = 4 * 32 * launch.warps * launch.tile_h * TILE_W
    fitting = [np.where(rows * row_bytes <= staged_bytes, rows, 1) for rows in (ROWS, ROWS // 2, ROWS // 4)]
    return np.maximum.reduce(fitting)


def stored_lines(problem: ConvProblem, launch: Any) -> tuple[Any, Any]:
    """Return (lines of pixels that a block stores in all its output channels, pixels of such a line), on average."""
    p, q = problem.size
    bands = -(-q // (launch.lanes_w * TILE_W))
    lines = p / runs(problem, launch)
    return np.minimum(ROWS * launch.row_groups, problem.out_channels) * lines, q / bands


def runs(problem: ConvProblem, launch: Any) -> Any:
    """Return the blocks that share a band of the output."""
    return -(-(-(-problem.size[0] // launch.tile_h) * launch.lanes_w) // launch.lanes)


def shared_ends(problem: ConvProblem, launch: Any, staged_bytes: Any) -> tuple[BlockPart, BlockPart]:
    """Return what a block does before its first chunk and after its last.

    It looks up its channels and clears its tile; and it adds its slices through shared memory and stores whole lines.

    Args:
        problem: the convolution.
        launch: the cut, or columns of them.
        staged_bytes: of shared memory, for tiles and records.
    """
    return _start(launch, staged_bytes), _end(problem, launch, staged_bytes)


def _start(launch: Any, staged_bytes: Any) -> BlockPart:
    cleared = staged_bytes / (16 * 32 * launch.warps)
    return BlockPart(
        chain=_START_CYCLES + _CLEAR_CYCLES * cleared,
        instructions=_START_INSTRUCTIONS + _CLEAR_INSTRUCTIONS * cleared,
        code=_START_CODE,
    )


def _end(problem: ConvProblem, launch: Any, staged_bytes: Any) -> BlockPart:
    together = rows_at_once(launch, staged_bytes)
    row_parts = np.minimum(launch.slices, together)
    line_parts, passes, loop = launch.slices // row_parts, ROWS / together, launch.tile_h // 2
    # Of the slices that have a share; the fixed part of an iteration counts as one line more.
    iterations = -(-together // row_parts) * -(-launch.tile_h // (loop * line_parts)) * passes * (loop + 1) / 3
    working = row_parts * line_parts / launch.slices
    adding = _ITERATION_INSTRUCTIONS + _ADD_INSTRUCTIONS * launch.slices
    lines, pixels = stored_lines(problem, launch)
    return BlockPart(
        chain=_END_CYCLES + _PASS_CYCLES * passes + iterations * (_ITERATION_CYCLES + _ADD_CYCLES * launch.slices),
        instructions=_END_INSTRUCTIONS + _PASS_INSTRUCTIONS * passes + iterations * working * adding,
        sectors=lines * sectors(pixels, 4),
        code=_END_CODE,
    )
