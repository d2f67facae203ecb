"""Blurs of lenses and motion, for images float64 [H, W, 3] in [0, 1]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunekit.evaluation.corruptions.filters import (
    Floats,
    defocused,
    gaussian,
    motion_blurred,
    whole_numbers,
    zoomed,
)

Sources = npt.NDArray[np.int64]


def defocus_blur(x: Floats, radius: int, alias_sigma: float) -> Floats:
    """Average over a disk, as a lens out of focus does."""
    return defocused(x, radius, alias_sigma)


def gaussian_blur(x: Floats, sigma: float) -> Floats:
    """Average with a Gaussian's weights."""
    return gaussian(x, sigma)


def motion_blur(x: Floats, draw: np.random.Generator, radius: int, sigma: float) -> Floats:
    """Drag the image within 45 degrees of the rows."""
    return motion_blurred(x, radius, sigma, draw.uniform(-45, 45))


def zoom_blur(x: Floats, step: float, end: float) -> Floats:
    """Average the image and its enlargements by 1, 1 + step and so on, below `end`."""
    factors, (height, width) = np.arange(1, end, step), x.shape[:2]
    total = x.copy()
    for factor in factors:
        total += zoomed(x, float(factor))[:height, :width]
    blurred: Floats = total / (len(factors) + 1)
    return blurred


def glass_blur(x: Floats, draw: np.random.Generator, sigma: float, reach: int, rounds: int) -> Floats:
    """Blur, let pixels take the place of near ones, and blur again, as structured glass does.

    Follows the benchmark's images, which are of bytes between the blurs, and in which a pixel takes the value of the
    other without giving its own away.
    """
    x = whole_numbers(gaussian(x, sigma) * 255) / 255
    rows, columns = (max(size - 2 * reach, 0) for size in x.shape[:2])
    offsets = draw.integers(-reach, reach, (rounds, rows, columns, 2))  # right, down
    for right, down in np.moveaxis(offsets, -1, 1):
        x = displaced(x, right, down, reach)
    return gaussian(x, sigma)


def displaced(x: Floats, right: Sources, down: Sources, reach: int) -> Floats:
    """Replace pixels one after another by a near one, from the lower right corner, row by row.

    Which pixels see what others have become depends on the order. Pixels (i, j), counted from that corner, of equal
    2 · reach · i + j do not see each other, and what they see has an earlier number or a later one as in that order:
    so all of one number are replaced at once.

    Args:
        x: The image [H, W, 3].
        right: How far right of each pixel its new value is from, in [-reach, reach), int [H - 2 reach, W - 2 reach].
        down: Likewise.
        reach: Pixels this near the upper and left edges, or less one to the others, stay.
    """
    (height, width), (rows, columns) = x.shape[:2], right.shape
    flat, skew = x.reshape(height * width, -1).copy(), 2 * reach
    i, j = np.arange(rows)[:, None], np.arange(columns)
    places = (height - reach - i) * width + width - reach - j
    sources = (places + down * width + right).ravel()
    for number in range(skew * (rows - 1) + columns if rows and columns else 0):
        first, last = max(0, -(-(number - columns + 1) // skew)), min(rows - 1, number // skew)
        lines = np.arange(first, last + 1)
        chosen = lines * (columns - skew) + number
        flat[places.ravel()[chosen]] = flat[sources[chosen]]
    moved: Floats = flat.reshape(x.shape)
    return moved
