"""The record kernel's model against cycles of the kernel in GPGPU-Sim with the timings of 7.5.

What was simulated is the kernel with its earlier ends of blocks: 64 → 128 channels, 3×3, 26×26. They are here, as the
account of their executed PTX has them: of eight rows one slice adds what the others hold while they wait, and each lane
stores its pixels one by one, two apart. Everything else is the model's own. Two of its constants were
set by these figures: what a jump takes, by the records at 90 %, and what code takes to come, by the two ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from prunekit.ops.cuda.cost_model import FETCH_CYCLES, LAUNCH_SECONDS, BlockPart, sectors
from prunekit.ops.cuda.devices import GPUS, Gpu
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.record.cost import MODEL as PRESENT
from prunekit.ops.cuda.record.cost import RecordLaunch, RecordModel, RecordProblem, WaveAccount
from prunekit.ops.cuda.record.ends import stored_lines
from prunekit.ops.cuda.record.filter import ROWS

TOLERANCE = 0.15


def serial_ends(problem: ConvProblem, launch: Any, staged_bytes: Any) -> tuple[BlockPart, BlockPart]:
    """The earlier start and end, for blocks with two slices or more of tiles of 4×2 pixels."""
    del staged_bytes
    lines, pixels = stored_lines(problem, launch)
    end = BlockPart(
        chain=ROWS * (571 + 232 * (launch.slices - 1)),
        instructions=760 + 955 / launch.slices,
        sectors=2 * lines * sectors(pixels - 1, 4),
        code=np.interp(launch.slices, *CODE_OF_SLICES),
    )
    return BlockPart(chain=712, instructions=135, code=121), end


#: Instructions of that end which a block goes through: its loop over slices was unrolled.
CODE_OF_SLICES = (2, 5, 8), (2121, 2377, 2609)
MODEL = RecordModel(serial_ends, code_bytes=134 << 10)


@dataclass(frozen=True)
class Simulated:
    """A simulated launch.

    Attributes:
        zeros: of the weights, in percent.
        multiprocessors: of the simulated GPU.
        waves: that the blocks come in.
        blocks: on a multiprocessor in each of them.
        launch: the cut, which was the first choice of the model of that time.
        cycles: simulated.
        copies: of these one chunk's copies, where that was told.
        ends: of these starts and ends of blocks, likewise.
        records: of these all records, likewise.
    """

    zeros: int
    multiprocessors: int
    waves: int
    blocks: int
    launch: RecordLaunch
    cycles: int
    copies: int | None = None
    ends: int | None = None
    records: int | None = None


NARROW = RecordLaunch(16, 2, tile_h=4, lanes=21, lanes_w=3, row_groups=4, buffers=1)
_FIVE = RecordLaunch(16, 5, tile_h=4, lanes=31, lanes_w=13, row_groups=3, buffers=1)
_EIGHT = RecordLaunch(32, 8, tile_h=4, lanes=21, lanes_w=3, row_groups=2, buffers=1)
SIMULATED = (
    Simulated(50, 10, 2, 1, _FIVE, 139_667),
    Simulated(75, 10, 1, 4, replace(NARROW, chunk_channels=8, row_groups=2), 88_420),
    Simulated(90, 10, 1, 2, NARROW, 52_617, copies=3_939, ends=15_282, records=21_579),
    Simulated(95, 10, 1, 2, NARROW, 46_479, copies=3_939, ends=15_282, records=15_441),
    Simulated(90, 40, 1, 1, _EIGHT, 41_623, copies=4_151, ends=24_771),
)


def turing(multiprocessors: int) -> Gpu:
    """The RTX 2070 SUPER with fewer multiprocessors, each with as much of the second-level cache's bandwidth."""
    gpu, share = GPUS["rtx-2070-super"], multiprocessors / GPUS["rtx-2070-super"].multiprocessors
    return replace(gpu, name="simulated", multiprocessors=multiprocessors, l2_gb_per_s=share * gpu.l2_gb_per_s)


def problem_with(zeros: int) -> RecordProblem:
    return RecordProblem(128, 64, (3, 3), 1, 1 - zeros / 100, 1, (26, 26), padding=(1, 1))


def account(run: Simulated) -> WaveAccount:
    """Of a wave, without its code."""
    return MODEL.wave_account(problem_with(run.zeros), run.launch, turing(run.multiprocessors))(run.blocks)


def fetched(run: Simulated) -> float:
    """Cycles of a wave's code, which was larger than the instruction cache."""
    return FETCH_CYCLES * float(MODEL.code(problem_with(run.zeros), run.launch)[1])


def by_name(run: Simulated) -> str:
    return f"{run.zeros} % zeros on {run.multiprocessors}"


@pytest.mark.parametrize("run", SIMULATED, ids=by_name)
def test_the_model_takes_as_long_as_the_simulated_kernel(run: Simulated) -> None:
    gpu = turing(run.multiprocessors)
    seconds = MODEL.modeled_seconds(problem_with(run.zeros), run.launch, gpu) - LAUNCH_SECONDS
    cycles = float(seconds) * gpu.clock_ghz * 1e9
    assert cycles == pytest.approx(run.waves * (account(run).cycles + fetched(run)))  # as they came in waves
    assert cycles == pytest.approx(run.cycles, rel=TOLERANCE)


@pytest.mark.parametrize("run", SIMULATED[2:], ids=by_name)
def test_the_parts_take_as_long_as_the_simulated_ones(run: Simulated) -> None:
    here, chunks = account(run), 64 // run.launch.chunk_channels
    ends = here.start + here.end + fetched(run)
    assert here.copies / chunks == pytest.approx(run.copies, rel=TOLERANCE)
    assert ends == pytest.approx(run.ends, rel=TOLERANCE)
    if run.records is not None:
        assert here.records == pytest.approx(run.records, rel=TOLERANCE)


def test_a_cut_with_wide_lines_is_as_much_faster_as_simulated() -> None:
    """One of 13 lanes in a line took 12 % less than what an earlier model put first; which one is not told."""
    problem, gpu = problem_with(90), turing(10)
    cuts = MODEL.cuts(problem)
    wide = RecordLaunch.columns(cuts[cuts[:, 4] == 13])
    gain = 1 - np.min(MODEL.modeled_seconds(problem, wide, gpu)) / MODEL.modeled_seconds(problem, NARROW, gpu)
    assert 0.05 <= gain <= 0.25
    best = MODEL.choose_launch(problem, gpu)
    assert best is not None
    assert best[0].lanes_w > NARROW.lanes_w


def test_the_present_ends_take_no_more_than_half_with_many_slices() -> None:
    for run in (SIMULATED[0], SIMULATED[-1]):
        problem, gpu = problem_with(run.zeros), turing(run.multiprocessors)
        here = PRESENT.wave_account(problem, run.launch, gpu)(run.blocks)
        now = here.start + here.end + FETCH_CYCLES * float(PRESENT.code(problem, run.launch)[1])
        before = account(run)
        assert now <= 0.55 * (before.start + before.end + fetched(run))
