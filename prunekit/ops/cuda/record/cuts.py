"""How the record kernel's work may be cut into blocks: the cuts that its model compares."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from prunekit.ops.cuda.problem import crossed

_CHUNKS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
_WARPS = [(row_groups, slices) for row_groups in range(1, 17) for slices in range(1, 13) if row_groups * slices <= 16]


@lru_cache(maxsize=512)
def block_cuts(
    tile_h: int, tiles: tuple[int, int], limits: tuple[int, int], least_chunk: int, channels: int
) -> np.ndarray[Any, Any]:
    """Return int64 [cuts, numbers of a RecordLaunch], each once.

    Args:
        tile_h: rows of a lane's tile.
        tiles: of the output, down and across.
        limits: (row groups of a conv group, warps of a block).
        least_chunk: of which the channels of a chunk are multiples.
        channels: of a conv group, or 64.
    """
    num_row_groups, max_warps = limits
    sizes = [n for n in _CHUNKS if n % least_chunk == 0 and n <= max(least_chunk, channels)]
    chunks = crossed(sizes, (1, 2))
    parts = []
    for pixel_warps in range(1, 9):
        shares = [(g, s) for g, s in _WARPS if g <= num_row_groups and pixel_warps * g * s <= max_warps]
        parts.append(crossed(_runs_of_lanes(*tiles, 32 * pixel_warps), shares, chunks))
    lanes, lanes_w, row_groups, slices, chunk_channels, buffers = np.concatenate(parts).T
    cuts = np.stack([chunk_channels, slices, np.full_like(slices, tile_h), lanes, lanes_w, row_groups, buffers], 1)
    return np.unique(cuts, axis=0)


def _runs_of_lanes(tiles_h: int, tiles_w: int, lanes: int) -> list[tuple[int, int]]:
    """Return (lanes of a block, of a line of its band): whole lines, runs over their ends, and a few small ones."""
    runs = {(1, 1), (4, 2)}
    for bands in (*range(1, 14), 16, 32):
        lanes_w = min(-(-tiles_w // bands), lanes)
        lines = min(max(1, lanes // lanes_w), tiles_h)
        runs.add((-(-tiles_h // -(-tiles_h // lines)) * lanes_w, lanes_w))
        lanes_w = -(-tiles_w // bands)
        band = tiles_h * lanes_w
        if 2 * band > lanes:
            runs.add((min(lanes, band), lanes_w))
            runs.add((-(-band // -(-band // lanes)), lanes_w))
    return sorted(runs, reverse=True)
