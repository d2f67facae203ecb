"""Where the record kernel puts its tile in shared memory: lanes of a warp must not want the same bank."""

from __future__ import annotations

import random

import numpy as np
import pytest

from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.record.cost import MODEL, RecordLaunch, RecordProblem, tile_layout
from prunekit.ops.cuda.record.filter import TILE_W

_BANKS, _LANES = 32, 16  # 16 lanes load 8 bytes each at a time


def _most_in_a_bank(problem: RecordProblem, launch: RecordLaunch, skipped: int, skew: int | None = None) -> int:
    """Loads that the busiest bank gets from 16 lanes of a warp, where lanes without pixels read with the last one."""
    _, pitch, own_skew, _ = tile_layout(problem, launch)
    skew = int(own_skew) if skew is None else skew
    tiles = skipped + np.minimum(np.arange(32 * launch.pixel_warps), launch.lanes - 1)
    line, place = np.divmod(tiles, launch.lanes_w)
    first = line * (launch.tile_h * problem.stride[0] * int(pitch) + skew) + place * TILE_W
    worst = 0
    for half in first.reshape(-1, _LANES):
        words = np.unique(np.concatenate([half, half + 1]))  # the same word serves all lanes that want it
        worst = max(worst, int(np.bincount(words % _BANKS).max()))
    return worst


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_windows_are_loaded_without_bank_conflicts(kernel: int, stride: int) -> None:
    draw, had_conflicts = random.Random(kernel + stride), False
    for _ in range(100):
        size = draw.randint(4, 60), draw.randint(4, 60)
        problem = RecordProblem(64, 32, (kernel, kernel), 1, 0.1, 1, size, (stride, stride))
        lanes_w = draw.randint(1, -(-size[1] // TILE_W))
        tile_h = draw.choice(problem.tile_heights)
        launch = RecordLaunch(8, 1, tile_h, draw.randint(1, 96), lanes_w, 1, 1)
        skipped = draw.randrange(lanes_w)
        assert _most_in_a_bank(problem, launch, skipped) == 1, (problem, launch)
        had_conflicts |= _most_in_a_bank(problem, launch, skipped, skew=0) > 1
    assert had_conflicts, "the skew is of no use"


def test_the_skew_costs_little_memory() -> None:
    for size, channels in ((52, 128), (26, 256), (13, 512)):
        problem = RecordProblem(2 * channels, channels, (3, 3), 1, 0.1, 1, (size, size), padding=(1, 1))
        for gpu in GPUS.values():
            (launch,) = MODEL.best_launches(problem, gpu, 1)
            lines, pitch, _, plane = (int(n) for n in tile_layout(problem, launch))
            assert lines * pitch <= plane <= 1.25 * lines * pitch
