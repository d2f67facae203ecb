"""How the kernel on sparse tensor cores is cut into blocks, and what a cut is expected to cost: the documented model.

Blocks, staging and constants are those of the dense tensor cores' kernel (prunekit/ops/cuda/condensed/cost.py); what
differs is a step: 32 columns, of which a row of 16, 32 or 64 output channels stores two of four. Nothing in it was
measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.ops.cuda.condensed.cost import (
    STEP_LATENCY,
    TAP_INSTRUCTIONS,
    UNIT_PIXELS,
    CondensedModel,
    CondensedProblem,
    block_cuts,
    chunk_choices,
)
from prunekit.ops.cuda.condensed.filter import ROWS
from prunekit.ops.cuda.cost_model import Cuts
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import KernelLaunch
from prunekit.ops.cuda.semi_structured.filter import FRAGMENTS, SPARSE_STEP_COLUMNS

#: (fragments, units of a warp) that the kernel is compiled for, and the warps of a multiprocessor that its registers
#: allow (tests/gpu_checks/cuda_budgets.json).
RESIDENT_WARPS = {(1, 8): 16, (2, 4): 16, (4, 8): 8}
#: Instructions of a step beside its products, its loads, and an address a unit:
#: tests/gpu_checks/test_semi_structured_compiles.py.
STEP_INSTRUCTIONS = 13
#: By fragments, of random masks as packed (tests/ops/test_semi_structured_launch.py): density; columns that come again,
#: as a share of the taps; cycles of a load of eight units in place of one.
_PACKED = {
    1: (
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        (0.0, 0.0, 0.001, 0.003, 0.01, 0.021, 0.042, 0.145, 0.295, 0.61, 0.985),
        (1.95, 1.53, 1.29, 1.18, 1.12, 1.16, 1.26, 1.42, 1.63, 1.98, 1.0),
    ),
    2: (
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        (0.0, 0.0, 0.001, 0.006, 0.02, 0.045, 0.097, 0.257, 0.425, 0.69, 0.985),
        (1.85, 1.3, 1.11, 1.06, 1.13, 1.24, 1.36, 1.66, 1.96, 2.27, 1.0),
    ),
    4: (
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        (0.0, 0.0, 0.002, 0.012, 0.04, 0.105, 0.195, 0.384, 0.525, 0.735, 0.985),
        (1.65, 1.1, 1.03, 1.1, 1.25, 1.41, 1.61, 1.98, 2.22, 2.43, 1.0),
    ),
}


@dataclass(frozen=True)
class SemiStructuredLaunch(KernelLaunch):
    """One cut: of the filter into chunks, row groups and slices, of the output into blocks.

    Attributes:
        chunk_channels: input channels that a block stages at once.
        fragments: groups of 16 output channels that share their columns: 1, 2 or 4.
        warp_units: units of 8 pixels that a warp sums: 8, or 4 with 2 fragments.
        tile_h: lines of a block.
        units_w: units side by side.
        pixel_warps: warps over the pixels.
        row_groups: groups of `fragments` times 16 output channels in a block.
        slices: warps that share a row group's steps.
        buffers: 2 copies the next chunk while one is read.
    """

    PACKED = ("chunk_channels", "fragments")

    chunk_channels: int
    fragments: int
    warp_units: int
    tile_h: int
    units_w: int
    pixel_warps: int
    row_groups: int
    slices: int
    buffers: int

    def __str__(self) -> str:
        rows = ROWS * self.fragments
        blocks = f"{self.tile_h}×{self.units_w} units of {UNIT_PIXELS}, {self.row_groups} × {rows} channels"
        return f"{blocks}, {self.chunk_channels} a chunk, {self.slices} slices, {self.buffers} buffers"


def step_bytes(fragments: Any) -> Any:
    """Bytes of a step: weights, places of columns, metadata (csrc/cuda/semi_structured/launch.h)."""
    return 16 * (32 * fragments + SPARSE_STEP_COLUMNS // 4 + 4 * fragments)


def _by_fragments(problem: CondensedProblem, fragments: Any, of: str) -> Any:
    """Look up of a random mask: "columns" that a run takes as a share of its taps, or bank "conflicts"."""
    found = []
    for each in FRAGMENTS:
        densities, repeated, conflicts = _PACKED[each]
        if of == "conflicts":
            found.append(float(np.interp(problem.density, densities, conflicts)))
        else:
            rows = min(ROWS * each, problem.out_channels // problem.groups)
            kept = 1 - (1 - problem.density) ** rows
            found.append(kept + float(np.interp(problem.density, densities, repeated)))
    return np.select([np.asarray(fragments) == each for each in FRAGMENTS], found)


def expected_steps(problem: CondensedProblem, chunk_channels: Any, fragments: Any) -> Any:
    """Expected steps of a run of so many channels, of a random mask: its columns come in 32s."""
    taps = chunk_channels * math.prod(problem.kernel_size)
    columns = taps * _by_fragments(problem, fragments, "columns")
    expected = (columns / SPARSE_STEP_COLUMNS + 31 / 64) * (1 - np.exp(-columns))
    # Columns that all stand once fill no more steps than the taps do.
    return np.where(columns <= taps, np.minimum(expected, np.ceil(taps / SPARSE_STEP_COLUMNS)), expected)


class SemiStructuredModel(CondensedModel):
    """The model of the kernel on sparse tensor cores; devices without them run none of its cuts."""

    launch_type = SemiStructuredLaunch

    def cuts(self, problem: CondensedProblem) -> Cuts:  # noqa: D102
        group_rows = problem.out_channels // problem.groups
        # With more fragments half of the rows would be empty.
        fitting = [kernel for kernel in RESIDENT_WARPS if kernel[0] == 1 or ROWS * kernel[0] < 2 * group_rows]
        kernels = tuple((kernel, -(-group_rows // (ROWS * kernel[0]))) for kernel in fitting)
        return block_cuts(problem.lines, kernels, chunk_choices(problem))

    def run_bytes(self, problem: CondensedProblem, launch: Any, *longest: int) -> Any:  # noqa: D102
        return step_bytes(launch.fragments) * (longest[0] if longest else self._longest_steps(problem, launch))

    def _longest_steps(self, problem: CondensedProblem, launch: Any) -> Any:
        taps = launch.chunk_channels * math.prod(problem.kernel_size)
        share = _by_fragments(problem, launch.fragments, "columns")
        spread = np.sqrt(taps * np.maximum(share * (1 - share), 0.01))
        columns = np.where(
            share < 1,
            np.minimum(taps * share + 4 * spread, np.maximum(taps, taps * share + spread)),
            taps * share + 2 * spread,
        )
        return np.ceil(columns / SPARSE_STEP_COLUMNS)

    def fragments(self, launch: Any) -> Any:  # noqa: D102
        return launch.fragments

    def steps(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        return expected_steps(problem, launch.chunk_channels, launch.fragments)

    def most_warps(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        del problem
        are_here = [(launch.fragments == f) & (launch.warp_units == units) for f, units in RESIDENT_WARPS]
        return np.select(are_here, list(RESIDENT_WARPS.values()))

    def step_cycles(  # noqa: D102
        self, problem: CondensedProblem, launch: Any, gpu: Gpu, run: Any, steps: Any
    ) -> tuple[Any, Any, Any]:
        del gpu
        fragments, units = launch.fragments, launch.warp_units
        steps_a_warp = run * launch.row_groups / launch.warps
        copied = steps_a_warp * fragments * 1.125  # 16 bytes each
        loads = 1 + fragments + np.ceil(fragments / 2)
        issue = steps * (STEP_INSTRUCTIONS + 2 * units + loads + fragments * units)
        issue = issue + 8 * copied + steps_a_warp * TAP_INSTRUCTIONS
        matrices = 4 * units * _by_fragments(problem, fragments, "conflicts")
        shared = steps * (4 * fragments + 1 + np.ceil(fragments / 2) + matrices) + 8 * copied
        return issue, shared, steps * (STEP_LATENCY + matrices)

    def modeled_seconds(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        seconds = super().modeled_seconds(problem, launch, gpu)
        return seconds if gpu.capability >= 80 else math.inf * seconds

    def filter_bytes(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        chunks = problem.group_channels / launch.chunk_channels
        steps = problem.groups * self.row_groups(problem, launch) * chunks * self.steps(problem, launch)
        return step_bytes(launch.fragments) * steps


MODEL = SemiStructuredModel()
