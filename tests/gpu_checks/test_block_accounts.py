"""What the models have blocks do at their start and end and in copies, against the account of the executed PTX.

Cycles there are those of an in-order machine that takes instructions as they stand in the PTX.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from prunekit.ops.cuda.condensed.cost import MODEL as CONDENSED
from prunekit.ops.cuda.condensed.cost import CondensedLaunch, CondensedProblem
from prunekit.ops.cuda.condensed.filter import pack_fragments
from prunekit.ops.cuda.problem import KernelLaunch
from prunekit.ops.cuda.record.cost import MODEL, RecordLaunch, RecordProblem, copy_chain
from prunekit.ops.cuda.record.ends import shared_ends
from prunekit.ops.cuda.record.filter import pack_records
from tests.support.cuda_compiler import nvcc
from tests.support.emulated_kernels import COMPILER, Convolution, FilterCase
from tests.support.executed_ptx import account_of

pytestmark = pytest.mark.skipif(nvcc() is None or not COMPILER, reason="no nvcc or no g++ on this machine")

CHANNELS, OUT_CHANNELS, SIZE = 32, 32, (26, 26)
WIDE = RecordLaunch(16, 3, tile_h=4, lanes=31, lanes_w=13, row_groups=4, buffers=1)
RECORD_CUTS = [
    WIDE,
    replace(WIDE, slices=1, tile_h=6, lanes=30),
    replace(WIDE, slices=8, row_groups=2),
    replace(WIDE, slices=2, lanes=21, lanes_w=3),
]
TALL = CondensedLaunch(16, warp_units=8, tile_h=8, units_w=1, pixel_warps=1, row_groups=2, slices=2, buffers=1)
CONDENSED_CUTS = [TALL, replace(TALL, row_groups=1, slices=4), replace(TALL, tile_h=2, units_w=4, slices=1)]


@cache
def _account(launch: KernelLaunch, architecture: str) -> dict[str, Any]:
    """Of 32 → 32 channels of 3×3 at 26×26 with 90 % zeros."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if isinstance(launch, RecordLaunch) else torch.float16
    weight = torch.randn(OUT_CHANNELS, CHANNELS, 3, 3, generator=generator).to(dtype)
    mask = torch.rand(weight.shape, generator=generator) < 0.1
    x, bias = torch.randn(1, CHANNELS, *SIZE, generator=generator), torch.randn(OUT_CHANNELS, generator=generator)
    conv = Convolution(x.to(dtype), bias.to(dtype), None, (1, 1), (1, 1), (1, 1), "leaky_relu", 0.1)
    if isinstance(launch, RecordLaunch):
        records = pack_records(weight, mask, 1, 9, launch.chunk_channels, launch.slices)
        return account_of(FilterCase("record", conv, records, launch.words()), architecture)
    assert isinstance(launch, CondensedLaunch)
    fragments = pack_fragments(weight, mask, 1, launch.chunk_channels)
    return account_of(FilterCase("condensed", conv, fragments, launch.words()), architecture)


def _problem() -> RecordProblem:
    return RecordProblem(OUT_CHANNELS, CHANNELS, (3, 3), 1, 0.1, 1, SIZE, padding=(1, 1))


@pytest.mark.parametrize("launch", RECORD_CUTS, ids=str)
def test_record_blocks_start_and_end_as_the_model_has_it(launch: RecordLaunch) -> None:
    account, problem = _account(launch, "75"), _problem()
    blocks = account["blocks"]
    assert blocks == MODEL.blocks(problem, launch)
    for name, part in zip(
        ("start", "end"), shared_ends(problem, launch, MODEL.staged_bytes(problem, launch)), strict=True
    ):
        counted = account[name]
        assert part.chain == pytest.approx(counted["chain"] / blocks, rel=0.1)
        assert part.instructions == pytest.approx(counted["instructions"] / blocks / launch.warps, rel=0.12)
        assert part.code == pytest.approx(counted["code"], rel=0.15)
        assert part.sectors == pytest.approx(counted["sectors"] / blocks, rel=0.2)


@pytest.mark.parametrize("architecture", ["75", "80"])
@pytest.mark.parametrize("launch", RECORD_CUTS, ids=str)
def test_record_blocks_copy_as_the_model_has_it(launch: RecordLaunch, architecture: str) -> None:
    """Asynchronous copies are not waited for in the account, which the model adds."""
    account, chunks = _account(launch, architecture)["copies"], CHANNELS // launch.chunk_channels
    waits = 236 if architecture == "80" else 0
    counted = account["chain"] / _account(launch, architecture)["blocks"] / chunks
    assert copy_chain(_problem(), launch, int(architecture)) - waits == pytest.approx(counted, rel=0.2)
    sectors = account["loaded_sectors"] / _account(launch, architecture)["blocks"] / chunks
    assert MODEL.copied_sectors(_problem(), launch) == pytest.approx(sectors, rel=0.25)


@pytest.mark.parametrize("launch", CONDENSED_CUTS, ids=str)
def test_condensed_blocks_end_as_the_model_has_it(launch: CondensedLaunch) -> None:
    account = _account(launch, "75")
    end, blocks = account["end"], account["blocks"]
    part = CONDENSED.end(CondensedProblem.of(_problem()), launch)
    assert part.chain == pytest.approx(end["chain"] / blocks, rel=0.1)
    assert part.instructions == pytest.approx(end["instructions"] / blocks / launch.warps, rel=0.15)
    assert part.sectors == pytest.approx(end["sectors"] / blocks, rel=0.3)
    assert part.code == pytest.approx(end["code"], rel=0.25)
