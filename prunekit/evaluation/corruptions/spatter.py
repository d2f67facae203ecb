"""Drops of water and mud on the lens, for images float64 [H, W, 3] in [0, 1]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate, distance_transform_edt, label, sobel, uniform_filter

from prunekit.evaluation.corruptions.filters import Floats, gaussian, whole_numbers

Bytes = npt.NDArray[np.uint8]
_TURQUOISE, _BROWN = np.array((175, 238, 238)) / 255, np.array((63, 42, 20)) / 255
_LEAST_MUD = 0.8
_EDGE, _SURE_EDGE = 50, 150  # gradients, as sums of two Sobel filters of bytes
_FAR = 20  # pixels from an edge; what is farther looks alike
_LIT_FROM_UPPER_LEFT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
_FLAT, _STEEP = np.tan(np.pi / 8), np.tan(3 * np.pi / 8)  # between them a gradient is diagonal


def spatter(
    x: Floats, draw: np.random.Generator, mean: float, spread: float, sigma: float, least: float, strength: float,
    is_mud: bool,
) -> Floats:  # fmt: skip
    """Splash water on the lens, or mud.

    Args:
        x: The image.
        draw: Where the drops are.
        mean: Of the normal noise that drops are the peaks of.
        spread: Its standard deviation.
        sigma: Of the Gaussian that smooths it, in pixels.
        least: What is below is no drop.
        strength: How bright water is; how far mud is smoothed, in pixels.
        is_mud: Mud hides what is behind it, water adds to it.
    """
    noise = gaussian(draw.normal(mean, spread, x.shape[:2]), sigma)
    if is_mud:
        mud = gaussian((noise > least).astype(float), strength)
        mud = np.where(mud < _LEAST_MUD, 0, mud)[..., None]
        return x * (1 - mud) + _BROWN * mud
    drops = np.where(noise < least, 0, noise)
    water = _shine(whole_numbers(np.clip(drops, 0, 1) * 255).astype(np.uint8))
    return x + (strength * water)[..., None] * _TURQUOISE


def _shine(drops: Bytes) -> Floats:
    """Return how bright drops are in the light, [H, W] in [0, 1]: by the distance to their outlines, in relief."""
    is_edge = edges(drops)
    distance = distance_transform_edt(~is_edge) if is_edge.any() else np.full(drops.shape, np.inf)
    near = whole_numbers(_box(np.minimum(distance, _FAR))).astype(np.uint8)
    relief = correlate(_equalized(near).astype(float), _LIT_FROM_UPPER_LEFT, mode="mirror")
    lit = drops * np.rint(_box(np.clip(relief, 0, 255)))
    return lit / max(float(lit.max()), 1.0)


def edges(image: Bytes) -> npt.NDArray[np.bool_]:
    """Return Canny's edges of a gray image [H, W] (1986), without smoothing: 3×3 gradients, |x| + |y|, 50 and 150.

    An edge is a maximum along its gradient, horizontal, vertical or diagonal, and connected to one that is above the
    higher threshold.
    """
    across, down = (sobel(image.astype(float), axis, mode="nearest") for axis in (1, 0))
    size = np.abs(across) + np.abs(down)
    around = np.pad(size, 1)

    def at(dy: int, dx: int) -> Floats:
        return around[1 + dy : 1 + dy + size.shape[0], 1 + dx : 1 + dx + size.shape[1]]

    is_flat, is_steep = np.abs(down) < _FLAT * np.abs(across), np.abs(down) > _STEEP * np.abs(across)
    falls = (across < 0) == (down < 0)
    is_crest = np.where(
        is_flat, (size > at(0, -1)) & (size >= at(0, 1)),
        np.where(is_steep, (size > at(-1, 0)) & (size >= at(1, 0)),
                 np.where(falls, (size > at(-1, -1)) & (size > at(1, 1)), (size > at(-1, 1)) & (size > at(1, -1)))),
    )  # fmt: skip
    pieces, count = label(is_crest & (size > _EDGE), structure=np.ones((3, 3)))
    is_sure = np.zeros(count + 1, dtype=bool)
    is_sure[pieces[is_crest & (size > _SURE_EDGE)]] = True
    is_sure[0] = False
    found: npt.NDArray[np.bool_] = is_sure[pieces]
    return found


def _equalized(image: Bytes) -> Bytes:
    """Return a gray image whose values are about equally frequent from 0 to 255."""
    counts = np.bincount(image.ravel(), minlength=256)
    first = int(counts.argmax() if counts.max() == image.size else np.flatnonzero(counts)[0])
    rest = image.size - counts[first]
    if rest == 0:
        return image
    below = np.cumsum(counts) - counts[first]
    table: Bytes = np.rint(np.clip(below, 0, None) * (255 / rest)).astype(np.uint8)
    return table[image]


def _box(x: Floats) -> Floats:
    mean: Floats = uniform_filter(np.asarray(x, dtype=float), 3, mode="mirror")
    return mean
