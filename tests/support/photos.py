"""Images that look a little like photographs: smooth color, edges, dark and bright parts, some texture."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from prunekit.kept_images import Pixels


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """Return an image, uint8 [height, width, 3]."""
    draw = np.random.default_rng([height, width, seed])
    smooth = gaussian_filter(draw.normal(size=(height, width, 3)), (6, 6, 0), mode="wrap")
    x = 0.5 + 0.15 * smooth / max(float(smooth.std()), 1e-6) + 0.02 * draw.normal(size=smooth.shape)
    for _ in range(4):
        top, left = draw.integers(0, height), draw.integers(0, width)
        x[top : top + height // 3, left : left + width // 3] += draw.uniform(-0.4, 0.4, 3)
    pixels: Pixels = (np.clip(x, 0, 1) * 255).astype(np.uint8)
    return pixels
