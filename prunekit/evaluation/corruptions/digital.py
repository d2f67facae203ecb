"""What editing and storing do, and elastic transforms, for images float64 [H, W, 3] in [0, 1]."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from prunekit.evaluation.corruptions.filters import Floats, gaussian


def contrast(x: Floats, factor: float) -> Floats:
    """Move each value towards its channel's mean."""
    means = x.mean(axis=(0, 1))
    flatter: Floats = (x - means) * factor + means
    return flatter


def saturate(x: Floats, factor: float, more: float) -> Floats:
    """Change the saturation of hue, saturation and value to S · factor + more.

    Gray has no hue and becomes red, as the benchmark's conversion has it.
    """
    value, lowest = x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True)
    chroma = value - lowest
    is_gray = chroma == 0
    hue = np.where(is_gray, np.array((0.0, 1.0, 1.0)), (value - x) / np.where(is_gray, 1, chroma))
    saturation = np.clip(chroma / np.where(value > 0, value, 1) * factor + more, 0, 1)
    changed: Floats = value * (1 - saturation * hue)
    return changed


def elastic_transform(x: Floats, draw: np.random.Generator, strength: float) -> Floats:
    """Move each pixel by smooth random fields.

    The fields are uniform in half a percent of the height, smoothed by a Gaussian of one percent of each side, and
    multiplied by `strength`; the image is interpolated linearly, and repeated mirrored outside.
    """
    (height, width), most = x.shape[:2], 0.005 * x.shape[0]
    sigma = (0.01 * height, 0.01 * width)
    right, down = (
        strength * gaussian(draw.uniform(-most, most, (height, width)), sigma, edges="reflect", truncate=3.0)
        for _ in range(2)
    )
    rows, columns = np.arange(height)[:, None] + down, np.arange(width) + right
    channels = [map_coordinates(channel, (rows, columns), order=1, mode="reflect") for channel in np.moveaxis(x, -1, 0)]
    return np.stack(channels, axis=-1)


def pixelate(x: Floats, share: float) -> Floats:
    """Average boxes so that this share of the rows and columns is left, and repeat their pixels."""
    image = _as_image(x)
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.NEAREST)) / 255


def jpeg_compression(x: Floats, quality: int) -> Floats:
    """Compress by JPEG, and decode."""
    file = io.BytesIO()
    _as_image(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def _as_image(x: Floats) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))
