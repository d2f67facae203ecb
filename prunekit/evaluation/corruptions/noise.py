"""Noise of sensors: Gaussian, shot, impulse and speckle noise, for images float64 [H, W, 3] in [0, 1]."""

from __future__ import annotations

import numpy as np

from prunekit.evaluation.corruptions.filters import Floats


def gaussian_noise(x: Floats, draw: np.random.Generator, sigma: float) -> Floats:
    """Add normal noise to each value, as in low light."""
    return x + draw.normal(0.0, sigma, x.shape)


def shot_noise(x: Floats, draw: np.random.Generator, photons: float) -> Floats:
    """Count photons, of which white has so many on average: Poisson noise."""
    return draw.poisson(x * photons) / photons


def impulse_noise(x: Floats, draw: np.random.Generator, share: float) -> Floats:
    """Turn a share of the values into 0 or 1: salt and pepper, in each channel by itself."""
    is_hit, is_salt = draw.random(x.shape) <= share, draw.random(x.shape) <= 0.5
    return np.where(is_hit, is_salt.astype(float), x)


def speckle_noise(x: Floats, draw: np.random.Generator, sigma: float) -> Floats:
    """Add normal noise in proportion to each value."""
    return x + x * draw.normal(0.0, sigma, x.shape)
