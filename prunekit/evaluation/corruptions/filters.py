"""Filters that several corruptions share, on images float64 [H, W, ...] of any size, for pixels in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.signal import fftconvolve

Floats = npt.NDArray[np.float64]
_ROUNDING = 2**-10  # far above what sums of float64 miss a whole number by, far below what anyone sees
_LEAST_DISK = 8  # pixels: smaller disks lie in a kernel of 17×17, too


def whole_numbers(x: Floats) -> Floats:
    """Return values rounded down, as the benchmark's bytes are; what rounding errors keep below a number counts as it.

    So one color stays what it is when it is averaged, and bits do not depend on the order of sums.
    """
    rounded: Floats = np.floor(x + _ROUNDING)
    return rounded


def gaussian(x: Floats, sigma: float | tuple[float, float], edges: str = "nearest", truncate: float = 4.0) -> Floats:
    """Return an image or a field blurred by a Gaussian.

    Args:
        x: [H, W] or [H, W, 3].
        sigma: In pixels, of rows and columns.
        edges: What lies outside of the image, by scipy.ndimage's names.
        truncate: Where the Gaussian ends, in sigmas.
    """
    both = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    blurred: Floats = gaussian_filter(x, (*both, *(0.0,) * (x.ndim - 2)), mode=edges, truncate=truncate)
    return blurred


def defocused(x: Floats, radius: int, alias_sigma: float) -> Floats:
    """Return an image [H, W, 3] averaged over a disk whose edge is softened; it is mirrored at its edges."""
    kernel = _disk(radius, alias_sigma)
    reach = len(kernel) // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    # By FFT: 289 or more multiplications a pixel take ten times as long.
    blurred: Floats = fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    return blurred


def motion_blurred(x: Floats, radius: int, sigma: float, degrees: float) -> Floats:
    """Return an image [H, W, ...] dragged one way: half a Gaussian along a line, edge pixels repeated outside.

    Args:
        x: The image.
        radius: The line has 2 · radius + 1 points, one pixel apart.
        sigma: Of the Gaussian, in pixels.
        degrees: The line's direction; 0 is along the rows.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = math.radians(degrees)
    down, right = (-np.ceil(steps * part - 0.5).astype(int) for part in (math.sin(angle), math.cos(angle)))
    height, width = x.shape[:2]
    reach = [int(np.abs(shift).max()) for shift in (down, right)]
    padded = np.pad(x, [(size, size) for size in reach] + [(0, 0)] * (x.ndim - 2), mode="edge")
    blurred = np.zeros_like(x)
    for weight, dy, dx in zip(weights / weights.sum(), down, right, strict=True):
        top, left = reach[0] - dy, reach[1] - dx
        blurred += weight * padded[top : top + height, left : left + width]
    return blurred


def zoomed(x: Floats, factor: float) -> Floats:
    """Return the center of an image [H, W, ...] enlarged linearly, at least as large as the image.

    The center has ⌈H / factor⌉ rows, its corners become the corners of the result, and columns likewise.
    """
    for axis in (0, 1):
        size = math.ceil(x.shape[axis] / factor)
        start = (x.shape[axis] - size) // 2
        x = stretched(x.take(range(start, start + size), axis), round(size * factor), axis)
    return x


def stretched(x: Floats, size: int, axis: int) -> Floats:
    """Return an axis interpolated linearly to `size` points, the first and last as they are."""
    last = x.shape[axis] - 1
    positions = np.arange(size) * (last / max(size - 1, 1))
    below = np.minimum(positions.astype(int), last)
    weights = (positions - below).reshape([-1 if dim == axis else 1 for dim in range(x.ndim)])
    lower, upper = x.take(below, axis), x.take(np.minimum(below + 1, last), axis)
    between: Floats = lower + (upper - lower) * weights
    return between


def _disk(radius: int, alias_sigma: float) -> Floats:
    """Return a disk's weights, [K, K], softened by a Gaussian of 3 points, or 5 for large disks."""
    reach, soft = max(radius, _LEAST_DISK), 1 if radius <= _LEAST_DISK else 2
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    edge = np.exp(-(np.arange(-soft, soft + 1) ** 2) / (2 * alias_sigma**2))
    for axis in (0, 1):
        disk = correlate1d(disk, edge / edge.sum(), axis, mode="mirror")
    return disk / np.count_nonzero(offsets[:, None] ** 2 + offsets**2 <= radius**2)
