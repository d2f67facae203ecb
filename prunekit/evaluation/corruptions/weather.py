"""Snow, fog and light, for images float64 [H, W, 3] in [0, 1]."""

from __future__ import annotations

import numpy as np

from prunekit.detection.letterbox import REC_601
from prunekit.evaluation.corruptions.filters import Floats, motion_blurred, zoomed


def brightness(x: Floats, more: float) -> Floats:
    """Raise the value of hue, saturation and value; black becomes gray."""
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    lit: Floats = np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)
    return lit


def fog(x: Floats, draw: np.random.Generator, thickness: float, decay: float) -> Floats:
    """Add a fractal cloud, and darken so that what was brightest stays so."""
    height, width = x.shape[:2]
    cloud = plasma(1 << (max(height, width, 2) - 1).bit_length(), decay, draw)[:height, :width, None]
    brightest = x.max()
    foggy: Floats = (x + thickness * cloud) * (brightest / (brightest + thickness))
    return foggy


def plasma(size: int, decay: float, draw: np.random.Generator) -> Floats:
    """Return a fractal landscape [size, size] in [0, 1] by the diamond-square algorithm, its edges joined.

    Each round halves the distance between known points and divides the roughness by `decay`.

    Args:
        size: A power of 2.
        decay: The smaller, the rougher.
        draw: What is random about it.
    """
    heights, step, roughness = np.zeros((size, size)), size, 100.0

    def near(total: Floats, of: float) -> Floats:
        return total / 4 + of * draw.uniform(-of, of, total.shape)

    while step >= 2:
        half, corners = step // 2, heights[::step, ::step]
        sides = corners + np.roll(corners, -1, axis=0)
        centers = near(sides + np.roll(sides, -1, axis=1), roughness)
        upper = corners + np.roll(corners, -1, axis=1) + centers + np.roll(centers, 1, axis=0)
        left = sides + centers + np.roll(centers, 1, axis=1)
        heights[half::step, half::step] = centers
        heights[::step, half::step] = near(upper, roughness)
        heights[half::step, ::step] = near(left, roughness)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    scaled: Floats = heights / heights.max()
    return scaled


def snow(
    x: Floats, draw: np.random.Generator, mean: float, spread: float, flake: float, least: float, radius: int,
    sigma: float, kept: float,
) -> Floats:  # fmt: skip
    """Let snow fall, each flake once more at the opposite place, before a paler image.

    Args:
        x: The image.
        draw: What is random: the flakes, and where the wind blows.
        mean: Of the normal noise that flakes are the peaks of.
        spread: Its standard deviation.
        flake: How much it is enlarged.
        least: What is below is no flake.
        radius: Of the flakes' motion.
        sigma: Likewise.
        kept: How much of the image's own colors stays; the rest is at least as bright as 1.5 · gray + 0.5.
    """
    height, width = x.shape[:2]
    peaks = zoomed(draw.normal(mean, spread, (height, width)), flake)
    flakes = np.where(peaks < least, 0.0, np.minimum(peaks, 1))
    falling = motion_blurred(flakes, radius, sigma, draw.uniform(-135, -45))
    layer = (np.rint(falling * 255) / 255)[:height, :width]
    gray = (x @ np.array(REC_601))[..., None]
    pale = kept * x + (1 - kept) * np.maximum(x, gray * 1.5 + 0.5)
    snowy: Floats = pale + (layer + layer[::-1, ::-1])[..., None]
    return snowy
