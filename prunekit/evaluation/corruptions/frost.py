"""Frost on the window, for images float64 [H, W, 3] in [0, 1].

The benchmark lays crops of six photographs over the image. They are not ours to ship, so the texture is made anew here
for each image: crystals are the crests of random fields that are smooth along one direction, three directions over
each other. Weights of image and frost are the benchmark's; mean, contrast, tint and how the power falls with the
frequency are like the photographs', the shapes are not.
"""

from __future__ import annotations

import math

import numpy as np

from prunekit.evaluation.corruptions.filters import Floats

# Of the six photographs: means from 0.35 to 0.81, standard deviations from 0.07 to 0.17, and bluish.
_MEANS, _CONTRAST = (0.35, 0.81), 0.12
_TINT = np.array((-0.07, 0.01, 0.06))
_DIRECTIONS, _LENGTH = 3, 5.0  # crystals are five times as long as wide


def frost(x: Floats, draw: np.random.Generator, image_weight: float, frost_weight: float) -> Floats:
    """Add frost to an image."""
    return image_weight * x + frost_weight * frost_texture(x.shape[0], x.shape[1], draw)


def frost_texture(height: int, width: int, draw: np.random.Generator) -> Floats:
    """Return a texture of frost, [height, width, 3] in [0, 1]."""
    mean = draw.uniform(*_MEANS)
    turns = draw.uniform(0, math.pi / _DIRECTIONS) + np.arange(_DIRECTIONS) * math.pi / _DIRECTIONS
    crystals = [-np.abs(_streaks(height, width, turn, draw, _LENGTH, fall=1.6)) for turn in turns]
    texture = _standardized(np.max(crystals, axis=0) + 0.3 * _streaks(height, width, 0.0, draw))
    frosted: Floats = np.clip(mean + _CONTRAST * texture[..., None] + _TINT, 0, 1)
    return frosted


def _streaks(
    height: int, width: int, turn: float, draw: np.random.Generator, length: float = 1.0, fall: float = 1.0
) -> Floats:
    """Return a random field [height, width], stretched along `turn`, whose amplitudes are 1 / frequency^fall."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    along, across = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
    frequency = np.hypot(length * along, across)
    spectrum = np.fft.rfft2(draw.normal(size=(height, width)))
    shaped = np.where(frequency > 0, spectrum * np.where(frequency > 0, frequency, 1) ** -fall, 0)
    return _standardized(np.fft.irfft2(shaped, s=(height, width)))


def _standardized(field: Floats) -> Floats:
    """Return a field of mean 0 and standard deviation 1; 0 where nothing varies, as in one pixel."""
    centered = field - field.mean()
    spread = float(centered.std())
    return centered / spread if spread > 1e-12 else np.zeros_like(field)
